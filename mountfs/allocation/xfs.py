"""Free space of XFS: of each allocation group the B-tree of free extents by block.

Blocks on a group's list for its own trees (AGFL) are not in that tree and so are in use. What the trees hold
must be what the headers of the groups and the superblock count.

Source: "XFS Algorithms & Data Structures", 3rd edition, sections AG Free Space Management (AGF, AG Free Space
B+trees, AG Free List), Superblocks, Self-Describing Metadata.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from mountfs.allocation import AllocationReader
from mountfs.allocation._freemap import FreeMap
from mountfs.drivers._content import read_at
from mountfs.drivers._tree import reading
from mountfs.drivers._xfs_layout import Superblock, read_superblock
from mountfs.drivers._xfs_replay import open_log

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

_NEEDS_REPAIR = 0x10
_AGF = struct.Struct(">4sIIIIIIIIIIIIIII16s")
"""Magic, version, number, length, roots, levels, free list (3), free, longest, tree blocks, uuid."""
_AGF_CHECKSUM = 216
_TREE_CHECKSUM = 52
_MAX_LEVELS = 8
_MAX_GROUPS = 1 << 22


class _Group(NamedTuple):
    """The header of a group's free space."""

    blocks: int
    root: int
    levels: int
    listed: int
    free: int
    tree_blocks: int


def unused(device: BlockDevice) -> FreeMap:
    """Return the blocks that no file and no structure has; see `AllocationReader.unused`."""
    with reading("an XFS structure"):
        layout = read_superblock(device)
        raw = read_at(device, 0, 512, "the XFS superblock")
        _refuse(device, layout, raw)
        free, counted = FreeMap(), 0
        for number in range(layout.group_count):
            group = _group(device, layout, number)
            _add(device, layout, number, group, free)
            counted += group.free + group.listed + group.tree_blocks
        (claimed,) = struct.unpack_from(">Q", raw, 144)
        if counted != claimed:
            raise VolumeError(f"it has {counted} free blocks, but its superblock says {claimed}")
    return free


def _refuse(device: BlockDevice, layout: Superblock, raw: bytes) -> None:
    """Raise `VolumeError` when the trees may not be the truth."""
    if not layout.log_start:
        raise VolumeError("its journal is on another device")
    if layout.block_count * layout.block_size > device.size or layout.group_count > _MAX_GROUPS:
        raise VolumeError("it is larger than what it lies on")
    if layout.version == 5 and struct.unpack_from(">I", raw, 216)[0] & _NEEDS_REPAIR:
        raise VolumeError("it is marked as having errors")
    if not open_log(device, layout).is_clean():
        raise VolumeError("its journal was not replayed: it is in use, or was not cleanly unmounted")


def _group(device: BlockDevice, layout: Superblock, number: int) -> _Group:
    what = f"the header of allocation group {number}"
    start = number * layout.group_blocks * layout.block_size
    raw = read_at(device, start + layout.sector_size, layout.sector_size, what)
    magic, version, sequence, length, root, _, _, levels, _, _, _, _, listed, free, _, trees, uuid = (
        _AGF.unpack_from(raw)
    )
    if layout.has_checksums:
        layout.prove(raw, _AGF_CHECKSUM, what)
        if uuid != layout.metadata_uuid:
            raise VolumeError(f"{what} is damaged: it belongs to another volume")
    blocks = min(layout.group_blocks, layout.block_count - number * layout.group_blocks)
    if (magic, version, sequence, length) != (b"XAGF", 1, number, blocks):
        raise VolumeError(f"{what} is damaged")
    if not 0 < levels <= _MAX_LEVELS or free > blocks:
        raise VolumeError(f"{what} is damaged: {levels} levels, {free} free blocks")
    return _Group(blocks, root, levels, listed, free, trees)


def _add(device: BlockDevice, layout: Superblock, number: int, group: _Group, free: FreeMap) -> None:
    """Add what is free in one group."""
    first, size = number * layout.group_blocks, layout.block_size
    headers = -(-4 * layout.sector_size // size)
    found, behind = 0, headers
    for start, count in _leaves(device, layout, number, group):
        if start < behind or not 0 < count <= group.blocks - start:
            raise VolumeError(f"the free space of allocation group {number} is damaged at block {start}")
        free.add((first + start) * size, count * size)
        found, behind = found + count, start + count
    if found != group.free:
        raise VolumeError(f"allocation group {number} has {found} free blocks, but claims {group.free}")


def _leaves(device: BlockDevice, layout: Superblock, number: int, group: _Group) -> Iterator[tuple[int, int]]:
    """Yield the records of a tree; no block is read twice, so that it ends."""
    pending = [(group.root, group.levels - 1)]
    seen: set[int] = set()
    while pending:
        block, level = pending.pop()
        if block in seen or not 0 < block < group.blocks:
            raise VolumeError(f"the free space of allocation group {number} is damaged: a loop, or no block")
        seen.add(block)
        raw, header, count = _block(device, layout, number, block, level)
        if not level:
            yield from struct.iter_unpack(">II", raw[header : header + 8 * count])
            continue
        most = (layout.block_size - header) // 12
        if count > most:
            raise VolumeError(f"the free space of allocation group {number} is damaged: {count} children")
        children = struct.unpack_from(f">{count}I", raw, header + 8 * most)
        pending.extend((child, level - 1) for child in reversed(children))


def _block(
    device: BlockDevice, layout: Superblock, number: int, block: int, level: int
) -> tuple[bytes, int, int]:
    """Read and prove one block of a tree: its bytes, the size of its header, how many entries it has."""
    what = f"a block of the free space of allocation group {number}"
    offset = (number * layout.group_blocks + block) * layout.block_size
    raw = read_at(device, offset, layout.block_size, what)
    magic, found_level, count = struct.unpack_from(">4sHH", raw)
    header = 56 if layout.has_checksums else 16
    if layout.has_checksums:
        layout.prove(raw, _TREE_CHECKSUM, what)
        (address,) = struct.unpack_from(">Q", raw, 16)
        (owner,) = struct.unpack_from(">I", raw, 48)
        if raw[32:48] != layout.metadata_uuid or address * 512 != offset or owner != number:
            raise VolumeError(f"{what} is damaged: it belongs elsewhere")
    if magic != (b"AB3B" if layout.has_checksums else b"ABTB") or found_level != level:
        raise VolumeError(f"{what} is damaged: it is no such block")
    if header + 8 * count > layout.block_size or (level and not count):
        raise VolumeError(f"{what} is damaged: {count} entries")
    return raw, header, count


PLUGIN = AllocationReader("xfs", frozenset({"xfs"}), unused)
