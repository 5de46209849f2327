"""One disk as a tree: the raw disk as a file, and one directory per volume.

A volume that cannot be read as files still shows its bytes and says why, so that nothing on a disk ever
looks empty. Drivers are opened when somebody looks into a volume: a broken one costs the others nothing.
"""

from __future__ import annotations

import dataclasses
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from imageformat.device import MemoryDevice, Slice
from imageformat.errors import MountfsError, NotFoundError, UnsupportedVolumeError, VolumeError
from imageformat.secrets import NO_SECRETS, Secrets
from mountfs.flattree import FlatKey, FlatTree
from mountfs.readme import disk_readme, volume_readme
from mountfs.tree import Node, NodeKind
from mountfs.volumes import read_layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from imageformat.device import BlockDevice
    from imageformat.extent import Extent
    from imageformat.partitions import PartitionTable
    from mountfs.tree import FileSystemDriver, FileSystemInfo, FileTree, Stream
    from mountfs.volumes import Volume

README = b"README"
PARTITION_IMAGE = b"partition.img"
_INODE_BITS = 48
_DISK = -1
"""Stands for the disk itself where a key has the number of a volume."""


class _Key(NamedTuple):
    """Key of a node: which volume, and the node as that volume's own tree knows it."""

    number: int
    inner: Node | None
    """None: the volume's top directory, which is known before its driver is asked."""


class _Slot:
    """One volume and the tree that shows it, opened at the first look. Any number of threads."""

    def __init__(
        self, volume: Volume, device: BlockDevice, drivers: Sequence[FileSystemDriver], time_ns: int
    ) -> None:
        self.volume = volume
        self._device = Slice(device, volume.offset, volume.size)
        self._drivers = drivers
        self._time_ns = time_ns
        self._lock = threading.Lock()
        self._opened: tuple[FileTree, Node] | None = None
        self._closed = False
        self.failure: MountfsError | None = None
        """Why the volume that was opened shows its bytes, though its files were expected."""

    def tree(self) -> tuple[FileTree, Node]:
        """Return the volume's tree and its root; a tree of raw bytes when no driver can open it."""
        with self._lock:
            if self._closed:
                raise VolumeError("the disk was closed")
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> tuple[FileTree, Node]:
        info = self.volume.info
        reasons = []
        self.failure = self.volume.failure
        if info is not None:
            for driver in self._drivers:
                if info.type not in driver.types:
                    continue
                try:
                    opened = _open_with(driver, self._device, info)
                except MountfsError as error:
                    reasons.append(f"{driver.name}: {error}")
                    self.failure = self._refusal(error)
                else:
                    self.failure = None
                    return opened
        readme = volume_readme(self.volume, "; ".join(reasons) or self.volume.reason)
        raw = FlatTree({PARTITION_IMAGE: self._device, README: MemoryDevice(readme)}, time_ns=self._time_ns)
        return raw, raw.root()

    def _refusal(self, error: MountfsError) -> MountfsError | None:
        """Say which volume it was; a volume of a kind that nobody can read has not failed."""
        if isinstance(error, UnsupportedVolumeError):
            return self.failure
        name = self.volume.name.decode("utf-8", "replace")
        failure = type(error)(f"the files of {name} cannot be read: {error}")
        failure.__cause__ = error
        return self.failure or failure

    def close(self) -> None:
        """Close the tree, if one was opened."""
        with self._lock:
            self._closed = True
            opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].close()


class _Contents(NamedTuple):
    """What the disk turned out to hold."""

    table: PartitionTable
    slots: dict[int, _Slot]
    top: FlatTree
    """The files beside the directories of the volumes."""
    failure: MountfsError | None
    """Why there may be more volumes than are known."""


class DiskTree:
    """A read-only tree over one disk: ``disk.img``, and a directory per volume such as ``2-ntfs-Data``.

    A volume whose files can be read is shown as its file system's own tree. Any other is a directory with
    ``partition.img`` (its bytes) and ``README`` (why, and what to do). A disk without partitions that is
    one file system has the volume ``0-ext4-Label``; a disk on which nothing known is found has no volume,
    and a ``README`` beside ``disk.img`` that says so. Directories are also found by number alone: ``2``.

    The top directory of a volume always has mode 0555 and the tree's time: it is shown before its driver is
    opened. Nodes are values and stay valid for another `DiskTree` over the same disk.

    The tree owns the device: `close` closes what drivers opened, then the device. Drivers get a window on
    the device. A driver that fails is not asked again for the same volume. Any number of threads.

    Args:
        device: the disk.
        drivers: asked in order; the first that knows the type of a volume and opens it serves it.
        secrets: tried on encrypted volumes.
        image_name: of the file that is the whole disk.
        sector_size: when known; else it is found out.
        time_ns: shown for files and directories that this tree makes up.
    """

    def __init__(
        self,
        device: BlockDevice,
        drivers: Sequence[FileSystemDriver],
        *,
        secrets: Secrets = NO_SECRETS,
        image_name: bytes = b"disk.img",
        sector_size: int | None = None,
        time_ns: int = 0,
    ) -> None:
        self._device = device
        self._drivers = tuple(drivers)
        self._secrets = secrets
        self._image_name = image_name
        self._sector_size = sector_size
        self._time_ns = time_ns
        self._lock = threading.Lock()
        self._known: _Contents | None = None
        self._closed = False

    @property
    def table(self) -> PartitionTable:
        """The partition table; an unreadable one is a warning in it."""
        return self._contents().table

    def volumes(self) -> tuple[Volume, ...]:
        """Describe what is on the disk, in order of number; opens no driver."""
        return tuple(slot.volume for slot in self._contents().slots.values())

    def layout_failures(self) -> tuple[MountfsError, ...]:
        """Return what kept the disk from being known: its table, or the start of a volume, was unreadable."""
        contents = self._contents()
        found = (contents.failure, *(slot.volume.failure for slot in contents.slots.values()))
        return tuple(error for error in found if error is not None)

    def failures(self) -> tuple[MountfsError, ...]:
        """Return why less is shown than there should be, of the table and of the volumes opened so far.

        A tree goes on with what can be read; whoever shows it to a person tells this beside it.
        """
        contents = self._contents()
        found = (contents.failure, *(slot.failure for slot in contents.slots.values()))
        return tuple(error for error in found if error is not None)

    def volume_at(self, offset: int) -> Volume | None:
        """Name the volume that a byte of the disk belongs to: the smallest, should some overlap."""
        found = [volume for volume in self.volumes() if volume.offset <= offset < volume.offset + volume.size]
        return min(found, key=lambda volume: volume.size, default=None)

    def root(self) -> Node:
        """See `FileTree.root`."""
        return self._directory(_DISK, b"")

    def child(self, parent: Node, name: bytes) -> Node | None:
        """See `FileTree.child`; a volume is also found by its number alone."""
        key = _key(parent)
        if key.number == _DISK and key.inner is None:
            return self._top_child(name)
        tree, node = self._resolve(key)
        found = tree.child(node, name)
        return _wrap(key.number, found) if found is not None else None

    def _top_child(self, name: bytes) -> Node | None:
        contents = self._contents()
        found = contents.top.child(contents.top.root(), name)
        if found is not None:
            return _wrap(_DISK, found)
        for number, slot in contents.slots.items():
            if name in {slot.volume.name, b"%d" % number}:
                return self._directory(number, slot.volume.name)
        return None

    def children(self, parent: Node) -> Iterator[Node]:
        """See `FileTree.children`."""
        key = _key(parent)
        if key.number == _DISK and key.inner is None:
            contents = self._contents()
            yield from (_wrap(_DISK, node) for node in contents.top.children(contents.top.root()))
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
        """See `FileTree.placements`: offsets on the disk."""
        key = _key(node)
        tree, inner = self._resolve(key)
        volumes = (volume for volume in self.volumes() if volume.number == key.number)
        start = next((volume.offset for volume in volumes), 0)
        for offset, length in tree.placements(inner):
            yield start + offset, length

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
        """Close what drivers opened, then the device; idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            known = self._known
        with ExitStack() as stack:
            stack.callback(self._device.close)
            for slot in known.slots.values() if known is not None else ():
                stack.callback(slot.close)

    def _contents(self) -> _Contents:
        with self._lock:
            if self._closed:
                raise VolumeError("the disk was closed")
            if self._known is None:
                self._known = self._look()
            return self._known

    def _look(self) -> _Contents:
        layout = read_layout(self._device, self._drivers, self._sector_size)
        files: dict[bytes, BlockDevice] = {self._image_name: self._device}
        if not layout.volumes:
            note = disk_readme(layout.table, self._device.size, self._image_name)
            files[README] = MemoryDevice(note)
        slots = {
            volume.number: _Slot(volume, self._device, self._drivers, self._time_ns)
            for volume in layout.volumes
        }
        return _Contents(layout.table, slots, FlatTree(files, time_ns=self._time_ns), layout.failure)

    def _resolve(self, key: _Key) -> tuple[FileTree, Node]:
        """Return the tree that a node belongs to, and the node as that tree knows it."""
        contents = self._contents()
        if key.number == _DISK:
            return contents.top, key.inner or contents.top.root()
        slot = contents.slots.get(key.number)
        if slot is None:
            raise NotFoundError(f"the disk has no volume {key.number}")
        tree, root = slot.tree()
        if key.inner is None:
            return tree, root
        if isinstance(key.inner.key, FlatKey) and not isinstance(tree, FlatTree):
            raise NotFoundError(f"{key.inner.name!r} is not here any more")
        return tree, key.inner

    def _directory(self, number: int, name: bytes) -> Node:
        return Node(
            name,
            NodeKind.DIRECTORY,
            _Key(number, None),
            mode=0o555,
            links=2,
            inode=_outer_inode(number, 0) or 1,
            atime_ns=self._time_ns,
            mtime_ns=self._time_ns,
            ctime_ns=self._time_ns,
        )


def _open_with(driver: FileSystemDriver, device: BlockDevice, info: FileSystemInfo) -> tuple[FileTree, Node]:
    tree = driver.open(device, info)
    with ExitStack() as stack:
        stack.callback(tree.close)
        root = tree.root()
        stack.pop_all()
    return tree, root


def _key(node: Node) -> _Key:
    if not isinstance(node.key, _Key):
        raise NotFoundError(f"{node.name!r} is a node of another tree")
    return node.key


def _wrap(number: int, inner: Node) -> Node:
    inode = _outer_inode(number, inner.inode) if 0 < inner.inode < 1 << _INODE_BITS else 0
    return dataclasses.replace(inner, key=_Key(number, inner), inode=inode)


def _outer_inode(number: int, inode: int) -> int:
    """Make inode numbers of all volumes of a disk distinct; those of the disk itself stay small."""
    return (number + 1) << _INODE_BITS | inode
