"""Free space of btrfs on one device: what no chunk has, and in the chunks what the extent tree does not list.

The copies of the superblock lie in neither; they stay. What was fsynced after the last commit lies in space
that the extent tree still calls free, so that a volume with a log tree is all in use.

Source: the btrfs documentation, "On-disk Format" (Superblock, CHUNK_ITEM, EXTENT_ITEM, METADATA_ITEM,
DEV_ITEM).
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.allocation import AllocationReader
from mountfs.allocation._freemap import MAX_RANGES, FreeMap
from mountfs.drivers._btrfs_items import ROOT_ITEM, parse_root
from mountfs.drivers._btrfs_superblock import read_superblocks
from mountfs.drivers._btrfs_trees import Forest, Key
from mountfs.drivers._tree import reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from imageformat.device import BlockDevice
    from mountfs.drivers._btrfs_chunks import Chunk
    from mountfs.drivers._btrfs_superblock import Superblock

_EXTENT_TREE = 2
_EXTENT_ITEM, _METADATA_ITEM = 168, 169
_KEPT = ((0, 1 << 20), (0x400_0000, 1 << 16), (0x40_0000_0000, 1 << 16))
"""What is left to boot loaders, with the first superblock in it, and the copies of the superblock."""


def unused(device: BlockDevice) -> FreeMap:
    """Return what no extent has; see `AllocationReader.unused`."""
    with reading("a structure of btrfs"):
        found = read_superblocks(device)
        superblock = found[0]
        _refuse(device, superblock, len(found))
        forest = Forest(device, superblock)
        return _free(superblock, forest)


def _refuse(device: BlockDevice, superblock: Superblock, generations: int) -> None:
    """Raise `VolumeError` when the extent tree may not be the truth, or not all of it."""
    if superblock.devices != 1:
        raise VolumeError(f"it is one of {superblock.devices} devices")
    if superblock.log_address:
        raise VolumeError("its log tree was not replayed: it is in use, or was not cleanly unmounted")
    if generations != 1:
        raise VolumeError("the copies of its superblock are not of the same time")
    if superblock.device_size > device.size:
        raise VolumeError("it is larger than what it lies on")


def _free(superblock: Superblock, forest: Forest) -> FreeMap:
    chunks = forest.chunks.mirrored()
    if chunks is None:
        raise VolumeError("it has chunks whose profile is striped")
    extents = _Extents(superblock, forest)
    ranges: list[tuple[int, int]] = []
    taken: list[tuple[int, int]] = []
    for chunk in chunks:
        free = list(islice(extents.gaps(chunk), MAX_RANGES))
        for stripe in chunk.stripes:
            if stripe.device != superblock.device_id:
                raise VolumeError("a chunk lies on another device")
            if len(ranges) + len(free) > MAX_RANGES:
                raise VolumeError(f"its free space lies in more than {MAX_RANGES} pieces")
            taken.append((stripe.offset, chunk.length))
            ranges.extend((stripe.offset + start - chunk.start, length) for start, length in free)
    used = extents.finish()
    if used != superblock.bytes_used:
        raise VolumeError(f"its extents have {used} bytes, but its superblock says {superblock.bytes_used}")
    return _outside(superblock, taken, ranges)


def _outside(
    superblock: Superblock, taken: Iterable[tuple[int, int]], ranges: list[tuple[int, int]]
) -> FreeMap:
    """Join what lies in chunks with what lies outside of them, and leave the superblocks out."""
    chunks = sorted(taken)
    position = 0
    for start, length in chunks:
        if start < position:
            raise VolumeError(f"two chunks lie at byte {start} of the device")
        ranges.append((position, start - position))
        position = start + length
    if position > superblock.device_size:
        raise VolumeError("a chunk lies behind the end of the device")
    ranges.append((position, superblock.device_size - position))
    free = FreeMap()
    for start, length in sorted(ranges):
        free.add(start, length)
    return free.without(_KEPT)


class _Extents:
    """The extent tree, read once along the chunks."""

    def __init__(self, superblock: Superblock, forest: Forest) -> None:
        self._node_size = superblock.node_size
        self._items = self._all(superblock, forest)
        self._next = next(self._items, None)
        self._used = 0

    @staticmethod
    def _all(superblock: Superblock, forest: Forest) -> Iterator[tuple[int, int]]:
        """Yield address and length of every extent, ascending."""
        raw = None
        for item in forest.items(superblock.root_tree, Key(_EXTENT_TREE, ROOT_ITEM, 0)):
            if item.key.object == _EXTENT_TREE and item.key.kind == ROOT_ITEM:
                raw = item.data
            break
        if raw is None:
            raise VolumeError("it has no extent tree")
        for key, _ in forest.items(parse_root(raw).root, Key(0, 0, 0)):
            if key.kind == _EXTENT_ITEM:
                yield key.object, key.offset
            elif key.kind == _METADATA_ITEM:
                yield key.object, superblock.node_size

    def gaps(self, chunk: Chunk) -> Iterator[tuple[int, int]]:
        """Yield address and length of what is free in a chunk; chunks are asked in order of address."""
        position, end = chunk.start, chunk.start + chunk.length
        while self._next is not None and self._next[0] < end:
            start, length = self._next
            if start < position or not length or start + length > end:
                raise VolumeError(f"the extent at {start} overlaps another, or lies outside its chunk")
            yield position, start - position
            position, self._used = start + length, self._used + length
            self._next = next(self._items, None)
        yield position, end - position

    def finish(self) -> int:
        """Return how many bytes all extents have.

        Raises:
            VolumeError: some lie behind all chunks.
        """
        if self._next is not None:
            raise VolumeError(f"the extent at {self._next[0]} lies in no chunk")
        return self._used


PLUGIN = AllocationReader("btrfs", frozenset({"btrfs"}), unused)
