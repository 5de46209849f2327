"""Inodes of XFS, versions 1 to 3, and their two forks.

Source: "XFS Algorithms & Data Structures", section On-disk Inode (timestamps with and without bigtime, extent
counters of 16, 32 and 48 bits).
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.tree import Node, NodeKind

if TYPE_CHECKING:
    from mountfs.drivers._tree import ChunkReader
    from mountfs.drivers._xfs_layout import Superblock

FORMAT_DEVICE = 0
FORMAT_LOCAL = 1
FORMAT_EXTENTS = 2
FORMAT_BTREE = 3

_MAGIC = b"IN"
_CORE = 100
_CORE_3 = 176
_CHECKSUM = 100
_FLAG_REALTIME = 0x1
_FLAG2_SHARED = 0x2
_FLAG2_BIG_TIME = 0x8
_FLAG2_MANY_EXTENTS = 0x10
_BIG_TIME_START_NS = -(2**31) * 1_000_000_000

_KINDS = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFDIR: NodeKind.DIRECTORY,
    stat.S_IFLNK: NodeKind.SYMLINK,
    stat.S_IFIFO: NodeKind.FIFO,
    stat.S_IFSOCK: NodeKind.SOCKET,
    stat.S_IFCHR: NodeKind.CHARACTER_DEVICE,
    stat.S_IFBLK: NodeKind.BLOCK_DEVICE,
}
_DEVICES = frozenset({NodeKind.CHARACTER_DEVICE, NodeKind.BLOCK_DEVICE})

_HEAD = struct.Struct(">2sHBBHIII")
"""Magic, mode, version, format, links of version 1, uid, gid, links."""
_TIMES = struct.Struct(">QQQQ")
"""Access, modification, change; size."""


@dataclass(frozen=True, slots=True)
class Fork:
    """One of the two areas after the core of an inode: where content, or attributes, lie."""

    format: int
    raw: bytes
    extents: int
    """How many there are, in the formats that have them."""


@dataclass(frozen=True, slots=True)
class Inode:
    """One inode, as stored; `raw` is all of it."""

    number: int
    raw: bytes
    kind: NodeKind
    mode: int
    version: int
    format: int
    size: int

    @property
    def is_realtime(self) -> bool:
        """Whether its content lies on the realtime device."""
        return bool(self.raw[91] & _FLAG_REALTIME)

    @property
    def may_share(self) -> bool:
        """Whether blocks of it may belong to other files as well."""
        return bool(self._flags2 & _FLAG2_SHARED)

    @property
    def _flags2(self) -> int:
        return self.raw[127] if self.version == 3 else 0

    @property
    def _data_start(self) -> int:
        return _CORE_3 if self.version == 3 else _CORE

    @property
    def _attribute_start(self) -> int:
        """Where the attribute fork begins; the end of the inode when there is none."""
        start = self._data_start + self.raw[82] * 8 if self.raw[82] else len(self.raw)
        if start > len(self.raw):
            raise VolumeError(f"inode {self.number} is damaged: its attributes begin behind its end")
        return start

    @property
    def data_fork(self) -> Fork:
        """Content, target or entries."""
        if self._flags2 & _FLAG2_MANY_EXTENTS:
            (extents,) = struct.unpack_from(">Q", self.raw, 24)
        else:
            (extents,) = struct.unpack_from(">I", self.raw, 76)
        return Fork(self.format, self.raw[self._data_start : self._attribute_start], extents)

    @property
    def attribute_fork(self) -> Fork | None:
        """Extended attributes; None when it has none."""
        if not self.raw[82]:
            return None
        layout, at = (">I", 76) if self._flags2 & _FLAG2_MANY_EXTENTS else (">H", 80)
        return Fork(
            self.raw[83], self.raw[self._attribute_start :], struct.unpack_from(layout, self.raw, at)[0]
        )

    def to_node(self, name: bytes) -> Node:
        """Describe it under a name."""
        _, _, _, _, old_links, uid, gid, links = _HEAD.unpack_from(self.raw)
        atime, mtime, ctime, _ = _TIMES.unpack_from(self.raw, 32)
        return Node(
            name=name,
            kind=self.kind,
            key=self.number,
            size=self.size,
            mode=self.mode & 0o7777,
            uid=uid,
            gid=gid,
            links=old_links if self.version == 1 else links,
            inode=self.number,
            atime_ns=self._time(atime),
            mtime_ns=self._time(mtime),
            ctime_ns=self._time(ctime),
            birth_ns=self._time(struct.unpack_from(">Q", self.raw, 144)[0]) if self.version == 3 else 0,
            device=self._device() if self.kind in _DEVICES else (0, 0),
        )

    def _time(self, stored: int) -> int:
        """Nanoseconds since December 1901, or signed seconds and nanoseconds in 32 bits each."""
        if self._flags2 & _FLAG2_BIG_TIME:
            return _BIG_TIME_START_NS + stored
        seconds, fraction = stored >> 32, stored & 0xFFFF_FFFF
        return (seconds - (1 << 32) if seconds >> 31 else seconds) * 1_000_000_000 + fraction

    def _device(self) -> tuple[int, int]:
        """14 bits of major number, of which the kernel takes 9, and 18 of minor."""
        if self.format != FORMAT_DEVICE:
            raise VolumeError(f"inode {self.number} is damaged: a device of format {self.format}")
        (number,) = struct.unpack_from(">I", self.raw, self._data_start)
        return (number >> 18 & 0x1FF, number & 0x3_FFFF)


def read_inode(chunks: ChunkReader, layout: Superblock, number: int) -> Inode:
    """Find and read one inode that is in use.

    Raises:
        VolumeError: there is none of that number, or it is damaged.
    """
    raw = chunks.read(layout.inode_offset(number), layout.inode_size, f"inode {number}")
    magic, mode, version, data_format, _, _, _, _ = _HEAD.unpack_from(raw)
    if magic != _MAGIC or version not in ((3,) if layout.has_checksums else (1, 2)):
        raise VolumeError(f"inode {number} is damaged: it is none")
    if version == 3:
        layout.prove(raw, _CHECKSUM, f"inode {number}")
        if struct.unpack_from(">Q16s", raw, 152) != (number, layout.metadata_uuid):
            raise VolumeError(f"inode {number} is damaged: it is another one")
    kind = _KINDS.get(stat.S_IFMT(mode))
    if kind is None:
        raise VolumeError(f"inode {number} has the mode {mode:#o}")
    (size,) = struct.unpack_from(">Q", raw, 56)
    if size >> 63:
        raise VolumeError(f"inode {number} is damaged: it claims {size} bytes")
    return Inode(number, raw, kind, mode, version, data_format, size)
