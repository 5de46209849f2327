"""Writing a disk as a dynamic VHDX image, front to back. Source: [MS-VHDX] 8.0."""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING
from uuid import uuid4

from imageformat.crc32c import crc32c
from imageformat.errors import UsageError
from imageformat.formats._writing import padding, table_bytes, unit_bytes, units_with_data, write_object
from imageformat.formats.vhdx import structs

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from imageformat.device import BlockDevice
    from imageformat.layer import DiskSource, WrittenImage
    from imageformat.storage import ObjectWriter, Storage

_MIB = structs.MIB
_BLOCK = _MIB
"""The smallest that is allowed: least is stored beside the data."""
_LOG = _MIB
_METADATA = 2 * _MIB
_BAT = 3 * _MIB
_PRESENT = 6
_ITEMS_AT = 64 << 10
_REQUIRED = 4
"""Flag of a metadata item: a reader must know it."""
_OF_DISK = 2


def write_vhdx(disk: DiskSource, storage: Storage, key: str, report: Callable[[int], None]) -> WrittenImage:
    """See `ImageFormat.write`. Free space and zeros take no room.

    Raises:
        UsageError: the disk is larger than 64 TiB, or no multiple of its sectors.
    """
    device, sector_size = disk.device, disk.sector_size
    if device.size > structs.MAX_DISK_SIZE or device.size % sector_size or sector_size not in {512, 4096}:
        raise UsageError(
            "VHDX holds disks of up to 64 TiB in whole sectors of 512 or 4096 bytes; this one has "
            f"{device.size} bytes in sectors of {sector_size}"
        )
    return write_object(storage, key, lambda target: _append(device, sector_size, target, report))


def _append(
    device: BlockDevice, sector_size: int, target: ObjectWriter, report: Callable[[int], None]
) -> None:
    """Append the image; its table is computed beforehand."""
    table = _block_table(device, sector_size)
    table_size = len(table) + len(padding(len(table), _MIB))
    target.append(_identifier())
    for sequence in (1, 2):
        target.append(_header(sequence))
    for _ in structs.REGION_OFFSETS:
        target.append(_regions(table_size))
    target.append(padding(structs.REGION_OFFSETS[-1] + structs.REGION_SIZE, _MIB) + bytes(_METADATA - _LOG))
    target.append(_metadata(device.size, sector_size))
    target.append(table + padding(len(table), _MIB))
    for piece in unit_bytes(device, _BLOCK, units_with_data(device, _BLOCK), report):
        target.append(piece)


def _identifier() -> bytes:
    raw = structs.IDENTIFIER + "mountfs".encode("utf-16-le")
    return raw + padding(len(raw), 64 << 10)


def _summed(raw: bytes) -> bytes:
    """Put the checksum of a structure at its byte 4."""
    return raw[:4] + crc32c(raw).to_bytes(4, "little") + raw[8:]


def _header(sequence: int) -> bytes:
    """Build a header; of the two, the one with the higher sequence number counts. Section 2.2.2."""
    ids = uuid4().bytes_le, uuid4().bytes_le, bytes(16)
    raw = struct.pack("<4sIQ16s16s16sHHIQ", b"head", 0, sequence, *ids, 0, 1, _MIB, _LOG)
    return _summed(raw + padding(len(raw), structs.HEADER_SIZE)) + bytes((64 << 10) - structs.HEADER_SIZE)


def _regions(table_size: int) -> bytes:
    """Build a region table. Section 2.2.3."""
    raw = struct.pack("<4sII4x", b"regi", 0, 2)
    for guid, offset, size in (
        (structs.BAT_REGION, _BAT, table_size),
        (structs.METADATA_REGION, _METADATA, _MIB),
    ):
        raw += struct.pack("<16sQII", guid.bytes_le, offset, size, 1)
    return _summed(raw + padding(len(raw), structs.REGION_SIZE))


def _metadata(size: int, sector_size: int) -> bytes:
    """Build the metadata region. Section 2.6."""
    items: tuple[tuple[UUID, bytes, int], ...] = (
        (structs.FILE_PARAMETERS, struct.pack("<II", _BLOCK, 0), _REQUIRED),
        (structs.DISK_SIZE, struct.pack("<Q", size), _REQUIRED | _OF_DISK),
        (structs.DISK_ID, uuid4().bytes_le, _REQUIRED | _OF_DISK),
        (structs.LOGICAL_SECTOR, struct.pack("<I", sector_size), _REQUIRED | _OF_DISK),
        (structs.PHYSICAL_SECTOR, struct.pack("<I", sector_size), _REQUIRED | _OF_DISK),
    )
    table = struct.pack("<8s2xH20x", b"metadata", len(items))
    values = b""
    for guid, value, flags in items:
        table += struct.pack("<16sIII4x", guid.bytes_le, _ITEMS_AT + len(values), len(value), flags)
        values += value
    raw = table + padding(len(table), _ITEMS_AT) + values
    return raw + padding(len(raw), _MIB)


def _block_table(device: BlockDevice, sector_size: int) -> bytes:
    """Build the block allocation table, with a place for a sector bitmap after each chunk. Section 2.5."""
    ratio = (sector_size << 23) // _BLOCK
    blocks = -(-device.size // _BLOCK)
    entries = array("Q", bytes(8 * (blocks + max(0, blocks - 1) // ratio)))
    place = (_BAT + len(entries) * 8 + _MIB - 1) // _MIB
    for run in units_with_data(device, _BLOCK):
        for block in range(run.first, run.first + run.length):
            entries[block + block // ratio] = place << 20 | _PRESENT
            place += 1
    return table_bytes(entries, "little")
