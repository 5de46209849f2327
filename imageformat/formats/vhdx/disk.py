"""The disk in a VHDX file: its blocks, where the block allocation table says they lie.

Source: [MS-VHDX] section 2.5. Payload blocks come in chunks of as many as one sector bitmap block describes;
the entry of that bitmap follows theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, IncompleteImageError
from imageformat.extent import ExtentKind
from imageformat.formats._entries import PagedTable, flags_low_first, runs
from imageformat.formats._stretches import Stretch, within
from imageformat.formats.vhdx.structs import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from imageformat.formats.vhdx.structs import Parameters, Region

_STATE = 7
_NOT_PRESENT, _UNDEFINED, _ZERO, _UNMAPPED, _UNMAPPED_IN_DRAFT, _FULLY, _PARTIALLY = 0, 1, 2, 3, 5, 6, 7
_UNUSED = frozenset({_UNDEFINED, _UNMAPPED, _UNMAPPED_IN_DRAFT})
_BITMAP_SECTORS = 8 * MIB
"""Flags in one sector bitmap block."""
_MIN_OFFSET = MIB


class Blocks:
    """Where each byte of the disk lies. Thread-safe.

    Raises:
        CorruptImageError: the region of the table is too small for the disk.
        IncompleteImageError: the file ends before the table does.
    """

    def __init__(
        self,
        name: str,
        file: BlockDevice,
        table: Region,
        parameters: Parameters,
        parent: BlockDevice | None,
    ) -> None:
        self._name = name
        self._file = file
        self._parent = parent
        self._block_size = parameters.block_size
        self._sector_size = parameters.sector_size
        self._ratio = _BITMAP_SECTORS * parameters.sector_size // parameters.block_size
        count = -(-parameters.size // parameters.block_size)
        if parameters.has_parent:
            entries = -(-count // self._ratio) * (self._ratio + 1)
        else:
            entries = count + (count - 1) // self._ratio
        if entries * 8 > table.size:
            raise CorruptImageError(f"{name}: block allocation table of {table.size} bytes is too small")
        if table.offset + entries * 8 > file.size:
            raise IncompleteImageError(f"{name}: was cut short: its block allocation table is not all there")
        self._table = PagedTable(file, table.offset, entries, "<Q")

    def locate(self, offset: int, size: int) -> Iterator[Stretch]:
        """Describe a range of the disk; what is wrong with a block is the error of its range."""
        end = offset + size
        entries = self._entries(offset // self._block_size, -(-end // self._block_size))
        for block, entry in entries:
            stop = min(end, (block + 1) * self._block_size)
            try:
                yield from list(self._block(block, entry, offset, stop - offset))
            except CorruptImageError as error:
                yield Stretch(stop - offset, error)
            offset = stop

    def _entries(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the blocks with their entries, chunk by chunk, because bitmaps lie between."""
        while first < stop:
            chunk = first // self._ratio
            count = min(stop, (chunk + 1) * self._ratio) - first
            yield from enumerate(self._table.entries(first + chunk, count), first)
            first += count

    def _block(self, block: int, entry: int, offset: int, length: int) -> Iterator[Stretch]:
        """Describe a range inside one block.

        Raises:
            CorruptImageError
        """
        state = entry & _STATE
        inner = offset - block * self._block_size
        if state == _FULLY:
            yield Stretch(length, self._file, self._place(block, entry, inner + length) + inner)
        elif state == _PARTIALLY and self._parent is not None:
            start = self._place(block, entry, inner + length)
            yield from self._mixed(block, start, offset, length, self._parent)
        elif state == _NOT_PRESENT and self._parent is not None:
            yield from within(self._parent, length, offset)
        elif state in (_NOT_PRESENT, _ZERO):
            yield Stretch(length, ExtentKind.ZERO)
        elif state in _UNUSED:
            yield Stretch(length, ExtentKind.UNUSED)
        else:
            raise CorruptImageError(f"{self._name}: block {block} has the impossible state {state}")

    def _place(self, block: int, entry: int, size: int) -> int:
        """Return where the first ``size`` bytes of a block, or of a bitmap, are stored.

        Raises:
            CorruptImageError: that is not inside the file.
        """
        start = (entry >> 20) * MIB
        if start < _MIN_OFFSET or start + size > self._file.size:
            raise CorruptImageError(
                f"{self._name}: block {block} is to be at {start}, outside of the file; was it cut short?"
            )
        return start

    def _mixed(
        self, block: int, start: int, offset: int, length: int, parent: BlockDevice
    ) -> Iterator[Stretch]:
        """Describe a range of a block of which some sectors are here and some in the parent."""
        first = offset // self._sector_size
        stop = -(-(offset + length) // self._sector_size)
        position, end = offset, offset + length
        edge = first * self._sector_size
        for count, is_here in runs(self._flags(block, first, stop)):
            edge += count * self._sector_size
            here = min(edge, end) - position
            if is_here:
                yield Stretch(here, self._file, start + position - block * self._block_size)
            else:
                yield from within(parent, here, position)
            position += here

    def _flags(self, block: int, first: int, stop: int) -> str:
        """Return the flags of sectors of one block: 1 is here, 0 is in the parent."""
        chunk = block // self._ratio
        entry = self._table.entry((chunk + 1) * self._ratio + chunk)
        if entry & _STATE != _FULLY:
            raise CorruptImageError(f"{self._name}: block {block} is partly present, and its bitmap is not")
        bitmap = self._place(block, entry, MIB)
        base = chunk * _BITMAP_SECTORS
        byte, stop_byte = (first - base) // 8, -(-(stop - base) // 8)
        flags = flags_low_first(self._file.pread(bitmap + byte, stop_byte - byte))
        skip = first - base - byte * 8
        return flags[skip : skip + stop - first]
