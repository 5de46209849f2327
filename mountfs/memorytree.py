"""A tree held in memory: what is shown in place of a point that cannot be opened, and a model for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imageformat.errors import NotFoundError, VolumeError
from imageformat.extent import Extent, ExtentKind
from mountfs.tree import Node, NodeKind, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_DEFAULT_MODE = {NodeKind.DIRECTORY: 0o555, NodeKind.SYMLINK: 0o777}


@dataclass(frozen=True, slots=True)
class Item:
    """One file, folder or link of a `MemoryTree`."""

    content: bytes = b""
    """Of a file, or the target of a symbolic link."""
    kind: NodeKind = NodeKind.FILE
    children: Mapping[bytes, Item] = field(default_factory=dict)
    """Of a folder."""
    size: int | None = None
    """With ``read``: the length of the file."""
    read: Callable[[int, int], bytes] | None = None
    """Makes the content of a large file: ``read(offset, size)``, called inside the file only."""
    holes: tuple[Extent, ...] = ()
    """The extents of the file when it is not all DATA."""
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    links: int = 1
    inode: int = 0
    mtime_ns: int = 0
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    streams: Mapping[bytes, bytes] = field(default_factory=dict)


def folder(children: Mapping[bytes, Item], *, mode: int = 0o555) -> Item:
    """Return a folder of named items."""
    return Item(kind=NodeKind.DIRECTORY, children=children, mode=mode)


class MemoryTree:
    """A `FileTree` over an `Item`; any number of threads may call it."""

    def __init__(self, top: Item) -> None:
        self._items: dict[tuple[bytes, ...], Item] = {}
        pending: list[tuple[tuple[bytes, ...], Item]] = [((), top)]
        while pending:
            path, item = pending.pop()
            self._items[path] = item
            pending.extend(((*path, name), child) for name, child in item.children.items())

    def root(self) -> Node:
        """See `FileTree.root`."""
        return self._node((), self._items[()])

    def child(self, parent: Node, name: bytes) -> Node | None:
        """See `FileTree.child`."""
        path, item = self._find(parent)
        child = item.children.get(name)
        return None if child is None else self._node((*path, name), child)

    def children(self, parent: Node) -> Iterator[Node]:
        """See `FileTree.children`."""
        path, item = self._find(parent)
        for name, child in item.children.items():
            yield self._node((*path, name), child)

    def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:
        """See `FileTree.read`."""
        item = self._find(node)[1]
        if stream is not None:
            if stream not in item.streams:
                raise NotFoundError(f"no such stream: {stream!r}")
            return item.streams[stream][offset : offset + size]
        if item.read is None:
            return item.content[offset : offset + size]
        length = max(0, min(size, (item.size or 0) - offset))
        return item.read(offset, length) if length else b""

    def extents(self, node: Node) -> Iterator[Extent]:
        """See `FileTree.extents`."""
        item = self._find(node)[1]
        if item.holes:
            yield from item.holes
        elif node.size:
            yield Extent(0, node.size, ExtentKind.DATA)

    def placements(self, node: Node) -> Iterator[tuple[int, int]]:  # noqa: ARG002 (there is no device)
        """See `FileTree.placements`."""
        return iter(())

    def readlink(self, node: Node) -> bytes:
        """See `FileTree.readlink`."""
        item = self._find(node)[1]
        if item.kind is not NodeKind.SYMLINK:
            raise VolumeError(f"{node.name!r} is not a symbolic link")
        return item.content

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `FileTree.xattrs`."""
        return self._find(node)[1].xattrs

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """See `FileTree.streams`."""
        return tuple(Stream(name, len(data)) for name, data in self._find(node)[1].streams.items())

    def close(self) -> None:
        """Nothing is held."""

    def _find(self, node: Node) -> tuple[tuple[bytes, ...], Item]:
        node_path = node.key if isinstance(node.key, tuple) else (b"",)
        item = self._items.get(node_path)
        if item is None:
            raise NotFoundError(f"no such file: {node.name!r}")
        return node_path, item

    @staticmethod
    def _node(path: tuple[bytes, ...], item: Item) -> Node:
        return Node(
            name=path[-1] if path else b"",
            kind=item.kind,
            key=path,
            size=len(item.content) if item.size is None else item.size,
            mode=_DEFAULT_MODE.get(item.kind, 0o444) if item.mode is None else item.mode,
            uid=item.uid,
            gid=item.gid,
            links=item.links,
            inode=item.inode,
            atime_ns=item.mtime_ns,
            mtime_ns=item.mtime_ns,
            ctime_ns=item.mtime_ns,
            device=item.device,
        )
