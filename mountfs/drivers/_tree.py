"""The part of a file tree that is the same for every file system.

A driver says how to list a directory and where the content of a file lies (`Volume`); `VolumeTree`
adds what the `FileTree` contract asks of everyone: checks, caches, ranges, and one class of error.
"""

from __future__ import annotations

import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from cachetools import LRUCache

from imageformat.errors import NotFoundError, UsageError, VolumeError
from mountfs.drivers._content import read_at
from mountfs.tree import NodeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from imageformat.device import BlockDevice
    from imageformat.extent import Extent
    from mountfs.drivers._content import Content
    from mountfs.tree import Node, Stream

K = TypeVar("K")
V = TypeVar("V")

MAX_ENTRIES = 5_000_000
"""More names than this in one directory is damage."""

MAX_TARGET = 65_536
"""Longest symbolic link in bytes."""

_CACHED_ENTRIES = 100_000
_CACHED_RUNS = 1_000_000
_CHUNK = 65_536
_CACHED_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class Listing:
    """A directory: what could be read of it, and what was wrong with the rest."""

    entries: Mapping[bytes, Node]
    problem: str = ""
    """Not empty: the directory is damaged and ``entries`` may be incomplete."""


@dataclass(slots=True)
class ListingBuilder:
    """Collects entries while a directory is parsed: each name once, a bounded number, first problem kept."""

    entries: dict[bytes, Node] = field(default_factory=dict)
    problem: str = ""

    def add(self, node: Node) -> None:
        """Take a node unless its name is there already; raise `VolumeError` above `MAX_ENTRIES`."""
        if len(self.entries) >= MAX_ENTRIES:
            raise VolumeError(f"a directory has more than {MAX_ENTRIES} entries")
        self.entries.setdefault(node.name, node)

    def damaged(self, problem: str) -> None:
        """Remember the first thing that was wrong."""
        self.problem = self.problem or problem

    def done(self) -> Listing:
        """Return the result."""
        return Listing(self.entries, self.problem)


class Volume(Protocol):
    """One opened file system. Any number of threads may call it at once."""

    def root(self) -> Node:
        """Return the top directory."""
        ...

    def listing(self, node: Node) -> Listing:
        """Read a directory."""
        ...

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """Find the bytes of a file or of one of its streams; None when there is no such stream."""
        ...

    def readlink(self, node: Node) -> bytes:
        """Return the target of a symbolic link."""
        ...

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """Return the extended attributes."""
        ...

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """Return the named streams."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class SharedCache(Generic[K, V]):
    """A bounded cache for many threads; a value is made outside the lock, twice if two threads meet."""

    def __init__(self, capacity: int, weigh: Callable[[V], int]) -> None:
        self._lock = threading.Lock()
        self._capacity = capacity
        self._weigh = weigh
        self._values: LRUCache[K, V] = LRUCache(capacity, getsizeof=weigh)

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of ``key``; make and keep it when it is not there and fits."""
        with self._lock:
            value = self._values.get(key)
        if value is not None:
            return value
        value = make()
        if self._weigh(value) <= self._capacity:
            with self._lock:
                self._values[key] = value
        return value


class ChunkReader:
    """Small metadata reads through a bounded cache of aligned chunks: inode tables, file records."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._chunks: SharedCache[int, bytes] = SharedCache(_CACHED_CHUNKS, lambda _: 1)

    def read(self, offset: int, size: int, what: str) -> bytes:
        """Return ``size`` bytes at ``offset``; see `read_at` for the errors."""
        start = offset // _CHUNK * _CHUNK
        if offset < 0 or offset + size > min(start + _CHUNK, self._device.size):
            return read_at(self._device, offset, size, what)
        length = min(_CHUNK, self._device.size - start)
        chunk = self._chunks.get_or_make(start, lambda: self._device.pread(start, length))
        return chunk[offset - start : offset - start + size]


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn a structure that ends too early into a `VolumeError`."""
    try:
        yield
    except (struct.error, IndexError) as error:
        raise VolumeError(f"{what} is damaged: {error}") from error


class VolumeTree:
    """A `FileTree` over a `Volume`. Caches directories and run lists within fixed bounds."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._listings: SharedCache[Hashable, Listing] = SharedCache(
            _CACHED_ENTRIES, lambda listing: len(listing.entries) + 1
        )
        self._contents: SharedCache[Hashable, Content] = SharedCache(
            _CACHED_RUNS, lambda content: content.weight
        )
        self._closed = False

    def root(self) -> Node:
        """See `FileTree.root`."""
        self._check_open()
        with reading("the root directory"):
            return self._volume.root()

    def child(self, parent: Node, name: bytes) -> Node | None:
        """See `FileTree.child`; a damaged directory still answers for the names that could be read."""
        listing = self._listing(parent)
        found = listing.entries.get(name)
        if found is None and listing.problem:
            raise VolumeError(listing.problem)
        return found

    def children(self, parent: Node) -> Iterator[Node]:
        """See `FileTree.children`; of a damaged directory, what can be read and then a `VolumeError`."""
        listing = self._listing(parent)
        return self._yield_all(listing)

    def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:
        """See `FileTree.read`."""
        if offset < 0 or size < 0:
            raise UsageError(f"cannot read {size} bytes at {offset}")
        content = self._content(node, stream)
        size = min(size, content.size - offset)
        if size <= 0:
            return b""
        with reading("a file"):
            return content.read(offset, size)

    def extents(self, node: Node) -> Iterator[Extent]:
        """See `FileTree.extents`."""
        return self._content(node, None).extents()

    def placements(self, node: Node) -> Iterator[tuple[int, int]]:
        """See `FileTree.placements`."""
        if node.kind is NodeKind.FILE:
            yield from self._content(node, None).placements()
            for stream in self.streams(node):
                yield from self._content(node, stream.name).placements()

    def readlink(self, node: Node) -> bytes:
        """See `FileTree.readlink`."""
        self._check_open()
        if node.kind is not NodeKind.SYMLINK:
            raise UsageError(f"{node.name!r} is not a symbolic link")
        with reading("a symbolic link"):
            target = self._volume.readlink(node)
        if len(target) > MAX_TARGET:
            raise VolumeError(f"a symbolic link of {len(target)} bytes")
        return target

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `FileTree.xattrs`."""
        self._check_open()
        with reading("an extended attribute"):
            return self._volume.xattrs(node)

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """See `FileTree.streams`."""
        self._check_open()
        with reading("the streams of a file"):
            return self._volume.streams(node)

    def close(self) -> None:
        """See `FileTree.close`."""
        if not self._closed:
            self._closed = True
            self._volume.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the volume is closed")

    @staticmethod
    def _yield_all(listing: Listing) -> Iterator[Node]:
        yield from listing.entries.values()
        if listing.problem:
            raise VolumeError(listing.problem)

    def _listing(self, parent: Node) -> Listing:
        self._check_open()
        if parent.kind is not NodeKind.DIRECTORY:
            raise UsageError(f"{parent.name!r} is not a directory")

        def make() -> Listing:
            with reading("a directory"):
                return self._volume.listing(parent)

        return self._listings.get_or_make(parent.key, make)

    def _content(self, node: Node, stream: bytes | None) -> Content:
        self._check_open()
        if stream is None and node.kind is not NodeKind.FILE:
            raise UsageError(f"{node.name!r} is not a file")

        def make() -> Content:
            with reading("the map of a file"):
                content = self._volume.content(node, stream)
            if content is None:
                raise NotFoundError(f"no stream {stream!r} in {node.name!r}")
            return content

        return self._contents.get_or_make((node.key, stream), make)
