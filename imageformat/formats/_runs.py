"""Disks kept in clusters: a map says where each lies, and what is not there lies in the file below."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from imageformat.device import check_range
from imageformat.errors import CorruptImageError, IncompleteImageError
from imageformat.extent import Extent, ExtentKind, coalesce, shift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from imageformat.device import BlockDevice

BLOCK_SIZE = 64 << 10


class Kind(enum.Enum):
    """What an image says of a range of the disk."""

    STORED = "stored"
    PACKED = "packed"
    """Compressed: the bytes come from whoever unpacks the format."""
    ZERO = "zero"
    ABSENT = "absent"
    """Not in this image: what the file below has there, or zeros."""


class Run(NamedTuple):
    """A range of the disk of one kind."""

    kind: Kind
    offset: int
    length: int
    place: int
    """STORED: where its first byte is in the file. PACKED: what the format needs to find its one cluster."""


def joined(runs: Iterable[Run]) -> Iterator[Run]:
    """Join neighbours that are one range of the file too, or need none; PACKED ones stay alone."""
    pending: Run | None = None
    for run in runs:
        if (
            pending is not None
            and pending.kind is run.kind is not Kind.PACKED
            and (run.kind is not Kind.STORED or pending.place + pending.length == run.place)
        ):
            pending = Run(run.kind, pending.offset, pending.length + run.length, pending.place)
            continue
        if pending is not None:
            yield pending
        pending = run
    if pending is not None:
        yield pending


def _nothing_packed(runs: Sequence[Run]) -> Iterator[bytes]:
    raise CorruptImageError(f"disk offset {runs[0].offset}: compressed, which this format never is")


class RunDisk:
    """A disk by its map. Any number of threads may call it at once, as far as its functions allow it.

    ``runs`` describes a range: ascending, contiguous. ``data`` is where stored runs lie, ``below`` the disk
    that shows through; both stay open. ``unpack`` returns the bytes of neighbouring PACKED runs, in order.
    """

    def __init__(
        self,
        name: str,
        size: int,
        runs: Callable[[int, int], Iterator[Run]],
        data: BlockDevice,
        below: BlockDevice | None = None,
        unpack: Callable[[Sequence[Run]], Iterator[bytes]] = _nothing_packed,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        self.size = size
        self.block_size = block_size
        self._name = name
        self._runs = runs
        self._data = data
        self._data_size = data.size
        self._below = below
        self._unpack = unpack
        self._known: tuple[int, int, Sequence[Run]] = (0, 0, ())

    def _looked_up(self, offset: int, size: int) -> Iterable[Run]:
        """Describe a range. A block is asked for twice in a row: what it is, and then its bytes."""
        if size > self.block_size:
            return self._runs(offset, size)
        known = self._known
        if known[0] == offset and known[1] == size:
            return known[2]
        runs = tuple(self._runs(offset, size))
        self._known = (offset, size, runs)
        return runs

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`.

        Raises:
            CorruptImageError, IncompleteImageError: the map or a cluster is damaged or not in the file.
            MountfsError: what the file below says.
        """
        check_range(self.size, offset, size)
        parts: list[bytes] = []
        packed: list[Run] = []
        for run in self._looked_up(offset, size):
            if run.kind is Kind.PACKED:
                packed.append(run)
                continue
            if packed:
                parts += self._unpack(packed)
                packed = []
            parts.append(self._read(run))
        if packed:
            parts += self._unpack(packed)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, run: Run) -> bytes:
        if run.kind is Kind.STORED:
            self._check_stored(run)
            return self._data.pread(run.place, run.length)
        inside = self._below_length(run)
        if inside and self._below is not None:
            shown = self._below.pread(run.offset, inside)
            return shown if inside == run.length else shown + bytes(run.length - inside)
        return bytes(run.length)

    def _below_length(self, run: Run) -> int:
        """Return how much of a run shows the disk below, which may be shorter."""
        if run.kind is not Kind.ABSENT or self._below is None:
            return 0
        return max(0, min(run.length, self._below.size - run.offset))

    def _check_stored(self, run: Run) -> None:
        if run.place + run.length > self._data_size:
            raise IncompleteImageError(
                f"{self._name}: disk offset {run.offset}: is kept at {run.place}, after the end of the file"
            )

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`; holes of the file that long stored runs lie in are ZERO too."""
        check_range(self.size, offset, size)
        runs = self._looked_up(offset, size)
        if isinstance(runs, tuple) and len(runs) == 1:
            return self._extents(runs[0])
        return coalesce(extent for run in runs for extent in self._extents(run))

    def _extents(self, run: Run) -> Iterator[Extent]:
        if run.kind is Kind.PACKED:
            yield Extent(run.offset, run.length, ExtentKind.DATA)
        elif run.kind is Kind.STORED:
            self._check_stored(run)
            if run.length <= BLOCK_SIZE:  # to ask the file would take longer than to read
                yield Extent(run.offset, run.length, ExtentKind.DATA)
                return
            yield from shift(self._data.extents(run.place, run.length), run.offset - run.place)
        else:
            inside = self._below_length(run)
            if inside and self._below is not None:
                yield from self._below.extents(run.offset, inside)
            if run.length > inside:
                yield Extent(run.offset + inside, run.length - inside, ExtentKind.ZERO)

    def close(self) -> None:
        """The files are closed by the image."""
