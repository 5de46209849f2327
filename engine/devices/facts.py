"""What is known of disks, partitions and files: values, whichever system told them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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


TargetKind = Literal["disk", "partition", "file", "new file"]


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What stands where a restore would write."""

    path: str
    """Absolute, symbolic links resolved."""
    kind: TargetKind
    size: int
    """Length in bytes now; 0 for a new file. A file takes whatever size it needs."""
    identity: tuple[str, ...] = ()
    """Same disk, same attachment, same file: equal as long as the path names the same thing."""
    model: str = ""
    serial: str = ""
    wwn: str = ""
    read_only: bool = False
    mounted_at: tuple[str, ...] = ()
    """Where it, a partition of it, or anything built on it is mounted."""
    held_by: tuple[str, ...] = ()
    """What is built on it without being mounted: "/dev/dm-0", "/dev/loop3", "swap"."""
    in_use: bool = False
    """The kernel refuses exclusive access, whoever holds it."""
    system: bool = False
    """The running system lives on it."""
    images: tuple[str, ...] = ()
    """Those of the given image files that lie on it."""
    sources: tuple[str, ...] = ()
    """Those of the given sources that are it, lie on it, or on which it lies."""

    @property
    def is_device(self) -> bool:
        """Whether it is a block device."""
        return self.kind in {"disk", "partition"}


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """What a source is, so that a set can tell whether it still images the same thing."""

    path: str
    """Absolute, symbolic links resolved; of an export its URL."""
    kind: Literal["disk", "partition", "file", "export"]
    size: int
    model: str = ""
    """Of the disk, also for a partition; empty for files and where the disk says nothing."""
    serial: str = ""
    wwn: str = ""
    label: str = ""
    """What a person calls it, where the path does not say that."""

    @property
    def is_device(self) -> bool:
        """Whether it is a block device of this machine."""
        return self.kind in {"disk", "partition"}
