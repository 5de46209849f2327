"""Where the blocks of an ext inode lie: extent trees and indirect blocks.

Source: "ext4 Data Structures and Algorithms", sections Extent Tree and Direct/Indirect Block Addressing.
Unwritten (preallocated) extents are holes here: the kernel reads them as zeros.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.drivers._content import RunList, read_at
from mountfs.drivers._ext_layout import INODE_EXTENTS

if TYPE_CHECKING:
    from imageformat.device import BlockDevice
    from mountfs.drivers._ext_layout import Inode, Superblock

_EXTENT_MAGIC = 0xF30A
_MAX_DEPTH = 5
_LONGEST = 32_768
"""Lengths above this mark an extent as unwritten."""


def map_inode(device: BlockDevice, layout: Superblock, inode: Inode) -> RunList:
    """Read the whole map of an inode that has one.

    Raises:
        VolumeError: the map is damaged: a loop, a block outside the volume, extents out of order.
    """
    reader = _Mapper(device, layout, inode)
    if inode.flags & INODE_EXTENTS:
        reader.extent_node(inode.block_area, None)
    else:
        reader.pointers(inode.block_area)
    return reader.runs


class _Mapper:
    """The state of one walk; every block of the map is read once, so a loop is an error."""

    def __init__(self, device: BlockDevice, layout: Superblock, inode: Inode) -> None:
        self._device = device
        self._layout = layout
        self._what = f"the map of inode {inode.number}"
        self._end = -(-inode.size // layout.block_size)
        self._seen: set[int] = set()
        self._next = 0
        self.runs = RunList()

    def extent_node(self, raw: bytes, depth: int | None) -> None:
        """Read one node of an extent tree, and what is below it."""
        magic, entries, _, found = struct.unpack_from("<HHHH", raw, 0)
        room = (len(raw) - 12) // 12
        if magic != _EXTENT_MAGIC or entries > room or found > _MAX_DEPTH:
            raise VolumeError(f"{self._what} is damaged: a bad extent header")
        if depth is not None and (not entries or found != depth):
            raise VolumeError(f"{self._what} is damaged: an extent node at the wrong depth")
        for at in range(12, 12 + 12 * entries, 12):
            if found:
                _, low, high = struct.unpack_from("<IIH", raw, at)
                self.extent_node(self._block(low | high << 32), found - 1)
            else:
                first, length, high, low = struct.unpack_from("<IHHI", raw, at)
                self._extent(first, length, low | high << 32)

    def _extent(self, first: int, length: int, source: int) -> None:
        written = length <= _LONGEST
        length = length if written else length - _LONGEST
        if first < self._next or not length:
            raise VolumeError(f"{self._what} is damaged: extents out of order at block {first}")
        self._next = first + length
        if written:
            self._add(first, length, source)

    def _add(self, first: int, length: int, source: int) -> None:
        """Add data blocks; what lies after the end of the file is preallocated and not part of it."""
        length = min(length, self._end - first)
        if length <= 0:
            return
        if not source or source + length > self._layout.block_count:
            raise VolumeError(f"{self._what} is damaged: block {source} is outside the volume")
        size = self._layout.block_size
        self.runs.add(first * size, length * size, source * size)

    def _block(self, number: int) -> bytes:
        if number in self._seen or not number or number >= self._layout.block_count:
            raise VolumeError(f"{self._what} is damaged: it uses block {number} twice or wrongly")
        self._seen.add(number)
        size = self._layout.block_size
        return read_at(self._device, number * size, size, self._what)

    def pointers(self, area: bytes) -> None:
        """Read twelve direct pointers and the three trees of indirect blocks."""
        numbers = struct.unpack("<15I", area)
        for first, number in enumerate(numbers[:12]):
            if number:
                self._add(first, 1, number)
        per_block = self._layout.block_size // 4
        first = 12
        for level, number in enumerate(numbers[12:], start=1):
            self._indirect(first, number, level)
            first += per_block**level

    def _indirect(self, first: int, number: int, level: int) -> None:
        if not number or first >= self._end:
            return
        table = array("I", self._block(number))
        if sys.byteorder == "big":
            table.byteswap()
        if level == 1:
            self._direct(first, table)
            return
        span = (self._layout.block_size // 4) ** (level - 1)
        for index, below in enumerate(table):
            self._indirect(first + index * span, below, level - 1)

    def _direct(self, first: int, table: array[int]) -> None:
        start = table[0]
        if start and start + len(table) < 2**32 and table == array("I", range(start, start + len(table))):
            self._add(first, len(table), start)
            return
        for index, number in enumerate(table):
            if number:
                self._add(first + index, 1, number)
