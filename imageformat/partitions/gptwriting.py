"""Making a GUID partition table for a disk of another size and sector size (UEFI 2.10, section 5.3); pure.

Partitions keep their place in bytes, their number, type, name and attributes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import TargetTooSmallError, UnsupportedFeatureError
from imageformat.partitions.bootsector import PROTECTIVE, SECTOR
from imageformat.partitions.gpt import sound_entries
from imageformat.partitions.layout import Rewritten, check_alignment

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from uuid import UUID

    from imageformat.device import BlockDevice
    from imageformat.partitions.gpt import SoundEntries

_HEADER = struct.Struct("<8s4sIIIQQQQ16sQIII")
_BOUNDS = struct.Struct("<QQ")
_REVISION, _HEADER_SIZE = b"\0\0\1\0", 92


@dataclass(frozen=True, slots=True)
class GptIds:
    """The identities of a disk and of its partitions by number; one that is not given stays as it is."""

    disk: UUID | None = None
    partitions: Mapping[int, UUID] | None = None


def rewrite_gpt(
    source: BlockDevice,
    sector_size: int,
    *,
    size: int,
    target_sector_size: int,
    numbers: Collection[int] | None,
    ids: GptIds,
) -> Rewritten:
    """Return the table of ``source`` as it has to be on a disk of ``size`` bytes.

    Args:
        source: A disk with a GPT.
        sector_size: Of that table.
        size: Of the target, in bytes.
        target_sector_size: Of the target.
        numbers: The partitions that are taken along; None: all.
        ids: New identities.

    Raises:
        UnsupportedFeatureError: the table is damaged, or a partition does not lie on whole sectors there.
        TargetTooSmallError: partitions and table do not fit.
    """
    found = sound_entries(source, sector_size)
    if found is None:
        raise UnsupportedFeatureError("the partition table of the source is damaged: repair it, or use --raw")
    entries, ranges = _entries(found, sector_size, target_sector_size, numbers, ids)
    sectors = -(-len(entries) // target_sector_size)
    last = size // target_sector_size - 1
    first_usable = 2 + sectors
    last_usable = last - sectors - 1
    _check_room(ranges, first_usable, last_usable, target_sector_size, size)
    disk_id = (ids.disk or found.disk_id).bytes_le
    entries = entries.ljust(sectors * target_sector_size, b"\0")
    crc = zlib.crc32(entries[: found.count * found.entry_size])

    def header(own: int, other: int, array: int) -> bytes:
        def pack(checksum: int) -> bytes:
            return _HEADER.pack(
                *(b"EFI PART", _REVISION, _HEADER_SIZE, checksum, 0, own, other, first_usable, last_usable),
                *(disk_id, array, found.count, found.entry_size, crc),
            )

        return pack(zlib.crc32(pack(0))).ljust(target_sector_size, b"\0")

    start = _protective(source, last).ljust(target_sector_size, b"\0") + header(1, last, 2) + entries
    end = entries + header(last, 1, last - sectors)
    return Rewritten(
        ((0, start), ((last - sectors) * target_sector_size, end)),
        tuple(sorted(ranges.values())),
        str(ids.disk or found.disk_id),
    )


def _entries(
    found: SoundEntries,
    sector_size: int,
    target_sector_size: int,
    numbers: Collection[int] | None,
    ids: GptIds,
) -> tuple[bytes, dict[int, tuple[int, int]]]:
    """Return the array of entries, and (offset, size) in bytes of the partitions in it by number."""
    entries = bytearray(found.count * found.entry_size)
    ranges: dict[int, tuple[int, int]] = {}
    for index in range(found.count):
        at, number = index * found.entry_size, index + 1
        entry = bytearray(found.entries[at : at + found.entry_size])
        if not any(entry[:16]) or (numbers is not None and number not in numbers):
            continue
        first, last = _BOUNDS.unpack_from(entry, 32)
        offset, length = first * sector_size, (last - first + 1) * sector_size
        check_alignment(number, offset, length, target_sector_size)
        _BOUNDS.pack_into(
            entry, 32, offset // target_sector_size, (offset + length) // target_sector_size - 1
        )
        new = (ids.partitions or {}).get(number)
        if new is not None:
            entry[16:32] = new.bytes_le
        entries[at : at + found.entry_size] = entry
        ranges[number] = offset, length
    return bytes(entries), ranges


def _check_room(
    ranges: Mapping[int, tuple[int, int]], first_usable: int, last_usable: int, sector_size: int, size: int
) -> None:
    for number, (offset, length) in ranges.items():
        if offset < first_usable * sector_size:
            raise UnsupportedFeatureError(
                f"partition {number} begins at byte {offset}, where the table of a disk with sectors of "
                f"{sector_size} bytes has to be"
            )
        if offset + length > (last_usable + 1) * sector_size:
            raise TargetTooSmallError(
                f"partition {number} ends at byte {offset + length}, and the target has {size} bytes, "
                f"of which {(last_usable + 1) * sector_size} can be used; partitions are never cut"
            )


def _protective(source: BlockDevice, last: int) -> bytes:
    """Return the boot code of the source and one entry that covers the disk (UEFI 2.10, table 5.4)."""
    code = source.pread(0, SECTOR)[:440]
    entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", PROTECTIVE, b"\xff\xff\xff", 1, min(last, 0xFFFFFFFF))
    return code + bytes(6) + entry + bytes(48) + b"\x55\xaa"
