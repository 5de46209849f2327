r"""The disks of a Windows machine and what lies on them: inventory, guards, who holds which file.

A drive and a volume are both ranges of drives, so that a file, the volume it lies on and the drive below are
compared as what they are. Volumes with and without a letter count alike.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.devices import windows
from engine.devices.facts import BlockDeviceInfo, PartitionInfo, TargetFacts
from engine.devices.windows import DiskExtent
from imageformat.errors import AccessDeniedError, NotFoundError, SourceReadError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.devices.windows import Devices, WindowsDisk

_UNASKABLE = (NotFoundError, AccessDeniedError, SourceReadError)
_WRITE_PROTECTED = 19
_DRIVE = "\\\\.\\physicaldrive"


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume that Windows knows."""

    name: str
    r"""``\\?\Volume{...}\``."""
    mount_points: tuple[str, ...]
    extents: tuple[DiskExtent, ...]

    @property
    def path(self) -> str:
        """By which it is opened as a device."""
        return self.name.rstrip("\\")


def list_volumes(devices: Devices) -> tuple[Volume, ...]:
    """Return the volumes that lie on drives; an optical disc and an empty reader do not.

    Raises:
        SourceReadError: Windows does not list its volumes, so that nobody knows what a drive holds.
    """
    found: list[Volume] = []
    try:
        names = devices.volumes()
    except OSError as error:
        raise SourceReadError(f"Windows does not list its volumes: {error.strerror}") from error
    for name in names:
        with suppress(*_UNASKABLE):
            extents = windows.volume_extents(devices, name.rstrip("\\"))
            found.append(Volume(name, tuple(devices.mount_points(name)), tuple(extents)))
    return tuple(found)


def list_block_devices(devices: Devices) -> tuple[BlockDeviceInfo, ...]:
    """See `inventory.list_block_devices`; what is called a partition is a volume on the drive."""
    volumes = list_volumes(devices)
    return tuple(_described(disk, volumes) for disk in windows.list_disks(devices))


def _described(disk: WindowsDisk, volumes: tuple[Volume, ...]) -> BlockDeviceInfo:
    number = int(disk.path.lower().removeprefix(_DRIVE))
    placed = sorted(
        ((extent, volume) for volume in volumes for extent in volume.extents if extent.disk == number),
        key=lambda found: found[0].offset,
    )
    partitions = tuple(
        PartitionInfo(volume.path, index, extent.offset, extent.length, volume.mount_points)
        for index, (extent, volume) in enumerate(placed, 1)
    )
    return BlockDeviceInfo(
        path=disk.path,
        number=str(number),
        size=disk.size,
        sector_size=disk.sector_size,
        model=disk.model,
        serial=disk.serial,
        wwn="",
        removable=disk.removable,
        rotational=disk.rotational,
        read_only=False,
        partitions=partitions,
        mounted_at=tuple(dict.fromkeys(point for part in partitions for point in part.mounted_at)),
    )


def holds(devices: Devices, path: str, file_path: str) -> bool:
    """See `backing.holds`; ``path`` or ``file_path`` may be a drive, a volume or a file.

    A file that is asked for another file holds it when it is the same one.
    """
    if windows.device_path(path) is None and windows.device_path(file_path) is None:
        return path.casefold() == file_path.casefold()
    return overlap(ranges_of(devices, path), ranges_of(devices, file_path))


def ranges_of(devices: Devices, path: str) -> tuple[DiskExtent, ...]:
    """Return where a drive, a volume, or the volume of a file lies; nothing for a share or a shadow copy."""
    device = windows.device_path(path)
    if device is not None and device.lower().startswith(_DRIVE):
        return (DiskExtent(int(device[len(_DRIVE) :]), 0, 1 << 63),)
    opened = device if device is not None else devices.volume_of(path).rstrip("\\")
    if not opened:
        return ()
    try:
        return tuple(windows.volume_extents(devices, opened))
    except _UNASKABLE:
        return ()


def overlap(first: Iterable[DiskExtent], second: Iterable[DiskExtent]) -> bool:
    """Whether two things have a byte of a drive in common; pure."""
    others = tuple(second)
    return any(
        one.disk == other.disk
        and one.offset < other.offset + other.length
        and other.offset < one.offset + one.length
        for one in first
        for other in others
    )


def volumes_on(devices: Devices, path: str) -> tuple[Volume, ...]:
    """Return the volumes that lie on a drive or volume, at least in part; itself too."""
    place = ranges_of(devices, path)
    return tuple(volume for volume in list_volumes(devices) if overlap(volume.extents, place))


def mounted_on(devices: Devices, path: str) -> tuple[str, ...]:
    """Return where what lies on a drive or volume is mounted; a shadow copy is nowhere, and cannot change."""
    found = (point for volume in volumes_on(devices, path) for point in volume.mount_points)
    return tuple(dict.fromkeys(found))


def target_facts(
    devices: Devices, path: str, images: tuple[str, ...], sources: tuple[str, ...]
) -> TargetFacts:
    """See `guards.target_facts`, for a drive or volume.

    That something on it is mounted does not speak against it: `WindowsTarget` locks and dismounts that, or
    refuses when a program has a file open there.

    Raises:
        NotFoundError, AccessDeniedError, SourceReadError: it cannot be asked.
        UsageError: a shadow copy.
    """
    if "shadowcopy" in path.lower():
        raise UsageError(f"{path} is a shadow copy, which nobody can write")
    disk, place = described(devices, path), ranges_of(devices, path)
    return TargetFacts(
        path=path,
        kind="disk" if is_drive(path) else "partition",
        size=disk.size,
        identity=identity_of(disk),
        model=disk.model,
        serial=disk.serial,
        read_only=not _is_writable(devices, path),
        system=overlap(place, ranges_of(devices, devices.system_folder())),
        images=tuple(image for image in images if overlap(place, ranges_of(devices, image))),
        sources=tuple(source for source in sources if overlap(place, ranges_of(devices, source))),
    )


def identity_of(disk: WindowsDisk) -> tuple[str, ...]:
    """What makes a drive or volume this one, as far as Windows tells."""
    return ("windows", disk.path.lower(), str(disk.size), disk.model, disk.serial)


def described(devices: Devices, path: str) -> WindowsDisk:
    """Describe a drive or volume; of a volume, model and serial number are those of its first drive.

    Raises:
        NotFoundError, AccessDeniedError, SourceReadError: see `windows.describe_disk`.
    """
    disk, place = windows.describe_disk(devices, path), ranges_of(devices, path)
    if not is_drive(path) and place:
        with suppress(*_UNASKABLE):
            below = windows.describe_disk(devices, windows.disk_path(place[0].disk))
            return replace(disk, model=below.model, serial=below.serial)
    return disk


def is_drive(path: str) -> bool:
    """Whether the path of a device is that of a whole drive."""
    return path.lower().startswith(_DRIVE)


def _is_writable(devices: Devices, path: str) -> bool:
    """Ask for ERROR_WRITE_PROTECT; what else goes wrong is told by whoever writes."""
    try:
        with windows.opened(devices, path, write=False) as handle:
            devices.control(handle, windows.DISK_IS_WRITABLE, b"", 0)
    except OSError as error:
        return windows.error_code(error) != _WRITE_PROTECTED
    return True
