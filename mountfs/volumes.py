"""What lies on a disk, and what each part of it is called.

A volume is a partition, a whole disk without a table, or what a container (encryption, a volume manager)
holds. Its name is shown as a directory, so it is made of text that any file system and terminal can take.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imageformat.device import Slice
from imageformat.errors import MountfsError
from imageformat.partitions import PartitionTable, read_table
from mountfs.signatures import identify
from mountfs.tree import FileSystemInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imageformat.device import BlockDevice
    from imageformat.partitions import Partition
    from mountfs.containers import InnerVolume, VolumeContainer
    from mountfs.tree import FileSystemDriver

_MAX_NAME = 100
_UNSAFE = re.compile(r'[/\\:*?"<>|]')
DISKLABEL = "bsd"
"""Type of a partition that is itself divided into partitions of the same table."""
ENCRYPTED = frozenset({"bitlocker", "luks1", "luks2"})
_PARTS_OF_BIGGER = frozenset(
    {"lvm2", "mdraid", "zfs", "bcache", "corestorage", "ldm", "storage-spaces", "vmfs-member"}
)


@dataclass(frozen=True, slots=True)
class Openers:
    """What can make something of a volume."""

    drivers_of: Callable[[str], Sequence[FileSystemDriver]]
    """What knows a type, asked in order: the first that opens a volume serves it. Loading one may cost
    something, so that nobody asks before it matters."""
    find_containers: Callable[[], Sequence[VolumeContainer]]
    """Asked only when there is a volume that no driver knows: loading them may cost something."""

    def container(self, type_name: str) -> VolumeContainer | None:
        """Return what opens containers of a type."""
        return next((record for record in self.find_containers() if type_name in record.types), None)


def among(*drivers: FileSystemDriver) -> Callable[[str], Sequence[FileSystemDriver]]:
    """Return `Openers.drivers_of` for these."""
    return lambda type_name: [driver for driver in drivers if type_name in driver.types]


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition, a whole disk without a partition table, or a volume inside a container."""

    name: bytes
    """Of its directory: number, type, and label or partition name, as far as they are known."""
    number: int
    """Of the partition; 0 for a whole disk; from 1 on inside a container."""
    partition: Partition | None
    """None for a whole disk, and inside a container."""
    offset: int | None
    """Where its first byte lies on the disk; None when that cannot be said."""
    size: int
    info: FileSystemInfo | None
    """None when nothing known is there. A whole partition table has its scheme as the type."""
    why: Callable[[], str] = field(compare=False, repr=False)
    """See `reason`."""
    failure: MountfsError | None = None
    """Why it is not known what is there: its start could not be read."""
    table: PartitionTable | None = None
    """The partition table that it holds, as a disk would."""
    parents: tuple[bytes, ...] = ()
    """Names of the volumes that it lies in, outermost first."""

    @property
    def reason(self) -> str:
        """Why no file can be read from it; empty when something can open the type.

        Nothing is opened to tell, but what could open it is looked for.
        """
        return self.why()

    @property
    def path(self) -> bytes:
        """Of its directory in the tree of the disk."""
        return b"/".join((*self.parents, self.name))


@dataclass(frozen=True, slots=True)
class DiskLayout:
    """The table of a disk, and its volumes in order of number."""

    table: PartitionTable
    volumes: tuple[Volume, ...]
    failure: MountfsError | None = None
    """Why there may be more on the disk than is known: its table could not be read."""


def read_layout(device: BlockDevice, openers: Openers, sector_size: int | None = None) -> DiskLayout:
    """Read the partition table and look at what each partition holds.

    A disk that has no partitions is one volume with number 0 if something known is on it, else none.
    What cannot be read, or known, becomes a warning of the table or the reason of a volume: never raises a
    `MountfsError`.
    """
    failure: MountfsError | None = None
    try:
        table = read_table(device, sector_size)
    except MountfsError as error:
        failure = _placed(error, "the partition table cannot be read")
        warning = str(failure)
        table = PartitionTable("none", sector_size or 512, "", (), (warning,))
    if table.partitions:
        return DiskLayout(table, partition_volumes(device, table, openers))
    whole = _look(device, openers, Volume(b"", 0, None, 0, device.size, None, _unknown), nested=False)
    if whole.info is not None:
        return DiskLayout(table, (whole,), failure)
    warnings = (*table.warnings, f"no volume: {whole.reason}")
    return DiskLayout(dataclasses.replace(table, warnings=warnings), (), failure or whole.failure)


def partition_volumes(device: BlockDevice, table: PartitionTable, openers: Openers) -> tuple[Volume, ...]:
    """Look at what each partition of a device holds; offsets are those of the device."""
    return tuple(_partition_volume(device, table, entry, openers) for entry in table.partitions)


def _partition_volume(
    device: BlockDevice, table: PartitionTable, partition: Partition, openers: Openers
) -> Volume:
    volume = Volume(b"", partition.number, partition, partition.offset, partition.size, None, _unknown)
    parts = [str(entry.number) for entry in table.partitions if entry.within == partition.number]
    if parts:
        info = FileSystemInfo(DISKLABEL)
        name = volume_name(partition.number, info, partition.name)
        reason = f"it is divided into the partitions {', '.join(parts)}"
        return dataclasses.replace(volume, name=name, info=info, why=lambda: reason)
    return _look(Slice(device, partition.offset, partition.size), openers, volume, partition.name)


def inner_volume(number: int, inner: InnerVolume, openers: Openers) -> Volume:
    """Look at what a volume inside a container holds; where it lies is left open."""
    volume = Volume(b"", number, None, None, inner.size, None, lambda: inner.reason)
    if inner.device is None:
        return dataclasses.replace(volume, name=volume_name(number, None, inner.name))
    return _look(inner.device, openers, volume, inner.name, own_name=True, reason=inner.reason)


def _unknown() -> str:
    return "nothing is known of it"


def _placed(error: MountfsError, place: str) -> MountfsError:
    """Return an error of the same class that says where it happened."""
    placed = type(error)(f"{place}: {error}")
    placed.__cause__ = error
    return placed


def _look(
    device: BlockDevice,
    openers: Openers,
    volume: Volume,
    label: str = "",
    *,
    own_name: bool = False,
    nested: bool = True,
    reason: str = "",
) -> Volume:
    """Fill in what a volume holds; ``label`` names it if that has no name, or always as its ``own_name``."""
    info, table, failure = None, None, None
    try:
        info = _noted(identify(device), device, openers)
        if info is None and nested and not reason:
            table = _inner_table(device)
            info = FileSystemInfo(table.scheme) if table is not None else None
        elif info is not None and not info.label:
            info = dataclasses.replace(info, label=_container_label(device, info, openers))
    except MountfsError as error:
        reason = f"its start cannot be read: {error}"
        failure = _placed(error, f"the start of partition {volume.number} cannot be read")
    shown = label if own_name and label else (_clean(info.label) if info is not None else "") or label
    return dataclasses.replace(
        volume,
        name=volume_name(volume.number, info, shown),
        info=info,
        table=table,
        why=lambda: reason or ("" if table is not None else _reason(info, openers)),
        failure=failure,
    )


def _noted(info: FileSystemInfo | None, part: BlockDevice, openers: Openers) -> FileSystemInfo | None:
    """Let the driver that will open a volume say what it makes of its state."""
    if info is None or not info.note:
        return info
    for driver in openers.drivers_of(info.type):
        if driver.note is not None:
            with contextlib.suppress(MountfsError):
                return dataclasses.replace(info, note=driver.note(part, info))
    return info


def _container_label(device: BlockDevice, info: FileSystemInfo, openers: Openers) -> str:
    """Return what a container is called where that is not in its signature; empty for all else."""
    if info.type not in _PARTS_OF_BIGGER or openers.drivers_of(info.type):
        return ""
    container = openers.container(info.type)
    try:
        return container.label(device) if container is not None and container.label is not None else ""
    except MountfsError:
        return ""


def _inner_table(device: BlockDevice) -> PartitionTable | None:
    """Return the table of a whole disk that lies in a volume, when it is beyond doubt."""
    table = read_table(device)
    return table if table.partitions and not table.warnings else None


def _reason(info: FileSystemInfo | None, openers: Openers) -> str:
    if info is None:
        return "no known file system was found on it"
    if info.type == "swap":
        return "it is swap space and holds no files"
    if openers.drivers_of(info.type) or openers.container(info.type) is not None:
        return ""
    if info.type in ENCRYPTED:
        return f"it is encrypted ({info.type}); to open it, install mountfs[volumes]"
    if info.type in _PARTS_OF_BIGGER:
        return f"it is a part of a bigger volume ({info.type})"
    return f"no driver here can read {info.type}"


def volume_name(number: int, info: FileSystemInfo | None, label: str) -> bytes:
    """Name the directory of a volume: ``1-fat32-EFI``, ``3-swap``, ``4``; at most 100 bytes of UTF-8."""
    parts = (str(number), _clean(info.type) if info is not None else "", _clean(label))
    name = "-".join(part for part in parts if part).encode()[:_MAX_NAME]
    return name.decode("utf-8", "ignore").rstrip(" .").encode()


def _clean(text: str) -> str:
    """Replace what is not printable or not allowed in a file name on some system."""
    printable = "".join(char if char.isprintable() else "_" for char in text)
    return _UNSAFE.sub("_", printable).strip(" .")
