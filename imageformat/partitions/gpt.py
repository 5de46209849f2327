"""The GUID partition table, as in UEFI 2.10, section 5.3.

Everything in it exists twice and carries a checksum, so the rule is: take the primary when it proves
itself, else the backup, else what is left of either, and say so.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from imageformat.errors import MountfsError
from imageformat.partitions import Partition, PartitionScheme, PartitionTable
from imageformat.partitions.bootsector import PROTECTIVE, SECTOR, is_file_system, mbr_entries
from imageformat.partitions.layout import Warnings, fit, warn_overlaps
from imageformat.partitions.type_names import GPT_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

_SIGNATURE = b"EFI PART"
_HEADER = struct.Struct("<8s4sII4xQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_ENTRY_SIZES = frozenset({128, 256, 512, 1024, 2048, 4096})
_MAX_ENTRIES = 1024
_SECTOR_SIZES = (512, 4096)
_LEGACY_BOOT = 1 << 2
_WIPED = 128 << 10
"""How much of a disk's start must be zeros before a backup table alone is believed."""


@dataclass(frozen=True, slots=True)
class _Header:
    """A header that proved itself by its checksum, and its entries."""

    sector_size: int
    sector: int
    alternate: int
    first_usable: int
    disk_id: str
    count: int
    entry_size: int
    entries: bytes
    """The array, cut at the entries that we look at; empty when it cannot be read."""
    entries_crc: int
    proven: bool
    """Whether the array matches its checksum."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Both headers of one disk; the alternate of the table is what the primary says, even if damaged."""

    sector_size: int
    primary: _Header | None
    backup: _Header | None


def read(device: BlockDevice, sector_size: int | None = None) -> PartitionTable | None:
    """Read a GPT, or None when the disk has none, or had one before it was partitioned anew.

    Never raises for what the disk holds; what cannot be read is as good as damaged.
    """
    sizes = _SECTOR_SIZES if sector_size is None else (sector_size,)
    boot_sector = _pread(device, 0, SECTOR) or b""
    boot = [entry for entry in mbr_entries(boot_sector) or () if entry.sectors]
    protected = any(entry.type == PROTECTIVE for entry in boot)
    if (boot and not protected) or is_file_system(boot_sector.ljust(SECTOR, b"\0")):
        return None
    pairs = [_pair(device, size) for size in sizes if device.size >= 3 * size]
    for pair in pairs:
        if pair.primary is not None:
            return _table(device, pair, protected=protected, hybrid=len(boot) > 1)
    for pair in pairs:
        if pair.backup is not None and (protected or _start_is_lost(device, pair.backup)):
            return _table(device, pair, protected=protected, hybrid=len(boot) > 1)
    if protected and len(boot) == 1:
        lost = "the disk has a protective MBR, but neither its primary nor its backup GPT is readable"
        return PartitionTable("gpt", sizes[0], "", (), (lost,))
    return None


@dataclass(frozen=True, slots=True)
class SoundEntries:
    """The entries of a GPT as they are stored, proven by their checksum."""

    disk_id: UUID
    count: int
    entry_size: int
    entries: bytes


def sound_entries(device: BlockDevice, sector_size: int) -> SoundEntries | None:
    """Return the entries of the primary GPT, else of the backup; None when neither proves itself."""
    pair = _pair(device, sector_size)
    for header in (pair.primary, pair.backup):
        if header is not None and header.proven:
            return SoundEntries(UUID(header.disk_id), header.count, header.entry_size, header.entries)
    return None


def _start_is_lost(device: BlockDevice, backup: _Header) -> bool:
    """Whether the primary was destroyed, rather than replaced by a file system without a table."""
    head = _pread(device, backup.sector_size, len(_SIGNATURE))
    if head is None or head == _SIGNATURE:
        return True
    start = _pread(device, 0, min(_WIPED, device.size, backup.first_usable * backup.sector_size))
    return start is not None and not start.strip(b"\0")


def _pair(device: BlockDevice, sector_size: int) -> _Pair:
    last = device.size // sector_size - 1
    primary = _header(device, sector_size, 1)
    if primary is not None:
        return _Pair(sector_size, primary, _header(device, sector_size, primary.alternate))
    backup = _header(device, sector_size, last)
    if backup is None:
        damaged = _pread(device, sector_size, _HEADER.size)
        if damaged is not None and damaged.startswith(_SIGNATURE):
            backup = _header(device, sector_size, _HEADER.unpack(damaged)[5])
    return _Pair(sector_size, None, backup)


def _header(device: BlockDevice, sector_size: int, sector: int) -> _Header | None:
    """Read and prove the header in ``sector``, wherever a hostile field says that is."""
    raw = _pread(device, sector * sector_size, sector_size)
    if raw is None or not raw.startswith(_SIGNATURE):
        return None
    (
        _,
        _,
        length,
        crc,
        own,
        alternate,
        first_usable,
        _,
        disk_id,
        array_sector,
        count,
        entry_size,
        array_crc,
    ) = _HEADER.unpack_from(raw)
    if not _HEADER.size <= length <= sector_size or own != sector or entry_size not in _ENTRY_SIZES:
        return None
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:length]) != crc:
        return None
    array = _pread(device, array_sector * sector_size, min(count, _MAX_ENTRIES) * entry_size)
    return _Header(
        sector_size,
        sector,
        alternate,
        first_usable,
        str(UUID(bytes_le=disk_id)),
        count,
        entry_size,
        array or b"",
        array_crc,
        array is not None and count <= _MAX_ENTRIES and zlib.crc32(array) == array_crc,
    )


def _table(device: BlockDevice, pair: _Pair, *, protected: bool, hybrid: bool) -> PartitionTable:
    warnings = Warnings()
    header = _choose(pair, warnings)
    if not protected:
        warnings.add("the disk has no protective MBR")
    if hybrid:
        warnings.add("the disk has a hybrid MBR; the GPT was used")
    _compare(device, pair, warnings)
    partitions = tuple(_partitions(device, header, warnings))
    warn_overlaps(partitions, warnings)
    return PartitionTable("gpt", pair.sector_size, header.disk_id, partitions, warnings.all())


def _choose(pair: _Pair, warnings: Warnings) -> _Header:
    """Take the first of the two that proves itself entirely, else the first with a good header."""
    primary, backup = pair.primary, pair.backup
    if primary is not None and primary.proven:
        return primary
    if backup is not None and backup.proven and (primary is None or backup.disk_id == primary.disk_id):
        warnings.add("the primary GPT is damaged, the backup was used")
        return backup
    header = primary or backup
    if header is None:
        raise ValueError("a pair of headers without a header")
    if header.count > _MAX_ENTRIES:
        warnings.add(f"the GPT claims {header.count} entries; only {_MAX_ENTRIES} were looked at, unproven")
    elif not header.entries:
        warnings.add("the list of partitions cannot be read, and there is no good copy of it")
    else:
        warnings.add("the list of partitions does not match its checksum, and there is no good copy of it")
    return header


def _compare(device: BlockDevice, pair: _Pair, warnings: Warnings) -> None:
    """Warn of a backup that is not where, or not what, it should be."""
    last = device.size // pair.sector_size - 1
    primary, backup = pair.primary, pair.backup
    end = primary.alternate if primary is not None else backup.sector if backup is not None else last
    if end > last:
        warnings.add("the disk is smaller than its GPT says: its end, with the backup, is missing")
        return
    if end < last:
        warnings.add(f"the disk is bigger than its GPT says: {last - end} sectors follow the backup")
    if primary is None:
        return
    if backup is None or not backup.proven:
        warnings.add("the backup GPT is damaged or missing")
    elif backup.disk_id != primary.disk_id or backup.entries_crc != primary.entries_crc:
        warnings.add("the backup GPT differs from the primary")


def _partitions(device: BlockDevice, header: _Header, warnings: Warnings) -> Iterator[Partition]:
    for index in range(len(header.entries) // header.entry_size):
        type_id, uuid, first, last, attributes, name = _ENTRY.unpack_from(
            header.entries, index * header.entry_size
        )
        if not any(type_id):
            continue
        size = header.sector_size
        place = fit(index + 1, first * size, (last - first + 1) * size, device.size, warnings)
        if place is None:
            continue
        type_text = str(UUID(bytes_le=type_id))
        yield Partition(
            index + 1,
            *place,
            type_id=type_text,
            type_name=GPT_TYPES.get(type_text, type_text),
            name=name.decode("utf-16-le", "replace").split("\0", 1)[0],
            uuid=str(UUID(bytes_le=uuid)),
            bootable=bool(attributes & _LEGACY_BOOT),
        )


def _pread(device: BlockDevice, offset: int, size: int) -> bytes | None:
    """Read, or None where the disk has no such place or cannot give it."""
    if offset + size > device.size:
        return None
    try:
        return device.pread(offset, size)
    except MountfsError:
        return None


PLUGIN = PartitionScheme("gpt", 20, read)
