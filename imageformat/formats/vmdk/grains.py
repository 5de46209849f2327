"""A sparse VMDK file: its grains, where its directory and tables say they lie.

Each table is there twice in most files. The copies are held against each other: an entry in which they
differ is an error, unless only one of them can be meant.
"""

from __future__ import annotations

import struct
import zlib
from functools import partial
from typing import TYPE_CHECKING

from imageformat.cache import BlockCache
from imageformat.errors import CorruptImageError, IncompleteImageError
from imageformat.extent import ExtentKind
from imageformat.formats._entries import PagedTable
from imageformat.formats._stretches import Stretch, Unit, within
from imageformat.formats.vmdk.structs import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from imageformat.formats.vmdk.structs import SparseHeader

_KEPT = 1 << 20
_MARKER = struct.Struct("<QI")
_ABSENT, _ZEROED = 0, 1


class Grains:
    """Where each byte of a sparse file's part of the disk lies. Thread-safe.

    ``base`` is where this part begins on the disk, and so in ``parent``.

    Raises:
        IncompleteImageError: the file ends before its grain directory does.
    """

    def __init__(
        self, name: str, file: BlockDevice, header: SparseHeader, parent: BlockDevice | None, base: int
    ) -> None:
        self._name = name
        self._file = file
        self._header = header
        self._parent = parent
        self._base = base
        self._directories = [
            PagedTable(file, place, header.tables, "<I")
            for place in (header.directory, header.redundant_directory)
            if place and place + header.tables * 4 <= file.size
        ]
        if not self._directories:
            raise IncompleteImageError(f"{name}: was cut short: its grain directory is not there")
        self._tables = BlockCache(_KEPT)
        self._units = BlockCache(max(_KEPT, 2 * header.grain_size))

    def locate(self, offset: int, size: int) -> Iterator[Stretch]:
        """Describe a range of the part; what is wrong with a grain is the error of its range."""
        grain_size, per_table = self._header.grain_size, self._header.table_entries
        end = offset + size
        while offset < end:
            grain = offset // grain_size
            number = grain // per_table
            stop = min(end, (number + 1) * per_table * grain_size)
            try:
                tables = self._load(number)
            except CorruptImageError as error:
                yield Stretch(stop - offset, error)
                offset = stop
                continue
            if not tables:
                yield from self._absent(offset, stop - offset)
                offset = stop
            while offset < stop:
                grain = offset // grain_size
                length = min(stop, (grain + 1) * grain_size) - offset
                try:
                    yield from list(self._grain(tables, grain, offset, length))
                except CorruptImageError as error:
                    yield Stretch(length, error)
                offset += length

    def _absent(self, offset: int, length: int) -> Iterator[Stretch]:
        if self._parent is None:
            yield Stretch(length, ExtentKind.ZERO)
        else:
            yield from within(self._parent, length, self._base + offset)

    def _load(self, number: int) -> bytes:
        """Return a grain table, and its copy behind it if there is one; nothing when no grain of it is there.

        Raises:
            CorruptImageError: the directories contradict each other.
        """
        known = self._tables.peek(number)
        return self._tables.get(number, partial(self._read, number)) if known is None else known

    def _read(self, number: int) -> bytes:
        size = self._header.table_entries * 4
        places = [directory.entry(number) * SECTOR for directory in self._directories]
        usable = [place for place in places if place + size <= self._file.size]
        if not usable:
            raise CorruptImageError(
                f"{self._name}: grain table {number} is to be at {places[0]}, outside of the file; "
                "was it cut short?"
            )
        if not any(usable):
            return b""
        if not all(usable):
            raise CorruptImageError(f"{self._name}: the directories contradict each other on table {number}")
        return b"".join(self._file.pread(place, size) for place in usable)

    def _grain(self, tables: bytes, grain: int, offset: int, length: int) -> Iterator[Stretch]:
        """Describe a range inside one grain.

        Raises:
            CorruptImageError
        """
        at = grain % self._header.table_entries * 4
        size = self._header.table_entries * 4
        found = {
            int.from_bytes(tables[start + at : start + at + 4], "little")
            for start in range(0, len(tables), size)
        }
        inner = offset % self._header.grain_size
        possible = [entry for entry in found if self._is_possible(entry, inner + length)]
        if not possible:
            raise CorruptImageError(
                f"{self._name}: grain {grain} is to be at {max(found) * SECTOR}, outside of the file; "
                "was it cut short?"
            )
        if len(possible) > 1:
            raise CorruptImageError(f"{self._name}: the grain tables contradict each other on grain {grain}")
        entry = possible[0]
        if entry == _ABSENT:
            yield from self._absent(offset, length)
        elif entry == _ZEROED and self._header.has_zeroed_grains:
            yield Stretch(length, ExtentKind.ZERO)
        elif self._header.is_compressed:
            yield Stretch(length, self._unit(grain, entry * SECTOR), inner)
        else:
            yield Stretch(length, self._file, entry * SECTOR + inner)

    def _is_possible(self, entry: int, length: int) -> bool:
        """Tell whether an entry of a table can be right."""
        if entry == _ABSENT or (entry == _ZEROED and self._header.has_zeroed_grains):
            return True
        needed = _MARKER.size if self._header.is_compressed else length
        return entry > 0 and entry * SECTOR + needed <= self._file.size

    def _unit(self, grain: int, place: int) -> Unit:
        size = min(self._header.grain_size, self._header.capacity - grain * self._header.grain_size)
        return Unit(size, partial(self._inflate, grain, place, size), partial(self._units.get, grain))

    def _inflate(self, grain: int, place: int, size: int) -> bytes:
        """Decode a compressed grain; the marker before it tells which it is.

        Raises:
            CorruptImageError
        """
        sector, length = _MARKER.unpack(self._file.pread(place, _MARKER.size))
        longest = 2 * self._header.grain_size + SECTOR
        start = place + _MARKER.size
        if sector * SECTOR != grain * self._header.grain_size:
            raise CorruptImageError(f"{self._name}: at {place} is another grain than number {grain}")
        if length > longest or start + length > self._file.size:
            raise CorruptImageError(f"{self._name}: grain {grain} at {place} is cut short")
        decoder = zlib.decompressobj()
        try:
            content = decoder.decompress(self._file.pread(start, length), self._header.grain_size)
            content += b"" if decoder.eof else decoder.decompress(decoder.unconsumed_tail, 1)
        except zlib.error as error:
            raise CorruptImageError(f"{self._name}: grain {grain} at {place} is damaged: {error}") from error
        if not decoder.eof or not size <= len(content) <= self._header.grain_size:
            raise CorruptImageError(f"{self._name}: grain {grain} at {place} has not the length it should")
        return content[:size]
