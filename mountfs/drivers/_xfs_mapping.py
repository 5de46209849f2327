"""Where the blocks of a fork lie: extent lists and B+trees.

Source: "XFS Algorithms & Data Structures", section Data Extents. Unwritten (preallocated) extents are holes
here: the kernel reads them as zeros. Shared (reflinked) extents are like any other to a reader.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.drivers._content import MAX_RUNS, RunList, read_at
from mountfs.drivers._xfs_inode import FORMAT_BTREE, FORMAT_EXTENTS
from mountfs.drivers._xfs_layout import BlockHeader

if TYPE_CHECKING:
    from imageformat.device import BlockDevice
    from mountfs.drivers._xfs_inode import Fork
    from mountfs.drivers._xfs_layout import Superblock

_MAGIC = b"BMAP"
_MAGIC_5 = b"BMA3"
_HEADER = 24
_HEADER_5 = 72
_PROOF = BlockHeader(checksum=64, address=24, uuid=40, owner=56)
_MAX_LEVELS = 16
_RECORD = 16
_RECORDS = struct.Struct(">QQ")
_LENGTH_BITS, _SOURCE_BITS, _OFFSET_BITS = 21, 52, 54


def map_fork(
    device: BlockDevice, layout: Superblock, owner: int, fork: Fork, end: int | None = None
) -> RunList:
    """Read the whole map of a fork, up to byte ``end`` of it.

    Raises:
        VolumeError: the map is damaged: a loop, a block outside the volume, extents out of order; or the
            fork has none.
    """
    mapper = _Mapper(device, layout, owner, end)
    if fork.format == FORMAT_EXTENTS:
        if fork.extents * _RECORD > len(fork.raw):
            raise VolumeError(f"{mapper.what} is damaged: {fork.extents} extents inside an inode")
        mapper.extents(fork.raw[: fork.extents * _RECORD])
    elif fork.format == FORMAT_BTREE:
        mapper.root(fork.raw)
    else:
        raise VolumeError(f"{mapper.what} is damaged: a fork of format {fork.format}")
    return mapper.runs


class _Mapper:
    """The state of one walk; every block of the map is read once, so a loop is an error."""

    def __init__(self, device: BlockDevice, layout: Superblock, owner: int, end: int | None) -> None:
        self._device = device
        self._layout = layout
        self._owner = owner
        self._end = -(-end // layout.block_size) if end is not None else 1 << _OFFSET_BITS
        self._seen: set[int] = set()
        self._next = 0
        self.what = f"the map of inode {owner}"
        self.runs = RunList()

    def root(self, raw: bytes) -> None:
        """Read the root of a tree, which lies in the inode without a header."""
        level, count = struct.unpack_from(">HH", raw, 0)
        room = (len(raw) - 4) // 16
        if not 0 < level <= _MAX_LEVELS or not 0 < count <= room:
            raise VolumeError(f"{self.what} is damaged: a bad root")
        for number in struct.unpack_from(f">{count}Q", raw, 4 + room * 8):
            self._node(number, level - 1)

    def _node(self, number: int, level: int) -> None:
        size = self._layout.block_size
        offset = self._layout.block_offset(number, 1, self.what)
        if offset in self._seen or len(self._seen) > MAX_RUNS:
            raise VolumeError(f"{self.what} is damaged: a loop")
        self._seen.add(offset)
        raw = read_at(self._device, offset, size, self.what)
        header = _HEADER_5 if self._layout.has_checksums else _HEADER
        found, count = struct.unpack_from(">HH", raw, 4)
        room = (size - header) // 16
        if raw[:4] != (_MAGIC_5 if self._layout.has_checksums else _MAGIC) or found != level or count > room:
            raise VolumeError(f"{self.what} is damaged: a bad block")
        if self._layout.has_checksums:
            self._layout.prove_block(raw, _PROOF, self._owner, offset, self.what)
        if level == 0:
            self.extents(raw[header : header + count * _RECORD])
            return
        for below in struct.unpack_from(f">{count}Q", raw, header + room * 8):
            self._node(below, level - 1)

    def extents(self, raw: bytes) -> None:
        """Take extents: an unwritten bit, 54 bits of place in the fork, 52 of the volume, 21 of length."""
        block_size = self._layout.block_size
        for upper, lower in _RECORDS.iter_unpack(raw):
            first = upper >> 9 & ((1 << _OFFSET_BITS) - 1)
            source = (upper & 0x1FF) << 43 | lower >> _LENGTH_BITS
            count = lower & ((1 << _LENGTH_BITS) - 1)
            if first < self._next or not count:
                raise VolumeError(f"{self.what} is damaged: extents out of order at block {first}")
            self._next = first + count
            offset = self._layout.block_offset(source, count, self.what)
            count = min(count, self._end - first)
            if count > 0 and not upper >> 63:
                self.runs.add(first * block_size, count * block_size, offset)
