"""B-trees of HFS+: nodes of records, in order of their keys.

Source: Apple's TN1150, "HFS Plus Volume Format", section B-Trees. Every number in a node is hostile.
"""

from __future__ import annotations

import struct
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from mountfs.drivers._tree import SharedCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mountfs.drivers._content import RunContent

_LEAF, _INDEX, _HEADER = -1, 0, 1
_DESCRIPTOR = 14
_MAX_DEPTH = 16
_CACHED_NODES = 1024
_MAX_NODES = 200_000
"""That one look-up or listing may visit: some millions of records."""


class Record(NamedTuple):
    """One record of a leaf."""

    place: tuple[int, int]
    """Number of the node, and of the record in it."""
    key: bytes
    """Without its length."""
    value: bytes


class _Node(NamedTuple):
    height: int
    records: tuple[tuple[bytes, bytes], ...]


class BTree:
    """A B-tree in a file. Any number of threads."""

    def __init__(self, content: RunContent, what: str) -> None:
        self._content = content
        self._what = what
        head = content.read(0, 256) if content.size >= 512 else bytes(256)
        (self._root,) = struct.unpack_from(">I", head, _DESCRIPTOR + 2)
        (self._size,) = struct.unpack_from(">H", head, _DESCRIPTOR + 18)
        fits = 512 <= self._size <= 32_768 and not self._size & (self._size - 1)
        if struct.unpack_from(">b", head, 8) != (_HEADER,) or not fits:
            raise VolumeError(f"{what} is damaged: it has no header")
        self._nodes: SharedCache[int, _Node] = SharedCache(_CACHED_NODES, lambda _: 1)

    def from_key(self, less: Callable[[bytes], bool]) -> Iterator[Record]:
        """Yield records in order, from the first whose key is not ``less`` on."""
        if self._root:
            yield from self._below(self._root, less, _MAX_DEPTH, count(1))

    def at(self, place: tuple[int, int]) -> Record:
        """Return the record at a place that a walk told."""
        node = self._node(place[0])
        if node.height != 1 or place[1] >= len(node.records):
            raise VolumeError(f"{self._what} is damaged: a record is not where it was")
        return Record(place, *node.records[place[1]])

    def _below(
        self, number: int, less: Callable[[bytes], bool], above: int, visited: Iterator[int]
    ) -> Iterator[Record]:
        if next(visited) > _MAX_NODES:
            raise VolumeError(f"{self._what} is damaged: it leads to the same nodes again and again")
        node = self._node(number)
        if node.height >= above:
            raise VolumeError(f"{self._what} is damaged: it does not become smaller towards its leaves")
        start = _first_not_less(node.records, less)
        if node.height == 1:
            for index in range(start, len(node.records)):
                yield Record((number, index), *node.records[index])
            return
        for _, value in node.records[max(0, start - 1) :]:
            (child,) = struct.unpack_from(">I", value, 0)
            yield from self._below(child, less, node.height, visited)

    def _node(self, number: int) -> _Node:
        def make() -> _Node:
            if (number + 1) * self._size > self._content.size:
                raise VolumeError(f"{self._what} is damaged: node {number} is outside of it")
            return self._parse(self._content.read(number * self._size, self._size))

        return self._nodes.get_or_make(number, make)

    def _parse(self, raw: bytes) -> _Node:
        kind, height, records = struct.unpack_from(">bBH", raw, 8)
        if kind not in {_LEAF, _INDEX} or (kind == _LEAF) != (height == 1):
            raise VolumeError(f"{self._what} is damaged: a node of another kind")
        end = len(raw) - 2 * (records + 1)
        if end < _DESCRIPTOR:
            raise VolumeError(f"{self._what} is damaged: a node with {records} records")
        starts = struct.unpack_from(f">{records + 1}H", raw, end)[::-1]
        return _Node(
            height, tuple(self._record(raw, starts[index : index + 2], end) for index in range(records))
        )

    def _record(self, raw: bytes, bounds: tuple[int, ...], limit: int) -> tuple[bytes, bytes]:
        start, end = bounds
        if not _DESCRIPTOR <= start <= end - 2 or end > limit:
            raise VolumeError(f"{self._what} is damaged: a record lies outside its node")
        (length,) = struct.unpack_from(">H", raw, start)
        value = start + 2 + length + length % 2
        if value > end:
            raise VolumeError(f"{self._what} is damaged: a key is longer than its record")
        return raw[start + 2 : start + 2 + length], raw[value:end]


def _first_not_less(records: tuple[tuple[bytes, bytes], ...], less: Callable[[bytes], bool]) -> int:
    low, high = 0, len(records)
    while low < high:
        middle = (low + high) // 2
        if less(records[middle][0]):
            low = middle + 1
        else:
            high = middle
    return low
