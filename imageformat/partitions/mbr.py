"""The PC's master boot record, with logical partitions.

Numbers follow the Linux kernel: primaries 1 to 4 by slot, logical partitions from 5 on in the order of
the chain. The extended containers are not listed, and neither are labels nested inside a partition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import MountfsError
from imageformat.partitions import Partition, PartitionScheme, PartitionTable
from imageformat.partitions.bootsector import (
    EXTENDED,
    PROTECTIVE,
    SECTOR,
    disk_signature,
    is_signed,
    mbr_entries,
    table_entries,
)
from imageformat.partitions.bsd import SLICE_TYPES, slice_partitions
from imageformat.partitions.layout import Warnings, fit, warn_overlaps
from imageformat.partitions.type_names import MBR_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from imageformat.partitions.bootsector import BootEntry

_MAX_RECORDS = 256
_FIRST_LOGICAL = 5
_LANDMARKS = (
    (510, b"\x55\xaa"),
    (1080, b"\x53\xef"),
    (0, b"XFSB"),
    (0, b"LUKS"),
    (512, b"LABELONE"),
    (1024, b"H+"),
    (32, b"NXSB"),
    (4086, b"SWAPSPACE2"),
    (32769, b"CD001"),
    (65600, b"_BHRfS_M"),
)
"""What often stands at the start of a used partition; only good enough to tell sector sizes apart."""


@dataclass(frozen=True, slots=True)
class _Disk:
    device: BlockDevice
    sector_size: int
    signature: int
    warnings: Warnings

    def partition(self, number: int, entry: BootEntry, base: int) -> Partition | None:
        """Turn an entry whose start counts from sector ``base`` into a partition."""
        place = fit(
            number,
            (base + entry.start) * self.sector_size,
            entry.sectors * self.sector_size,
            self.device.size,
            self.warnings,
        )
        if place is None:
            return None
        return Partition(
            number,
            *place,
            type_id=f"{entry.type:02x}",
            type_name=MBR_TYPES.get(entry.type, f"{entry.type:02x}"),
            uuid=f"{self.signature:08x}-{number:02x}" if self.signature else "",
            bootable=entry.flag == 0x80,
        )


def read(device: BlockDevice, sector_size: int | None = None) -> PartitionTable | None:
    """Read an MBR; None for a bare file system, a purely protective MBR, or no MBR at all.

    Raises:
        MountfsError: the first sector cannot be read. A damaged chain of logical partitions is a warning.
    """
    if device.size < SECTOR:
        return None
    sector = device.pread(0, SECTOR)
    entries = mbr_entries(sector)
    if entries is None:
        return None
    signature = disk_signature(sector)
    used = [entry for entry in entries if entry.sectors]
    real = [entry for entry in used if entry.type != PROTECTIVE]
    if (used or not signature) and not real:
        return None
    warnings = Warnings()
    if len(real) < len(used):
        warnings.add("the disk has a GPT that cannot be read; only what its hybrid MBR lists is shown")
    disk = _Disk(device, sector_size or _guess_sector_size(device, real), signature, warnings)
    partitions = tuple(_partitions(disk, entries))
    warn_overlaps(partitions, warnings)
    partitions += tuple(_slice_partitions(disk, partitions))
    return PartitionTable("mbr", disk.sector_size, f"{signature:08x}", partitions, warnings.all())


def _partitions(disk: _Disk, entries: tuple[BootEntry, ...]) -> Iterator[Partition]:
    for slot, entry in enumerate(entries, 1):
        if entry.sectors and entry.type not in EXTENDED and entry.type != PROTECTIVE:
            partition = disk.partition(slot, entry, 0)
            if partition is not None:
                yield partition
    seen: set[int] = set()
    number = _FIRST_LOGICAL
    for container in entries:
        if container.sectors and container.type in EXTENDED:
            for base, entry in _logical_entries(disk, container, seen):
                partition = disk.partition(number, entry, base)
                number += 1
                if partition is not None:
                    yield partition


def _slice_partitions(disk: _Disk, partitions: tuple[Partition, ...]) -> Iterator[Partition]:
    """Go on counting with what the BSD slices are divided into, as Linux does."""
    number = max((_FIRST_LOGICAL, *(partition.number + 1 for partition in partitions)))
    for parent in partitions:
        if parent.number < _FIRST_LOGICAL and int(parent.type_id, 16) in SLICE_TYPES:
            found = tuple(slice_partitions(disk.device, parent, number, disk.sector_size, disk.warnings))
            warn_overlaps(found, disk.warnings)
            yield from found
            number += len(found)


def _logical_entries(disk: _Disk, container: BootEntry, seen: set[int]) -> Iterator[tuple[int, BootEntry]]:
    """Follow the chain of extended boot records; ``seen`` keeps it finite over all containers."""
    sector_number: int | None = container.start
    while sector_number is not None:
        if sector_number in seen:
            disk.warnings.add("the chain of logical partitions runs in a circle")
            return
        if len(seen) == _MAX_RECORDS:
            disk.warnings.add(
                f"the chain of logical partitions is longer than {_MAX_RECORDS}; the rest is ignored"
            )
            return
        seen.add(sector_number)
        record = _boot_record(disk, sector_number)
        if record is None:
            return
        following: int | None = None
        for index, entry in enumerate(record):
            if not entry.sectors:
                continue
            if entry.type not in EXTENDED:
                if index < 2 or _inside(container, sector_number, entry):
                    yield sector_number, entry
            elif following is None:
                following = container.start + entry.start
        sector_number = following


def _inside(container: BootEntry, base: int, entry: BootEntry) -> bool:
    """Whether an entry in an unusual slot is plausible: only inside its container."""
    start = base + entry.start
    return container.start <= start and start + entry.sectors <= container.start + container.sectors


def _boot_record(disk: _Disk, sector_number: int) -> tuple[BootEntry, ...] | None:
    offset = sector_number * disk.sector_size
    if offset + SECTOR > disk.device.size:
        disk.warnings.add("the chain of logical partitions leads behind the end of the disk")
        return None
    try:
        sector = disk.device.pread(offset, SECTOR)
    except MountfsError as error:
        disk.warnings.add(f"logical partitions may be missing: {error}")
        return None
    if not is_signed(sector):
        disk.warnings.add(f"logical partitions may be missing: no boot record in sector {sector_number}")
        return None
    return table_entries(sector)


def _guess_sector_size(device: BlockDevice, entries: list[BootEntry]) -> int:
    """Tell 4096 from 512: an MBR does not say. 512 unless the partitions only make sense with 4096."""
    if any(entry.start * 4096 >= device.size for entry in entries):
        return 512
    return 4096 if _landmarks(device, entries, 4096) > _landmarks(device, entries, 512) else 512


def _landmarks(device: BlockDevice, entries: list[BootEntry], sector_size: int) -> int:
    """Count the partitions that start with something known."""
    return sum(_has_landmark(device, entry.start * sector_size) for entry in entries if entry.start)


def _has_landmark(device: BlockDevice, start: int) -> bool:
    for offset, magic in _LANDMARKS:
        if start + offset + len(magic) > device.size:
            continue
        try:
            if device.pread(start + offset, len(magic)) == magic:
                return True
        except MountfsError:
            continue
    return False


PLUGIN = PartitionScheme("mbr", 10, read)
