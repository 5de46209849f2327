"""ext2, ext3 and ext4, read without a library: lock-free, exact times, honest about damage.

libtsk truncates times outside 1970-2106, takes quadratic time for large directories and opens neither
revision 0 nor bigalloc volumes; the format is simple enough to read it here. The journal of a volume that was
in use is replayed in memory; checksums of metadata are not verified. What fscrypt encrypted is refused,
never served as ciphertext.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from imageformat.extent import ExtentKind
from mountfs.drivers._content import BytesContent, RunContent, read_at
from mountfs.drivers._ext_attributes import INLINE_DATA, Attribute, block_attributes, inode_attributes
from mountfs.drivers._ext_journal import replay_journal
from mountfs.drivers._ext_layout import (
    INODE_ENCRYPTED,
    INODE_EXTENTS,
    INODE_INLINE_DATA,
    ROOT_INODE,
    Inode,
    read_inode,
    read_superblock,
)
from mountfs.drivers._ext_mapping import map_inode
from mountfs.drivers._tree import MAX_TARGET, ChunkReader, Listing, ListingBuilder, VolumeTree, reading
from mountfs.signatures.linux import NOT_REPLAYED
from mountfs.tree import FileSystemDriver, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content
    from mountfs.tree import FileSystemInfo, FileTree, Node, Stream

_FAST_LINK = 60
_READ_UNIT = 1 << 20
_MAX_ATTRIBUTE = 65_536


class ExtVolume:
    """A `Volume` over one ext file system. Keys are inode numbers."""

    def __init__(self, device: BlockDevice) -> None:
        layout = read_superblock(device)
        if layout.needs_recovery:
            device = replay_journal(device, layout).device
            layout = read_superblock(device)
        self._device = device
        self._layout = layout
        self._chunks = ChunkReader(device)

    def root(self) -> Node:
        """See `Volume.root`."""
        root = self._inode(ROOT_INODE)
        if root.kind is not NodeKind.DIRECTORY:
            raise VolumeError("the root of the file system is not a directory")
        return root.to_node(b"")

    def listing(self, node: Node) -> Listing:
        """See `Volume.listing`."""
        inode = self._node_inode(node)
        _refuse_encrypted(inode)
        found = ListingBuilder()
        for raw, whole in self._directory_blocks(inode):
            for number, name in _entries(raw, found, whole=whole, has_type=self._layout.has_file_type):
                try:
                    found.add(self._inode(number).to_node(name))
                except VolumeError as error:
                    found.damaged(f"{name!r} cannot be read: {error}")
        return found.done()

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """See `Volume.content`; ext has no named streams."""
        return None if stream is not None else self._content(self._node_inode(node))

    def readlink(self, node: Node) -> bytes:
        """See `Volume.readlink`."""
        inode = self._node_inode(node)
        if inode.size > MAX_TARGET:
            raise VolumeError(f"a symbolic link of {inode.size} bytes")
        _refuse_encrypted(inode)
        owned = self._layout.cluster_size // 512 if inode.attribute_block else 0
        mapped = inode.flags & (INODE_EXTENTS | INODE_INLINE_DATA)
        if not mapped and inode.size < _FAST_LINK and inode.sectors <= owned:
            return inode.block_area[: inode.size]
        content = self._content(inode)
        return content.read(0, content.size)

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `Volume.xattrs`."""
        return {
            attribute.name: self._value(attribute)
            for attribute in self._attributes(self._node_inode(node))
            if attribute.name != INLINE_DATA
        }

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """Always empty."""
        del node
        return ()

    def close(self) -> None:
        """Nothing is held."""

    def _inode(self, number: int) -> Inode:
        with reading(f"inode {number}"):
            return read_inode(self._chunks, self._layout, number)

    def _node_inode(self, node: Node) -> Inode:
        if not isinstance(node.key, int):
            raise VolumeError(f"{node.name!r} is not a node of this file system")
        inode = self._inode(node.key)
        if inode.kind is not node.kind:
            raise VolumeError(f"{node.name!r} is not a node of this file system")
        return inode

    def _content(self, inode: Inode) -> Content:
        _refuse_encrypted(inode)
        if inode.flags & INODE_INLINE_DATA:
            return BytesContent(self._inline(inode))
        return RunContent(self._device, map_inode(self._device, self._layout, inode), inode.size)

    def _inline(self, inode: Inode) -> bytes:
        rest = b"".join(found.value for found in inode_attributes(inode) if found.name == INLINE_DATA)
        data = inode.block_area + rest
        if inode.size > len(data):
            raise VolumeError(f"inode {inode.number} is damaged: inline data of {inode.size} bytes")
        return data[: inode.size]

    def _directory_blocks(self, inode: Inode) -> Iterator[tuple[bytes, bool]]:
        """Yield the parts of a directory, and whether it is a whole block.

        An inline directory starts with its parent's number and goes on in the inode's attributes.
        """
        content = self._content(inode)
        if inode.flags & INODE_INLINE_DATA:
            data = content.read(0, content.size)
            yield data[4:_FAST_LINK], False
            yield data[_FAST_LINK:], False
            return
        size = self._layout.block_size
        extents = [extent for extent in content.extents() if extent.kind is ExtentKind.DATA]
        if sum(extent.length for extent in extents) > self._device.size:
            raise VolumeError(f"inode {inode.number} is damaged: a directory larger than the volume")
        for extent in extents:
            for offset in range(extent.offset, extent.end, _READ_UNIT):
                piece = content.read(offset, min(_READ_UNIT, extent.end - offset))
                for at in range(0, len(piece), size):
                    yield piece[at : at + size], True

    def _attributes(self, inode: Inode) -> Iterator[Attribute]:
        yield from inode_attributes(inode)
        block = inode.attribute_block
        if block:
            if block >= self._layout.block_count:
                raise VolumeError(f"inode {inode.number} has its attributes at block {block}")
            size = self._layout.block_size
            yield from block_attributes(read_at(self._device, block * size, size, "an attribute block"))

    def _value(self, attribute: Attribute) -> bytes:
        if not attribute.inode:
            return attribute.value
        inode = self._inode(attribute.inode)
        if attribute.size > _MAX_ATTRIBUTE or inode.size < attribute.size:
            raise VolumeError(f"the extended attribute {attribute.name!r} is damaged")
        return self._content(inode).read(0, attribute.size)


def _refuse_encrypted(inode: Inode) -> None:
    if inode.flags & INODE_ENCRYPTED:
        raise VolumeError(f"inode {inode.number} is encrypted by fscrypt; its key is not in the image")


def _entries(
    raw: bytes, found: ListingBuilder, *, whole: bool, has_type: bool
) -> Iterator[tuple[int, bytes]]:
    """Yield inode number and name of each entry in use.

    The blocks of a hashed directory's index hide behind entries that are not in use, so that a linear
    scan sees every name once.
    """
    at = 0
    while at + 8 <= len(raw):
        number, length, name_length = struct.unpack_from("<IHH", raw, at)
        if has_type:
            name_length &= 0xFF
        if whole and len(raw) == 65_536 and length in {0, 65_535}:
            length = 65_536
        if length < 8 or length % 4 or at + length > len(raw) or name_length > min(length - 8, 255):
            if whole or number:
                found.damaged(f"a directory is damaged: a bad entry at byte {at} of a block")
            return
        name = raw[at + 8 : at + 8 + name_length]
        if number and name not in {b".", b".."}:
            if name:
                yield number, name
            else:
                found.damaged("a directory is damaged: an entry without a name")
        at += length


def open_ext(device: BlockDevice, info: FileSystemInfo) -> FileTree:
    """Open an ext volume.

    Raises:
        VolumeError: it is not one, it is damaged, or it uses a feature that is not supported.
    """
    del info
    with reading("the ext superblock"):
        tree = VolumeTree(ExtVolume(device))
        tree.root()
    return tree


def note_of(device: BlockDevice, info: FileSystemInfo) -> str:
    """Say of a volume that was in use what became of its journal.

    Raises:
        VolumeError: it cannot be opened at all.
    """
    with reading("the ext superblock"):
        layout = read_superblock(device)
    if not layout.needs_recovery:
        return info.note
    return info.note.replace(NOT_REPLAYED, replay_journal(device, layout).outcome)


PLUGIN = FileSystemDriver(name="ext", types=frozenset({"ext2", "ext3", "ext4"}), open=open_ext, note=note_of)
