"""What is free on a whole disk, volume by volume.

Only partitions (or a disk without a table) whose file system is known beyond doubt are looked into. Tables,
gaps between partitions, and all that is not known is in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.device import Slice
from imageformat.errors import MountfsError, VolumeError
from imageformat.partitions import read_table
from imageformat.plugins import discover
from mountfs import allocation
from mountfs.allocation._freemap import FreeMap
from mountfs.signatures import identify_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from imageformat.device import BlockDevice
    from imageformat.partitions import PartitionTable
    from mountfs.allocation import AllocationReader

_SMALLEST = 4096
"""No image has smaller blocks: a shorter piece of free space saves nothing."""
_RECORDED = 40
"""Volumes that are named in an image; its header has little room."""
TABLE_AREA = 1 << 20
"""At both ends of a disk with a table nothing is free, whatever a partition there may say."""


@dataclass(frozen=True, slots=True)
class VolumeAllocation:
    """What is known of the free space of one volume."""

    number: int
    """Of the partition; 0 for a whole disk."""
    offset: int
    size: int
    type: str
    """Empty when it is not known what is there."""
    free: int
    """Bytes."""
    reason: str
    """Why nothing is taken as free although the file system is one that could say it; else empty."""

    @property
    def name(self) -> str:
        """For people."""
        return f"partition {self.number} ({self.type})" if self.number else f"the volume ({self.type})"


@dataclass(frozen=True, slots=True)
class DiskAllocation:
    """What is free on a disk."""

    unused: FreeMap
    """In bytes of the disk."""
    volumes: tuple[VolumeAllocation, ...]
    """In order of place."""

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for each volume that is imaged whole though its file system might say more."""
        for volume in self.volumes:
            if volume.reason and volume.type:
                yield f"{volume.name} is imaged whole, free space included: {volume.reason}"

    def facts(self) -> list[list[int]]:
        """Return offset and free bytes of the volumes that have most, for the record of an image."""
        most = sorted(self.volumes, key=lambda volume: -volume.free)[:_RECORDED]
        return sorted([volume.offset, volume.free] for volume in most if volume.free)


def read_allocation(device: BlockDevice, sector_size: int | None = None) -> DiskAllocation:
    """Find the free space of all volumes of a disk, at this moment.

    A volume whose free space is not beyond doubt has none, and a reason. Never raises a `MountfsError`: what
    cannot be read here is left to who reads the data.
    """
    readers: list[AllocationReader] = list(discover(allocation).available)
    unused, volumes = FreeMap(), []
    try:
        table = read_table(device, sector_size)
        for number, offset, size, doubt in _places(device, table):
            volume, free = _look(Slice(device, offset, size), readers, number, offset, doubt)
            for extent in free:
                start, end = _inside(device, table, offset + extent.offset, offset + extent.end)
                if end - start >= _SMALLEST:
                    unused.add(start, end - start)
            volumes.append(volume)
    except MountfsError as error:
        whole = VolumeAllocation(0, 0, device.size, "all of it", 0, str(error))
        return DiskAllocation(FreeMap(), (whole,))
    return DiskAllocation(unused, tuple(volumes))


def _places(device: BlockDevice, table: PartitionTable) -> Iterator[tuple[int, int, int, str]]:
    """Yield number, offset and size of each volume in order of place, and why it is not to be trusted."""
    if not table.partitions:
        yield 0, 0, device.size, table.warnings[0] if table.warnings else ""
        return
    doubt = (
        f"there is something wrong with the partition table: {table.warnings[0]}" if table.warnings else ""
    )
    holders = {entry.within for entry in table.partitions}
    places = sorted(
        (entry.offset, entry.size, entry.number) for entry in table.partitions if entry.number not in holders
    )
    reach = 0
    for index, (offset, size, number) in enumerate(places):
        following = places[index + 1][0] if index + 1 < len(places) else device.size
        overlaps = offset < reach or following < offset + size
        reach = max(reach, offset + size)
        yield number, offset, size, doubt or ("it overlaps another partition" if overlaps else "")


def _inside(device: BlockDevice, table: PartitionTable, start: int, end: int) -> tuple[int, int]:
    if not table.partitions:
        return start, end
    return max(start, TABLE_AREA), min(end, device.size - TABLE_AREA)


def _look(
    volume: BlockDevice, readers: Sequence[AllocationReader], number: int, offset: int, doubt: str
) -> tuple[VolumeAllocation, FreeMap]:
    kind, reason, free = "", "", FreeMap()
    try:
        types = [info.type for info in identify_all(volume)]
        kind = " or ".join(types)
        reader = next((known for known in readers if known.types.intersection(types)), None)
        if reader is not None:
            if doubt or len(types) > 1:
                raise VolumeError(doubt or "it has the marks of more than one file system")
            free = reader.unused(volume)
            _check_inside(free, volume.size)
    except MountfsError as error:
        free, reason = FreeMap(), str(error)
    return VolumeAllocation(number, offset, volume.size, kind, free.total, reason), free


def _check_inside(free: FreeMap, size: int) -> None:
    if free.meets(size, 1 << 63):
        raise VolumeError("its free space lies behind its end")
