"""EROFS: Android's system partitions, container images. Plain, chunked, and compressed by LZ4.

Other compressors, fragments and data on other devices are refused by name.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.drivers import _erofs_layout as erofs
from mountfs.drivers._content import RunContent, RunList
from mountfs.drivers._erofs_clusters import CompressedContent
from mountfs.drivers._erofs_xattrs import attributes
from mountfs.drivers._packed import PlainBlocks, check_block_count
from mountfs.drivers._tree import MAX_TARGET, ChunkReader, Listing, ListingBuilder, VolumeTree, reading
from mountfs.tree import FileSystemDriver, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content
    from mountfs.tree import FileSystemInfo, FileTree, Node, Stream

_ENTRY = 12
_HOLE = 0xFFFF_FFFF
_CHUNK_LOG = 31
_CHUNK_INDEXES = 0x20


class ErofsVolume:
    """A `Volume` over one EROFS. Keys are inode numbers."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._superblock = erofs.read_superblock(device)
        self._chunks = ChunkReader(device)
        self._plain = PlainBlocks()

    def root(self) -> Node:
        """See `Volume.root`."""
        root = self._inode(self._superblock.root)
        if root.kind is not NodeKind.DIRECTORY:
            raise VolumeError("the root of the file system is not a directory")
        return root.to_node(b"")

    def listing(self, node: Node) -> Listing:
        """See `Volume.listing`."""
        found = ListingBuilder()
        content = self._content(self._node_inode(node))
        if content.size > self._device.size:
            raise VolumeError(f"a directory of {content.size} bytes is larger than the volume")
        step = self._superblock.directory_block
        for at in range(0, content.size, step):
            block = content.read(at, min(step, content.size - at))
            for number, name in _entries(block, found):
                try:
                    found.add(self._inode(number).to_node(name))
                except VolumeError as error:
                    found.damaged(f"{name!r} cannot be read: {error}")
        return found.done()

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """See `Volume.content`; there are no named streams."""
        return None if stream is not None else self._content(self._node_inode(node))

    def readlink(self, node: Node) -> bytes:
        """See `Volume.readlink`."""
        inode = self._node_inode(node)
        if inode.size > MAX_TARGET:
            raise VolumeError(f"a symbolic link of {inode.size} bytes")
        return self._content(inode).read(0, inode.size)

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `Volume.xattrs`."""
        return attributes(self._chunks, self._superblock, self._node_inode(node))

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """Always empty."""
        del node
        return ()

    def close(self) -> None:
        """Nothing is held."""

    def _inode(self, number: int) -> erofs.Inode:
        with reading(f"inode {number}"):
            return erofs.read_inode(self._chunks, self._superblock, number)

    def _node_inode(self, node: Node) -> erofs.Inode:
        if not isinstance(node.key, int):
            raise VolumeError(f"{node.name!r} is not a node of this file system")
        inode = self._inode(node.key)
        if inode.kind is not node.kind:
            raise VolumeError(f"{node.name!r} is not a node of this file system")
        return inode

    def _content(self, inode: erofs.Inode) -> Content:
        if inode.layout in {erofs.COMPRESSED_FULL, erofs.COMPRESSED_COMPACT}:
            return CompressedContent(self._device, self._superblock, inode, self._plain)
        runs = self._chunk_runs(inode) if inode.layout == erofs.CHUNKED else self._flat_runs(inode)
        return RunContent(self._device, runs, inode.size)

    def _flat_runs(self, inode: erofs.Inode) -> RunList:
        """Find data in one piece, the end of which may lie behind the inode."""
        runs, block_size = RunList(), self._superblock.block_size
        behind = inode.layout == erofs.INLINE
        whole = max(0, -(-inode.size // block_size) - 1) * block_size if behind else inode.size
        runs.add(0, whole, inode.union * block_size)
        rest = inode.size - whole
        if rest and inode.tail // block_size != (inode.tail + rest - 1) // block_size:
            raise VolumeError(f"inode {inode.number} is damaged: its data crosses the end of its block")
        runs.add(whole, rest, inode.tail)
        return runs

    def _chunk_runs(self, inode: erofs.Inode) -> RunList:
        block_size = self._superblock.block_size
        chunk = block_size << (inode.union & _CHUNK_LOG)
        check_block_count(inode.size, chunk)
        width = 8 if inode.union & _CHUNK_INDEXES else 4
        place = -(-inode.tail // width) * width
        raw = self._chunks.read(place, -(-inode.size // chunk) * width, "a map of chunks")
        runs = RunList()
        for index, (device, block) in enumerate(
            struct.iter_unpack("<2xHI", raw)
            if width == 8
            else ((0, one) for (one,) in struct.iter_unpack("<I", raw))
        ):
            if device:
                raise VolumeError(f"inode {inode.number} has data on device {device}, which is not here")
            if block != _HOLE:
                start = index * chunk
                runs.add(start, min(chunk, inode.size - start), block * block_size)
        return runs


def _entries(block: bytes, found: ListingBuilder) -> Iterator[tuple[int, bytes]]:
    """Yield inode number and name of the entries in one block of a directory."""
    (first,) = struct.unpack_from("<H", block, 8)
    if first < _ENTRY or first % _ENTRY or first > len(block):
        found.damaged(f"a directory is damaged: its names begin at byte {first} of a block")
        return
    offsets = [struct.unpack_from("<H", block, at + 8)[0] for at in range(0, first, _ENTRY)]
    offsets.append(len(block))
    for index in range(first // _ENTRY):
        (number,) = struct.unpack_from("<Q", block, index * _ENTRY)
        name = block[offsets[index] : offsets[index + 1]]
        if index + 1 == first // _ENTRY:
            name = name.partition(b"\0")[0]
        if name in {b".", b".."}:
            continue
        if not name or number >= 1 << 58:
            found.damaged(f"a directory is damaged: the entry {index} of a block")
            continue
        yield number, name


def open_erofs(device: BlockDevice, info: FileSystemInfo) -> FileTree:
    """Open an EROFS.

    Raises:
        VolumeError: it is not one, it is damaged, or it uses something that is not supported.
    """
    del info
    with reading("the EROFS superblock"):
        tree = VolumeTree(ErofsVolume(device))
        tree.root()
    return tree


PLUGIN = FileSystemDriver(name="erofs", types=frozenset({"erofs"}), open=open_erofs)
