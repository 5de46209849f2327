"""A tree of one directory whose files are devices: how raw disks, partitions and notes are shown."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import NotFoundError, UsageError, VolumeError
from imageformat.extent import Extent, ExtentKind, coalesce
from mountfs.tree import Node, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice
    from mountfs.tree import Stream

_ROOT_INODE = 1


class FlatKey(NamedTuple):
    """Key of a node of a `FlatTree`; the empty name is the directory."""

    flat_name: bytes


class FlatTree:
    """A directory of read-only files, each the content of one device. The owner closes the devices.

    Args:
        files: names and contents, in the order of the listing.
        time_ns: shown for everything.
    """

    def __init__(self, files: Mapping[bytes, BlockDevice], *, time_ns: int = 0) -> None:
        self._files = dict(files)
        root = Node(b"", NodeKind.DIRECTORY, FlatKey(b""), mode=0o555, links=2, inode=_ROOT_INODE)
        self._root = dataclasses.replace(root, atime_ns=time_ns, mtime_ns=time_ns, ctime_ns=time_ns)
        self._nodes = {
            name: dataclasses.replace(
                self._root,
                name=name,
                kind=NodeKind.FILE,
                key=FlatKey(name),
                size=device.size,
                mode=0o444,
                links=1,
                inode=inode,
            )
            for inode, (name, device) in enumerate(self._files.items(), _ROOT_INODE + 1)
        }

    def root(self) -> Node:
        """See `FileTree.root`."""
        return self._root

    def child(self, parent: Node, name: bytes) -> Node | None:
        """See `FileTree.child`."""
        self._check_directory(parent)
        return self._nodes.get(name)

    def children(self, parent: Node) -> Iterator[Node]:
        """See `FileTree.children`."""
        self._check_directory(parent)
        return iter(self._nodes.values())

    def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:
        """See `FileTree.read`."""
        device = self._device(node)
        if stream is not None:
            raise NotFoundError(f"{node.name!r} has no stream {stream!r}")
        if offset < 0 or size < 0:
            raise UsageError(f"range {offset}+{size} makes no sense")
        length = min(size, device.size - offset)
        return device.pread(offset, length) if length > 0 else b""

    def extents(self, node: Node) -> Iterator[Extent]:
        """See `FileTree.extents`. Unreadable ranges are DATA: reading them fails, as it should."""
        device = self._device(node)
        return coalesce(
            Extent(extent.offset, extent.length, _AS_FILE[extent.kind])
            for extent in device.extents(0, device.size)
        )

    def placements(self, node: Node) -> Iterator[tuple[int, int]]:  # noqa: ARG002 (nothing is laid out here)
        """See `FileTree.placements`: the files are windows on the device, not files that lie on it."""
        return iter(())

    def readlink(self, node: Node) -> bytes:
        """See `FileTree.readlink`."""
        raise UsageError(f"{node.name!r} is not a symbolic link")

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `FileTree.xattrs`; there are none."""
        self._check(node)
        return {}

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """See `FileTree.streams`; there are none."""
        self._check(node)
        return ()

    def close(self) -> None:
        """Nothing is held."""

    def _check(self, node: Node) -> FlatKey:
        if isinstance(node.key, FlatKey) and node.key.flat_name in {b"", *self._nodes}:
            return node.key
        raise NotFoundError(f"{node.name!r} is not here any more")

    def _check_directory(self, node: Node) -> None:
        if self._check(node).flat_name:
            raise NotFoundError(f"{node.name!r} is not a directory")

    def _device(self, node: Node) -> BlockDevice:
        name = self._check(node).flat_name
        if not name:
            raise VolumeError("a directory has no content to read")
        return self._files[name]


_AS_FILE = {
    ExtentKind.DATA: ExtentKind.DATA,
    ExtentKind.ZERO: ExtentKind.ZERO,
    ExtentKind.UNUSED: ExtentKind.ZERO,
    ExtentKind.BAD: ExtentKind.DATA,
    ExtentKind.EXCLUDED: ExtentKind.DATA,
}
