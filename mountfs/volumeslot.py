"""One volume and the tree that shows it: its files, the volumes inside it, or its bytes and the reason."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from imageformat.device import MemoryDevice, Slice
from imageformat.errors import LockedError, MountfsError, UnsupportedVolumeError, VolumeError
from mountfs.flattree import FlatTree
from mountfs.readme import volume_readme
from mountfs.volumes import inner_volume, partition_volumes
from mountfs.volumetree import Contents, VolumeTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from imageformat.device import BlockDevice
    from imageformat.partitions import PartitionTable
    from imageformat.secrets import Secrets
    from mountfs.containers import InnerVolume, OpenedContainer, VolumeContainer
    from mountfs.tree import FileSystemDriver, FileSystemInfo, FileTree, Node
    from mountfs.volumes import Openers, Volume

README = b"README"
PARTITION_IMAGE = b"partition.img"
MAX_DEPTH = 8
"""Containers inside containers."""
MAX_INNER = 4096
"""Volumes inside containers of one disk that are looked at: hostile ones may multiply at every depth."""

MAX_PIECES = 4096
"""Pieces of a volume that are looked at to say where it lies; a striped one has millions."""


@dataclass(frozen=True, slots=True)
class Part:
    """A volume, its bytes, and where on the disk they lie."""

    volume: Volume
    device: BlockDevice | None
    """None: its bytes cannot be had."""
    places: Callable[[int, int], Iterator[tuple[int, int]]]
    """From a range of it to (offset, length) on the disk, as far as that is known."""

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield where it lies; only the first pieces of one that is scattered."""
        return islice(self.places(0, self.volume.size), MAX_PIECES)


class Opening:
    """What all volumes of one disk share: what opens them, with what secrets. Any number of threads."""

    def __init__(
        self, openers: Openers, secrets: Secrets, time_ns: int, top: Callable[[], VolumeTree]
    ) -> None:
        self.openers = openers
        self.secrets = secrets
        self.time_ns = time_ns
        self._top = top
        self._lock = threading.Lock()
        self._inner = 0

    def count(self, volumes: int) -> None:
        """Take note that so many more volumes inside containers are looked at.

        Raises:
            VolumeError: there are too many.
        """
        with self._lock:
            if self._inner + volumes > MAX_INNER:
                raise VolumeError(f"the containers of the disk hold more than {MAX_INNER} volumes")
            self._inner += volumes

    def parts(self, type_name: str) -> Iterator[Part]:
        """Yield all volumes of a type, those of the disk first; opens plain containers on the way."""
        pending = [self._top()]
        for tree in pending:
            slots = tuple(tree.contents().slots.values())
            yield from (slot.part for slot in slots if slot.type == type_name)
            pending += [inner for slot in slots if slot.is_plain and (inner := slot.inner()) is not None]


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a volume that was looked into turned out to be."""

    tree: FileTree
    root: Node
    members: tuple[Part, ...]
    failure: MountfsError | None = None
    locked: LockedError | None = None


class VolumeSlot:
    """One volume and the tree that shows it, opened at the first look. Any number of threads."""

    def __init__(self, part: Part, opening: Opening) -> None:
        self.part = part
        self._opening = opening
        self._lock = threading.Lock()
        self._shown: _Shown | None = None
        self._closed = False

    @property
    def volume(self) -> Volume:
        """What is known of it without opening it."""
        return self.part.volume

    @property
    def type(self) -> str:
        """Of what it holds; empty when nothing known is there."""
        return self.volume.info.type if self.volume.info is not None else ""

    @property
    def _container(self) -> VolumeContainer | None:
        info = self.volume.info
        if info is None or self.volume.table is not None or self._opening.openers.drivers_of(info.type):
            return None
        return self._opening.openers.container(info.type)

    @property
    def is_plain(self) -> bool:
        """Whether it is a container that needs no other volume of the disk."""
        return self.volume.table is not None or ((found := self._container) is not None and not found.spans)

    def places(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield where on the disk a range of the volume lies, as far as that is known."""
        return self.part.places(offset, length)

    @property
    def failure(self) -> MountfsError | None:
        """Why the volume that was opened shows its bytes, though its files were expected."""
        return self._shown.failure if self._shown is not None else None

    @property
    def locked(self) -> LockedError | None:
        """Why the volume that was opened shows ciphertext; a failure as well if secrets were given."""
        return self._shown.locked if self._shown is not None else None

    def members(self) -> tuple[Part, ...]:
        """Return the volumes that the files shown here may lie in; opens a container."""
        self.inner()
        return self._shown.members if self._shown is not None else (self.part,)

    def reach(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the disk that its files may lie in; opens the containers in it."""
        for part in self.members():
            yield from part.pieces()
        inner = self.inner()
        if inner is not None:
            for slot in inner.contents().slots.values():
                yield from slot.reach()

    def covers(self, offset: int) -> bool:
        """Whether a byte of the disk belongs to it, as far as that can be told from few pieces."""
        return any(start <= offset < start + length for start, length in self.part.pieces())

    def tree(self) -> tuple[FileTree, Node]:
        """Return the volume's tree and its root; a tree of raw bytes when nothing can open it."""
        with self._lock:
            if self._closed:
                raise VolumeError("the disk was closed")
            if self._shown is None:
                self._shown = self._open(self._opening.secrets)
            return self._shown.tree, self._shown.root

    def inner(self) -> VolumeTree | None:
        """Return the volumes inside it, opening it if it is a container; None when there are none."""
        if self.volume.table is None and self._container is None:
            return None
        self.tree()
        return self.opened_inner()

    def opened_inner(self) -> VolumeTree | None:
        """Return the volumes inside it if it was opened already."""
        shown = self._shown
        return shown.tree if shown is not None and isinstance(shown.tree, VolumeTree) else None

    def inner_failures(self) -> tuple[MountfsError, ...]:
        """Return the failures of the volumes inside it, as far as it was opened."""
        inner = self.opened_inner()
        return inner.failures() if inner is not None else ()

    def unlock(self, secrets: Secrets) -> None:
        """Open a locked volume with other secrets; one that is open stays as it is.

        Raises:
            LockedError: they do not open it, either.
        """
        self.tree()
        with self._lock:
            if self.locked is None:
                return
            shown = self._open(secrets)
            if shown.locked is not None:
                raise shown.locked
            self._shown = shown

    def close(self) -> None:
        """Close the tree, if one was opened."""
        with self._lock:
            self._closed = True
            shown, self._shown = self._shown, None
        if shown is not None:
            shown.tree.close()

    def _open(self, secrets: Secrets) -> _Shown:
        failure, locked = self.volume.failure, None
        reasons: list[str] = []
        for name, opener in self._openers(secrets):
            try:
                return opener()
            except LockedError as error:
                locked = LockedError(f"{_text(self.volume.path)} is locked: {error}")
                reasons.append(str(error))
                failure = locked if secrets else failure
            except MountfsError as error:
                reasons.append(f"{name}: {error}" if name else str(error))
                failure = self._refusal(error) or failure
        return self._raw("; ".join(reasons) or self.volume.reason, failure, locked)

    def _openers(self, secrets: Secrets) -> Iterator[tuple[str, Callable[[], _Shown]]]:
        """Yield what may open it, best first, with the name to call it by where several may."""
        info, table, device, container = (
            self.volume.info,
            self.volume.table,
            self.part.device,
            self._container,
        )
        if info is None or device is None:
            return
        if table is not None:
            yield "", partial(self._open_table, device, table)
        for driver in self._opening.openers.drivers_of(info.type):
            yield driver.name, partial(self._open_files, driver, device, info)
        if container is not None:
            yield "", partial(self._open_container, container, info, secrets)

    def _refusal(self, error: MountfsError) -> MountfsError | None:
        """Say which volume it was; a volume of a kind that nobody can read has not failed."""
        if isinstance(error, UnsupportedVolumeError) or self.volume.failure is not None:
            return None
        failure = type(error)(f"the files of {_text(self.volume.path)} cannot be read: {error}")
        failure.__cause__ = error
        return failure

    def _raw(self, reason: str, failure: MountfsError | None, locked: LockedError | None) -> _Shown:
        device = self.part.device
        files: dict[bytes, BlockDevice] = {PARTITION_IMAGE: device} if device is not None else {}
        files[README] = MemoryDevice(volume_readme(self.volume, reason, has_bytes=device is not None))
        raw = FlatTree(files, time_ns=self._opening.time_ns)
        return _Shown(raw, raw.root(), (self.part,), failure, locked)

    def _open_files(self, driver: FileSystemDriver, device: BlockDevice, info: FileSystemInfo) -> _Shown:
        tree = driver.open(device, info)
        with ExitStack() as stack:
            stack.callback(tree.close)
            root = tree.root()
            stack.pop_all()
        return _Shown(tree, root, (self.part,))

    def _open_table(self, device: BlockDevice, table: PartitionTable) -> _Shown:
        self._check_depth()
        self._opening.count(len(table.partitions))
        volumes = partition_volumes(device, table, self._opening.openers)
        return self._inner_tree([_partition(self.part, device, volume) for volume in volumes], (self.part,))

    def _open_container(self, container: VolumeContainer, info: FileSystemInfo, secrets: Secrets) -> _Shown:
        self._check_depth()
        parts: list[Part] = []
        opened = container.open(self._candidates(container, info, parts), info, secrets)
        members = tuple(parts[index] for index in opened.members)
        for member in members:
            if _order(member.volume) < _order(self.volume):
                raise UnsupportedVolumeError(f"what it holds is shown in {_text(member.volume.path)}")
        if not opened.volumes:
            raise VolumeError("it holds no volumes")
        self._opening.count(len(opened.volumes))
        return self._inner_tree(list(_inner_parts(opened, parts, self._opening.openers)), members)

    def _candidates(
        self, container: VolumeContainer, info: FileSystemInfo, parts: list[Part]
    ) -> Iterator[BlockDevice]:
        """Yield the devices that a container may lie on; ``parts`` gets the volume of each."""
        found = self._opening.parts(info.type) if container.spans else iter(())
        for part in (self.part, *(other for other in found if other is not self.part)):
            if part.device is not None:
                parts.append(part)
                yield part.device

    def _check_depth(self) -> None:
        if len(self.volume.parents) >= MAX_DEPTH:
            raise VolumeError(f"it lies deeper than {MAX_DEPTH} containers inside each other")

    def _inner_tree(self, parts: Sequence[Part], members: tuple[Part, ...]) -> _Shown:
        parents = (*self.volume.parents, self.volume.name)
        slots = {
            part.volume.number: VolumeSlot(
                replace(part, volume=replace(part.volume, parents=parents)), self._opening
            )
            for part in parts
        }
        contents = Contents(slots, FlatTree({}))
        tree = VolumeTree(lambda: contents, time_ns=self._opening.time_ns)
        return _Shown(tree, tree.root(), members)


def disk_parts(device: BlockDevice, volumes: Sequence[Volume]) -> Iterator[Part]:
    """Yield the partitions of a disk, or the whole disk."""
    for volume in volumes:
        yield _window(device, volume, volume.offset or 0, _same)


def _partition(parent: Part, device: BlockDevice, volume: Volume) -> Part:
    """Return a partition of a table that lies inside a volume."""
    part = _window(device, volume, volume.offset or 0, parent.places)
    return replace(part, volume=replace(volume, offset=_first(part.places)))


def _window(
    device: BlockDevice,
    volume: Volume,
    start: int,
    outer: Callable[[int, int], Iterator[tuple[int, int]]],
) -> Part:
    return Part(
        volume, Slice(device, start, volume.size), lambda offset, length: outer(start + offset, length)
    )


def _inner_parts(opened: OpenedContainer, members: Sequence[Part], openers: Openers) -> Iterator[Part]:
    for number, inner in enumerate(opened.volumes, 1):
        places = _through(inner, members)
        volume = inner_volume(number, inner, openers)
        yield Part(replace(volume, offset=_first(places)), inner.device, places)


def _through(inner: InnerVolume, members: Sequence[Part]) -> Callable[[int, int], Iterator[tuple[int, int]]]:
    """Return the way from an inner volume through the members of its container to the disk."""

    def places(offset: int, length: int) -> Iterator[tuple[int, int]]:
        for place in inner.places(offset, length):
            yield from members[place.member].places(place.offset, place.length)

    return places


def _first(places: Callable[[int, int], Iterator[tuple[int, int]]]) -> int | None:
    return next((offset for offset, _ in places(0, 1)), None)


def _same(offset: int, length: int) -> Iterator[tuple[int, int]]:
    yield offset, length


def _order(volume: Volume) -> tuple[int, ...]:
    """Return the numbers of a volume and of those that it lies in: what is walked first comes first."""
    return tuple(int(name.split(b"-", 1)[0]) for name in (*volume.parents, volume.name))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
