"""The disks of this machine: what a person may choose from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from engine.devices import sysfs, windowsdisks
from engine.devices.backing import BackingWalk
from engine.devices.facts import BlockDeviceInfo, PartitionInfo
from engine.devices.sysfs import LOCAL, SystemRoots
from engine.devices.windowskernel import kernel

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BlockDeviceInfo", "PartitionInfo", "list_block_devices", "mounted_at"]

_IN_MEMORY = ("ram", "zram")


def list_block_devices(roots: SystemRoots = LOCAL) -> tuple[BlockDeviceInfo, ...]:
    """All disks with a medium, in order of path; memory disks and empty drives are left out."""
    if sys.platform == "win32":
        return windowsdisks.list_block_devices(kernel())
    else:  # noqa: RET505 (each system is checked for what it runs)
        return _list_block_devices(roots)


def _list_block_devices(roots: SystemRoots) -> tuple[BlockDeviceInfo, ...]:
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
