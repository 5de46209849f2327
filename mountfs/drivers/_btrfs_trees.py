"""The B-trees of btrfs: every node proven by its checksum, its address, its generation and its level.

A node that fails is read again from its other copies. Levels fall and keys rise without exception on the way
through a tree, so that no loop can hold a reader up.

Source: the btrfs documentation, "On-disk Format" (section Nodes and leaves) and "Btree Items".
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from itertools import count, pairwise
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import MountfsError, VolumeError
from mountfs.drivers._btrfs_chunks import CHUNK_ITEM, Chunk, ChunkMap, parse_chunk, system_chunks
from mountfs.drivers._content import read_at
from mountfs.drivers._tree import SharedCache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from mountfs.drivers._btrfs_superblock import Root, Superblock

_HEADER = 101
_ITEM = struct.Struct("<QBQII")
_POINTER = struct.Struct("<QBQQQ")
_MAX_LEVEL = 7
_CACHED_ENTRIES = 120_000
"""Some 20 MB."""
_ENTRY_COST = 180
"""Bytes of memory for an entry."""
_MAX_HINTS = 16
_CHUNK_OBJECT = 256
_MAX_CHUNKS = 1_000_000


class Key(NamedTuple):
    """What items are sorted by."""

    object: int
    kind: int
    offset: int


class Item(NamedTuple):
    """One item of a leaf."""

    key: Key
    data: bytes


class Node(NamedTuple):
    """A node. Level 0 is a leaf."""

    level: int
    entries: list[tuple[int, int, int, int, int]]
    """The key, and then place and size of the item, or address and generation of the child."""
    raw: bytes

    @property
    def weight(self) -> int:
        """What it costs to keep, in entries."""
        return len(self.entries) + len(self.raw) // _ENTRY_COST

    def item(self, index: int) -> Item:
        """Return an item of a leaf."""
        number, kind, offset, place, size = self.entries[index]
        start = _HEADER + place
        return Item(Key(number, kind, offset), self.raw[start : start + size])


class _Found(NamedTuple):
    """A leaf, and the first key that is behind it; None for the last leaf."""

    leaf: Node
    bound: Key | None

    def has(self, key: Key) -> bool:
        """Whether the leaf is where the key belongs."""
        entries = self.leaf.entries
        return bool(entries) and entries[0] <= (*key, _AFTER_ALL) and (self.bound is None or key < self.bound)


class Forest:
    """All trees of one file system on one device. Any number of threads may call it at once.

    Args:
        device: the device.
        superblock: of the device.
        max_reads: of nodes; one more is a `VolumeError`. For a look that must be short.
    """

    def __init__(self, device: BlockDevice, superblock: Superblock, *, max_reads: int | None = None) -> None:
        self._reads = count(1)
        self._max_reads = max_reads
        self._device = device
        self._superblock = superblock
        self._nodes: SharedCache[int, Node] = SharedCache(_CACHED_ENTRIES, lambda node: node.weight)
        self._hints: dict[int, _Found] = {}
        self.chunks = ChunkMap(superblock.device_id, system_chunks(superblock.system_chunks))
        self.chunks = ChunkMap(superblock.device_id, self._all_chunks())

    def _all_chunks(self) -> list[Chunk]:
        found: list[Chunk] = []
        for key, data in self.items(self._superblock.chunk_root, Key(_CHUNK_OBJECT, CHUNK_ITEM, 0)):
            if key.object != _CHUNK_OBJECT or key.kind != CHUNK_ITEM or len(found) >= _MAX_CHUNKS:
                break
            found.append(parse_chunk(key.offset, data))
        return found

    def find(self, root: Root, key: Key) -> bytes | None:
        """Return the data of the item with exactly this key; see `items` for the errors."""
        leaf = self._leaf(root, key).leaf
        index = bisect_left(leaf.entries, key)
        if index == len(leaf.entries) or leaf.entries[index][:3] != key:
            return None
        return leaf.item(index).data

    def items(self, root: Root, first: Key, *, covering: bool = False) -> Iterator[Item]:
        """Yield the items from a key on, in order; with ``covering``, from the last one not above it.

        Raises:
            VolumeError: a node is damaged, or lies on a device that is not here.
            MountfsError: the device failed.
        """
        leaf, bound = self._leaf(root, first)
        start = max(0, _index_at(leaf, first)) if covering else bisect_left(leaf.entries, first)
        while True:
            for index in range(start, len(leaf.entries)):
                yield leaf.item(index)
            if bound is None:
                return
            leaf, bound = self._leaf(root, bound)
            start = 0

    def _leaf(self, root: Root, key: Key) -> _Found:
        """Find the leaf that has a key, or would have it; mostly it is the one that was found before."""
        hint = self._hints.get(root.address)
        if hint is not None and hint.has(key):
            return hint
        node = self._node(root.address, root.generation, root.level)
        bound: Key | None = None
        while node.level:
            index = max(0, _index_at(node, key))
            if index + 1 < len(node.entries):
                bound = Key(*node.entries[index + 1][:3])
            node = self._child(node, index)
        if bound is not None and node.entries[-1] >= bound:
            raise VolumeError("a B-tree of btrfs is damaged: its keys do not rise")
        found = _Found(node, bound)
        if len(self._hints) >= _MAX_HINTS:
            self._hints.clear()
        self._hints[root.address] = found
        return found

    def _child(self, parent: Node, index: int) -> Node:
        number, kind, offset, address, generation = parent.entries[index]
        child = self._node(address, generation, parent.level - 1)
        if not child.entries or child.entries[0][:3] != (number, kind, offset):
            raise VolumeError(f"the btrfs node at {address} is damaged: its parent has another key for it")
        return child

    def _node(self, address: int, generation: int, level: int) -> Node:
        node = self._nodes.get_or_make(address, lambda: self._read(address, generation))
        if node.level != level:
            raise VolumeError(f"the btrfs node at {address} is damaged: level {node.level}, not {level}")
        return node

    def _read(self, address: int, generation: int) -> Node:
        """Read a node from the first copy that is intact; the error is that of the last."""
        if self._max_reads is not None and next(self._reads) > self._max_reads:
            raise VolumeError("the trees of btrfs are too large for a short look")
        size = self._superblock.node_size
        pieces = list(self.chunks.pieces(address, size))
        copies = min(len(piece.places) for piece in pieces)
        if not copies:
            away = sorted({device for piece in pieces if not piece.places for device in piece.elsewhere})
            raise VolumeError(missing_device(f"the btrfs node at {address}", away))
        failure: MountfsError | None = None
        for copy in range(copies):
            try:
                raw = b"".join(
                    read_at(self._device, piece.places[copy], piece.length, f"the btrfs node at {address}")
                    for piece in pieces
                )
                return self._parse(raw, address, generation)
            except MountfsError as error:
                failure = error
        raise failure or VolumeError(f"the btrfs node at {address} cannot be read")

    def _parse(self, raw: bytes, address: int, generation: int) -> Node:
        what = f"the btrfs node at {address} is damaged"
        checksum = self._superblock.checksum
        if checksum.digest(raw[32:]) != raw[: checksum.size]:
            raise VolumeError(f"{what}: its {checksum.name} does not match")
        (found_at,) = struct.unpack_from("<Q", raw, 48)
        found_generation, _, entry_count, level = struct.unpack_from("<QQIB", raw, 80)
        if found_at != address or raw[32:48] != self._superblock.metadata_id:
            raise VolumeError(f"{what}: it is another node")
        if found_generation != generation:
            raise VolumeError(f"{what}: its generation is {found_generation}, not {generation}")
        layout = _POINTER if level else _ITEM
        end = _HEADER + entry_count * layout.size
        if level > _MAX_LEVEL or end > len(raw) or (level and not entry_count):
            raise VolumeError(f"{what}: {entry_count} entries at level {level}")
        entries: list[tuple[int, int, int, int, int]] = list(layout.iter_unpack(raw[_HEADER:end]))
        if any(one[:3] >= other[:3] for one, other in pairwise(entries)):
            raise VolumeError(f"{what}: its keys do not rise")
        if not level:
            room, used = len(raw) - _HEADER, end - _HEADER
            if any(place < used or place + size > room for _, _, _, place, size in entries):
                raise VolumeError(f"{what}: an item does not fit")
        return Node(level, entries, raw)


_AFTER_ALL = 1 << 64
"""Sorts behind every value of a 64-bit field."""


def _index_at(node: Node, key: Key) -> int:
    """Return the index of the last entry whose key is not above ``key``; -1 for none."""
    return bisect_right(node.entries, (*key, _AFTER_ALL)) - 1


def missing_device(what: str, devices: list[int]) -> str:
    """Say that something lies on devices that are not here."""
    named = ", ".join(map(str, devices))
    return f"{what} lies on device {named} of the file system, which is not in this image"
