"""Volumes as directories: those of a disk, and in the same way those inside a container, however deep.

A volume that cannot be read as files still shows its bytes and says why, so that nothing ever looks empty.
What opens a volume is asked when somebody looks into it: a broken one costs the others nothing.
"""

from __future__ import annotations

import dataclasses
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_64_intdigest

from imageformat.errors import NotFoundError, VolumeError
from mountfs.flattree import FlatKey, FlatTree
from mountfs.tree import Node, NodeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from imageformat.errors import LockedError, MountfsError
    from imageformat.extent import Extent
    from imageformat.partitions import PartitionTable
    from imageformat.secrets import Secrets
    from mountfs.tree import FileTree, Stream
    from mountfs.volumes import Volume
    from mountfs.volumeslot import VolumeSlot

_INODE_BITS = 48
_EXACT_NUMBERS = 1 << 13
_HASHED = 1 << 62
"""Set in every inode number that is a hash, so that none is equal to an exact one."""
_TOP = -1
"""Stands for the tree itself where a key has the number of a volume."""


class VolumeKey(NamedTuple):
    """Key of a node: which volume, and the node as that volume's own tree knows it."""

    number: int
    inner: Node | None
    """None: the volume's top directory, which is known before anything is opened."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What there is to show: volumes, and the files beside their directories."""

    slots: Mapping[int, VolumeSlot]
    """By number, in order."""
    top: FlatTree
    table: PartitionTable | None = None
    failure: MountfsError | None = None
    """Why there may be more volumes than are known."""


class VolumeTree:
    """A read-only tree with a directory per volume such as ``2-ntfs-Data``, found by ``2`` alone as well.

    A volume whose files can be read is shown as its file system's own tree, a container as directories of its
    volumes. Any other is a directory with ``partition.img`` (its bytes) and ``README`` (why, and what to do).

    The top directory of a volume always has mode 0555 and the tree's time: it is shown before it is opened.
    Nodes are values and stay valid for another tree over the same bytes. `placements` are offsets on the
    disk, at every depth. Closing it closes what was opened for its volumes. Any number of threads.

    Args:
        look: finds out what there is to show; called once, when it is first needed.
        time_ns: shown for what this tree makes up.
        close_rest: called once, after everything else was closed.
    """

    def __init__(
        self,
        look: Callable[[], Contents],
        *,
        time_ns: int = 0,
        close_rest: Callable[[], None] = lambda: None,
    ) -> None:
        self._look = look
        self._time_ns = time_ns
        self._close_rest = close_rest
        self._lock = threading.Lock()
        self._known: Contents | None = None
        self._closed = False

    def contents(self) -> Contents:
        """Return what there is to show."""
        with self._lock:
            if self._closed:
                raise VolumeError("the disk was closed")
            if self._known is None:
                self._known = self._look()
            return self._known

    def volumes(self) -> tuple[Volume, ...]:
        """Describe what is here, in order of number; opens nothing."""
        return tuple(slot.volume for slot in self.contents().slots.values())

    def all_volumes(self) -> Iterator[tuple[Volume, MountfsError | None]]:
        """Yield every volume, containers before what they hold, and why it shows less than it should.

        Opens the containers, and no file system.
        """
        for slot in self.contents().slots.values():
            inner = slot.inner()
            yield slot.volume, slot.locked or slot.failure
            if inner is not None:
                yield from inner.all_volumes()

    def failures(self) -> tuple[MountfsError, ...]:
        """Return why less is shown than there should be, of the table and of the volumes opened so far.

        A tree goes on with what can be read; whoever shows it to a person tells this beside it. A volume for
        which no secret was given is not among them: it was not expected to open.
        """
        contents = self.contents()
        found = [contents.failure]
        for slot in contents.slots.values():
            found += [slot.failure, *slot.inner_failures()]
        return tuple(error for error in found if error is not None)

    def locked(self, node: Node) -> LockedError | None:
        """Return why the volume whose top directory this is shows ciphertext; None for any other node."""
        slot, inner = self._slot_of(node)
        if slot is None:
            return None
        opened = slot.inner()
        return slot.locked if inner is None else opened.locked(inner) if opened is not None else None

    def unlock(self, node: Node, secrets: Secrets) -> None:
        """Try again to open the locked volume whose top directory this is.

        Raises:
            LockedError: these do not open it, either.
            NotFoundError: it is not the directory of a volume.
        """
        slot, inner = self._slot_of(node)
        if slot is None:
            raise NotFoundError(f"{node.name!r} is not a volume")
        opened = slot.inner()
        if inner is None:
            slot.unlock(secrets)
        elif opened is not None:
            opened.unlock(inner, secrets)

    def slot_at(self, node: Node) -> VolumeSlot | None:
        """Return the volume whose top directory a node is; None for any other node."""
        slot, inner = self._slot_of(node)
        if slot is None or inner is None:
            return slot
        opened = slot.inner()
        return opened.slot_at(inner) if opened is not None else None

    def _slot_of(self, node: Node) -> tuple[VolumeSlot | None, Node | None]:
        key = _key(node)
        return self.contents().slots.get(key.number), key.inner

    def root(self) -> Node:
        """See `FileTree.root`."""
        return self._directory(_TOP, b"")

    def child(self, parent: Node, name: bytes) -> Node | None:
        """See `FileTree.child`; a volume is also found by its number alone."""
        key = _key(parent)
        if key.number == _TOP and key.inner is None:
            return self._top_child(name)
        tree, node = self._resolve(key)
        found = tree.child(node, name)
        return _wrap(key.number, found) if found is not None else None

    def _top_child(self, name: bytes) -> Node | None:
        contents = self.contents()
        found = contents.top.child(contents.top.root(), name)
        if found is not None:
            return _wrap(_TOP, found)
        for number, slot in contents.slots.items():
            if name in {slot.volume.name, b"%d" % number}:
                return self._directory(number, slot.volume.name)
        return None

    def children(self, parent: Node) -> Iterator[Node]:
        """See `FileTree.children`."""
        key = _key(parent)
        if key.number == _TOP and key.inner is None:
            contents = self.contents()
            yield from (_wrap(_TOP, node) for node in contents.top.children(contents.top.root()))
            for number, slot in contents.slots.items():
                yield self._directory(number, slot.volume.name)
            return
        tree, node = self._resolve(key)
        for child in tree.children(node):
            yield _wrap(key.number, child)

    def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:
        """See `FileTree.read`."""
        tree, inner = self._resolve(_key(node))
        return tree.read(inner, offset, size, stream)

    def extents(self, node: Node) -> Iterator[Extent]:
        """See `FileTree.extents`."""
        tree, inner = self._resolve(_key(node))
        return tree.extents(inner)

    def placements(self, node: Node) -> Iterator[tuple[int, int]]:
        """See `FileTree.placements`: offsets on the disk, mapped back through all containers."""
        key = _key(node)
        tree, inner = self._resolve(key)
        if isinstance(tree, VolumeTree):
            yield from tree.placements(inner)
            return
        slot = self.contents().slots.get(key.number)
        if slot is not None:
            for offset, length in tree.placements(inner):
                yield from slot.places(offset, length)

    def readlink(self, node: Node) -> bytes:
        """See `FileTree.readlink`."""
        tree, inner = self._resolve(_key(node))
        return tree.readlink(inner)

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `FileTree.xattrs`."""
        tree, inner = self._resolve(_key(node))
        return tree.xattrs(inner)

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """See `FileTree.streams`."""
        tree, inner = self._resolve(_key(node))
        return tree.streams(inner)

    def close(self) -> None:
        """Close what was opened for the volumes; idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            known = self._known
        with ExitStack() as stack:
            stack.callback(self._close_rest)
            for slot in known.slots.values() if known is not None else ():
                stack.callback(slot.close)

    def _resolve(self, key: VolumeKey) -> tuple[FileTree, Node]:
        """Return the tree that a node belongs to, and the node as that tree knows it."""
        contents = self.contents()
        if key.number == _TOP:
            return contents.top, key.inner or contents.top.root()
        slot = contents.slots.get(key.number)
        if slot is None:
            raise NotFoundError(f"there is no volume {key.number}")
        tree, root = slot.tree()
        if key.inner is None:
            return tree, root
        for kind, tree_kind in ((FlatKey, FlatTree), (VolumeKey, VolumeTree)):
            if isinstance(key.inner.key, kind) and not isinstance(tree, tree_kind):
                raise NotFoundError(f"{key.inner.name!r} is not here any more")
        return tree, key.inner

    def _directory(self, number: int, name: bytes) -> Node:
        return Node(
            name,
            NodeKind.DIRECTORY,
            VolumeKey(number, None),
            mode=0o555,
            links=2,
            inode=_outer_inode(number, 0) or 1,
            atime_ns=self._time_ns,
            mtime_ns=self._time_ns,
            ctime_ns=self._time_ns,
        )


def _key(node: Node) -> VolumeKey:
    if not isinstance(node.key, VolumeKey):
        raise NotFoundError(f"{node.name!r} is a node of another tree")
    return node.key


def _wrap(number: int, inner: Node) -> Node:
    inode = _outer_inode(number, inner.inode) if inner.inode > 0 else 0
    return dataclasses.replace(inner, key=VolumeKey(number, inner), inode=inode)


def _outer_inode(number: int, inode: int) -> int:
    """Make the inode numbers of all volumes distinct; those of the top directory itself stay small.

    One too big to have the number of its volume put before it, as those in containers are, becomes a hash.
    """
    if inode < 1 << _INODE_BITS and number < _EXACT_NUMBERS:
        return (number + 1) << _INODE_BITS | inode
    return _HASHED | xxh3_64_intdigest(b"%d:%d" % (number, inode)) >> 2
