"""The objects of an APFS container: checksums, checkpoints, object maps and B-trees.

Source: Apple File System Reference (2020-06-22). Every number in a block is hostile; every object is proven
by its Fletcher-64 checksum before it is used.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from itertools import accumulate, count
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from mountfs.drivers._content import read_at
from mountfs.drivers._tree import SharedCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageformat.device import BlockDevice

_MODULUS = 0xFFFFFFFF
_MAX_LEVELS = 16
_MAX_CHECKPOINT_BLOCKS = 4096
_CACHED_NODES = 1024
_MAX_NODES = 200_000
"""That one look-up or listing may visit: some millions of records."""
_TYPE_SUPERBLOCK = 1
_NODE_ROOT, _NODE_LEAF, _NODE_FIXED = 1, 2, 4
_NODE_DATA = 56
_NODE_INFO = 40


def checksum_fits(block: bytes) -> bool:
    """Tell whether an object is what was written (Fletcher-64 over all but the checksum itself)."""
    words = array("I", block[8:])
    one = sum(words) % _MODULUS
    two = sum(accumulate(words)) % _MODULUS
    low = _MODULUS - (one + two) % _MODULUS
    high = _MODULUS - (one + low) % _MODULUS
    return struct.unpack_from("<II", block) == (low, high)


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a B-tree: its level, and pairs of raw key and value in order."""

    level: int
    entries: tuple[tuple[bytes, bytes], ...]


class Container:
    """The blocks of a container. Any number of threads may call it at once."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        first = read_at(device, 0, 4096, "the container superblock")
        self.block_size = int.from_bytes(first[36:40], "little")
        if first[32:36] != b"NXSB" or self.block_size not in {4096, 8192, 16384, 32768, 65536}:
            raise VolumeError("not an APFS container")
        self._nodes: SharedCache[int, Node] = SharedCache(_CACHED_NODES, lambda _: 1)
        self.superblock = self._newest_superblock(self._raw(0))

    def _raw(self, number: int) -> bytes:
        return read_at(self._device, number * self.block_size, self.block_size, "an APFS object")

    def block(self, number: int, what: str) -> bytes:
        """Read one object and prove it."""
        raw = self._raw(number)
        if not checksum_fits(raw):
            raise VolumeError(f"{what} is damaged: its checksum is wrong")
        return raw

    def _newest_superblock(self, first: bytes) -> bytes:
        blocks, base = struct.unpack_from("<I4xQ", first, 104)
        if blocks >> 31 or blocks > _MAX_CHECKPOINT_BLOCKS:
            raise VolumeError("the checkpoints lie scattered, which is not supported")
        found = [first] if checksum_fits(first) else []
        for number in range(base, base + blocks):
            raw = self._raw(number)
            kind = int.from_bytes(raw[24:26], "little")
            if kind == _TYPE_SUPERBLOCK and raw[32:36] == b"NXSB" and checksum_fits(raw):
                found.append(raw)
        if not found:
            raise VolumeError("no container superblock is intact")
        return max(found, key=lambda raw: int.from_bytes(raw[16:24], "little"))

    def volume_superblocks(self) -> list[bytes]:
        """Return the superblock of every volume, through the object map of the container."""
        objects = ObjectMap(self, int.from_bytes(self.superblock[160:168], "little"))
        volumes = min(int.from_bytes(self.superblock[180:184], "little"), 100)
        numbers = struct.unpack_from(f"<{volumes}Q", self.superblock, 184)
        found = [self.block(objects.find(number), "a volume superblock") for number in numbers if number]
        return [raw for raw in found if raw[32:36] == b"APSB"]

    def node(self, number: int) -> Node:
        """Read a node of a B-tree, from the cache if it is there."""
        return self._nodes.get_or_make(number, lambda: self._parse(self.block(number, "a B-tree node")))

    def _parse(self, raw: bytes) -> Node:
        flags, level, records, table, table_size = struct.unpack_from("<HHIHH", raw, 32)
        fixed = bool(flags & _NODE_FIXED)
        entry_size = 4 if fixed else 8
        start = _NODE_DATA + table
        keys = start + table_size
        end = len(raw) - (_NODE_INFO if flags & _NODE_ROOT else 0)
        if level >= _MAX_LEVELS or bool(flags & _NODE_LEAF) != (level == 0):
            raise VolumeError("a B-tree node has an impossible level")
        if keys > end or records * entry_size > table_size:
            raise VolumeError("a B-tree node is damaged")
        entries = []
        for index in range(records):
            at = start + index * entry_size
            if fixed:
                key_at, value_at = struct.unpack_from("<HH", raw, at)
                key_size, value_size = 16, 16 if level == 0 else 8
            else:
                key_at, key_size, value_at, value_size = struct.unpack_from("<HHHH", raw, at)
            value_start = end - value_at
            if keys + key_at + key_size > end or value_start < keys or value_start + value_size > end:
                raise VolumeError("a B-tree node is damaged")
            entries.append((raw[keys + key_at :][:key_size], raw[value_start : value_start + value_size]))
        return Node(level, tuple(entries))


class ObjectMap:
    """Finds the newest version of a virtual object."""

    def __init__(self, container: Container, number: int) -> None:
        raw = container.block(number, "an object map")
        self._tree = Tree(container, int.from_bytes(raw[48:56], "little"), lambda block: block)

    def find(self, oid: int) -> int:
        """Return the block of an object."""
        found = None
        for key, value in self._tree.from_key(_oid_less(oid)):
            if int.from_bytes(key[:8], "little") != oid:
                break
            found = value
        if found is None:
            raise VolumeError(f"object {oid} is missing from the object map")
        flags, _, block = struct.unpack("<IIQ", found)
        if flags & 4:
            raise VolumeError("the volume is encrypted; its key is not in the image")
        return int(block)


def _oid_less(oid: int) -> Callable[[bytes], bool]:
    return lambda key: int.from_bytes(key[:8], "little") < oid


class Tree:
    """A B-tree: physical, or virtual through an object map."""

    def __init__(self, container: Container, root: int, resolve: Callable[[int], int]) -> None:
        self._container = container
        self._root = root
        self._resolve = resolve

    def from_key(self, less: Callable[[bytes], bool]) -> Iterator[tuple[bytes, bytes]]:
        """Yield pairs in order, from the first key that is not ``less`` on."""
        yield from self._below(self._resolve(self._root), less, _MAX_LEVELS, count(1))

    def _below(
        self, number: int, less: Callable[[bytes], bool], above: int, visited: Iterator[int]
    ) -> Iterator[tuple[bytes, bytes]]:
        if next(visited) > _MAX_NODES:
            raise VolumeError("a B-tree leads to the same nodes again and again")
        node = self._container.node(number)
        if node.level >= above:
            raise VolumeError("a B-tree does not become smaller towards its leaves")
        start = _first_not_less(node.entries, less)
        if node.level == 0:
            yield from node.entries[start:]
            return
        for _key, value in node.entries[max(0, start - 1) :]:
            if len(value) < 8:
                raise VolumeError("a B-tree node is damaged")
            child = self._resolve(int.from_bytes(value[:8], "little"))
            yield from self._below(child, less, node.level, visited)


def _first_not_less(entries: tuple[tuple[bytes, bytes], ...], less: Callable[[bytes], bool]) -> int:
    low, high = 0, len(entries)
    while low < high:
        middle = (low + high) // 2
        if less(entries[middle][0]):
            low = middle + 1
        else:
            high = middle
    return low


class Record(NamedTuple):
    """One record of a file-system tree."""

    kind: int
    key: bytes
    """Without the number and kind of the object."""
    value: bytes


class FileSystemTree:
    """The catalogue of a volume: the records of each object."""

    def __init__(self, container: Container, superblock: bytes) -> None:
        objects = ObjectMap(container, int.from_bytes(superblock[128:136], "little"))
        self._tree = Tree(container, int.from_bytes(superblock[136:144], "little"), objects.find)

    def records(self, oid: int) -> Iterator[Record]:
        """Yield all records of an object in order of kind."""

        def less(key: bytes) -> bool:
            return (int.from_bytes(key[:8], "little") & _OBJECT_MASK) < oid

        for key, value in self._tree.from_key(less):
            head = int.from_bytes(key[:8], "little")
            if head & _OBJECT_MASK != oid:
                return
            yield Record(head >> 60, key[8:], value)


_OBJECT_MASK = (1 << 60) - 1
