"""What the items of btrfs hold: inodes, names, extents of files, roots of trees. Pure parsing.

Source: the btrfs documentation, "On-disk Format" and "Btree Items".
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from mountfs.drivers._btrfs_superblock import Root
from mountfs.drivers._btrfs_trees import Key
from mountfs.tree import Node, NodeKind

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

INODE_ITEM = 1
XATTR_ITEM = 24
DIR_ITEM = 84
DIR_INDEX = 96
EXTENT_DATA = 108
EXTENT_CHECKSUM = 128
ROOT_ITEM = 132
ROOT_BACKREF = 144
ROOT_REF = 156

INODE_NO_CHECKSUM = 0x1

_INODE = struct.Struct("<16xQ16x4IQQ40xqIqIqIqI")
_SECOND = 1_000_000_000
_NAME = struct.Struct("<QBQQHHB")
_EXTENT = struct.Struct("<QQBBHB")
_EXTENT_PLACE = struct.Struct("<4Q")
_INLINE, _REGULAR, _PREALLOCATED = range(3)
_ROOT_SIZE = 239
_ROOT_REF = struct.Struct("<QQH")

KINDS = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFDIR: NodeKind.DIRECTORY,
    stat.S_IFLNK: NodeKind.SYMLINK,
    stat.S_IFIFO: NodeKind.FIFO,
    stat.S_IFSOCK: NodeKind.SOCKET,
    stat.S_IFCHR: NodeKind.CHARACTER_DEVICE,
    stat.S_IFBLK: NodeKind.BLOCK_DEVICE,
}
NAME_KINDS = {
    1: NodeKind.FILE,
    2: NodeKind.DIRECTORY,
    3: NodeKind.CHARACTER_DEVICE,
    4: NodeKind.BLOCK_DEVICE,
    5: NodeKind.FIFO,
    6: NodeKind.SOCKET,
    7: NodeKind.SYMLINK,
}
"""What the entry of a directory says of the kind."""


@dataclass(frozen=True, slots=True)
class Inode:
    """One inode item, checked."""

    number: int
    kind: NodeKind
    mode: int
    size: int
    links: int
    uid: int
    gid: int
    rdev: int
    flags: int
    times: tuple[int, int, int, int]
    """Of access, change, modification and birth, in ns."""

    def to_node(self, name: bytes, key: Hashable, shown: int) -> Node:
        """Describe it under a name; ``shown`` is its number in the whole tree."""
        accessed, changed, modified, born = self.times
        device = (self.rdev >> 20 & 0xFFF, self.rdev & 0xF_FFFF)
        is_device = self.kind in {NodeKind.CHARACTER_DEVICE, NodeKind.BLOCK_DEVICE}
        return Node(
            name=name,
            kind=self.kind,
            key=key,
            size=self.size,
            mode=stat.S_IMODE(self.mode),
            uid=self.uid,
            gid=self.gid,
            links=self.links,
            inode=shown,
            atime_ns=accessed,
            mtime_ns=modified,
            ctime_ns=changed,
            birth_ns=born,
            device=device if is_device else (0, 0),
        )


def parse_inode(number: int, raw: bytes) -> Inode:
    """Read an inode item.

    Raises:
        VolumeError: it is too short, or its mode or size makes no sense.
    """
    if len(raw) < _INODE.size:
        raise VolumeError(f"inode {number} is damaged: {len(raw)} bytes")
    size, links, uid, gid, mode, rdev, flags, *stamps = _INODE.unpack_from(raw)
    kind = KINDS.get(stat.S_IFMT(mode))
    if kind is None or size >= 1 << 63:
        raise VolumeError(f"inode {number} is damaged: mode {mode:#o}, {size} bytes")
    accessed, a_part, changed, c_part, modified, m_part, born, b_part = stamps
    times = (
        accessed * _SECOND + a_part,
        changed * _SECOND + c_part,
        modified * _SECOND + m_part,
        born * _SECOND + b_part,
    )
    return Inode(number, kind, mode, size, links, uid, gid, rdev, flags, times)


class Name(NamedTuple):
    """One entry of a directory, or one extended attribute."""

    target: Key
    """The inode, or the root of a subvolume."""
    kind: int
    name: bytes
    value: bytes


def parse_names(raw: bytes) -> Iterator[Name]:
    """Yield the entries of one item; there are several where hashes of names collide.

    Raises:
        VolumeError: one does not fit.
    """
    at = 0
    while at < len(raw):
        number, kind, offset, _, value_size, name_size, what = _NAME.unpack_from(raw, at)
        start = at + _NAME.size
        middle, end = start + name_size, start + name_size + value_size
        if end > len(raw):
            raise VolumeError("a name of btrfs is damaged: it does not fit")
        yield Name(Key(number, kind, offset), what, raw[start:middle], raw[middle:end])
        at = end


class Extent(NamedTuple):
    """A part of a file: inline bytes, bytes on the volume, or nothing yet."""

    generation: int
    raw_size: int
    """Of all of it, uncompressed."""
    compression: int
    inline: bytes | None
    kind: int
    address: int
    """Logical; 0 for a hole."""
    stored_size: int
    skip: int
    """Where in the uncompressed extent this part of the file begins."""
    length: int

    @property
    def is_written(self) -> bool:
        """False: it is preallocated, and reads as zeros."""
        return self.kind != _PREALLOCATED


def parse_extent(raw: bytes) -> Extent:
    """Read the item of a file's extent.

    Raises:
        VolumeError: it is too short, encrypted, or of no known kind.
    """
    generation, raw_size, compression, encryption, encoding, kind = _EXTENT.unpack_from(raw)
    if encryption or encoding:
        raise VolumeError(f"an extent is encoded in a way that is not known ({encryption}, {encoding})")
    if kind == _INLINE:
        inline = raw[_EXTENT.size :]
        return Extent(generation, raw_size, compression, inline, kind, 0, len(inline), 0, raw_size)
    if kind not in {_REGULAR, _PREALLOCATED}:
        raise VolumeError(f"an extent is of the kind {kind}, which is not known")
    address, stored_size, skip, length = _EXTENT_PLACE.unpack_from(raw, _EXTENT.size)
    return Extent(generation, raw_size, compression, None, kind, address, stored_size, skip, length)


class TreeRoot(NamedTuple):
    """The item of a tree's root."""

    root: Root
    directory: int
    """The inode that is the top of a subvolume."""
    references: int
    """0: deleted, and on the way out."""


def parse_root(raw: bytes) -> TreeRoot:
    """Read the item of a tree's root.

    Raises:
        VolumeError: it is too short.
    """
    if len(raw) < _ROOT_SIZE:
        raise VolumeError("the root of a tree is damaged: it is too short")
    generation, directory, address = struct.unpack_from("<QQQ", raw, 160)
    (references,) = struct.unpack_from("<I", raw, 216)
    return TreeRoot(Root(address, generation, raw[238]), directory, references)


def parse_root_ref(raw: bytes) -> tuple[int, bytes]:
    """Read where a subvolume is entered in its parent: inode of the directory, and name."""
    directory, _, size = _ROOT_REF.unpack_from(raw)
    return directory, raw[_ROOT_REF.size : _ROOT_REF.size + size]
