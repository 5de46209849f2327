"""The chunks of an evidence file: found through tables that are loaded when needed, decoded and proven.

Both versions of the format are brought to one form: a table that gives its entries packed, each with place,
length and flags. Source: J. Metz, Expert Witness Compression Format specification, versions 1 and 2.
"""

from __future__ import annotations

import bz2
import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from imageformat.cache import BlockCache
from imageformat.errors import CorruptImageError
from imageformat.extent import ExtentKind
from imageformat.formats._stretches import Stretch, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from imageformat.device import BlockDevice

ENTRY = struct.Struct("<QII")
"""Place in the file (or the pattern), stored length, flags."""
COMPRESSED, CHECKSUMED, PATTERN = 1, 2, 4
MAX_TABLE_ENTRIES = 1 << 20
MAX_CHUNK_SIZE = 64 << 20
_TABLES_KEPT = 4 << 20
_UNITS_KEPT = 1 << 20


@dataclass(frozen=True, slots=True)
class Table:
    """A run of chunks in one segment."""

    name: str
    """Of the segment, for errors."""
    file: BlockDevice
    count: int
    load: Callable[[], bytes]
    """Returns the entries, packed as `ENTRY`; raises CorruptImageError when they are damaged."""


class BadSectors(NamedTuple):
    """A range of the disk that could not be read when the image was made, in bytes."""

    start: int
    end: int


def _plain(content: bytes, size: int, flags: int) -> bytes:
    """Return the first ``size`` bytes, which their Adler-32 follows.

    Raises:
        CorruptImageError: it does not fit; the caller adds the place.
    """
    data = content[:size]
    stated = content[size : size + 4]
    if flags & CHECKSUMED and (len(stated) < 4 or zlib.adler32(data) != int.from_bytes(stated, "little")):
        raise CorruptImageError("has a wrong checksum")
    return data


def inflate(content: bytes, longest: int, *, bzip2: bool = False) -> bytes:
    """Decompress what must have at most ``longest`` bytes; never makes more.

    Raises:
        CorruptImageError: it is damaged or longer; the caller adds the place.
    """
    try:
        if bzip2:
            unpacker = bz2.BZ2Decompressor()
            found = unpacker.decompress(content, longest + 1)
            while not unpacker.eof and not unpacker.needs_input and len(found) <= longest:
                found += unpacker.decompress(b"", longest + 1 - len(found))
            is_whole = unpacker.eof
        else:
            decoder = zlib.decompressobj()
            found = decoder.decompress(content, longest + 1)
            is_whole = decoder.eof
    except (zlib.error, OSError, ValueError) as error:
        raise CorruptImageError(f"is damaged: {error}") from error
    if not is_whole or len(found) > longest:
        raise CorruptImageError("is cut short, or longer than it can be")
    return found


class Chunks:
    """Where each byte of the disk lies. Thread-safe.

    Raises:
        CorruptImageError: there are no tables.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        size: int,
        chunk_size: int,
        bad: Sequence[BadSectors] = (),
        *,
        bzip2: bool = False,
    ) -> None:
        self._tables = tuple(tables)
        self._size = size
        self._chunk_size = chunk_size
        self._bzip2 = bzip2
        self._firsts: list[int] = []
        first = 0
        for table in self._tables:
            self._firsts.append(first)
            first += table.count
        self._entries = BlockCache(_TABLES_KEPT)
        self._units = BlockCache(max(_UNITS_KEPT, 2 * chunk_size))
        self._bad = sorted(bad)
        self._bad_ends = [entry.end for entry in self._bad]

    def locate(self, offset: int, size: int) -> Iterator[Stretch]:
        """Describe a range of the disk, with what could not be read as BAD."""
        end = offset + size
        at = bisect_right(self._bad_ends, offset)
        while at < len(self._bad) and self._bad[at].start < end:
            start, stop = max(offset, self._bad[at].start), min(end, self._bad[at].end)
            yield from self.stored(offset, start - offset)
            yield Stretch(stop - start, ExtentKind.BAD)
            offset, at = stop, at + 1
        yield from self.stored(offset, end - offset)

    def stored(self, offset: int, size: int) -> Iterator[Stretch]:
        """Describe a range as it is stored: what could not be read is filled with zeros."""
        end = offset + size
        while offset < end:
            chunk = offset // self._chunk_size
            start = chunk * self._chunk_size
            stop = min(end, start + self._chunk_size)
            held = min(self._chunk_size, self._size - start)
            unit = Unit(held, partial(self._decode, chunk, held), partial(self._units.get, chunk))
            yield Stretch(stop - offset, unit, offset - start)
            offset = stop

    def _decode(self, chunk: int, held: int) -> bytes:
        """Read, prove and decode one chunk.

        Raises:
            CorruptImageError
        """
        number = bisect_right(self._firsts, chunk) - 1
        table = self._tables[number]
        entries = self._entries.get(number, table.load)
        place, length, flags = ENTRY.unpack_from(entries, (chunk - self._firsts[number]) * ENTRY.size)
        try:
            if flags & COMPRESSED and flags & PATTERN:
                pattern: bytes = place.to_bytes(8, "little")
                return (pattern * (held // 8 + 1))[:held]
            if not length or length > 2 * self._chunk_size + 64 or place + length > table.file.size:
                raise CorruptImageError(f"cannot have {length} bytes; was the file cut short?")
            if flags & COMPRESSED:
                found = inflate(table.file.pread(place, length), self._chunk_size, bzip2=self._bzip2)
                if len(found) < held:
                    raise CorruptImageError(f"has {len(found)} bytes instead of {held}")
                return found[:held]
            if length < held:
                raise CorruptImageError(f"has {length} bytes instead of {held}")
            return _plain(table.file.pread(place, min(held + 4, table.file.size - place)), held, flags)
        except CorruptImageError as error:
            raise CorruptImageError(f"{table.name}: chunk {chunk} at {place} {error}") from error
