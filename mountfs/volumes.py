"""What lies on a disk, and what each part of it is called.

A volume is a partition, or the whole disk when it has no table. Its name is shown as a directory, so it is
made of text that any file system and any terminal can take.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.device import Slice
from imageformat.errors import MountfsError
from imageformat.partitions import PartitionTable, read_table
from mountfs.signatures import identify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imageformat.device import BlockDevice
    from imageformat.partitions import Partition
    from mountfs.tree import FileSystemDriver, FileSystemInfo

_MAX_NAME = 100
_UNSAFE = re.compile(r'[/\\:*?"<>|]')
_ENCRYPTED = frozenset({"bitlocker", "luks1", "luks2"})
_CONTAINERS = frozenset(
    {"lvm2", "mdraid", "zfs", "bcache", "corestorage", "ldm", "storage-spaces", "vmfs-member"}
)


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition, or a whole disk without a partition table."""

    name: bytes
    """Of its directory: number, type, and label or partition name, as far as they are known."""
    partition: Partition | None
    """None for a whole disk."""
    offset: int
    size: int
    info: FileSystemInfo | None
    """None when nothing known is there."""
    reason: str
    """Why no file can be read from it; empty when a driver knows the type. Nothing was opened to tell."""
    failure: MountfsError | None = None
    """Why it is not known what is there: its start could not be read."""

    @property
    def number(self) -> int:
        """Of the partition; 0 for a whole disk."""
        return self.partition.number if self.partition is not None else 0


@dataclass(frozen=True, slots=True)
class DiskLayout:
    """The table of a disk, and its volumes in order of number."""

    table: PartitionTable
    volumes: tuple[Volume, ...]
    failure: MountfsError | None = None
    """Why there may be more on the disk than is known: its table could not be read."""


def read_layout(
    device: BlockDevice, drivers: Sequence[FileSystemDriver], sector_size: int | None = None
) -> DiskLayout:
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
        return DiskLayout(table, tuple(_volume(device, drivers, entry) for entry in table.partitions))
    whole = _volume(device, drivers, None)
    if whole.info is not None:
        return DiskLayout(table, (whole,), failure)
    warnings = (*table.warnings, f"no volume: {whole.reason}")
    return DiskLayout(dataclasses.replace(table, warnings=warnings), (), failure or whole.failure)


def _placed(error: MountfsError, place: str) -> MountfsError:
    """Return an error of the same class that says where it happened."""
    placed = type(error)(f"{place}: {error}")
    placed.__cause__ = error
    return placed


def _volume(device: BlockDevice, drivers: Sequence[FileSystemDriver], partition: Partition | None) -> Volume:
    offset, size = (0, device.size) if partition is None else (partition.offset, partition.size)
    info, reason, failure = None, "", None
    part = Slice(device, offset, size)
    try:
        info = _noted(identify(part), part, drivers)
    except MountfsError as error:
        reason = f"its start cannot be read: {error}"
        number = partition.number if partition is not None else 0
        failure = _placed(error, f"the start of partition {number} cannot be read")
    return Volume(
        volume_name(partition, info), partition, offset, size, info, reason or _reason(info, drivers), failure
    )


def _noted(
    info: FileSystemInfo | None, part: BlockDevice, drivers: Sequence[FileSystemDriver]
) -> FileSystemInfo | None:
    """Let the driver that will open a volume say what it makes of its state."""
    if info is None or not info.note:
        return info
    for driver in drivers:
        if info.type in driver.types and driver.note is not None:
            with contextlib.suppress(MountfsError):
                return dataclasses.replace(info, note=driver.note(part, info))
    return info


def _reason(info: FileSystemInfo | None, drivers: Sequence[FileSystemDriver]) -> str:
    if info is None:
        return "no known file system was found on it"
    if any(info.type in driver.types for driver in drivers):
        return ""
    if info.type in _ENCRYPTED:
        return f"it is encrypted ({info.type})"
    if info.type == "swap":
        return "it is swap space and holds no files"
    if info.type in _CONTAINERS:
        return f"it is a part of a bigger volume ({info.type})"
    return f"no driver here can read {info.type}"


def volume_name(partition: Partition | None, info: FileSystemInfo | None) -> bytes:
    """Name the directory of a volume: ``1-fat32-EFI``, ``3-swap``, ``4``; at most 100 bytes of UTF-8."""
    label = info.label if info is not None else ""
    if partition is not None and not _clean(label):
        label = partition.name
    parts = (
        str(partition.number) if partition is not None else "0",
        _clean(info.type) if info is not None else "",
        _clean(label),
    )
    name = "-".join(part for part in parts if part).encode()[:_MAX_NAME]
    return name.decode("utf-8", "ignore").rstrip(" .").encode()


def _clean(text: str) -> str:
    """Replace what is not printable or not allowed in a file name on some system."""
    printable = "".join(char if char.isprintable() else "_" for char in text)
    return _UNSAFE.sub("_", printable).strip(" .")
