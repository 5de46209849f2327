"""HFS+: what libtsk gives, without its own files and the file system's private directories.

The resource fork is the stream ``rsrc``; extended attributes are extended attributes. Limits of libtsk: the
numbers of device nodes are not known, and a file with an extended attribute kept in extents (longer than
about 3.8 KB) cannot be opened at all - that is an error, never an empty file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytsk3

from imageformat.errors import VolumeError
from mountfs.drivers._content import RunContent
from mountfs.drivers._tree import MAX_TARGET, Listing, ListingBuilder
from mountfs.drivers._tsk_library import (
    ATTRIBUTE_COMPRESSED,
    ATTRIBUTE_RESIDENT,
    LibraryContent,
    TskFileSystem,
)
from mountfs.tree import Node, NodeKind, Stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content
    from mountfs.drivers._tsk_types import TskAttribute, TskFile, TskMeta

_FIRST_USER = 16
_PRIVATE = {b"^^^^HFS+ Private Data", b".HFS+ Private Directory Data\r"}
"""Where hard-linked files and directories live; libtsk shows NUL as a caret."""

_RESOURCE_FORK = b"rsrc"
_NAME_ALLOCATED = 1
_META_COMPRESSED = 0x10
_MAX_ATTRIBUTE = 16 << 20

_DATA = 0x1100
_RESOURCE = 0x1101
_EXTENDED_ATTRIBUTE = 0x1102

_KINDS = {
    int(pytsk3.TSK_FS_META_TYPE_REG): NodeKind.FILE,
    int(pytsk3.TSK_FS_META_TYPE_DIR): NodeKind.DIRECTORY,
    int(pytsk3.TSK_FS_META_TYPE_LNK): NodeKind.SYMLINK,
    int(pytsk3.TSK_FS_META_TYPE_FIFO): NodeKind.FIFO,
    int(pytsk3.TSK_FS_META_TYPE_SOCK): NodeKind.SOCKET,
    int(pytsk3.TSK_FS_META_TYPE_CHR): NodeKind.CHARACTER_DEVICE,
    int(pytsk3.TSK_FS_META_TYPE_BLK): NodeKind.BLOCK_DEVICE,
}


class HfsVolume:
    """A `Volume` over one HFS+ file system. Keys are catalogue node numbers."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._library = TskFileSystem(device, pytsk3.TSK_FS_TYPE_HFS)

    def root(self) -> Node:
        """See `Volume.root`."""
        with self._library.calling("the root directory cannot be read"):
            node = _node(b"", self._library.meta(self._library.open_inode(self._library.root_inode)))
        if node.kind is not NodeKind.DIRECTORY:
            raise VolumeError("the root of the file system is not a directory")
        return node

    def listing(self, node: Node) -> Listing:
        """See `Volume.listing`."""
        number = _number(node)
        found = ListingBuilder()
        with self._library.calling(f"the directory {node.name!r} cannot be read"):
            for file in self._library.open_inode(number).as_directory():
                self._add(found, file, is_root=number == self._library.root_inode)
        return found.done()

    @staticmethod
    def _add(found: ListingBuilder, file: TskFile, *, is_root: bool) -> None:
        entry, meta = file.info.name, file.info.meta
        name = bytes(entry.name)
        if name in {b".", b".."} or not int(entry.flags) & _NAME_ALLOCATED:
            return
        if is_root and (name in _PRIVATE or int(entry.meta_addr) < _FIRST_USER):
            return
        if meta is None or not name:
            found.damaged(f"{name!r} cannot be read: it has no catalogue record")
        elif int(meta.type) in _KINDS:
            found.add(_node(name, meta))

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """See `Volume.content`."""
        wanted = {None: _DATA, _RESOURCE_FORK: _RESOURCE}.get(stream)
        with self._library.calling(f"{node.name!r} cannot be read"):
            file, attributes = self._library.attributes(_number(node))
            compressed = bool(int(self._library.meta(file).flags) & _META_COMPRESSED)
            for attribute in attributes:
                if int(attribute.info.type) != wanted or (compressed and stream is not None):
                    continue
                if compressed or int(attribute.info.flags) & ATTRIBUTE_COMPRESSED:
                    return self._decompressed(file, attribute)
                if int(attribute.info.flags) & ATTRIBUTE_RESIDENT:
                    return LibraryContent(self._library, file, attribute)
                size = int(attribute.info.size)
                return RunContent(self._device, self._library.runs(attribute, size), size)
        if stream is None:
            raise VolumeError(f"{node.name!r} has no data")
        return None

    def _decompressed(self, file: TskFile, attribute: TskAttribute) -> Content:
        """Serve what libtsk decompresses.

        Raises:
            VolumeError: libtsk does not know this compression, and would give the stored bytes.
        """
        flags, size = int(attribute.info.flags), int(self._library.meta(file).size)
        if not flags & (ATTRIBUTE_COMPRESSED | ATTRIBUTE_RESIDENT):
            raise VolumeError("the file is compressed in a way that libtsk does not know")
        return LibraryContent(self._library, file, attribute).resized(size)

    def readlink(self, node: Node) -> bytes:
        """See `Volume.readlink`."""
        if node.size > MAX_TARGET:
            raise VolumeError(f"a symbolic link of {node.size} bytes")
        with self._library.calling(f"{node.name!r} cannot be read"):
            target = self._library.meta(self._library.open_inode(_number(node))).link
        if target is None:
            raise VolumeError(f"the target of {node.name!r} cannot be read")
        return bytes(target)

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `Volume.xattrs`."""
        found: dict[str, bytes] = {}
        with self._library.calling(f"the attributes of {node.name!r} cannot be read"):
            file = self._library.open_inode(_number(node))
            for attribute in file:
                if int(attribute.info.type) == _EXTENDED_ATTRIBUTE and attribute.info.name:
                    content = LibraryContent(self._library, file, attribute)
                    if content.size > _MAX_ATTRIBUTE:
                        raise VolumeError(f"an extended attribute of {content.size} bytes")
                    name = bytes(attribute.info.name).decode("utf-8", "surrogateescape")
                    found[name] = content.read(0, content.size) if content.size else b""
        return found

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """See `Volume.streams`; the fork of a compressed file is its content, not a stream."""
        if node.kind is not NodeKind.FILE:
            return ()
        with self._library.calling(f"the streams of {node.name!r} cannot be read"):
            file, attributes = self._library.attributes(_number(node))
            if int(self._library.meta(file).flags) & _META_COMPRESSED:
                return ()
            forks = [a for a in attributes if int(a.info.type) == _RESOURCE and int(a.info.size)]
            return tuple(Stream(_RESOURCE_FORK, int(fork.info.size)) for fork in forks)

    def close(self) -> None:
        """The device belongs to the caller; libtsk's memory goes with this object."""


def _number(node: Node) -> int:
    if not isinstance(node.key, int):
        raise VolumeError(f"{node.name!r} is not a node of this file system")
    return node.key


def _node(name: bytes, meta: TskMeta) -> Node:
    kind = _KINDS.get(int(meta.type))
    if kind is None:
        raise VolumeError(f"{name!r} is of no known kind")
    number = int(meta.addr)
    return Node(
        name=name,
        kind=kind,
        key=number,
        size=int(meta.size) if kind in {NodeKind.FILE, NodeKind.SYMLINK} else 0,
        mode=int(meta.mode) & 0o7777,
        uid=int(meta.uid),
        gid=int(meta.gid),
        links=int(meta.nlink),
        inode=number,
        atime_ns=_time(meta.atime, meta.atime_nano),
        mtime_ns=_time(meta.mtime, meta.mtime_nano),
        ctime_ns=_time(meta.ctime, meta.ctime_nano),
        birth_ns=_time(meta.crtime, meta.crtime_nano),
    )


def _time(seconds: int, nanoseconds: int) -> int:
    return int(seconds) * 1_000_000_000 + int(nanoseconds)
