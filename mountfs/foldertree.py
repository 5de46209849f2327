"""A folder of trees under names that come and go: the points of a set, the sets of a repository.

Opening a point costs something (a chain of images is proven), and there may be a thousand of them. Here
they are listed at once, opened when somebody looks inside, and closed again when others are looked at
more. A point that cannot be opened says why, in a file where its content would be, and hides nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64_intdigest

from imageformat.errors import MountfsError, NotFoundError, UsageError, VolumeError
from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.names import safe_text
from mountfs.tree import Node, NodeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from imageformat.extent import Extent
    from mountfs.tree import FileTree, Stream

REFRESH_S = 1.0
OPEN_SUBTREES = 64
RETRY_S = 10.0
ERROR_FILE = b"ERROR.txt"

_INODE_MASK = (1 << 63) - 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands under one name: a subtree, or a symbolic link."""

    open: Callable[[], FileTree] | None = None
    """Open the subtree; the `FolderTree` closes it. Raises `MountfsError` with the reason."""
    link: bytes | None = None
    """The target of a symbolic link."""
    mtime_ns: int = 0
    identity: bytes = b""
    """What the subtree is, such as the id of the image. Under the same name, another identity is another
    subtree; the same identity means that an open subtree may be kept."""

    def __post_init__(self) -> None:
        if (self.open is None) == (self.link is None):
            raise UsageError("an entry is either a subtree or a symbolic link")


class _EntryKey(NamedTuple):
    """Key of the node of an entry itself."""

    name: bytes
    identity: bytes


class _InnerKey(NamedTuple):
    """Key of a node inside a subtree. The inner node is kept whole: unwrapping costs nothing."""

    name: bytes
    identity: bytes
    failed: bool
    """The node belongs to the folder that says why the subtree cannot be opened."""
    node: Node


class _Subtree:
    """An open subtree, or the folder with the reason why it is not."""

    __slots__ = ("borrowers", "failed", "opening", "retry_at", "tree")

    def __init__(self) -> None:
        self.opening = threading.Lock()
        self.tree: FileTree | None = None
        self.failed = False
        self.retry_at = 0.0
        self.borrowers = 0


class FolderTree:
    """A `FileTree` whose top folder holds named subtrees; nestable. Any number of threads may call it.

    ``entries`` is asked at most every ``refresh_s`` seconds, and when a name is looked up that it did not
    give last time. When it fails later than the first time, the last answer stays and a warning is logged.
    A subtree is opened once, however many threads ask, and stays open with at most ``max_open`` others;
    it is never closed while a call is inside it, an unfinished listing included. A subtree that could not
    be opened is a folder holding ``ERROR.txt``, and is tried again after `RETRY_S` seconds.

    A node of a subtree that is gone, or that has another identity now, is answered with `NotFoundError`.
    """

    def __init__(
        self,
        entries: Callable[[], Mapping[bytes, Entry]],
        *,
        refresh_s: float = REFRESH_S,
        max_open: int = OPEN_SUBTREES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = entries
        self._refresh_s = refresh_s
        self._max_open = max_open
        self._clock = clock
        self._refreshing = threading.Lock()
        self._entries: Mapping[bytes, Entry] | None = None
        self._asked = 0
        self._asked_at = 0.0
        self._newest_ns = 0
        self._lock = threading.Lock()
        self._subtrees: OrderedDict[_EntryKey, _Subtree] = OrderedDict()
        self._closed = False

    def root(self) -> Node:
        """See `FileTree.root`."""
        self._current()
        newest = self._newest_ns
        return Node(
            name=b"",
            kind=NodeKind.DIRECTORY,
            key=(),
            mode=0o555,
            links=2,
            inode=_inode(b"", b"", 0),
            atime_ns=newest,
            mtime_ns=newest,
            ctime_ns=newest,
            volatile=True,
        )

    def child(self, parent: Node, name: bytes) -> Node | None:
        """See `FileTree.child`."""
        if parent.key == ():
            entry = self._entry(name)
            return None if entry is None else _entry_node(name, entry)
        key = self._key(parent)
        subtree, tree = self._borrow(key)
        try:
            found = tree.child(_inside(subtree, tree, key), name)
        finally:
            self._give_back(subtree)
        return None if found is None else _wrap(key, found, failed=subtree.failed)

    def children(self, parent: Node) -> Iterator[Node]:
        """See `FileTree.children`."""
        if parent.key == ():
            for name, entry in self._current().items():
                yield _entry_node(name, entry)
            return
        key = self._key(parent)
        subtree, tree = self._borrow(key)
        try:
            failed = subtree.failed
            for found in tree.children(_inside(subtree, tree, key)):
                yield _wrap(key, found, failed=failed)
        finally:
            self._give_back(subtree)

    def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:
        """See `FileTree.read`."""
        key = self._key(node)
        subtree, tree = self._borrow(key)
        try:
            return tree.read(_inside(subtree, tree, key), offset, size, stream)
        finally:
            self._give_back(subtree)

    def extents(self, node: Node) -> Iterator[Extent]:
        """See `FileTree.extents`."""
        key = self._key(node)
        subtree, tree = self._borrow(key)
        try:
            yield from tree.extents(_inside(subtree, tree, key))
        finally:
            self._give_back(subtree)

    def placements(self, node: Node) -> Iterator[tuple[int, int]]:
        """See `FileTree.placements`: on the device of the subtree; the folders made here lie nowhere."""
        key = self._key(node)
        if isinstance(key, _EntryKey):
            return
        subtree, tree = self._borrow(key)
        try:
            yield from tree.placements(_inside(subtree, tree, key))
        finally:
            self._give_back(subtree)

    def readlink(self, node: Node) -> bytes:
        """See `FileTree.readlink`."""
        key = self._key(node)
        if isinstance(key, _EntryKey):
            entry = self._entry(key.name)
            if entry is not None and entry.link is not None and entry.link == key.identity:
                return entry.link
            if entry is not None and entry.link is None:
                raise VolumeError(f"{safe_text(key.name)} is not a symbolic link")
            raise _gone(key.name)
        subtree, tree = self._borrow(key)
        try:
            return tree.readlink(_inside(subtree, tree, key))
        finally:
            self._give_back(subtree)

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `FileTree.xattrs`; the folders made here have none."""
        if not isinstance(node.key, _InnerKey):
            return {}
        subtree, tree = self._borrow(node.key)
        try:
            return tree.xattrs(_inside(subtree, tree, node.key))
        finally:
            self._give_back(subtree)

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """See `FileTree.streams`; the folders made here have none."""
        if not isinstance(node.key, _InnerKey):
            return ()
        subtree, tree = self._borrow(node.key)
        try:
            return tree.streams(_inside(subtree, tree, node.key))
        finally:
            self._give_back(subtree)

    def close(self) -> None:
        """Close every subtree, those in use when their last call returns; later calls fail."""
        with self._lock:
            self._closed = True
            idle = self._take_idle(keep=0)
        _close(idle)

    @staticmethod
    def _key(node: Node) -> _EntryKey | _InnerKey:
        if isinstance(node.key, _EntryKey | _InnerKey):
            return node.key
        raise VolumeError(f"{safe_text(node.name) or 'the top folder'} is a folder")

    def _current(self) -> Mapping[bytes, Entry]:
        entries = self._entries
        if entries is not None and self._clock() - self._asked_at < self._refresh_s:
            return entries
        return self._refresh(self._asked)

    def _refresh(self, asked: int) -> Mapping[bytes, Entry]:
        """Ask again, unless somebody has since the ``asked``-th time."""
        with self._refreshing:
            if self._entries is not None and self._asked != asked:
                return self._entries
            try:
                self._entries = dict(self._ask())
            except MountfsError as error:
                if self._entries is None:
                    raise
                _log.warning("the list of entries could not be read again: %s", error)
            self._asked += 1
            self._asked_at = self._clock()
            entries = self._entries
            self._newest_ns = max((entry.mtime_ns for entry in entries.values()), default=0)
        self._drop_vanished(entries)
        return entries

    def _entry(self, name: bytes) -> Entry | None:
        asked = self._asked
        found = self._current().get(name)
        return self._refresh(asked).get(name) if found is None else found

    def _drop_vanished(self, entries: Mapping[bytes, Entry]) -> None:
        with self._lock:
            gone = [
                key
                for key, subtree in self._subtrees.items()
                if not subtree.borrowers
                and ((entry := entries.get(key.name)) is None or entry.identity != key.identity)
            ]
            idle = [self._subtrees.pop(key) for key in gone]
        _close(idle)

    def _borrow(self, key: _EntryKey | _InnerKey) -> tuple[_Subtree, FileTree]:
        """Return the open subtree of a key, kept open until `_give_back`."""
        entry = self._entry(key.name)
        if entry is None or entry.identity != key.identity:
            raise _gone(key.name)
        if entry.open is None:
            raise VolumeError(f"{safe_text(key.name)} is a symbolic link")
        slot = _EntryKey(key.name, key.identity)
        with self._lock:
            if self._closed:
                raise NotFoundError("the tree is closed")
            subtree = self._subtrees.get(slot)
            if subtree is None or (
                subtree.failed and not subtree.borrowers and self._clock() >= subtree.retry_at
            ):
                subtree = self._subtrees[slot] = _Subtree()
            self._subtrees.move_to_end(slot)
            subtree.borrowers += 1
        tree = subtree.tree
        if tree is None:
            try:
                tree = self._open(key.name, entry.open, subtree)
            except BaseException:
                self._give_back(subtree)
                raise
        return subtree, tree

    def _open(self, name: bytes, open_subtree: Callable[[], FileTree], subtree: _Subtree) -> FileTree:
        with subtree.opening:
            if subtree.tree is None:
                try:
                    opened = open_subtree()
                except MountfsError as error:
                    _log.warning("%s cannot be opened: %s", safe_text(name), error)
                    opened = _error_tree(error)
                    subtree.retry_at = self._clock() + RETRY_S
                    subtree.failed = True
                subtree.tree = opened
            return subtree.tree

    def _give_back(self, subtree: _Subtree) -> None:
        idle: list[_Subtree] = []
        with self._lock:
            subtree.borrowers -= 1
            if self._closed:
                idle = self._take_idle(keep=0)
            elif len(self._subtrees) > self._max_open:
                idle = self._take_idle(keep=self._max_open)
        _close(idle)

    def _take_idle(self, *, keep: int) -> list[_Subtree]:
        """Take the longest unused subtrees that nobody is inside out of the table, under the lock."""
        surplus = len(self._subtrees) - keep
        keys = [key for key, subtree in self._subtrees.items() if not subtree.borrowers][: max(0, surplus)]
        return [self._subtrees.pop(key) for key in keys]


def _close(subtrees: list[_Subtree]) -> None:
    for subtree in subtrees:
        if subtree.tree is not None:
            subtree.tree.close()


def _inside(subtree: _Subtree, tree: FileTree, key: _EntryKey | _InnerKey) -> Node:
    """Return the node as the subtree knows it."""
    if isinstance(key, _EntryKey):
        return tree.root()
    if key.failed is not subtree.failed:
        raise _gone(key.node.name)
    return key.node


def _wrap(key: _EntryKey | _InnerKey, node: Node, *, failed: bool) -> Node:
    """Return an inner node as this tree shows it."""
    inode = _inode(key.name, key.identity, node.inode) if node.inode else 0
    volatile = node.volatile or failed
    return replace(node, key=_InnerKey(key.name, key.identity, failed, node), inode=inode, volatile=volatile)


def _entry_node(name: bytes, entry: Entry) -> Node:
    link = entry.link
    return Node(
        name=name,
        kind=NodeKind.DIRECTORY if link is None else NodeKind.SYMLINK,
        key=_EntryKey(name, entry.identity if link is None else link),
        size=0 if link is None else len(link),
        mode=0o555 if link is None else 0o777,
        links=2 if link is None else 1,
        inode=_inode(name, entry.identity, 0),
        atime_ns=entry.mtime_ns,
        mtime_ns=entry.mtime_ns,
        ctime_ns=entry.mtime_ns,
        volatile=True,
    )


def _inode(name: bytes, identity: bytes, inner: int) -> int:
    """Map an inode number of a subtree, or 0 for its folder, into 63 bits that no sibling shares."""
    text = b"%d:%b%d:%b%d" % (len(name), name, len(identity), identity, inner)
    return (xxh3_64_intdigest(text) & _INODE_MASK) or 1


def _error_tree(error: MountfsError) -> MemoryTree:
    reason = f"{safe_text(str(error))}\n\n({type(error).__name__}, exit code {error.exit_code})\n"
    return MemoryTree(folder({ERROR_FILE: Item(reason.encode("utf-8", "surrogateescape"), mode=0o444)}))


def _gone(name: bytes) -> NotFoundError:
    return NotFoundError(f"{safe_text(name)} is gone")
