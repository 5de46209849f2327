"""What a POSIX file system shows of a `FileTree`: paths, attributes, handles, extended attributes.

An adapter is a thin binding over this: no rule about names, streams, special files or stale paths lives
in a binding. Failures that POSIX has a word for are raised as `OSError` with that errno; failures of the
image come through as the `MountfsError` that the tree raised.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64_intdigest

from imageformat.errors import CorruptImageError, NotFoundError
from imageformat.extent import ExtentKind
from mountfs.names import from_path_name, to_path_name
from mountfs.tree import UNLISTED_XATTRS, NodeKind

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from mountfs.tree import FileTree, Node

PATHS_REMEMBERED = 65_536
NAME_LIMIT = 1024
"""Longest name that every kernel accepts in a listing; one longer name would fail the whole listing."""
TYPE_XATTR = b"user.mountfs.type"
DEVICE_XATTR = b"user.mountfs.device"
STREAMS_XATTR = b"user.mountfs.streams"

_XATTR_NAME_LIMIT = 255
_SEEK_DATA, _SEEK_HOLE = 3, 4
_RUN_LIMIT = 1 << 20
_INODE_MASK = (1 << 63) - 1
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND | os.O_CREAT
_FORMAT = {NodeKind.DIRECTORY: stat.S_IFDIR, NodeKind.SYMLINK: stat.S_IFLNK}
_DEVICES = frozenset({NodeKind.CHARACTER_DEVICE, NodeKind.BLOCK_DEVICE})


class Attributes(NamedTuple):
    """What ``stat`` answers."""

    mode: int
    """With the type bits; set-id and sticky bits are taken away."""
    inode: int
    links: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    volatile: Hashable | None
    """None: these attributes hold as long as the path does. Else the file may vanish or be replaced at
    any time, and another value here means that it was."""


class _Anchor(NamedTuple):
    """The nearest volatile folder at or above a place: the place is true while this is."""

    path: bytes
    key: Hashable


class _Place(NamedTuple):
    """What a path leads to: a node, or a named stream of it."""

    node: Node
    stream: bytes | None
    size: int
    anchor: _Anchor | None


class OpenFile:
    """A file as it was when it was opened: where it is, and its data runs once somebody asked for holes."""

    __slots__ = ("attributes", "node", "readable", "runs", "size", "stream")

    def __init__(self, place: _Place, attributes: Attributes) -> None:
        self.attributes = attributes
        self.node = place.node
        self.stream = place.stream
        self.size = place.size
        self.readable = place.stream is not None or place.node.kind is NodeKind.FILE
        self.runs: tuple[list[int], list[int]] | None = None


class _OpenFolder:
    """An open folder: an iterator, its position, and the entry that did not fit into the last answer."""

    __slots__ = ("held", "items", "path", "place", "position")

    def __init__(self, path: bytes, place: _Place) -> None:
        self.path = path
        self.place = place
        self.position = -1
        self.held: tuple[bytes, Attributes] | None = None
        self.items: Iterator[tuple[bytes, Attributes]] = iter(())


class PosixView:
    """A tree by paths and handles. Any number of threads; one at a time per open folder.

    Paths are bytes, absolute, with names in the form of `names.to_path_name`. ``file:stream`` names a
    stream of ``file`` unless a file of just that name exists. Device nodes, FIFOs and sockets are empty
    regular files; the attribute ``user.mountfs.type`` says what they were.

    Args:
        tree: stays owned by the caller.
        uid: owner of everything; None: as in the tree.
        gid: group of everything; None: as in the tree.
        umask: permission bits taken away; None: none.
        paths: how many resolved paths are remembered.
    """

    def __init__(
        self,
        tree: FileTree,
        *,
        uid: int | None = None,
        gid: int | None = None,
        umask: int | None = None,
        paths: int = PATHS_REMEMBERED,
    ) -> None:
        self._tree = tree
        self._uid = uid
        self._gid = gid
        self._permissions = 0o777 & ~(umask or 0)
        self._limit = paths
        self._places: OrderedDict[bytes, _Place] = OrderedDict()
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._files: dict[int, OpenFile] = {}
        self._folders: dict[int, _OpenFolder] = {}
        self._last_xattrs: tuple[_Place | None, dict[bytes, bytes]] = None, {}

    def attributes(self, path: bytes) -> Attributes:
        """Return what ``lstat`` shows of a path."""
        return self._attributes(path, self._resolve(path))

    def readlink(self, path: bytes) -> bytes:
        """Return the target of a symbolic link, verbatim."""
        place = self._resolve(path)
        if place.stream is not None or place.node.kind is not NodeKind.SYMLINK:
            raise _os_error(errno.EINVAL)
        return self._tree.readlink(place.node)

    def xattr_names(self, path: bytes) -> tuple[bytes, ...]:
        """Return the names that a listing shows: those a copy can be given; the others are only answered."""
        return tuple(name for name in self.xattrs(path) if not name.startswith(UNLISTED_XATTRS.encode()))

    def xattrs(self, path: bytes) -> Mapping[bytes, bytes]:
        """Return all extended attributes, ours included; names that no call can carry are left out."""
        place = self._resolve(path)
        asked, found = self._last_xattrs
        if place is not asked:
            found = {} if place.stream is not None else self._collect_xattrs(place.node)
            self._last_xattrs = place, found
        return found

    def open(self, path: bytes, flags: int) -> int:
        """Open a file for reading and return its handle; EROFS when ``flags`` ask for more."""
        if flags & _WRITE_FLAGS:
            raise _os_error(errno.EROFS)
        file = self.file(path)
        handle = next(self._numbers)
        self._files[handle] = file
        return handle

    def file(self, path: bytes) -> OpenFile:
        """Return what `open` opens, for a caller that has no use for handles."""
        place = self._resolve(path)
        if place.stream is None and place.node.kind is NodeKind.DIRECTORY:
            raise _os_error(errno.EISDIR)
        return OpenFile(place, self._attributes(path, place))

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """`read_file` of an open handle."""
        return self.read_file(self._files[handle], offset, size)

    def read_file(self, file: OpenFile, offset: int, size: int) -> bytes:
        """Return the bytes of the range, short only where the file ends.

        Raises:
            CorruptImageError: the tree gave another number of bytes than it owed; a kernel would take
                the difference for the end of the file.
        """
        owed = file.size - offset
        if owed <= 0 or not file.readable:
            return b""
        data = self._tree.read(file.node, offset, size, file.stream)
        if len(data) != (min(owed, size)):
            raise CorruptImageError(
                f"{file.node.name!r}: {len(data)} bytes instead of {min(size, owed)} at offset {offset}"
            )
        return data

    def handle_attributes(self, handle: int) -> Attributes:
        """Return what ``fstat`` shows of an open file."""
        return self._files[handle].attributes

    def seek(self, handle: int, offset: int, whence: int) -> int:
        """`seek_file` in an open handle."""
        return self.seek_file(self._files[handle], offset, whence)

    def seek_file(self, file: OpenFile, offset: int, whence: int) -> int:
        """Return where the next data (SEEK_DATA) or hole (SEEK_HOLE) at or after ``offset`` begins.

        The end of the file counts as a hole. A file with very many runs counts as all data.
        """
        if offset < 0 or offset >= file.size:
            raise _os_error(errno.ENXIO)
        if whence not in {_SEEK_DATA, _SEEK_HOLE}:
            raise _os_error(errno.EINVAL)
        if file.runs is None:
            file.runs = self._data_runs(file)
        starts, ends = file.runs
        index = bisect_right(starts, offset) - 1
        inside = index >= 0 and offset < ends[index]
        if whence == _SEEK_HOLE:
            return ends[index] if inside else offset
        if inside:
            return offset
        if index + 1 == len(starts):
            raise _os_error(errno.ENXIO)
        return starts[index + 1]

    def release(self, handle: int) -> None:
        """Forget a handle of `open`."""
        self._files.pop(handle, None)

    def open_folder(self, path: bytes) -> int:
        """Open a folder for `listing` and return its handle."""
        place = self._resolve(path)
        if place.stream is not None or place.node.kind is not NodeKind.DIRECTORY:
            raise _os_error(errno.ENOTDIR)
        handle = next(self._numbers)
        self._folders[handle] = _OpenFolder(path, place)
        return handle

    def listing(self, handle: int, start: int) -> Iterator[tuple[int, bytes, Attributes]]:
        """Yield (position after it, name, attributes) from position ``start`` on, ``.`` and ``..`` first.

        A consumer that stops keeps the position after the last entry it took and comes back with it;
        the entry that it did not take is given again. Position 0 reads the folder afresh. Entries are
        streamed: a folder of millions costs no memory.
        """
        folder = self._folders[handle]
        if start == 0 or start != folder.position:
            folder.items = self._entries(folder)
            folder.held = None
            folder.position = start
            for _ in range(start):
                if next(folder.items, None) is None:
                    return
        while True:
            item = folder.held or next(folder.items, None)
            if item is None:
                return
            folder.held = item
            yield folder.position + 1, *item
            folder.held = None
            folder.position += 1

    def release_folder(self, handle: int) -> None:
        """Forget a handle of `open_folder`."""
        self._folders.pop(handle, None)

    def _entries(self, folder: _OpenFolder) -> Iterator[tuple[bytes, Attributes]]:
        own = self._attributes(folder.path, folder.place)
        yield b".", own
        yield b"..", own
        prefix = folder.path.rstrip(b"/") + b"/"
        for node in self._tree.children(folder.place.node):
            name = to_path_name(node.name)
            if len(name) > NAME_LIMIT:
                continue
            path = prefix + name
            place = _place(path, node, folder.place.anchor)
            self._remember(path, place)
            yield name, self._attributes(path, place)

    def _collect_xattrs(self, node: Node) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for text, value in self._tree.xattrs(node).items():
            name = text.encode("utf-8", "surrogateescape")
            if 0 < len(name) <= _XATTR_NAME_LIMIT and b"\0" not in name:
                found[name] = value
        if node.kind not in _FORMAT and node.kind is not NodeKind.FILE:
            found[TYPE_XATTR] = node.kind.value.encode()
        if node.kind in _DEVICES:
            found[DEVICE_XATTR] = b"%d:%d" % node.device
        streams = self._tree.streams(node)
        if streams:
            found[STREAMS_XATTR] = b"\n".join(to_path_name(stream.name) for stream in streams)
        return found

    def _data_runs(self, file: OpenFile) -> tuple[list[int], list[int]]:
        if file.stream is not None or not file.readable:
            return [0], [file.size]
        starts: list[int] = []
        ends: list[int] = []
        for extent in self._tree.extents(file.node):
            if extent.kind in {ExtentKind.ZERO, ExtentKind.UNUSED} or extent.offset >= file.size:
                continue
            end = min(extent.end, file.size)
            if ends and ends[-1] == extent.offset:
                ends[-1] = end
                continue
            starts.append(extent.offset)
            ends.append(end)
            if len(starts) > _RUN_LIMIT:
                return [0], [file.size]
        return starts, ends

    def _resolve(self, path: bytes) -> _Place:
        """Walk from the nearest remembered place above the path that still holds."""
        missing: list[bytes] = []
        while True:
            found = self._recall(path)
            if found is not None:
                break
            if path in {b"/", b""}:
                root = self._tree.root()
                path, found = b"", _Place(root, None, root.size, None)
                break
            path, _, name = path.rpartition(b"/")
            missing.append(name)
        for name in reversed(missing):
            path = path + b"/" + name
            found = self._step(found, path, name)
            self._remember(path, found)
        return found

    def _step(self, parent: _Place, path: bytes, name: bytes) -> _Place:
        if parent.stream is not None or parent.node.kind is not NodeKind.DIRECTORY:
            raise _os_error(errno.ENOTDIR)
        node = self._tree.child(parent.node, from_path_name(name))
        if node is not None:
            return _place(path, node, parent.anchor)
        owner_name, colon, stream_name = name.rpartition(b":")
        owner = self._tree.child(parent.node, from_path_name(owner_name)) if colon and owner_name else None
        if owner is not None:
            wanted = from_path_name(stream_name)
            for stream in self._tree.streams(owner):
                if stream.name == wanted:
                    return _place(path, owner, parent.anchor)._replace(stream=stream.name, size=stream.size)
        raise _os_error(errno.ENOENT)

    def _recall(self, path: bytes) -> _Place | None:
        with self._lock:
            place = self._places.get(path)
            if place is None:
                return None
            self._places.move_to_end(path)
        if place.anchor is None or self._holds(place.anchor):
            return place
        with self._lock:
            self._places.pop(path, None)
        return None

    def _holds(self, anchor: _Anchor) -> bool:
        try:
            return bool(self._resolve(anchor.path).node.key == anchor.key)
        except (FileNotFoundError, NotADirectoryError, NotFoundError):
            return False

    def _remember(self, path: bytes, place: _Place) -> None:
        if place.node.volatile:
            return
        with self._lock:
            self._places[path] = place
            self._places.move_to_end(path)
            if len(self._places) > self._limit:
                self._places.popitem(last=False)

    def _attributes(self, path: bytes, place: _Place) -> Attributes:
        node = place.node
        file_format = _FORMAT.get(node.kind, stat.S_IFREG)
        permissions = node.mode & self._permissions
        if place.stream is not None:
            file_format, permissions = stat.S_IFREG, permissions & 0o666
        elif file_format == stat.S_IFREG and node.kind is not NodeKind.FILE:
            permissions &= 0o666
        elif file_format == stat.S_IFLNK:
            permissions = 0o777
        inode = node.inode if node.inode and place.stream is None else _inode_of(path)
        return Attributes(
            file_format | permissions,
            inode,
            node.links,
            node.uid if self._uid is None else self._uid,
            node.gid if self._gid is None else self._gid,
            place.size,
            node.atime_ns,
            node.mtime_ns,
            node.ctime_ns,
            node.key if node.volatile else None,
        )


def _place(path: bytes, node: Node, above: _Anchor | None) -> _Place:
    size = node.size if node.kind in {NodeKind.FILE, NodeKind.SYMLINK, NodeKind.DIRECTORY} else 0
    return _Place(node, None, size, _Anchor(path, node.key) if node.volatile else above)


def _inode_of(path: bytes) -> int:
    return (xxh3_64_intdigest(path) & _INODE_MASK) or 1


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
