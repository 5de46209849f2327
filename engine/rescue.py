"""Reading around bad sectors of a source.

What can be read in large pieces is read first; what failed is read again in ever smaller ones, down to the
smallest that the medium reads by itself, and tried once more before it is given up. No byte is given up
without having been asked for. docs/decisions/0013-resume.md gives the limits and why.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from imageformat.errors import BadSectorError, SourceReadError
from imageformat.formats.native.partial import blank, is_all_bad, make_map, partial_digest
from imageformat.formats.native.structs import State
from imageformat.formats.native.writer import encode_partial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from imageformat.device import BlockDevice
    from imageformat.formats.native.structs import Record
    from imageformat.formats.native.unfinished import StoredFrame
    from imageformat.formats.native.writer import EncodedBlock

MAX_BAD_BYTES = 32 << 10
"""What may be unreadable without `--rescue`: eight sectors of 4 KiB, or 64 of 512 bytes."""
MAX_RANGES = 10_000
"""Bad ranges that are remembered one by one; all are in the image."""
_SHRINK = 16
_TRIES = 2


@runtime_checkable
class SectorReader(Protocol):
    """A source that can be asked for single sectors."""

    @property
    def smallest_read(self) -> int:
        """Bytes that the medium reads at once, at least; a power of two."""
        ...

    def read_sectors(self, offset: int, size: int) -> bytes:
        """Return what `pread` does, from the medium and not from a cache; in multiples of `smallest_read`.

        The end of the source may be shorter than that.
        """
        ...


class BadRange(NamedTuple):
    """Bytes that cannot be read."""

    offset: int
    length: int

    def meets(self, offset: int, size: int) -> bool:
        """Tell whether any of them lie in a range."""
        return self.offset < offset + size and offset < self.offset + self.length


class Salvaged(NamedTuple):
    """What of a range could be read, with zeros for the rest."""

    raw: memoryview
    bad: tuple[BadRange, ...]
    """Ascending, not touching; offsets on the source."""


class Rescuer:
    """Reads what can be read, and counts what cannot. Thread-safe.

    ``read`` reads large pieces of the source. ``limit`` is how many bytes may be bad before that is an
    error; None: any number.
    """

    def __init__(
        self, source: BlockDevice, read: Callable[[int, int], bytes | memoryview], limit: int | None
    ) -> None:
        self._source = source
        self._read_all = read
        self._limit = limit
        self._lock = threading.Lock()
        self._read = source.read_sectors if isinstance(source, SectorReader) else source.pread
        self._smallest = source.smallest_read if isinstance(source, SectorReader) else 512
        self._good: int | None = None
        self.bad_bytes = 0
        self.ranges: list[BadRange] = []

    def read(self, offset: int, size: int) -> Salvaged:
        """Read a range, and what can be read of it when that fails.

        Raises:
            BadSectorError: too much is bad.
            SourceReadError: the source is gone, or failed otherwise.
        """
        try:
            whole = memoryview(self._read_all(offset, size))
        except BadSectorError:
            raw = bytearray(size)
            bad: list[BadRange] = []
            self._in_pieces(offset, size, offset, raw, bad)
            if bad:
                self._expect_present()
            return Salvaged(memoryview(raw), tuple(self._joined(bad)))
        self._good = offset
        return Salvaged(whole, ())

    def _in_pieces(self, offset: int, size: int, start: int, raw: bytearray, bad: list[BadRange]) -> None:
        step = -(-size // _SHRINK // self._smallest) * self._smallest
        pieces = [BadRange(at, min(step, offset + size - at)) for at in range(offset, offset + size, step)]
        for piece in [piece for piece in pieces if not self._attempt(piece, start, raw)]:
            if piece.length > self._smallest:
                self._in_pieces(*piece, start, raw, bad)
            elif not any(self._attempt(piece, start, raw) for _ in range(_TRIES - 1)):
                self._count(piece)
                bad.append(piece)

    def _attempt(self, piece: BadRange, start: int, raw: bytearray) -> bool:
        try:
            data = self._read(*piece)
        except BadSectorError:
            return False
        raw[piece.offset - start : piece.offset - start + piece.length] = data
        self._good = piece.offset
        return True

    def _count(self, piece: BadRange) -> None:
        with self._lock:
            self.bad_bytes += piece.length
            if len(self.ranges) < MAX_RANGES:
                self.ranges.append(piece)
            exceeded = self._limit is not None and self.bad_bytes > self._limit
            first = min(self.ranges).offset
        if exceeded:
            raise BadSectorError(
                f"more than {self._limit} bytes of the source cannot be read, the first at byte {first}: the "
                "medium is failing; --rescue images all that can be read, however much cannot"
            )

    def _expect_present(self) -> None:
        """Tell a medium that fails in places from one that is gone and fails everywhere."""
        good = self._good
        if good is None:
            return
        at = good - good % self._smallest
        for attempt in range(_TRIES):
            try:
                self._read(at, min(self._smallest, self._source.size - at))
            except BadSectorError as error:
                if attempt == _TRIES - 1:
                    raise SourceReadError(
                        f"the source answers nothing any more, not even at byte {at}, which was read before; "
                        "was it unplugged?"
                    ) from error
            else:
                return

    @staticmethod
    def _joined(bad: list[BadRange]) -> list[BadRange]:
        joined: list[BadRange] = []
        for piece in sorted(bad):
            if joined and joined[-1].offset + joined[-1].length == piece.offset:
                joined[-1] = BadRange(joined[-1].offset, joined[-1].length + piece.length)
            else:
                joined.append(piece)
        return joined

    def all_ranges(self) -> tuple[BadRange, ...]:
        """Return what is bad, ascending and joined; the first `MAX_RANGES` sectors of it."""
        with self._lock:
            return tuple(self._joined(self.ranges))


class BadBlock(NamedTuple):
    """A block of which nothing could be read."""

    block: int


def damaged_block(
    image_id: bytes,
    block: int,
    raw: memoryview,
    bad: Iterable[tuple[int, int]],
    known: Record | None,
    stored: Mapping[tuple[int, bytes], StoredFrame],
    level: int,
) -> EncodedBlock | StoredFrame | BadBlock | None:
    """Return a block with bad ranges (offset in the block, length) as it is to be stored. Thread-safe.

    ``known`` is what the parent says of it; None when that is the same. ``stored`` is what an unfinished
    image holds.
    """
    bad_map = make_map(bad, len(raw))
    if is_all_bad(bad_map, len(raw)):
        return None if known is not None and known.state == State.BAD else BadBlock(block)
    readable = blank(raw, bad_map)
    name = partial_digest(readable, bad_map)
    if known is not None and (known.state, known.digest) == (State.PARTIAL, name):
        return None
    there = stored.get((block, name))
    return there or encode_partial(image_id, block, readable, bad_map, name, level)
