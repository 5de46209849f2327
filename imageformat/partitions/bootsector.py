"""The first sector of a disk: a master boot record, or the boot sector of a bare file system.

Both end in 55 AA, and boot code may stand where the other keeps its fields; the two plug-ins that ask
"is this an MBR?" must get the same answer, so it is given here. Layout: the PC MBR as in UEFI 2.10,
section 5.2.1; the BIOS parameter block as in Microsoft's FAT specification, section 3.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

SECTOR = 512
PROTECTIVE = 0xEE
EXTENDED = frozenset({0x05, 0x0F, 0x85})
_ENTRY = struct.Struct("<B3xB3xII")
_TABLE_OFFSET = 446
_AIX_MAGIC = b"\xc9\xc2\xd4\xc1"
_SECTOR_SIZES = frozenset({512, 1024, 2048, 4096})
_CLUSTER_SECTORS = frozenset({1, 2, 4, 8, 16, 32, 64, 128})


class BootEntry(NamedTuple):
    """One of the four entries of an MBR or of an extended boot record; a size of 0 means empty."""

    flag: int
    type: int
    start: int
    """In sectors, relative to whatever the record says."""
    sectors: int


def is_signed(sector: bytes) -> bool:
    """Whether the sector ends in 55 AA."""
    return sector[510:512] == b"\x55\xaa"


def table_entries(sector: bytes) -> tuple[BootEntry, ...]:
    """Decode the four entries of any 512-byte sector."""
    return tuple(BootEntry(*_ENTRY.unpack_from(sector, _TABLE_OFFSET + 16 * index)) for index in range(4))


def mbr_entries(sector: bytes) -> tuple[BootEntry, ...] | None:
    """Return the four entries when the sector is an MBR, None when it is something else.

    Boot code and text practically never leave all four flags at 00 or 80, which is what the Linux
    kernel goes by, too.
    """
    if len(sector) < SECTOR or not is_signed(sector) or sector.startswith(_AIX_MAGIC):
        return None
    entries = table_entries(sector)
    if any(entry.flag not in {0x00, 0x80} for entry in entries) or is_file_system(sector):
        return None
    return entries


def disk_signature(sector: bytes) -> int:
    """Return the 32-bit disk id of an MBR."""
    return int(struct.unpack_from("<I", sector, 440)[0])


def is_file_system(sector: bytes) -> bool:
    """Whether the sector is the boot sector of NTFS, exFAT, BitLocker or FAT."""
    return sector[3:11] in {b"NTFS    ", b"EXFAT   ", b"-FVE-FS-"} or _is_fat(sector)


def _is_fat(sector: bytes) -> bool:
    sector_size, cluster_sectors, reserved, fats = struct.unpack_from("<HBHB", sector, 11)
    sectors_16, media, fat_16 = struct.unpack_from("<HBH", sector, 19)
    sectors_32, fat_32 = struct.unpack_from("<II", sector, 32)
    return (
        sector_size in _SECTOR_SIZES
        and cluster_sectors in _CLUSTER_SECTORS
        and reserved > 0
        and 0 < fats <= 4
        and (media == 0xF0 or media >= 0xF8)
        and (sectors_16 or sectors_32) > 0
        and (fat_16 or fat_32) > 0
    )
