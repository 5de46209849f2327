"""On-disk structures of ext2, ext3 and ext4: superblock, group descriptors, inodes.

Source: the kernel's documentation "ext4 Data Structures and Algorithms" (sections Super Block, Block
Group Descriptors, Index Nodes).
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.drivers._content import read_at
from mountfs.tree import Node, NodeKind

if TYPE_CHECKING:
    from imageformat.device import BlockDevice
    from mountfs.drivers._tree import ChunkReader

ROOT_INODE = 2

INODE_ENCRYPTED = 0x800
INODE_EXTENTS = 0x8_0000
INODE_INLINE_DATA = 0x1000_0000

_SUPERBLOCK = 1024
_MAGIC = 0xEF53

_INCOMPAT_FILETYPE = 0x2
_INCOMPAT_RECOVER = 0x4
_INCOMPAT_META_BG = 0x10
_INCOMPAT_64BIT = 0x80
_INCOMPAT_LARGEDIR = 0x4000
_INCOMPAT_NAMES = {
    0x1: "compression",
    0x8: "journal_dev",
    0x1000: "dirdata",
}
_INCOMPAT_KNOWN = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x3_0000
_COMPAT_HAS_JOURNAL = 0x4
_COMPAT_SPARSE_SUPER2 = 0x200
_RO_COMPAT_SPARSE_SUPER = 0x1
_RO_COMPAT_BIGALLOC = 0x200

_KINDS = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFDIR: NodeKind.DIRECTORY,
    stat.S_IFLNK: NodeKind.SYMLINK,
    stat.S_IFIFO: NodeKind.FIFO,
    stat.S_IFSOCK: NodeKind.SOCKET,
    stat.S_IFCHR: NodeKind.CHARACTER_DEVICE,
    stat.S_IFBLK: NodeKind.BLOCK_DEVICE,
}


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the superblock says, checked."""

    block_size: int
    cluster_size: int
    block_count: int
    first_data_block: int
    blocks_per_group: int
    inode_count: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    incompat: int
    compat: int
    ro_compat: int
    first_meta_group: int
    backup_groups: tuple[int, int]
    journal_inode: int
    """0: there is no journal here; it may lie on another device."""

    @property
    def needs_recovery(self) -> bool:
        """The journal holds what the volume itself does not say yet."""
        return bool(self.incompat & _INCOMPAT_RECOVER)

    @property
    def has_file_type(self) -> bool:
        """Directory entries carry a type; without it their name length has 16 bits."""
        return bool(self.incompat & _INCOMPAT_FILETYPE)

    @property
    def has_large_directories(self) -> bool:
        """The upper half of the size counts for directories too."""
        return bool(self.incompat & _INCOMPAT_LARGEDIR)

    def table_block(self, group: int) -> int:
        """Number of the block that holds the descriptor of a block group."""
        per_block = self.block_size // self.descriptor_size
        meta = group // per_block
        if not self.has_meta_groups or meta < self.first_meta_group:
            return (1 if self.block_size == 1024 else 0) + 1 + meta
        first = meta * per_block
        skip = int(self.has_backup(first))
        if self.block_size == 1024 and first == 0 and self.first_data_block == 0:
            skip += 1
        return first * self.blocks_per_group + self.first_data_block + skip

    @property
    def has_meta_groups(self) -> bool:
        """The descriptors lie with the groups that they describe, from `first_meta_group` on."""
        return bool(self.incompat & _INCOMPAT_META_BG)

    def has_backup(self, group: int) -> bool:
        """Tell whether a group begins with a copy of the superblock."""
        if group == 0:
            return True
        if self.compat & _COMPAT_SPARSE_SUPER2:
            return group in self.backup_groups
        if group == 1 or not self.ro_compat & _RO_COMPAT_SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1


def read_superblock(device: BlockDevice) -> Superblock:
    """Read and check the primary superblock.

    Raises:
        VolumeError: it is not ext, is damaged, or needs a feature that is not known here.
    """
    raw = read_at(device, _SUPERBLOCK, 1024, "the ext superblock")
    (magic,) = struct.unpack_from("<H", raw, 0x38)
    if magic != _MAGIC:
        raise VolumeError("not an ext file system: the superblock has no magic number")
    inodes, blocks = struct.unpack_from("<II", raw, 0)
    first, log_block, log_cluster, per_group, _, inodes_per_group = struct.unpack_from("<IIIIII", raw, 0x14)
    (revision,) = struct.unpack_from("<I", raw, 0x4C)
    inode_size, compat, incompat, ro_compat = 128, 0, 0, 0
    if revision > 0:
        (inode_size,) = struct.unpack_from("<H", raw, 0x58)
        compat, incompat, ro_compat = struct.unpack_from("<III", raw, 0x5C)
    _check_features(incompat)
    if log_block > 6:
        raise VolumeError(f"the ext superblock is damaged: block size 2^{10 + log_block}")
    descriptor_size = 32
    if incompat & _INCOMPAT_64BIT:
        (descriptor_size,) = struct.unpack_from("<H", raw, 0xFE)
        blocks |= struct.unpack_from("<I", raw, 0x150)[0] << 32
    bigalloc = bool(ro_compat & _RO_COMPAT_BIGALLOC) and log_cluster <= 20
    found = Superblock(
        block_size=1024 << log_block,
        cluster_size=1024 << (log_cluster if bigalloc else log_block),
        block_count=blocks,
        first_data_block=first,
        blocks_per_group=per_group,
        inode_count=inodes,
        inodes_per_group=inodes_per_group,
        inode_size=inode_size,
        descriptor_size=descriptor_size,
        incompat=incompat,
        compat=compat,
        ro_compat=ro_compat,
        first_meta_group=struct.unpack_from("<I", raw, 0x104)[0],
        backup_groups=struct.unpack_from("<II", raw, 0x24C),
        journal_inode=struct.unpack_from("<I", raw, 0xE0)[0] if compat & _COMPAT_HAS_JOURNAL else 0,
    )
    _check_geometry(found)
    return found


def _check_features(incompat: int) -> None:
    unknown = incompat & ~_INCOMPAT_KNOWN
    if unknown:
        names = [_INCOMPAT_NAMES.get(1 << bit, f"{1 << bit:#x}") for bit in range(32) if unknown >> bit & 1]
        raise VolumeError(f"the ext file system uses features that are not supported: {', '.join(names)}")


def _check_geometry(found: Superblock) -> None:
    sizes = {
        "inode size": (found.inode_size, 128, found.block_size),
        "group descriptor size": (found.descriptor_size, 32, found.block_size),
    }
    for what, (value, least, most) in sizes.items():
        if not least <= value <= most or value & (value - 1):
            raise VolumeError(f"the ext superblock is damaged: {what} {value}")
    if not 0 < found.inodes_per_group <= 8 * found.block_size * 8:
        raise VolumeError(f"the ext superblock is damaged: {found.inodes_per_group} inodes per group")
    if not found.blocks_per_group or not found.block_count or not found.inode_count:
        raise VolumeError("the ext superblock is damaged: a count is zero")


@dataclass(frozen=True, slots=True)
class Inode:
    """One inode, as stored; `raw` ends where the inode ends."""

    number: int
    raw: bytes
    mode: int
    size: int
    flags: int
    links: int

    @property
    def block_area(self) -> bytes:
        """The 60 bytes of block pointers, extent root, fast link or inline data."""
        return self.raw[0x28:0x64]

    @property
    def attribute_block(self) -> int:
        """Number of the block with extended attributes; 0 for none."""
        (low,) = struct.unpack_from("<I", self.raw, 0x68)
        (high,) = struct.unpack_from("<H", self.raw, 0x76)
        return int(low) | int(high) << 32

    @property
    def sectors(self) -> int:
        """Lower half of the count of 512-byte sectors in use."""
        return int(struct.unpack_from("<I", self.raw, 0x1C)[0])

    @property
    def extra_size(self) -> int:
        """Bytes of fixed fields after the first 128."""
        if len(self.raw) < 130:
            return 0
        (size,) = struct.unpack_from("<H", self.raw, 0x80)
        return int(size) if size % 4 == 0 and 128 + size <= len(self.raw) else 0

    @property
    def kind(self) -> NodeKind | None:
        """What it is; None when the mode makes no sense."""
        return _KINDS.get(stat.S_IFMT(self.mode))

    def to_node(self, name: bytes) -> Node:
        """Describe it under a name.

        Raises:
            VolumeError: the mode is of no known kind.
        """
        kind = self.kind
        if kind is None:
            raise VolumeError(f"inode {self.number} has the mode {self.mode:#o}")
        uid, gid = struct.unpack_from("<H", self.raw, 0x2)[0], struct.unpack_from("<H", self.raw, 0x18)[0]
        uid_high, gid_high = struct.unpack_from("<HH", self.raw, 0x78)
        return Node(
            name=name,
            kind=kind,
            key=self.number,
            size=self.size,
            mode=stat.S_IMODE(self.mode),
            uid=uid | uid_high << 16,
            gid=gid | gid_high << 16,
            links=self.links,
            inode=self.number,
            atime_ns=self._time(0x8, 0x8C),
            mtime_ns=self._time(0x10, 0x88),
            ctime_ns=self._time(0xC, 0x84),
            birth_ns=self._time(0x90, 0x94) if self.extra_size >= 0x18 else 0,
            device=self._device(kind),
        )

    def _time(self, at: int, extra_at: int) -> int:
        """Seconds with 34 bits: the lower two bits of the extra field extend the signed 32."""
        (seconds,) = struct.unpack_from("<i", self.raw, at)
        if 128 + self.extra_size < extra_at + 4:
            return int(seconds) * 1_000_000_000
        (extra,) = struct.unpack_from("<I", self.raw, extra_at)
        return int((seconds + ((extra & 3) << 32)) * 1_000_000_000 + (extra >> 2))

    def _device(self, kind: NodeKind) -> tuple[int, int]:
        if kind not in {NodeKind.CHARACTER_DEVICE, NodeKind.BLOCK_DEVICE}:
            return (0, 0)
        old, new = struct.unpack_from("<II", self.raw, 0x28)
        if old:
            return (old >> 8 & 0xFF, old & 0xFF)
        return (new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xF_FF00)


def read_inode(chunks: ChunkReader, layout: Superblock, number: int) -> Inode:
    """Find and read one inode.

    Raises:
        VolumeError: the number or its group descriptor makes no sense.
    """
    if not 1 <= number <= layout.inode_count:
        raise VolumeError(f"inode {number} does not exist (there are {layout.inode_count})")
    group, index = divmod(number - 1, layout.inodes_per_group)
    per_block = layout.block_size // layout.descriptor_size
    at = layout.table_block(group) * layout.block_size + group % per_block * layout.descriptor_size
    descriptor = chunks.read(at, layout.descriptor_size, f"the descriptor of block group {group}")
    (table,) = struct.unpack_from("<I", descriptor, 0x8)
    if layout.descriptor_size >= 64:
        table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
    if not table or table >= layout.block_count:
        raise VolumeError(f"block group {group} has its inode table at block {table}")
    where = table * layout.block_size + index * layout.inode_size
    raw = chunks.read(where, layout.inode_size, f"inode {number}")
    (mode,) = struct.unpack_from("<H", raw, 0)
    (size,) = struct.unpack_from("<I", raw, 0x4)
    if stat.S_ISREG(mode) or layout.has_large_directories:
        size |= struct.unpack_from("<I", raw, 0x6C)[0] << 32
    links, _, flags = struct.unpack_from("<HII", raw, 0x1A)
    return Inode(number, raw, mode, size, flags, links)
