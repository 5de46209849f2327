"""Free space of ext2, ext3 and ext4: the block bitmaps of the groups.

A bitmap counts only when its descriptor and itself match their checksums, when it has as many clear bits as
descriptor and superblock say, and when everything that is known to lie on the volume (superblocks, tables of
descriptors, bitmaps, inode tables) is set in it. A group that was never used has no bitmap: it is all free
but for what is known.

Source: the kernel's documentation "ext4 Data Structures and Algorithms" (sections Super Block, Block Group
Descriptors, Block and Inode Bitmaps, Flexible Block Groups, Meta Block Groups, Bigalloc, Checksums).
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from imageformat.crc32c import crc32c
from imageformat.errors import VolumeError
from mountfs.allocation import AllocationReader
from mountfs.allocation._freemap import FreeMap, clear_runs
from mountfs.drivers._content import read_at
from mountfs.drivers._ext_layout import Superblock, read_superblock
from mountfs.drivers._tree import ChunkReader, reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

_GROUP_CHECKSUMS, _METADATA_CHECKSUMS = 0x10, 0x400
_RO_COMPAT_KNOWN = 0x1_FFFF & ~(0x80 | 0x800)
"""All but snapshots and replicas, whose blocks no bitmap may show."""
_CHECKSUM_SEED = 0x2000
_INCOMPAT_JOURNAL_DEVICE = 0x8
_CLEAN, _ERRORS = 0x1, 0x2
_BITMAP_UNUSED = 0x2
_MAX_GROUPS = 1 << 20
"""128 TiB in groups of 128 MiB."""
_ONES = 0xFFFF_FFFF


class _Facts(NamedTuple):
    """What only the map of free space needs of the superblock."""

    state: int
    free_blocks: int
    blocks_per_cluster: int
    clusters_per_group: int
    reserved_descriptors: int
    seed: int
    uuid: bytes


class _Group(NamedTuple):
    """A group descriptor: block numbers, the count of free clusters, flags, checksum of the bitmap."""

    bitmap: int
    inode_bitmap: int
    inode_table: int
    free: int
    flags: int
    checksum: int


def unused(device: BlockDevice) -> FreeMap:
    """Return the blocks that no file and no structure has; see `AllocationReader.unused`."""
    with reading("the ext superblock"):
        layout = read_superblock(device)
        facts = _facts(device, layout)
        _refuse(layout, facts)
    with reading("a group descriptor"):
        return _Bitmaps(device, layout, facts).free()


def structures(device: BlockDevice) -> list[tuple[int, int]]:
    """Return where superblocks, descriptors, bitmaps and inode tables lie; see `AllocationReader`."""
    with reading("the ext superblock"):
        layout = read_superblock(device)
        bitmaps = _Bitmaps(device, layout, _facts(device, layout))
        size = layout.block_size
        return [(first * size, count * size) for first, count in bitmaps.structures()]


def _facts(device: BlockDevice, layout: Superblock) -> _Facts:
    raw = read_at(device, 1024, 1024, "the ext superblock")
    (free,) = struct.unpack_from("<I", raw, 0x0C)
    if layout.descriptor_size >= 64:
        free |= struct.unpack_from("<I", raw, 0x158)[0] << 32
    ratio = layout.cluster_size // layout.block_size
    uuid, seed = raw[0x68:0x78], 0
    if layout.ro_compat & _METADATA_CHECKSUMS:
        if raw[0x175] != 1 or _crc(_ONES, raw[:1020]) != struct.unpack_from("<I", raw, 1020)[0]:
            raise VolumeError("the ext superblock does not match its checksum")
        (stored,) = struct.unpack_from("<I", raw, 0x270)
        seed = stored if layout.incompat & _CHECKSUM_SEED else _crc(_ONES, uuid)
    return _Facts(
        state=struct.unpack_from("<H", raw, 0x3A)[0],
        free_blocks=free,
        blocks_per_cluster=ratio,
        clusters_per_group=layout.blocks_per_group // max(ratio, 1),
        reserved_descriptors=struct.unpack_from("<H", raw, 0xCE)[0] if layout.compat & 0x10 else 0,
        seed=seed,
        uuid=uuid,
    )


def _refuse(layout: Superblock, facts: _Facts) -> None:
    """Raise `VolumeError` when the bitmaps may not be the truth."""
    if layout.needs_recovery:
        raise VolumeError("its journal was not replayed: it was in use, or not cleanly unmounted")
    if not facts.state & _CLEAN:
        raise VolumeError("it was not cleanly unmounted, or is in use")
    if facts.state & _ERRORS:
        raise VolumeError("it is marked as having errors")
    if layout.incompat & _INCOMPAT_JOURNAL_DEVICE or layout.ro_compat & ~_RO_COMPAT_KNOWN:
        raise VolumeError(f"it has features that are not known here ({layout.ro_compat:#x})")
    per_group, ratio = facts.clusters_per_group, facts.blocks_per_cluster
    if ratio < 1 or not 0 < per_group <= layout.block_size * 8 or per_group % 8:
        raise VolumeError(f"the ext superblock is damaged: {per_group} clusters in a group")
    if per_group * ratio != layout.blocks_per_group or layout.first_data_block >= layout.block_count:
        raise VolumeError("the ext superblock is damaged: its groups make no sense")


class _Bitmaps:
    """Reads the groups of one volume in order."""

    def __init__(self, device: BlockDevice, layout: Superblock, facts: _Facts) -> None:
        if layout.block_count * layout.block_size > device.size:
            raise VolumeError("it is larger than what it lies on")
        self._device = device
        self._chunks = ChunkReader(device)
        self._layout = layout
        self._facts = facts
        data_blocks = layout.block_count - layout.first_data_block
        self._count = -(-data_blocks // layout.blocks_per_group)
        if self._count > _MAX_GROUPS or self._count * layout.inodes_per_group < layout.inode_count:
            raise VolumeError(f"the ext superblock is damaged: {self._count} groups")
        self._table_blocks = -(-layout.inodes_per_group * layout.inode_size // layout.block_size)
        self._descriptors_per_block = layout.block_size // layout.descriptor_size

    def free(self) -> FreeMap:
        """Read, prove and add up all groups."""
        groups = self._groups()
        structures = sorted(self._structures(groups))
        for (first, count), (second, _) in pairwise(structures):
            if first + count > second:
                raise VolumeError(f"two structures lie at block {second}")
        free, at = FreeMap(), 0
        for number, group in enumerate(groups):
            before, start = free.total, self._first(number)
            end = start + self._blocks(number)
            behind = bisect_left(structures, (end, 0), at)
            inside, at = structures[bisect_left(structures, (start, 0), at) : behind], behind
            self._add(number, group, inside, free)
            clusters = self._clusters(free.total - before)
            if clusters != group.free:
                raise VolumeError(
                    f"block group {number} has {clusters} free clusters, but claims {group.free}"
                )
        found = free.total // self._layout.block_size
        if found != self._facts.free_blocks:
            raise VolumeError(
                f"it has {found} free blocks, but its superblock says {self._facts.free_blocks}"
            )
        for first, count in structures:
            if free.meets(first * self._layout.block_size, count * self._layout.block_size):
                raise VolumeError(f"a structure at block {first} is marked as free")
        return free

    def structures(self) -> Iterator[tuple[int, int]]:
        """Yield where something lies that is not a file, as (first block, count), in any order."""
        return self._structures(self._groups())

    def _groups(self) -> list[_Group]:
        return [self._group(number) for number in range(self._count)]

    def _clusters(self, size: int) -> int:
        return -(-size // self._layout.cluster_size)

    def _first(self, group: int) -> int:
        return self._layout.first_data_block + group * self._layout.blocks_per_group

    def _blocks(self, group: int) -> int:
        return min(self._layout.blocks_per_group, self._layout.block_count - self._first(group))

    def _group(self, number: int) -> _Group:
        layout = self._layout
        size = layout.descriptor_size
        at = layout.table_block(number) * layout.block_size + number % self._descriptors_per_block * size
        raw = self._chunks.read(at, size, f"the descriptor of block group {number}")
        self._prove(number, raw)
        bitmap, inode_bitmap, table, free = struct.unpack_from("<IIIH", raw)
        flags, checksum = struct.unpack_from("<H4xH", raw, 0x12)
        if size >= 64:
            highs = struct.unpack_from("<IIIH", raw, 0x20)
            bitmap, inode_bitmap, table = (
                low | high << 32 for low, high in zip((bitmap, inode_bitmap, table), highs, strict=False)
            )
            free |= highs[3] << 16
            checksum |= struct.unpack_from("<H", raw, 0x38)[0] << 16
        first, last = layout.first_data_block + 1, layout.block_count
        if not (first <= bitmap < last and first <= inode_bitmap < last) or not (
            first <= table <= last - self._table_blocks
        ):
            raise VolumeError(
                f"the descriptor of block group {number} is damaged: a place outside the volume"
            )
        if not layout.ro_compat & (_GROUP_CHECKSUMS | _METADATA_CHECKSUMS):
            flags = 0
        return _Group(bitmap, inode_bitmap, table, free, flags, checksum)

    def _prove(self, number: int, raw: bytes) -> None:
        (stored,) = struct.unpack_from("<H", raw, 0x1E)
        place = struct.pack("<I", number)
        if self._layout.ro_compat & _METADATA_CHECKSUMS:
            found = _crc(self._facts.seed, b"".join((place, raw[:0x1E], b"\0\0", raw[0x20:]))) & 0xFFFF
        elif self._layout.ro_compat & _GROUP_CHECKSUMS:
            found = _crc16(b"".join((self._facts.uuid, place, raw[:0x1E], raw[0x20:])))
        else:
            return
        if found != stored:
            raise VolumeError(f"the descriptor of block group {number} does not match its checksum")

    def _structures(self, groups: list[_Group]) -> Iterator[tuple[int, int]]:
        """Yield where something lies that is not a file, as (first block, count)."""
        for number, group in enumerate(groups):
            yield group.bitmap, 1
            yield group.inode_bitmap, 1
            yield group.inode_table, self._table_blocks
            if fixed := self._fixed(number):
                yield self._first(number), min(fixed, self._blocks(number))

    def _fixed(self, group: int) -> int:
        """Return how many blocks the superblock and the table of descriptors take at the start of a group."""
        layout = self._layout
        has_super = int(layout.has_backup(group))
        old_blocks = -(-self._count // self._descriptors_per_block)
        if layout.has_meta_groups:
            meta, place = divmod(group, self._descriptors_per_block)
            if meta >= layout.first_meta_group:
                return has_super + (place in {0, 1, self._descriptors_per_block - 1})
            old_blocks = layout.first_meta_group
        return has_super * (1 + old_blocks + self._facts.reserved_descriptors)

    def _add(self, number: int, group: _Group, inside: list[tuple[int, int]], free: FreeMap) -> None:
        """Add what is free in one group; ``inside`` are the structures that begin in it."""
        ratio, size = self._facts.blocks_per_cluster, self._layout.block_size
        first, blocks = self._first(number), self._blocks(number)
        if group.flags & _BITMAP_UNUSED:
            whole = FreeMap()
            whole.add(first * size, blocks * size)
            for extent in whole.without(self._in_clusters(first, inside)):
                free.add(extent.offset, extent.length)
            return
        raw = read_at(self._device, group.bitmap * size, size, f"the bitmap of block group {number}")
        self._prove_bitmap(number, group, raw)
        for start, length in clear_runs(raw, -(-blocks // ratio)):
            end = min((start + length) * ratio, blocks)
            free.add((first + start * ratio) * size, (end - start * ratio) * size)

    def _in_clusters(self, first: int, taken: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Widen ranges of blocks of a group to whole clusters; (start, length) in bytes."""
        ratio, size = self._facts.blocks_per_cluster, self._layout.block_size
        for start, count in taken:
            low, high = (start - first) // ratio * ratio, -(-(start + count - first) // ratio) * ratio
            yield (first + low) * size, (high - low) * size

    def _prove_bitmap(self, number: int, group: _Group, raw: bytes) -> None:
        if not self._layout.ro_compat & _METADATA_CHECKSUMS:
            return
        found = _crc(self._facts.seed, raw[: self._facts.clusters_per_group // 8])
        if self._layout.descriptor_size < 64:
            found &= 0xFFFF
        if found != group.checksum:
            raise VolumeError(f"the bitmap of block group {number} does not match its checksum")


def _crc(state: int, data: bytes) -> int:
    """Go on from a state that is not inverted, as the kernel does."""
    return crc32c(data, state ^ _ONES) ^ _ONES


def _crc16(data: bytes) -> int:
    """CRC-16 with the polynomial 0x8005, reflected, from all ones: what ``uninit_bg`` proves with."""
    state = 0xFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0xA001 if state & 1 else 0)
    return state


PLUGIN = AllocationReader("ext", frozenset({"ext2", "ext3", "ext4"}), unused, structures)
