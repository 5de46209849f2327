"""SquashFS 4.0: live systems, snaps, firmware. Compressed by any of its six compressors.

Blocks are decoded one by one when they are asked for. The table for export by NFS is not needed and not
looked at. The index of large directories only helps those that do not keep what they read.
"""

from __future__ import annotations

import struct
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from mountfs.drivers._content import read_at
from mountfs.drivers._packed import PackedContent, PlainBlocks
from mountfs.drivers._squashfs_layout import (
    NO_TABLE,
    NOTHING,
    PLAIN_BLOCK,
    Inode,
    Metadata,
    read_inode,
    read_superblock,
)
from mountfs.drivers._squashfs_xattrs import Attributes
from mountfs.drivers._tree import Listing, ListingBuilder, VolumeTree, reading
from mountfs.tree import FileSystemDriver, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content
    from mountfs.tree import FileSystemInfo, FileTree, Node, Stream

_MAX_RUN = 256
"""Entries that share one header in a directory."""
_SIZE_MASK = PLAIN_BLOCK - 1


class _Tail(NamedTuple):
    """Where the last bytes of a file lie in a block that it shares with others."""

    start: int
    stored: int
    offset: int
    size: int


class SquashVolume:
    """A `Volume` over one SquashFS. Keys are references to inodes."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._superblock = read_superblock(device)
        self._metadata = Metadata(device, self._superblock)
        self._attributes = Attributes(device, self._metadata, self._superblock)
        self._plain = PlainBlocks()

    def root(self) -> Node:
        """See `Volume.root`."""
        root = self._inode(self._superblock.root)
        if root.head.kind is not NodeKind.DIRECTORY:
            raise VolumeError("the root of the file system is not a directory")
        return root.to_node(b"")

    def listing(self, node: Node) -> Listing:
        """See `Volume.listing`."""
        found = ListingBuilder()
        try:
            for reference, name in self._entries(self._node_inode(node)):
                self._add(found, reference, name)
        except VolumeError as error:
            if not found.entries:
                raise
            found.damaged(str(error))
        return found.done()

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """See `Volume.content`; there are no named streams."""
        if stream is not None:
            return None
        inode = self._node_inode(node)
        blocks = _FileBlocks(self, inode, self._tail(inode))
        return PackedContent(blocks, inode.size, self._superblock.block_size)

    def readlink(self, node: Node) -> bytes:
        """See `Volume.readlink`."""
        return self._node_inode(node).target

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `Volume.xattrs`."""
        return self._attributes.of(self._node_inode(node).xattrs)

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """Always empty."""
        del node
        return ()

    def close(self) -> None:
        """Nothing is held."""

    def plain(self, start: int, stored: int) -> bytes:
        """Return what the data block at byte ``start`` decodes to; ``stored`` is its size with flag."""

        def decode() -> bytes:
            length = stored & _SIZE_MASK
            if length > self._superblock.block_size or start + length > self._superblock.size:
                raise VolumeError(f"the data block at byte {start} is damaged: {length} bytes")
            raw = read_at(self._device, start, length, "a data block")
            if stored & PLAIN_BLOCK:
                return raw
            return self._superblock.decode(raw, self._superblock.block_size)

        return self._plain.get_or_make(start, decode)

    def _inode(self, reference: int) -> Inode:
        with reading(f"the inode {reference:#x}"):
            return read_inode(self._metadata, self._superblock, reference)

    def _node_inode(self, node: Node) -> Inode:
        if not isinstance(node.key, int):
            raise VolumeError(f"{node.name!r} is not a node of this file system")
        inode = self._inode(node.key)
        if inode.head.kind is not node.kind:
            raise VolumeError(f"{node.name!r} is not a node of this file system")
        return inode

    def _add(self, found: ListingBuilder, reference: int, name: bytes) -> None:
        if name in {b"", b".", b".."}:
            found.damaged(f"a directory is damaged: the name {name!r}")
            return
        try:
            found.add(self._inode(reference).to_node(name))
        except VolumeError as error:
            found.damaged(f"{name!r} cannot be read: {error}")

    def _entries(self, directory: Inode) -> Iterator[tuple[int, bytes]]:
        """Yield a reference to the inode, and the name, of each entry."""
        start = self._superblock.directory_table + directory.start
        raw = self._metadata.read(start, directory.offset, directory.size)
        at = 0
        while at < len(raw):
            count, block = struct.unpack_from("<II4x", raw, at)
            at += 12
            if count >= _MAX_RUN:
                raise VolumeError(f"a directory is damaged: {count + 1} entries under one header")
            for _ in range(count + 1):
                offset, length = struct.unpack_from("<H4xH", raw, at)
                name = raw[at + 8 : at + 9 + length]
                if len(name) != length + 1:
                    raise VolumeError("a directory is damaged: it ends within a name")
                yield block << 16 | offset, name
                at += 9 + length

    def _tail(self, inode: Inode) -> _Tail | None:
        size = inode.size % self._superblock.block_size
        if inode.fragment == NOTHING or not size:
            return None
        if inode.fragment >= self._superblock.fragments:
            raise VolumeError(f"a file ends in fragment {inode.fragment} of {self._superblock.fragments}")
        table = self._superblock.fragment_table
        raw = self._metadata.item(table, inode.fragment, 16, "the table of fragments")
        start, stored = struct.unpack("<QI4x", raw)
        if not stored & _SIZE_MASK:
            raise VolumeError(f"the fragment {inode.fragment} is damaged: it is empty")
        return _Tail(start, stored, inode.offset, size)


class _FileBlocks:
    """The `StoredBlocks` of one file: those of its own, then perhaps a tail in a shared one."""

    def __init__(self, volume: SquashVolume, inode: Inode, tail: _Tail | None) -> None:
        self._volume = volume
        self._stored = inode.blocks
        self._tail = tail
        lengths = (stored & _SIZE_MASK for stored in inode.blocks)
        if inode.start >= NO_TABLE >> 1:
            raise VolumeError(f"a file is damaged: it starts at byte {inode.start}")
        self._starts = array("Q", accumulate(lengths, initial=inode.start))

    def place(self, index: int) -> tuple[int, int]:
        """See `StoredBlocks.place`."""
        if index < len(self._stored):
            return self._starts[index], self._stored[index] & _SIZE_MASK
        if self._tail is None:
            raise VolumeError("a file ends in a fragment that is not there")
        return self._tail.start, self._tail.stored & _SIZE_MASK

    def plain(self, index: int) -> bytes:
        """See `StoredBlocks.plain`."""
        if index < len(self._stored):
            return self._volume.plain(self._starts[index], self._stored[index])
        if self._tail is None:
            raise VolumeError("a file ends in a fragment that is not there")
        _, _, offset, size = self._tail
        return self._volume.plain(self._tail.start, self._tail.stored)[offset : offset + size]


def open_squashfs(device: BlockDevice, info: FileSystemInfo) -> FileTree:
    """Open a SquashFS.

    Raises:
        VolumeError: it is not one, it is damaged, or of another version.
        UnsupportedVolumeError: its compressor is not here; the message says what to install.
    """
    del info
    with reading("the SquashFS superblock"):
        tree = VolumeTree(SquashVolume(device))
        tree.root()
    return tree


PLUGIN = FileSystemDriver(name="squashfs", types=frozenset({"squashfs", "squashfs3"}), open=open_squashfs)
