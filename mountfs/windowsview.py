r"""What Windows shows of a `FileTree`: paths with backslashes, attributes, streams, links, access lists.

The counterpart of `posixview`: an adapter is a thin binding over this. What Windows has a word for is raised
as `StatusError`; failures of the image come through as the `MountfsError` that the tree raised.
"""

from __future__ import annotations

import stat
import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64_intdigest

from imageformat.errors import CorruptImageError, MountfsError
from mountfs.ntsecurity import ADMINISTRATORS, EVERYONE, is_sound, readable_by
from mountfs.ntstatus import NtStatus, StatusError
from mountfs.reparse import SYMLINK_TAG, link_tag, resolved_data, symlink_data
from mountfs.tree import Node, NodeKind
from mountfs.windowsfolders import Entry, Folders, Step
from mountfs.windowsnames import fold, shown_names, to_windows_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mountfs.tree import FileTree, Stream

EPOCH = 116_444_736_000_000_000
"""1970 in units of 100 ns since 1601."""
HOPS = 32

_MAX_TIME = (1 << 63) - 1
_READ_ONLY, _DIRECTORY, _SYSTEM, _NORMAL, _REPARSE = 0x1, 0x10, 0x4, 0x80, 0x400
_STORED_ATTRIBUTES = 0x2 | 0x4 | 0x1 | 0x20 | 0x100 | 0x2000
"""Hidden, system, read-only, archive, temporary, not indexed: the others say how content is stored."""
_ALLOCATION_UNIT = 4096
_ATTRIB, _ACL, _REPARSE_DATA = "system.ntfs_attrib", "system.ntfs_acl", "system.ntfs_reparse_data"
_INDEX_MASK = (1 << 63) - 1


class FileInfo(NamedTuple):
    """What Windows asks of a file; times in units of 100 ns since 1601."""

    attributes: int
    reparse_tag: int
    allocation: int
    size: int
    created: int
    accessed: int
    written: int
    changed: int
    number: int
    """The same for all names of a file, and for nothing else."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file, folder, link or stream. Values only."""

    entry: Entry
    stream: bytes | None
    size: int
    info: FileInfo
    path: tuple[Entry, ...]
    """From the root down to it, both included."""


class WindowsView:
    """A tree by Windows' paths. Any number of threads may call it at once.

    Paths begin with a backslash; names are those of `windowsnames`, case does not matter, and ``file:stream``
    names a stream of ``file``. Links are followed inside of the tree only.

    Args:
        tree: stays owned by the caller.
        own_access_lists: show the descriptors of an NTFS volume instead of one that lets everyone read.
    """

    def __init__(self, tree: FileTree, *, own_access_lists: bool = False) -> None:
        self._tree = tree
        self._own_access_lists = own_access_lists
        self._folders = Folders(tree)
        self._everyone = readable_by(EVERYONE)
        self._nobody = readable_by(ADMINISTRATORS)

    def link_on_the_way(self, path: str) -> int | None:
        """Return where in ``path`` the name of the first link stands that has more behind it, else None."""
        steps = list(_steps(path))
        walk = self._folders.walk([step.name for step in steps[:-1]])
        for step, entry in zip(steps, walk, strict=False):
            if entry is None:
                return None
            if entry.node.kind is NodeKind.SYMLINK:
                return step.start
        return None

    def find(self, path: str) -> Opened:
        """Resolve a path; a link in the last place is not followed.

        Raises:
            StatusError: the name or the way to it is not there.
        """
        names, stream_name = _split_stream(path)
        found = [self._folders.root()]
        for number, entry in enumerate(self._folders.walk(names)):
            if entry is None:
                last = number == len(names) - 1
                raise StatusError(NtStatus.OBJECT_NAME_NOT_FOUND if last else NtStatus.OBJECT_PATH_NOT_FOUND)
            found.append(entry)
        entry = found[-1]
        if stream_name is None:
            return self._opened(tuple(found))
        stream = self._stream(entry.node, stream_name)
        size = stream.size
        info = self._info(tuple(found))._replace(size=size, allocation=_allocation(size))
        info = info._replace(attributes=info.attributes & ~_DIRECTORY or _NORMAL)
        return Opened(entry, stream.name, size, info, tuple(found))

    def access(self, opened: Opened) -> bytes:
        """Return the security descriptor, self-relative; one that is damaged is only for administrators."""
        stored = self._tree.xattrs(opened.entry.node).get(_ACL) if self._own_access_lists else None
        if stored is None:
            return self._everyone
        return stored if is_sound(stored) else self._nobody

    def read(self, opened: Opened, offset: int, size: int) -> bytes:
        """Return the bytes of the range, short only where the file ends.

        Raises:
            StatusError: END_OF_FILE when nothing is left there; FILE_IS_A_DIRECTORY.
            CorruptImageError: the tree gave another number of bytes than it owed.
        """
        node = opened.entry.node
        if opened.stream is None and node.kind is NodeKind.DIRECTORY:
            raise StatusError(NtStatus.FILE_IS_A_DIRECTORY)
        owed = min(size, opened.size - offset)
        if owed <= 0:
            raise StatusError(NtStatus.END_OF_FILE)
        data = self._tree.read(node, offset, owed, opened.stream)
        if len(data) != owed:
            raise CorruptImageError(f"{node.name!r}: {len(data)} bytes instead of {owed} at offset {offset}")
        return data

    def listing(self, opened: Opened, after: str | None) -> Iterator[tuple[str, FileInfo]]:
        """Yield the entries of a folder that follow ``after`` in Windows' order, from its beginning if None.

        ``.`` and ``..`` come first, except in the root.
        """
        if opened.entry.node.kind is not NodeKind.DIRECTORY or opened.stream is not None:
            raise StatusError(NtStatus.NOT_A_DIRECTORY)
        above = opened.path[:-1]
        if above and after is None:
            yield ".", opened.info
        if above and after in {None, "."}:
            yield "..", self._info(above)
        ordered = self._folders.folder(opened.path).ordered
        start = 0 if after in {None, ".", ".."} else bisect_right(ordered, _order(after), key=_entry_order)
        for entry in ordered[start:]:
            yield entry.shown, self._info((*opened.path, entry))

    def entry_info(self, opened: Opened, name: str) -> tuple[str, FileInfo]:
        """Return the true spelling and the facts of one name in an open folder.

        Raises:
            StatusError: it is not there.
        """
        found = next(self._folders.walk([name], opened.path), None)
        if found is None:
            raise StatusError(NtStatus.OBJECT_NAME_NOT_FOUND)
        return found.shown, self._info((*opened.path, found))

    def streams(self, opened: Opened) -> list[tuple[str, int]]:
        """Return names and sizes of the streams; the main one of a file comes first, without a name."""
        node = opened.entry.node
        found = (
            [] if node.kind is NodeKind.DIRECTORY else [("", node.size if node.kind is NodeKind.FILE else 0)]
        )
        streams = self._tree.streams(node)
        shown = shown_names([stream.name for stream in streams])
        return found + [(shown[stream.name], stream.size) for stream in streams]

    def reparse_data(self, opened: Opened) -> bytes:
        """Return the reparse data of a link: as the volume has it, else made of its target.

        Raises:
            StatusError: it is no link, or one that Windows cannot write down.
        """
        node = opened.entry.node
        if node.kind is not NodeKind.SYMLINK or opened.stream is not None:
            raise StatusError(NtStatus.NOT_A_REPARSE_POINT)
        stored = self._tree.xattrs(node).get(_REPARSE_DATA, b"")
        if link_tag(stored):
            return stored
        target = self._tree.readlink(node)
        parts = [
            part if part in {b".", b".."} else to_windows_name(part).encode()
            for part in target.split(b"/")
            if part
        ]
        text = ("\\" if target.startswith(b"/") else "") + "\\".join(part.decode() for part in parts)
        data = symlink_data(text or ".", is_relative=True)
        if data is None:
            raise StatusError(NtStatus.REPARSE_POINT_NOT_RESOLVED)
        return data

    def resolved(self, path: str, *, last_too: bool) -> bytes:
        """Follow the links of a path and return the answer that leads Windows to where they end.

        Raises:
            StatusError: the links lead out of the tree, or round in circles; something on the way is missing.
        """
        names, stream_name = _split_stream(path)
        found, missing = self._follow(
            [Step(name) for name in names if name != "."], (self._folders.root(),), last_too=last_too
        )
        text = "".join(f"\\{entry.shown}" for entry in found[1:]) + (f"\\{missing}" if missing else "")
        if stream_name is not None:
            text += f":{stream_name}"
        data = resolved_data(text or "\\")
        if data is None:
            raise StatusError(NtStatus.REPARSE_POINT_NOT_RESOLVED)
        return data

    def _follow(
        self, steps: list[Step], start: tuple[Entry, ...], *, last_too: bool
    ) -> tuple[tuple[Entry, ...], str]:
        """Walk and follow links; return the places walked, and the last name when that is missing."""
        path = start
        pending = steps[::-1]
        hops = 0
        while pending:
            step = pending.pop()
            if step.is_up:
                path = path[:-1] if len(path) > 1 else path
                continue
            entry = self._folders.step(path, step)
            if entry is None:
                if pending:
                    raise StatusError(NtStatus.OBJECT_PATH_NOT_FOUND)
                return path, step.name or to_windows_name(step.raw)
            if entry.node.kind is not NodeKind.SYMLINK or not (pending or last_too):
                path = (*path, entry)
                continue
            hops += 1
            target = self._tree.readlink(entry.node)
            if hops > HOPS or len(pending) > HOPS * 256:
                raise StatusError(NtStatus.REPARSE_POINT_NOT_RESOLVED)
            if target.startswith(b"/"):
                path = path[:1]
            parts = [part for part in target.split(b"/") if part not in {b"", b"."}]
            pending.extend(Step(None, part) for part in reversed(parts))
        return path, ""

    def _leads_to_folder(self, path: tuple[Entry, ...]) -> bool:
        try:
            found, missing = self._follow([Step(path[-1].shown)], path[:-1], last_too=True)
        except (StatusError, MountfsError):
            return False
        return not missing and found[-1].node.kind is NodeKind.DIRECTORY

    def _stream(self, node: Node, name: str) -> Stream:
        streams = self._tree.streams(node)
        shown = shown_names([stream.name for stream in streams])
        for stream in streams:
            if fold(shown[stream.name]) == fold(name):
                return stream
        raise StatusError(NtStatus.OBJECT_NAME_NOT_FOUND)

    def _opened(self, path: tuple[Entry, ...]) -> Opened:
        info = self._info(path)
        return Opened(path[-1], None, info.size, info, path)

    def _info(self, path: tuple[Entry, ...]) -> FileInfo:
        node = path[-1].node
        size = node.size if node.kind is NodeKind.FILE else 0
        attributes = self._attributes(path)
        written = to_filetime(node.mtime_ns)
        return FileInfo(
            attributes,
            self._tag(node) if node.kind is NodeKind.SYMLINK else 0,
            _allocation(size),
            size,
            to_filetime(node.birth_ns) if node.birth_ns else written,
            to_filetime(node.atime_ns or node.mtime_ns),
            written,
            to_filetime(node.ctime_ns or node.mtime_ns),
            (node.inode & _INDEX_MASK) or _index_of(path),
        )

    def _tag(self, node: Node) -> int:
        return link_tag(self._extended(node).get(_REPARSE_DATA, b"")) or SYMLINK_TAG

    def _extended(self, node: Node) -> Mapping[str, bytes]:
        """Return the extended attributes; none where they are damaged: the file is there all the same."""
        try:
            return self._tree.xattrs(node)
        except MountfsError:
            return {}

    def _attributes(self, path: tuple[Entry, ...]) -> int:
        node = path[-1].node
        stored = self._extended(node).get(_ATTRIB, b"")
        if len(stored) == 4:
            found = int(struct.unpack("<I", stored)[0]) & _STORED_ATTRIBUTES
        else:
            found = 0 if node.mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) else _READ_ONLY
            found &= 0 if node.kind is NodeKind.DIRECTORY else ~0
        if node.kind is NodeKind.DIRECTORY:
            found |= _DIRECTORY
        elif node.kind is NodeKind.SYMLINK:
            found |= _REPARSE | (_DIRECTORY if self._leads_to_folder(path) else 0)
        elif node.kind is not NodeKind.FILE:
            found |= _SYSTEM
        return found or _NORMAL


def to_filetime(time_ns: int) -> int:
    """Return nanoseconds since 1970 in Windows' units; what it cannot say becomes the nearest it can."""
    return min(max(time_ns // 100 + EPOCH, 1), _MAX_TIME)


def _order(name: str) -> tuple[str, str]:
    return fold(name), name


def _entry_order(entry: Entry) -> tuple[str, str]:
    return entry.order


class _NameAt(NamedTuple):
    name: str
    start: int


def _steps(path: str) -> Iterator[_NameAt]:
    """Yield the names of a path, each with the UTF-16 unit at which it begins."""
    start = 0
    for part in path.split("\\"):
        if part:
            yield _NameAt(part, start)
        start += len(part) + sum(char > "\uffff" for char in part) + 1


def _split_stream(path: str) -> tuple[list[str], str | None]:
    names = [name for name in path.split("\\") if name]
    if not names or ":" not in names[-1]:
        return names, None
    last, _, stream = names[-1].partition(":")
    stream, _, kind = stream.partition(":")
    if kind and fold(kind) != "$DATA":
        raise StatusError(NtStatus.OBJECT_NAME_NOT_FOUND)
    names[-1:] = [last] if last else []
    return names, stream or None


def _allocation(size: int) -> int:
    return -(-size // _ALLOCATION_UNIT) * _ALLOCATION_UNIT


def _index_of(path: tuple[Entry, ...]) -> int:
    return (xxh3_64_intdigest("\\".join(entry.shown for entry in path).encode()) & _INDEX_MASK) or 1
