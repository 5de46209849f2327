"""One disk as a tree: the raw disk as a file, and one directory per volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.device import MemoryDevice
from imageformat.secrets import NO_SECRETS, Secrets
from mountfs.flattree import FlatTree
from mountfs.readme import disk_readme
from mountfs.volumes import Openers, read_layout
from mountfs.volumeslot import README, Opening, VolumeSlot, disk_parts
from mountfs.volumetree import Contents, VolumeTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from imageformat.device import BlockDevice
    from imageformat.errors import MountfsError
    from imageformat.partitions import PartitionTable
    from mountfs.containers import VolumeContainer
    from mountfs.tree import FileSystemDriver
    from mountfs.volumes import Volume


class DiskTree(VolumeTree):
    """A read-only tree over one disk: ``disk.img``, and a directory per volume as in every `VolumeTree`.

    A disk without partitions that is one file system has the volume ``0-ext4-Label``; a disk on which nothing
    known is found has no volume, and a ``README`` beside ``disk.img`` that says so.

    The tree owns the device: `close` closes what drivers opened, then the device. Drivers get a window on
    the device. A driver that fails is not asked again for the same volume. Any number of threads.

    Args:
        device: the disk.
        drivers_of: gives what knows the type of a volume, asked in order: the first that opens it serves it.
        containers: gives what opens encrypted volumes and volume managers; asked when there is one.
        secrets: tried on encrypted volumes.
        image_name: of the file that is the whole disk.
        sector_size: when known; else it is found out.
        time_ns: shown for files and directories that this tree makes up.
    """

    def __init__(
        self,
        device: BlockDevice,
        drivers_of: Callable[[str], Sequence[FileSystemDriver]],
        *,
        containers: Callable[[], Sequence[VolumeContainer]] = tuple,
        secrets: Secrets = NO_SECRETS,
        image_name: bytes = b"disk.img",
        sector_size: int | None = None,
        time_ns: int = 0,
    ) -> None:
        super().__init__(self._read, time_ns=time_ns, close_rest=device.close)
        self._device = device
        self._opening = Opening(Openers(drivers_of, containers), secrets, time_ns, lambda: self)
        self._image_name = image_name
        self._sector_size = sector_size

    @property
    def table(self) -> PartitionTable:
        """The partition table; an unreadable one is a warning in it."""
        table = self.contents().table
        if table is None:
            raise ValueError("a disk has a table, if an empty one")
        return table

    def layout_failures(self) -> tuple[MountfsError, ...]:
        """Return what kept the disk from being known: its table, or the start of a volume, was unreadable."""
        contents = self.contents()
        found = (contents.failure, *(slot.volume.failure for slot in contents.slots.values()))
        return tuple(error for error in found if error is not None)

    def volume_at(self, offset: int) -> Volume | None:
        """Name the volume that a byte of the disk belongs to; see `slot_around`."""
        slot = self.slot_around(offset)
        return slot.volume if slot is not None else None

    def slot_around(self, offset: int) -> VolumeSlot | None:
        """Return the innermost volume that a byte of the disk belongs to, of several the smallest.

        Containers are looked into as far as they are open, and where what they hold lies in few pieces.
        """
        found = list(self._around(self, offset))
        return min(found, key=lambda slot: (-len(slot.volume.parents), slot.volume.size), default=None)

    def _around(self, tree: VolumeTree, offset: int) -> Iterator[VolumeSlot]:
        for slot in tree.contents().slots.values():
            if slot.covers(offset):
                yield slot
            inner = slot.opened_inner()
            if inner is not None:
                yield from self._around(inner, offset)

    def _read(self) -> Contents:
        layout = read_layout(self._device, self._opening.openers, self._sector_size)
        files: dict[bytes, BlockDevice] = {self._image_name: self._device}
        if not layout.volumes:
            note = disk_readme(layout.table, self._device.size, self._image_name)
            files[README] = MemoryDevice(note)
        parts = disk_parts(self._device, layout.volumes)
        slots = {part.volume.number: VolumeSlot(part, self._opening) for part in parts}
        return Contents(slots, FlatTree(files, time_ns=self._time_ns), layout.table, layout.failure)
