"""APFS, read without a library: pytsk3 has no pools, without which libtsk opens no APFS.

The newest checkpoint is read; snapshots are not shown. Encrypted volumes are refused. Source: Apple File
System Reference (2020-06-22).
"""

from __future__ import annotations

import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from mountfs.drivers._apfs_objects import Container, FileSystemTree
from mountfs.drivers._content import BytesContent, RunContent, RunList
from mountfs.drivers._decmpfs import CompressionHeader, open_compressed, parse_header
from mountfs.drivers._tree import Listing, ListingBuilder, VolumeTree, reading
from mountfs.tree import FileSystemDriver, Node, NodeKind, Stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content
    from mountfs.tree import FileSystemInfo, FileTree

_ROOT = 2
_INODE, _XATTR, _EXTENT, _ENTRY = 3, 4, 8, 9
_FIELD_DATA, _FIELD_DEVICE = 8, 14
_LENGTH_MASK = (1 << 56) - 1
_HASHED_NAMES = 1 | 8
_UNENCRYPTED = 1
_COMPRESSED = 0x20
_SYMLINK = b"com.apple.fs.symlink"
_DECMPFS = b"com.apple.decmpfs"
_RESOURCE = b"com.apple.ResourceFork"
_MAX_ATTRIBUTE = 64 << 20
_KINDS = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFDIR: NodeKind.DIRECTORY,
    stat.S_IFLNK: NodeKind.SYMLINK,
    stat.S_IFIFO: NodeKind.FIFO,
    stat.S_IFSOCK: NodeKind.SOCKET,
    stat.S_IFCHR: NodeKind.CHARACTER_DEVICE,
    stat.S_IFBLK: NodeKind.BLOCK_DEVICE,
}


class _Attribute(NamedTuple):
    """An extended attribute: its bytes, or the object in which they lie and their size."""

    data: bytes
    oid: int
    size: int


class _Inode(NamedTuple):
    """An inode with what else is recorded of its object."""

    value: bytes
    data_oid: int
    size: int
    device: int
    attributes: Mapping[bytes, _Attribute]


class ApfsVolume:
    """One volume of a container; see `mountfs.drivers._tree.Volume`."""

    def __init__(self, device: BlockDevice, container: Container, superblock: bytes) -> None:
        flags = int.from_bytes(superblock[264:272], "little")
        if not flags & _UNENCRYPTED:
            raise VolumeError("the volume is encrypted; its key is not in the image")
        self._device = device
        self._block_size = container.block_size
        self._hashed = bool(int.from_bytes(superblock[56:64], "little") & _HASHED_NAMES)
        self._catalogue = FileSystemTree(container, superblock)

    def root(self) -> Node:
        """See `Volume.root`."""
        return self._node(b"", _ROOT)

    def listing(self, node: Node) -> Listing:
        """See `Volume.listing`."""
        builder = ListingBuilder()
        for record in self._catalogue.records(_number(node)):
            if record.kind != _ENTRY:
                continue
            try:
                name, number = self._entry(record.key, record.value)
                builder.add(self._node(name, number))
            except VolumeError as error:
                builder.damaged(f"an entry of a directory cannot be read: {error}")
        return builder.done()

    def _entry(self, key: bytes, value: bytes) -> tuple[bytes, int]:
        size = 4 if self._hashed else 2
        length = int.from_bytes(key[:size], "little") & (0x3FF if self._hashed else 0xFFFF)
        name = key[size : size + length]
        if not name.endswith(b"\0") or len(value) < 8:
            raise VolumeError("a directory record is damaged")
        return name[:-1], int.from_bytes(value[:8], "little")

    def _node(self, name: bytes, number: int) -> Node:
        inode = self._inode(number)
        links, _, _, _, uid, gid, mode = struct.unpack_from("<iIIIIIH", inode.value, 56)
        created, modified, changed, accessed = struct.unpack_from("<QQQQ", inode.value, 16)
        kind = _KINDS.get(stat.S_IFMT(mode))
        if kind is None:
            raise VolumeError(f"inode {number} is of an unknown kind")
        size = inode.size if kind is NodeKind.FILE else 0
        header = self._compression(inode) if kind is NodeKind.FILE else None
        if header is not None:
            size = header.size
        return Node(
            name=name,
            kind=kind,
            key=number,
            size=size,
            mode=stat.S_IMODE(mode),
            uid=uid,
            gid=gid,
            links=max(1, links) if kind is not NodeKind.DIRECTORY else 1,
            inode=number,
            atime_ns=accessed,
            mtime_ns=modified,
            ctime_ns=changed,
            birth_ns=created,
            device=(inode.device >> 24, inode.device & 0xFFFFFF),
        )

    def _inode(self, number: int) -> _Inode:
        value, attributes = b"", {}
        for record in self._catalogue.records(number):
            if record.kind == _INODE:
                value = record.value
            elif record.kind == _XATTR:
                name, attribute = _attribute(record.key, record.value)
                attributes[name] = attribute
            elif record.kind > _XATTR:
                break
        if len(value) < 92:
            raise VolumeError(f"inode {number} is missing or damaged")
        fields = _extended_fields(value[92:])
        data = fields.get(_FIELD_DATA, b"")
        size = int.from_bytes(data[:8], "little") if len(data) >= 8 else 0
        device = int.from_bytes(fields.get(_FIELD_DEVICE, b"")[:4], "little")
        return _Inode(value, int.from_bytes(value[8:16], "little"), size, device, attributes)

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """See `Volume.content`."""
        inode = self._inode(_number(node))
        if stream is not None:
            if stream != _RESOURCE or _RESOURCE not in inode.attributes:
                return None
            return self._attribute_content(inode.attributes[_RESOURCE])
        header = self._compression(inode)
        if header is not None:
            return open_compressed(header, lambda: self._fork(inode))
        return self._runs(inode.data_oid, inode.size)

    def _runs(self, oid: int, size: int) -> RunContent:
        runs = RunList()
        for record in self._catalogue.records(oid):
            if record.kind != _EXTENT:
                continue
            if len(record.key) < 8 or len(record.value) < 16:
                raise VolumeError("a file extent is damaged")
            offset = int.from_bytes(record.key[:8], "little")
            length = min(int.from_bytes(record.value[:8], "little") & _LENGTH_MASK, max(0, size - offset))
            block = int.from_bytes(record.value[8:16], "little")
            if block and length:
                runs.add(offset, length, block * self._block_size)
        return RunContent(self._device, runs, size)

    def _attribute_content(self, attribute: _Attribute) -> Content:
        return self._runs(attribute.oid, attribute.size) if attribute.oid else BytesContent(attribute.data)

    def _attribute_bytes(self, attribute: _Attribute) -> bytes:
        if attribute.size > _MAX_ATTRIBUTE:
            raise VolumeError(f"an extended attribute of {attribute.size} bytes")
        content = self._attribute_content(attribute)
        return content.read(0, content.size)

    def _compression(self, inode: _Inode) -> CompressionHeader | None:
        """Return how a file is compressed; None when it is not."""
        flags = int.from_bytes(inode.value[68:72], "little")
        if not flags & _COMPRESSED or _DECMPFS not in inode.attributes:
            return None
        return parse_header(self._attribute_bytes(inode.attributes[_DECMPFS]))

    def _fork(self, inode: _Inode) -> Content:
        if _RESOURCE not in inode.attributes:
            raise VolumeError("a compressed file is damaged: it has no resource fork")
        return self._attribute_content(inode.attributes[_RESOURCE])

    def readlink(self, node: Node) -> bytes:
        """See `Volume.readlink`."""
        attribute = self._inode(_number(node)).attributes.get(_SYMLINK)
        if attribute is None:
            raise VolumeError("a symbolic link has no target")
        return self._attribute_bytes(attribute).rstrip(b"\0")

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `Volume.xattrs`."""
        hidden = {_SYMLINK, _RESOURCE, _DECMPFS}
        return {
            name.decode("utf-8", "surrogateescape"): self._attribute_bytes(attribute)
            for name, attribute in self._inode(_number(node)).attributes.items()
            if name not in hidden
        }

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """See `Volume.streams`: the resource fork, unless it holds the content, compressed."""
        inode = self._inode(_number(node))
        attribute = inode.attributes.get(_RESOURCE)
        compressed = int.from_bytes(inode.value[68:72], "little") & _COMPRESSED
        return () if attribute is None or compressed else (Stream(_RESOURCE, attribute.size),)

    def close(self) -> None:
        """Nothing is held."""


def _number(node: Node) -> int:
    if not isinstance(node.key, int):
        raise VolumeError("a node of another volume")
    return node.key


def _attribute(key: bytes, value: bytes) -> tuple[bytes, _Attribute]:
    length = int.from_bytes(key[:2], "little")
    name = key[2 : 2 + length].rstrip(b"\0")
    if len(value) < 4 or not name:
        raise VolumeError("an extended attribute is damaged")
    flags, size = struct.unpack_from("<HH", value)
    data = value[4 : 4 + size]
    if not flags & 1:
        return name, _Attribute(data, 0, len(data))
    if len(data) < 16:
        raise VolumeError("an extended attribute is damaged")
    oid, stored = struct.unpack_from("<QQ", data)
    return name, _Attribute(b"", oid, stored)


def _extended_fields(raw: bytes) -> dict[int, bytes]:
    if len(raw) < 4:
        return {}
    count = int.from_bytes(raw[:2], "little")
    at = 4 + 4 * count
    found = {}
    for index in range(min(count, 64)):
        head = raw[4 + 4 * index : 8 + 4 * index]
        if len(head) < 4:
            raise VolumeError("an inode is damaged")
        size = int.from_bytes(head[2:4], "little")
        found[head[0]] = raw[at : at + size]
        at += size + -size % 8
    return found


def open_apfs(device: BlockDevice, info: FileSystemInfo) -> FileTree:
    """Open the first volume of a container that can be read.

    Raises:
        VolumeError: there is none; why the first cannot be read.
    """
    del info
    with reading("the container"):
        container = Container(device)
        reasons = []
        for superblock in container.volume_superblocks():
            try:
                tree = VolumeTree(ApfsVolume(device, container, superblock))
                tree.root()
                return tree
            except VolumeError as error:
                reasons.append(str(error))
    raise VolumeError(reasons[0] if reasons else "the container holds no volume")


PLUGIN = FileSystemDriver(name="apfs", types=frozenset({"apfs"}), open=open_apfs)
