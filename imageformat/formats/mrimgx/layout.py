"""What of a disk a Macrium image can hold: its first sectors, boot records, and each partition by blocks.

Everything else (the backup GPT, what lies between partitions) has no place in the format.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import UsageError
from imageformat.extent import ExtentKind
from imageformat.formats.mrimgx.structs import ENTRY_SIZE, MAX_BLOCK_SIZE, TRACK0_SIZE, BootRecord
from imageformat.partitions import Partition, read_table
from imageformat.partitions.bootsector import EXTENDED, SECTOR, is_signed, mbr_entries, table_entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from imageformat.partitions import PartitionTable

_MAX_RECORDS = 256
_MAX_INDEX = 4_000_000_000
"""Bytes of an index: its length is a number of 32 bits."""
_CHUNK = 1 << 20
_FIRST_LOGICAL = 5


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """What the boot sector of a file system says, in bytes."""

    kind: str = "unknown"
    """As the format calls it: NTFS, FAT32, ..."""
    cluster_size: int = 0
    clusters: int = 0
    reserved: int = 0
    """What lies before the first cluster, when that is stored apart."""
    mft_offset: int = 0
    """From the start of the partition."""
    mft_record_size: int = 0


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """One partition as it will be stored."""

    partition: Partition
    number: int
    """Zero-based place in the table of the disk."""
    volume: VolumeFacts
    block_size: int

    @property
    def first(self) -> int:
        """Where block 0 begins on the disk."""
        return self.partition.offset + self.volume.reserved

    @property
    def end(self) -> int:
        """First byte after the partition."""
        return self.partition.offset + self.partition.size

    @property
    def block_count(self) -> int:
        """How many blocks there are, stored or not."""
        return -(-(self.end - self.first) // self.block_size)


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """One disk as it will be stored."""

    table: PartitionTable
    track0: bytes
    boot_records: tuple[BootRecord, ...]
    extended_start: int
    """Sector of the extended partition; 0 when there is none."""
    partitions: tuple[PartitionPlan, ...]


def plan_disk(device: BlockDevice, sector_size: int, block_size: int) -> DiskPlan:
    """Look at the partition table and the boot sectors of a disk. A disk without a table is one partition.

    Raises:
        UsageError: it is too big for the format, or empty.
        MountfsError: the disk cannot be read.
    """
    if not device.size:
        raise UsageError("a disk of 0 bytes cannot be written as an image")
    table = read_table(device, sector_size)
    partitions = table.partitions
    if table.scheme == "none":
        partitions = (Partition(1, 0, device.size, "00", "whole disk"),)
    start, records = _boot_records(device, table.sector_size) if table.scheme == "mbr" else (0, ())
    return DiskPlan(
        table,
        device.pread(0, min(TRACK0_SIZE, device.size)).ljust(TRACK0_SIZE, b"\0"),
        records,
        start,
        tuple(_plan_partition(device, partition, block_size) for partition in partitions),
    )


def _plan_partition(device: BlockDevice, partition: Partition, block_size: int) -> PartitionPlan:
    sector = device.pread(partition.offset, min(SECTOR, partition.size)).ljust(SECTOR, b"\0")
    volume = volume_facts(sector)
    if volume.reserved >= partition.size or volume.cluster_size > MAX_BLOCK_SIZE:
        volume = VolumeFacts()
    size = max(block_size, volume.cluster_size)
    while partition.size // size * ENTRY_SIZE > _MAX_INDEX:
        size *= 2
    if size > MAX_BLOCK_SIZE:
        raise UsageError(f"partition {partition.number} is too big for the index of a Macrium image")
    return PartitionPlan(partition, partition.number - 1, volume, size)


def volume_facts(sector: bytes) -> VolumeFacts:
    """Read the boot sector of NTFS or FAT (Microsoft's FAT specification, section 3); others are unknown."""
    sector_size, per_cluster, reserved, fats, root_entries, small = struct.unpack_from("<HBHBHH", sector, 11)
    cluster = sector_size * per_cluster
    if not is_signed(sector) or sector_size not in {512, 1024, 2048, 4096} or not per_cluster:
        return VolumeFacts()
    if sector[3:11] == b"NTFS    ":
        return _ntfs(sector, sector_size)
    fat_size, large, fat_size_32 = (
        *struct.unpack_from("<H", sector, 22),
        *struct.unpack_from("<II", sector, 32),
    )
    if not (
        reserved and 0 < fats <= 4 and (fat_size or fat_size_32) and per_cluster & (per_cluster - 1) == 0
    ):
        return VolumeFacts()
    before = reserved + fats * (fat_size or fat_size_32) + -(-root_entries * 32 // sector_size)
    clusters = max(0, ((small or large) - before) // per_cluster)
    kind = "FAT32" if not fat_size else "FAT12" if clusters < 4085 else "FAT16"
    return VolumeFacts(kind, cluster, clusters, before * sector_size)


def _ntfs(sector: bytes, sector_size: int) -> VolumeFacts:
    code = sector[13]
    cluster = sector_size * (code if code <= 0x80 else 1 << (256 - code))
    total, mft = struct.unpack_from("<QQ", sector, 40)
    record = sector[64]
    record_size = 1 << (256 - record) if record > 0x80 and record > 256 - 32 else record * cluster
    return VolumeFacts("NTFS", cluster, total * sector_size // cluster, 0, mft * cluster, record_size)


def _boot_records(device: BlockDevice, sector_size: int) -> tuple[int, tuple[BootRecord, ...]]:
    """Return the first sector of the extended partition, and the records of the chain in it."""
    entries = mbr_entries(device.pread(0, SECTOR)) or ()
    container = next((entry for entry in entries if entry.sectors and entry.type in EXTENDED), None)
    if container is None:
        return 0, ()
    records: list[BootRecord] = []
    following: int | None = container.start
    seen: set[int] = set()
    while following is not None and following not in seen and len(records) < _MAX_RECORDS:
        seen.add(following)
        offset = following * sector_size
        if offset + SECTOR > device.size:
            break
        sector = device.pread(offset, SECTOR)
        if not is_signed(sector):
            break
        records.append(BootRecord(sector, offset, _FIRST_LOGICAL - 1 + len(records)))
        links = (entry for entry in table_entries(sector) if entry.sectors and entry.type in EXTENDED)
        following = next((container.start + entry.start for entry in links), None)
    return container.start, tuple(records)


def left_out(device: BlockDevice, plan: DiskPlan) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what is not zero and has no place in an image; reads it.

    Raises:
        MountfsError: the disk cannot be read there.
    """
    held = [(0, len(plan.track0))]
    held += [(record.offset, record.offset + len(record.sector)) for record in plan.boot_records]
    held += [(partition.partition.offset, partition.end) for partition in plan.partitions]
    position = 0
    for start, end in (*sorted(held), (device.size, device.size)):
        if position < start:
            yield from _not_zero(device, position, min(start, device.size))
        position = max(position, end)


def _not_zero(device: BlockDevice, start: int, end: int) -> Iterator[tuple[int, int]]:
    for extent in device.extents(start, end - start):
        if extent.kind is not ExtentKind.DATA:
            continue
        for offset in range(extent.offset, extent.end, _CHUNK):
            data = device.pread(offset, min(_CHUNK, extent.end - offset)).rstrip(b"\0")
            content = data.lstrip(b"\0")
            if content:
                yield offset + len(data) - len(content), len(content)
