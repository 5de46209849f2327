"""The disks of this machine: what a person may choose from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.devices import sysfs
from engine.devices.backing import BackingWalk
from engine.devices.sysfs import LOCAL, SystemRoots

if TYPE_CHECKING:
    from pathlib import Path

_IN_MEMORY = ("ram", "zram")


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """One partition that the kernel knows of a disk."""

    path: str
    number: int
    offset: int
    size: int
    mounted_at: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BlockDeviceInfo:
    """One disk, or what behaves as one: RAID, logical volume, attached image."""

    path: str
    number: str
    """Of the device, "major:minor"."""
    size: int
    sector_size: int
    model: str
    serial: str
    wwn: str
    removable: bool
    rotational: bool
    read_only: bool
    partitions: tuple[PartitionInfo, ...]
    mounted_at: tuple[str, ...]
    """Where it, or anything that lies on it, is mounted."""


def list_block_devices(roots: SystemRoots = LOCAL) -> tuple[BlockDeviceInfo, ...]:
    """All disks with a medium, in order of path; memory disks and empty drives are left out."""
    walk = BackingWalk(roots)
    block = roots.sys / "block"
    names = sorted(block.iterdir()) if block.is_dir() else []
    folders = (name.resolve() for name in names if not name.name.startswith(_IN_MEMORY))
    found = (_describe(folder, walk, roots) for folder in folders if sysfs.size_of(folder))
    return tuple(sorted(found, key=lambda info: info.path))


def mounted_at(number: str, walk: BackingWalk) -> tuple[str, ...]:
    """Where the device, or anything that lies on it, is mounted, in the order of the mounts."""
    points = (entry.mount_point for entry in walk.mounts if number in walk.below(entry))
    return tuple(dict.fromkeys(points))


def _describe(folder: Path, walk: BackingWalk, roots: SystemRoots) -> BlockDeviceInfo:
    number = sysfs.attribute(folder, "dev")
    found = sysfs.hardware(folder, roots)
    return BlockDeviceInfo(
        path=sysfs.device_path(folder, roots),
        number=number,
        size=sysfs.size_of(folder),
        sector_size=sysfs.number_attribute(folder, "queue/logical_block_size") or 512,
        model=found.model,
        serial=found.serial,
        wwn=found.wwn,
        removable=sysfs.attribute(folder, "removable") == "1",
        rotational=sysfs.attribute(folder, "queue/rotational") == "1",
        read_only=sysfs.attribute(folder, "ro") == "1",
        partitions=tuple(_partition(child, walk, roots) for child in sysfs.partition_folders(folder)),
        mounted_at=mounted_at(number, walk),
    )


def _partition(folder: Path, walk: BackingWalk, roots: SystemRoots) -> PartitionInfo:
    return PartitionInfo(
        path=sysfs.device_path(folder, roots),
        number=sysfs.number_attribute(folder, "partition"),
        offset=sysfs.number_attribute(folder, "start") * 512,
        size=sysfs.size_of(folder),
        mounted_at=mounted_at(sysfs.attribute(folder, "dev"), walk),
    )
