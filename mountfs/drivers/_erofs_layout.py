"""On-disk structures of EROFS: superblock and inodes.

Source: the kernel's documentation of EROFS ("EROFS - Enhanced Read-Only File System", on-disk format) and
the format pages of the erofs-utils project. Numbers are little-endian.
"""

from __future__ import annotations

import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import UnsupportedVolumeError, VolumeError
from mountfs.drivers._content import MAX_FILE_SIZE, read_at
from mountfs.tree import Node, NodeKind

if TYPE_CHECKING:
    from imageformat.device import BlockDevice
    from mountfs.drivers._tree import ChunkReader

_START = 1024
_MAGIC = 0xE0F5_E1E2
SLOT = 32
"""Inodes are numbered by slots of so many bytes from the start of the metadata."""

PLAIN, COMPRESSED_FULL, INLINE, COMPRESSED_COMPACT, CHUNKED = range(5)
"""How the data of an inode lies."""

ZERO_PADDING = 0x01
COMPRESSION_CONFIG = 0x02
BIG_CLUSTERS = 0x02
CHUNKED_FILE = 0x04
DEVICE_TABLE = 0x08
HEAD_2 = 0x08
INLINE_TAIL = 0x10
FRAGMENTS = 0x20
_KNOWN = ZERO_PADDING | COMPRESSION_CONFIG | CHUNKED_FILE | DEVICE_TABLE | INLINE_TAIL
_REFUSED = {
    FRAGMENTS: "fragments",
    0x40: "long attribute names",
    0x80: "48-bit addresses",
    0x100: "metadata boxes",
}

_KINDS = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFDIR: NodeKind.DIRECTORY,
    stat.S_IFLNK: NodeKind.SYMLINK,
    stat.S_IFIFO: NodeKind.FIFO,
    stat.S_IFSOCK: NodeKind.SOCKET,
    stat.S_IFCHR: NodeKind.CHARACTER_DEVICE,
    stat.S_IFBLK: NodeKind.BLOCK_DEVICE,
}


class Superblock(NamedTuple):
    """What the volume says of itself; places are bytes."""

    block_size: int
    directory_block: int
    root: int
    metadata: int
    attributes: int
    blocks: int
    time_ns: int
    """Of inodes that keep no time of their own."""
    features: int
    algorithms: int
    """Bits of the compression algorithms in use; 0: LZ4, as before there was a choice."""


def read_superblock(device: BlockDevice) -> Superblock:
    """Read and check the superblock.

    Raises:
        VolumeError: it is not one, or damaged.
        UnsupportedVolumeError: it needs a feature that is not read here; the message names it.
    """
    raw = read_at(device, _START, 128, "the EROFS superblock")
    magic, features_ok, log, slots, root = struct.unpack_from("<I4xIBBH", raw)
    seconds, nanos, blocks, metadata, attributes = struct.unpack_from("<QIIII", raw, 24)
    features, algorithms, devices = struct.unpack_from("<IHH", raw, 80)
    del features_ok, slots
    if magic != _MAGIC:
        raise VolumeError("not an EROFS: no magic")
    if not 9 <= log <= 16:
        raise VolumeError(f"the EROFS superblock is damaged: blocks of 2^{log} bytes")
    for bit, name in _REFUSED.items():
        if features & bit:
            raise UnsupportedVolumeError(f"EROFS with {name} is not supported")
    if features & ~_KNOWN:
        raise UnsupportedVolumeError(f"EROFS with unknown features ({features:#x}) is not supported")
    if devices:
        raise UnsupportedVolumeError(f"EROFS over {devices} other devices is not supported")
    block_size = 1 << log
    if blocks * block_size > device.size:
        raise VolumeError(f"the EROFS superblock is damaged: {blocks} blocks on {device.size} bytes")
    return Superblock(
        block_size,
        block_size << raw[90],
        root,
        metadata * block_size,
        attributes * block_size,
        blocks,
        seconds * 1_000_000_000 + nanos,
        features,
        algorithms if features & COMPRESSION_CONFIG else 0,
    )


class Inode(NamedTuple):
    """One inode."""

    number: int
    kind: NodeKind
    mode: int
    uid: int
    gid: int
    links: int
    size: int
    mtime_ns: int
    layout: int
    union: int
    """A block, a device, or the form of chunks."""
    attributes: tuple[int, int]
    """Place and length of its own extended attributes."""

    @property
    def tail(self) -> int:
        """Place of what follows the inode: inline data, or the map of its blocks."""
        return sum(self.attributes)

    def to_node(self, name: bytes) -> Node:
        """Describe it under a name."""
        special = self.kind in {NodeKind.CHARACTER_DEVICE, NodeKind.BLOCK_DEVICE}
        raw = self.union if special else 0
        return Node(
            name=name,
            kind=self.kind,
            key=self.number,
            size=self.size if self.kind in {NodeKind.FILE, NodeKind.SYMLINK} else 0,
            mode=self.mode & 0o7777,
            uid=self.uid,
            gid=self.gid,
            links=max(1, self.links),
            inode=self.number,
            atime_ns=self.mtime_ns,
            mtime_ns=self.mtime_ns,
            ctime_ns=self.mtime_ns,
            device=(raw >> 8 & 0xFFF, raw & 0xFF | raw >> 12 & 0xF_FF00),
        )


def read_inode(chunks: ChunkReader, superblock: Superblock, number: int) -> Inode:
    """Read an inode.

    Raises:
        VolumeError: there is none, or it is damaged.
    """
    place = superblock.metadata + number * SLOT
    what = f"inode {number}"
    form, count, mode = struct.unpack("<HHH", chunks.read(place, 6, what))
    extended = form & 1
    raw = chunks.read(place, 64 if extended else 32, what)
    if extended:
        size, union, _, uid, gid, seconds, nanos, links = struct.unpack_from("<QIIIIQII", raw, 8)
        mtime_ns = seconds * 1_000_000_000 + nanos
    else:
        links, size, union, _, uid, gid = struct.unpack_from("<HI4xIIHH", raw, 6)
        mtime_ns = superblock.time_ns
    kind = _KINDS.get(stat.S_IFMT(mode))
    layout = form >> 1 & 7
    if kind is None or layout > CHUNKED or form >> 4 or size > MAX_FILE_SIZE:
        raise VolumeError(f"{what} is damaged: form {form:#x}, mode {mode:o}, {size} bytes")
    length = 12 + 4 * (count - 1) if count else 0
    attributes = (place + len(raw), length)
    return Inode(number, kind, mode, uid, gid, links, size, mtime_ns, layout, union, attributes)
