"""Making a master boot record, and the chain of its logical partitions, for other sectors; pure.

Partitions keep their place in bytes; so do the boot records of logical partitions and the extended partition
around them. Layout: the PC MBR as in UEFI 2.10, section 5.2.1.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import TargetTooSmallError, UnsupportedFeatureError
from imageformat.partitions.bootsector import EXTENDED, SECTOR, mbr_entries, table_entries
from imageformat.partitions.layout import Rewritten, check_alignment

if TYPE_CHECKING:
    from collections.abc import Collection

    from imageformat.device import BlockDevice

_TABLE = 446
_SIGNATURE = 440
_MOST_RECORDS = 256
_MOST_SECTORS = (1 << 32) - 1


class _Logical(NamedTuple):
    """One logical partition."""

    number: int
    record: int
    """Where its boot record lies, in bytes of the disk."""
    slot: bytes
    """Its entry, 16 bytes."""
    offset: int
    size: int


def rewrite_mbr(
    source: BlockDevice,
    sector_size: int,
    *,
    size: int,
    target_sector_size: int,
    numbers: Collection[int] | None,
    signature: int | None,
) -> Rewritten:
    """Return the table of ``source`` as it has to be on a disk of ``size`` bytes.

    Args:
        source: A disk with an MBR.
        sector_size: Of that table.
        size: Of the target, in bytes.
        target_sector_size: Of the target.
        numbers: The partitions that are taken along; None: all.
        signature: The new disk id; None keeps the old one.

    Raises:
        UnsupportedFeatureError: the chain is damaged, or something does not lie on whole sectors there.
        TargetTooSmallError: a partition does not fit.
    """
    sector = bytearray(source.pread(0, SECTOR))
    entries = mbr_entries(bytes(sector))
    if entries is None:
        raise UnsupportedFeatureError("the source has no master boot record that can be rewritten; use --raw")
    if signature is not None:
        struct.pack_into("<I", sector, _SIGNATURE, signature)
    patches: list[tuple[int, bytes]] = []
    ranges: list[tuple[int, int]] = []
    following = 5
    for index, entry in enumerate(entries):
        if not entry.sectors:
            continue
        place = (entry.start * sector_size, entry.sectors * sector_size)
        if entry.type in EXTENDED:
            logical = _logical(source, place[0], sector_size, following)
            following += len(logical)
            wanted = [one for one in logical if numbers is None or one.number in numbers]
            if not wanted:
                _clear(sector, index)
                continue
            if sum(place) > size:
                place = (place[0], max(one.offset + one.size for one in wanted) - place[0])
            patches += _chain(source, place[0], wanted, target_sector_size)
            ranges += [(one.offset, one.size) for one in wanted]
        elif numbers is not None and index + 1 not in numbers:
            _clear(sector, index)
            continue
        else:
            ranges.append(place)
        check_alignment(index + 1, *place, target_sector_size)
        _place(sector, index, place[0], place[1], target_sector_size)
    _check_room(ranges, size)
    _check_apart(ranges, patches, target_sector_size)
    return Rewritten(
        tuple(sorted([(0, bytes(sector)), *patches])),
        tuple(sorted(ranges)),
        f"{struct.unpack_from('<I', sector, _SIGNATURE)[0]:08x}",
    )


def _check_room(ranges: list[tuple[int, int]], size: int) -> None:
    for offset, length in ranges:
        if offset + length > size:
            raise TargetTooSmallError(
                f"a partition ends at byte {offset + length}, and the target has {size} bytes; partitions "
                "are never cut"
            )


def _check_apart(ranges: list[tuple[int, int]], patches: list[tuple[int, bytes]], sector_size: int) -> None:
    """Refuse boot records that lie on each other, or in a partition."""
    taken = [(offset, size, False) for offset, size in ranges]
    taken += [(offset, sector_size, True) for offset, _ in patches]
    reach, record_reach = 0, 0
    for offset, size, is_record in sorted(taken):
        if offset < (reach if is_record else record_reach):
            raise UnsupportedFeatureError(
                f"the boot record of a logical partition, near byte {offset}, has no sector of "
                f"{sector_size} bytes for itself; use --raw for a disk with the same sectors"
            )
        reach = max(reach, offset + size)
        record_reach = max(record_reach, offset + size) if is_record else record_reach


def _logical(source: BlockDevice, container: int, sector_size: int, first: int) -> list[_Logical]:
    """Follow the chain of boot records that begins at byte ``container``."""
    found: list[_Logical] = []
    seen: set[int] = set()
    record: int | None = container
    while record is not None:
        if record in seen or len(seen) == _MOST_RECORDS or record + SECTOR > source.size:
            raise UnsupportedFeatureError(
                "the chain of logical partitions of the source is damaged; use --raw"
            )
        seen.add(record)
        sector = source.pread(record, SECTOR)
        if sector[510:] != b"\x55\xaa":
            raise UnsupportedFeatureError(
                f"there is no boot record at byte {record} of the source; use --raw"
            )
        following = None
        for index, entry in enumerate(table_entries(sector)[:2]):
            if entry.sectors and entry.type in EXTENDED and following is None:
                following = container + entry.start * sector_size
            elif entry.sectors:
                slot = sector[_TABLE + 16 * index : _TABLE + 16 * index + 16]
                place = (record + entry.start * sector_size, entry.sectors * sector_size)
                found.append(_Logical(first + len(found), record, slot, *place))
        record = following
    return found


def _chain(
    source: BlockDevice, container: int, wanted: list[_Logical], target_sector_size: int
) -> list[tuple[int, bytes]]:
    """Return the boot records of the logical partitions that are wanted, linked to each other.

    The first record has to stand at the start of the container, whose ever it was; another one moves to the
    start of the sector that it is in.
    """
    records = [container, *(one.record - one.record % target_sector_size for one in wanted[1:])]
    made = []
    for index, (one, record) in enumerate(zip(wanted, records, strict=True)):
        check_alignment(one.number, one.offset, one.size, target_sector_size)
        sector = bytearray(source.pread(one.record, SECTOR))
        sector[_TABLE:510] = bytes(64)
        sector[_TABLE : _TABLE + 16] = one.slot
        _place(sector, 0, one.offset - record, one.size, target_sector_size)
        if index + 1 < len(wanted):
            after, start = wanted[index + 1], records[index + 1]
            sector[_TABLE + 16 : _TABLE + 32] = bytes((0, 0xFE, 0xFF, 0xFF, 0x05, 0xFE, 0xFF, 0xFF)) + bytes(
                8
            )
            _place(sector, 1, start - container, after.offset + after.size - start, target_sector_size)
        made.append((record, bytes(sector)))
    return made


def _place(sector: bytearray, index: int, offset: int, length: int, sector_size: int) -> None:
    first, sectors = offset // sector_size, length // sector_size
    if max(first, sectors) > _MOST_SECTORS:
        raise UnsupportedFeatureError("a partition lies too far behind for a master boot record; use a GPT")
    struct.pack_into("<II", sector, _TABLE + 16 * index + 8, first, sectors)


def _clear(sector: bytearray, index: int) -> None:
    sector[_TABLE + 16 * index : _TABLE + 16 * index + 16] = bytes(16)
