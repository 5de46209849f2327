"""HFS+ and HFSX, read without a library.

libtsk opens no file with an attribute kept in extents, and knows neither numbers of devices nor the newer
compressions. The resource fork is the stream ``rsrc``. The journal is not replayed. Source: Apple's TN1150;
hard links and attributes as in XNU's ``hfs_format.h``.
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from mountfs.drivers._content import BytesContent, RunContent, RunList
from mountfs.drivers._decmpfs import CompressionHeader, open_compressed, parse_header
from mountfs.drivers._hfs_btree import BTree, Record
from mountfs.drivers._hfs_layout import (
    FILE_LINK,
    FOLDER_LINK,
    Entry,
    Fork,
    attribute_name,
    name_of,
    parse_entry,
    parse_extents,
    parse_fork,
    read_header,
    unwrapped,
)
from mountfs.drivers._tree import MAX_TARGET, Listing, ListingBuilder, VolumeTree, reading
from mountfs.tree import FileSystemDriver, Node, NodeKind, Stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content
    from mountfs.tree import FileSystemInfo, FileTree

_ROOT_PARENT, _ROOT = 1, 2
_EXTENTS_FILE, _CATALOGUE_FILE, _ATTRIBUTES_FILE = 3, 4, 8
_DATA, _RESOURCE = 0x00, 0xFF
_RESOURCE_FORK = b"rsrc"
_FILES = "\u2400\u2400\u2400\u2400HFS+ Private Data".encode()
_FOLDERS = b".HFS+ Private Directory Data\r"
_DECMPFS = "com.apple.decmpfs"
_INLINE, _FORK, _MORE = 0x10, 0x20, 0x30
_MAX_ATTRIBUTE = 16 << 20


class _Key(NamedTuple):
    """Key of a node: its catalogue number, and where its record lies."""

    number: int
    place: tuple[int, int]


class HfsVolume:
    """A `Volume` over one HFS+ file system."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = unwrapped(device)
        self._header = header = read_header(self._device)
        self._overflow: BTree | None = None
        if header.extents.size:
            self._overflow = BTree(self._open(_EXTENTS_FILE, _DATA, header.extents), "the extents file")
        self._catalogue = BTree(self._open(_CATALOGUE_FILE, _DATA, header.catalogue), "the catalogue")
        self._attributes: BTree | None = None
        if header.attributes.size:
            content = self._open(_ATTRIBUTES_FILE, _DATA, header.attributes)
            self._attributes = BTree(content, "the attributes file")
        self._lock = threading.Lock()
        self._homes: dict[bytes, int] = {}

    def root(self) -> Node:
        """See `Volume.root`."""
        for record in self._children(_ROOT_PARENT):
            entry = parse_entry(record.value)
            if entry is not None and entry.is_folder and entry.number == _ROOT:
                return self._node(b"", record, entry, links=1)
        raise VolumeError("the catalogue has no root folder")

    def listing(self, node: Node) -> Listing:
        """See `Volume.listing`; where hard-linked files and folders live is hidden."""
        number, found = _key(node).number, ListingBuilder()
        for record in self._children(number):
            name = b""
            try:
                with reading("its record"):
                    name = name_of(record.key[4:])
                    entry = parse_entry(record.value)
                    hidden = number == _ROOT and name in {_FILES, _FOLDERS}
                    if entry is not None and name and not hidden:
                        found.add(self._node(name, *self._linked(record, entry)))
            except VolumeError as error:
                found.damaged(f"{name!r} cannot be read: {error}")
        return found.done()

    def _children(self, parent: int) -> Iterator[Record]:
        wanted = struct.pack(">I", parent)
        for record in self._catalogue.from_key(lambda key: key[:4] < wanted):
            if record.key[:4] != wanted:
                return
            yield record

    def _linked(self, record: Record, entry: Entry) -> tuple[Record, Entry, int]:
        """Follow a hard link to what it means; a record, and how many names it has."""
        if entry.type_and_creator == FILE_LINK:
            home, name = _FILES, f"iNode{entry.special}"
        elif entry.type_and_creator == FOLDER_LINK:
            home, name = _FOLDERS, f"dir_{entry.special}"
        else:
            return record, entry, 1
        target = self._find(self._home(home), name)
        found = parse_entry(target.value) if target is not None else None
        if target is None or found is None:
            raise VolumeError(f"a hard link to {name!r}, which does not exist")
        return target, found, max(1, found.special)

    def _find(self, parent: int, name: str) -> Record | None:
        """Look up a name of ASCII letters and digits that differs from its neighbours in more than case."""
        wanted = struct.pack(">I", parent), name.encode("utf-16-be").lower()

        def place(key: bytes) -> tuple[bytes, bytes]:
            return key[:4], key[6:].lower()

        record = next(self._catalogue.from_key(lambda key: place(key) < wanted), None)
        return record if record is not None and place(record.key) == wanted else None

    def _home(self, name: bytes) -> int:
        """Return the number of a private folder; 0 when there is none."""
        with self._lock:
            if name not in self._homes:
                folders = (
                    entry.number
                    for record in self._children(_ROOT)
                    if name_of(record.key[4:]) == name
                    and (entry := parse_entry(record.value)) is not None
                    and entry.is_folder
                )
                self._homes[name] = next(folders, 0)
            return self._homes[name]

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """See `Volume.content`."""
        entry = self._entry(node)
        compression = self._compression(entry)
        if stream is None and compression is not None:
            return open_compressed(compression, lambda: self._open(entry.number, _RESOURCE, entry.resource))
        if stream is None:
            return self._open(entry.number, _DATA, entry.data)
        if stream != _RESOURCE_FORK or compression is not None or not entry.resource.size:
            return None
        return self._open(entry.number, _RESOURCE, entry.resource)

    def readlink(self, node: Node) -> bytes:
        """See `Volume.readlink`."""
        if node.size > MAX_TARGET:
            raise VolumeError(f"a symbolic link of {node.size} bytes")
        entry = self._entry(node)
        content = self._open(entry.number, _DATA, entry.data)
        return content.read(0, min(content.size, MAX_TARGET + 1))

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `Volume.xattrs`; how a file is compressed is not one."""
        entry = self._entry(node)
        found = {}
        for name, content in self._extended(entry.number):
            if content.size > _MAX_ATTRIBUTE:
                raise VolumeError(f"an extended attribute of {content.size} bytes")
            if name != _DECMPFS or not entry.is_compressed:
                found[name] = content.read(0, content.size)
        return found

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """See `Volume.streams`; the fork of a compressed file is its content, not a stream."""
        if node.kind is not NodeKind.FILE:
            return ()
        entry = self._entry(node)
        if not entry.resource.size or self._compression(entry) is not None:
            return ()
        return (Stream(_RESOURCE_FORK, entry.resource.size),)

    def close(self) -> None:
        """Nothing is held."""

    def _entry(self, node: Node) -> Entry:
        key = _key(node)
        entry = parse_entry(self._catalogue.at(key.place).value)
        if entry is None or entry.number != key.number:
            raise VolumeError(f"{node.name!r} is not a node of this file system")
        return entry

    def _open(self, number: int, kind: int, fork: Fork) -> RunContent:
        """Map a fork: what its record says, and what the extents file adds."""
        return self._map(number, fork.size, self._all_extents(number, kind, fork))

    def _map(self, number: int, size: int, extents: Iterable[tuple[int, int]]) -> RunContent:
        runs, position, block_size = RunList(), 0, self._header.block_size
        for first, count in extents:
            if position >= size:
                break
            if first + count > self._header.block_count:
                raise VolumeError(f"file {number} is damaged: its blocks lie outside the volume")
            runs.add(position, min(count * block_size, size - position), first * block_size)
            position += count * block_size
        if position < size:
            raise VolumeError(f"the map of file {number} ends at byte {position} of {size}")
        return RunContent(self._device, runs, size)

    def _all_extents(self, number: int, kind: int, fork: Fork) -> Iterator[tuple[int, int]]:
        yield from fork.extents
        known = sum(count for _, count in fork.extents)
        if known * self._header.block_size >= fork.size or self._overflow is None:
            return
        wanted = struct.pack(">IB", number, kind)

        def less(key: bytes) -> bool:
            return (key[2:6] + key[:1], key[6:10]) < (wanted, struct.pack(">I", known))

        for record in self._overflow.from_key(less):
            (start,) = struct.unpack_from(">I", record.key, 6)
            if record.key[2:6] + record.key[:1] != wanted or start != known:
                return
            for extent in parse_extents(record.value):
                yield extent
                known += extent[1]

    def _extended(self, number: int) -> Iterator[tuple[str, Content]]:
        """Yield name and content of each extended attribute of a file."""
        if self._attributes is None:
            return
        wanted = struct.pack(">I", number)
        for record in self._attributes.from_key(lambda key: key[2:6] < wanted):
            if record.key[2:6] != wanted:
                return
            (kind,) = struct.unpack_from(">I", record.value, 0)
            if kind == _MORE:
                continue
            yield attribute_name(record.key[10:]), self._value(number, record, kind)

    def _value(self, number: int, record: Record, kind: int) -> Content:
        if kind == _INLINE:
            (size,) = struct.unpack_from(">I", record.value, 12)
            if 16 + size > len(record.value):
                raise VolumeError("an extended attribute is damaged: it does not fit")
            return BytesContent(record.value[16 : 16 + size])
        if kind != _FORK:
            raise VolumeError(f"an extended attribute is damaged: it is of the kind {kind:#x}")
        fork = parse_fork(record.value, 8)
        more = self._more_extents(number, record.key[10:])
        return self._map(number, fork.size, (*fork.extents, *more))

    def _more_extents(self, number: int, name: bytes) -> tuple[tuple[int, int], ...]:
        """Collect the extents of an attribute that its first record has no room for."""
        wanted = struct.pack(">I", number)
        found: list[tuple[int, int]] = []
        if self._attributes is not None:
            for record in self._attributes.from_key(lambda key: key[2:6] < wanted):
                if record.key[2:6] != wanted:
                    break
                if record.key[10:] == name and struct.unpack_from(">I", record.value, 0) == (_MORE,):
                    found += parse_extents(record.value, 8)
        return tuple(found)

    def _node(self, name: bytes, record: Record, entry: Entry, links: int) -> Node:
        birth, mtime, ctime, atime = entry.times
        compression = self._compression(entry)
        size = entry.data.size if compression is None else compression.size
        is_device = entry.kind in {NodeKind.CHARACTER_DEVICE, NodeKind.BLOCK_DEVICE}
        return Node(
            name=name,
            kind=entry.kind,
            key=_Key(entry.number, record.place),
            size=size if entry.kind in {NodeKind.FILE, NodeKind.SYMLINK} else 0,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            links=links,
            inode=entry.number,
            atime_ns=atime,
            mtime_ns=mtime,
            ctime_ns=ctime,
            birth_ns=birth,
            device=(entry.special >> 24, entry.special & 0xFF_FFFF) if is_device else (0, 0),
        )

    def _compression(self, entry: Entry) -> CompressionHeader | None:
        """Return how a file is compressed; None when it is not."""
        if not entry.is_compressed:
            return None
        for name, content in self._extended(entry.number):
            if name == _DECMPFS and content.size <= _MAX_ATTRIBUTE:
                return parse_header(content.read(0, content.size))
        return None


def _key(node: Node) -> _Key:
    if not isinstance(node.key, _Key):
        raise VolumeError(f"{node.name!r} is not a node of this file system")
    return node.key


def open_hfs_plus(device: BlockDevice, info: FileSystemInfo) -> FileTree:
    """Open an HFS+ volume.

    Raises:
        VolumeError: it is not one, or damaged.
    """
    del info
    with reading("the HFS+ file system"):
        tree = VolumeTree(HfsVolume(device))
        tree.root()
    return tree


PLUGIN = FileSystemDriver(name="hfsplus", types=frozenset({"hfs+"}), open=open_hfs_plus)
