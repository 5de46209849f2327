"""XFS, versions 4 and 5, read without a library: lock-free, exact times, honest about damage.

In version 5 every inode and block of metadata is proven by its checksum before it is believed. The content of
files that lie on a realtime device is refused, because that device is not in the image.

The journal of a volume that was in use is replayed in memory, as the kernel does when it mounts. Where that
cannot be, the volume is read as it lies, and its top directory ends with an error that says so.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import MountfsError, VolumeError
from mountfs.drivers._content import RunContent, read_at
from mountfs.drivers._tree import ChunkReader, Listing, ListingBuilder, SharedCache, VolumeTree, reading
from mountfs.drivers._xfs_attributes import read_attributes
from mountfs.drivers._xfs_directory import block_entries, short_entries
from mountfs.drivers._xfs_inode import FORMAT_LOCAL, Inode, read_inode
from mountfs.drivers._xfs_layout import BlockHeader, read_superblock
from mountfs.drivers._xfs_mapping import map_fork
from mountfs.drivers._xfs_replay import replay
from mountfs.tree import FileSystemDriver, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content, RunList
    from mountfs.drivers._xfs_layout import Superblock
    from mountfs.tree import FileSystemInfo, FileTree, Node, Stream

_CACHED_INODES = 8 << 20
"""Bytes of inodes that are kept, so that what was just listed is not proven again when it is read."""
_MAX_TARGET = 1024
_LINK_MAGIC = b"XSLM"
_LINK_HEADER = 56
_LINK_PROOF = BlockHeader(checksum=12, address=40, uuid=16, owner=32)
_MAX_LINK_RUN = 1 << 17
"""Longest run of blocks that a target of `_MAX_TARGET` bytes can have."""


class XfsVolume:
    """A `Volume` over one XFS file system. Keys are inode numbers."""

    def __init__(self, device: BlockDevice) -> None:
        self._device, self._layout, self._unfinished, self._problem = _replayed(device)
        self._chunks = ChunkReader(self._device)
        self._inodes: SharedCache[int, Inode] = SharedCache(_CACHED_INODES, lambda inode: len(inode.raw))

    def root(self) -> Node:
        """See `Volume.root`."""
        root = self._inode(self._layout.root_inode)
        if root.kind is not NodeKind.DIRECTORY:
            raise VolumeError("the root of the file system is not a directory")
        return root.to_node(b"")

    def listing(self, node: Node) -> Listing:
        """See `Volume.listing`."""
        found = ListingBuilder()
        inode = self._node_inode(node)
        if inode.number == self._layout.root_inode and self._problem:
            found.damaged(self._problem)
        for number, name in self._entries(inode, found):
            try:
                found.add(self._inode(number).to_node(name))
            except VolumeError as error:
                found.damaged(f"{name!r} cannot be read: {error}")
        return found.done()

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """See `Volume.content`; XFS has no named streams."""
        if stream is not None:
            return None
        inode = self._node_inode(node)
        if inode.is_realtime:
            raise VolumeError(f"{node.name!r} lies on the realtime device of the volume, not in the image")
        runs = map_fork(self._device, self._layout, inode.number, inode.data_fork, inode.size)
        return RunContent(self._device, runs, inode.size)

    def readlink(self, node: Node) -> bytes:
        """See `Volume.readlink`."""
        inode = self._node_inode(node)
        if not 0 < inode.size <= _MAX_TARGET:
            raise VolumeError(f"a symbolic link of {inode.size} bytes")
        fork = inode.data_fork
        if fork.format == FORMAT_LOCAL:
            target = fork.raw[: inode.size]
        else:
            runs = map_fork(self._device, self._layout, inode.number, fork)
            if self._layout.has_checksums:
                target = b"".join(self._link_parts(inode, runs))
            else:
                target = RunContent(self._device, runs, runs.end).read(0, min(inode.size, runs.end))
        if len(target) != inode.size:
            raise VolumeError(f"inode {inode.number} is damaged: its target is not all there")
        return target

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `Volume.xattrs`."""
        return read_attributes(self._device, self._layout, self._node_inode(node))

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """Always empty."""
        del node
        return ()

    def close(self) -> None:
        """Nothing is held."""

    def _inode(self, number: int) -> Inode:
        with reading("an inode"):
            return self._inodes.get_or_make(number, lambda: read_inode(self._chunks, self._layout, number))

    def _node_inode(self, node: Node) -> Inode:
        if not isinstance(node.key, int):
            raise VolumeError(f"{node.name!r} is not a node of this file system")
        inode = self._inode(node.key)
        if inode.kind is not node.kind:
            raise VolumeError(f"{node.name!r} is not a node of this file system")
        if inode.number in self._unfinished:
            raise VolumeError(f"{node.name!r} was being changed when the machine stopped")
        return inode

    def _entries(self, inode: Inode, found: ListingBuilder) -> Iterator[tuple[int, bytes]]:
        fork = inode.data_fork
        if fork.format == FORMAT_LOCAL:
            return short_entries(fork.raw[: inode.size], has_type=self._layout.has_file_type)
        return block_entries(self._device, self._layout, inode, found)

    def _link_parts(self, inode: Inode, runs: RunList) -> Iterator[bytes]:
        """Yield the parts of a target in v5: each run of blocks has one header."""
        position = 0
        for run in runs:
            what = f"the target of inode {inode.number}"
            if run.length > _MAX_LINK_RUN:
                raise VolumeError(f"{what} is damaged: a run of {run.length} bytes")
            raw = read_at(self._device, run.source, run.length, what)
            magic, offset, length = struct.unpack_from(">4sII", raw, 0)
            if magic != _LINK_MAGIC or offset != position or length > len(raw) - _LINK_HEADER:
                raise VolumeError(f"{what} is damaged: a bad block")
            self._layout.prove_block(raw, _LINK_PROOF, inode.number, run.source, what)
            yield raw[_LINK_HEADER : _LINK_HEADER + length]
            position += length


class _Replayed(NamedTuple):
    device: BlockDevice
    layout: Superblock
    unfinished: frozenset[int]
    """Inodes that were half changed."""
    problem: str
    """Why the journal could not be replayed."""


def _replayed(device: BlockDevice) -> _Replayed:
    layout = read_superblock(device)
    try:
        with reading("the journal"):
            done = replay(device, layout)
            if done is None:
                return _Replayed(device, layout, frozenset(), "")
            return _Replayed(done[0], read_superblock(done[0]), done[1], "")
    except MountfsError as error:
        problem = f"what was written last may be missing, because the journal cannot be replayed: {error}"
        return _Replayed(device, layout, frozenset(), problem)


def open_xfs(device: BlockDevice, info: FileSystemInfo) -> FileTree:
    """Open an XFS volume.

    Raises:
        VolumeError: it is not one, it is damaged, or it uses a feature that is not supported.
    """
    del info
    with reading("the XFS superblock"):
        tree = VolumeTree(XfsVolume(device))
        tree.root()
    return tree


PLUGIN = FileSystemDriver(name="xfs", types=frozenset({"xfs"}), open=open_xfs)
