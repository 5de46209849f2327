"""The structures of a VHDX file: pure parsing. Source: [MS-VHDX] sections 2.2 (header section) and 2.6."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from imageformat.crc32c import crc32c
from imageformat.errors import CorruptImageError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1 << 20
IDENTIFIER = b"vhdxfile"
HEADER_OFFSETS = (64 << 10, 128 << 10)
HEADER_SIZE = 4096
REGION_OFFSETS = (192 << 10, 256 << 10)
REGION_SIZE = 64 << 10
METADATA_TABLE_SIZE = 64 << 10
MAX_ITEM_SIZE = MIB
MAX_DISK_SIZE = 64 << 40
NO_GUID = UUID(int=0)
_MAX_ENTRIES = 2047

BAT_REGION = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
DISK_ID = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
LOCATOR_TYPE = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
_KNOWN_ITEMS = {FILE_PARAMETERS, DISK_SIZE, DISK_ID, LOGICAL_SECTOR, PHYSICAL_SECTOR, PARENT_LOCATOR}

_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGION_HEADER = struct.Struct("<4sII4x")
_REGION = struct.Struct("<16sQII")
_METADATA_HEADER = struct.Struct("<8s2xH20x")
_ITEM = struct.Struct("<16sIII4x")


@dataclass(frozen=True, slots=True)
class Header:
    """What changes each time the file is opened for writing. Section 2.2.2."""

    sequence: int
    file_write: UUID
    data_write: UUID
    """Changes when the disk's content does."""
    log: UUID
    """Zero when the log is empty."""
    log_offset: int
    log_size: int


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the file. Section 2.2.3.2."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Item:
    """A piece of metadata: where it is, relative to its region. Section 2.6.1.2."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Parameters:
    """The shape of the disk. Section 2.6.2."""

    size: int
    block_size: int
    sector_size: int
    physical_sector_size: int
    has_parent: bool
    disk_id: UUID


def checked(block: bytes) -> bool:
    """Tell whether the CRC-32C at offset 4 fits the block with that field zeroed."""
    stated = int.from_bytes(block[4:8], "little")
    return crc32c(block[:4] + bytes(4) + block[8:]) == stated


def parse_header(name: str, block: bytes) -> Header | None:
    """Return a header, or None when it is not valid.

    Raises:
        UnsupportedFeatureError: it is valid and of a later version.
    """
    signature, _, sequence, file_write, data_write, log, log_version, version, log_size, log_offset = (
        _HEADER.unpack_from(block)
    )
    if signature != b"head" or not checked(block):
        return None
    if version != 1 or log_version != 0:
        raise UnsupportedFeatureError(f"{name}: VHDX version {version} with log version {log_version}")
    return Header(
        sequence,
        UUID(bytes_le=file_write),
        UUID(bytes_le=data_write),
        UUID(bytes_le=log),
        log_offset,
        log_size,
    )


def parse_regions(name: str, block: bytes) -> Mapping[UUID, Region] | None:
    """Return the regions that are known, or None when the table is damaged.

    Raises:
        UnsupportedFeatureError: a region that is not known is required.
        CorruptImageError: the table contradicts itself.
    """
    signature, _, count = _REGION_HEADER.unpack_from(block)
    if signature != b"regi" or not checked(block):
        return None
    if count > _MAX_ENTRIES:
        raise CorruptImageError(f"{name}: region table has {count} entries")
    found: dict[UUID, Region] = {}
    for guid, offset, size, required in _REGION.iter_unpack(block[16 : 16 + count * _REGION.size]):
        region = UUID(bytes_le=guid)
        if region not in (BAT_REGION, METADATA_REGION):
            if required & 1:
                raise UnsupportedFeatureError(f"{name}: needs the unknown region {region}")
            continue
        if region in found or offset < MIB or offset % MIB or size % MIB or not size:
            raise CorruptImageError(f"{name}: region {region} at {offset} of {size} bytes makes no sense")
        found[region] = Region(offset, size)
    if len(found) != 2:
        raise CorruptImageError(f"{name}: has no block allocation table or no metadata")
    return found


def parse_metadata_table(name: str, block: bytes, region_size: int) -> Mapping[UUID, Item]:
    """Return where the known items lie.

    Raises:
        UnsupportedFeatureError: an item that is not known is required.
        CorruptImageError: the table contradicts itself.
    """
    signature, count = _METADATA_HEADER.unpack_from(block)
    if signature != b"metadata" or count > _MAX_ENTRIES:
        raise CorruptImageError(f"{name}: metadata table is damaged")
    found: dict[UUID, Item] = {}
    for guid, offset, size, flags in _ITEM.iter_unpack(block[32 : 32 + count * _ITEM.size]):
        item = UUID(bytes_le=guid)
        is_user, is_required = flags & 1, flags & 4
        if is_user or item not in _KNOWN_ITEMS:
            if is_required:
                raise UnsupportedFeatureError(f"{name}: needs the unknown metadata item {item}")
            continue
        if (
            item in found
            or offset < METADATA_TABLE_SIZE
            or size > MAX_ITEM_SIZE
            or offset + size > region_size
        ):
            raise CorruptImageError(f"{name}: metadata item {item} at {offset}+{size} makes no sense")
        found[item] = Item(offset, size)
    return found


def parse_parameters(name: str, items: Mapping[UUID, bytes]) -> Parameters:
    """Return the shape of the disk.

    Raises:
        CorruptImageError: an item is missing, or out of its range.
    """

    def number(item: UUID, layout: str) -> int:
        content = items.get(item, b"")
        if len(content) != struct.calcsize(layout):
            raise CorruptImageError(f"{name}: metadata item {item} is missing or has a wrong length")
        value: int = struct.unpack(layout, content)[0]
        return value

    parameters = number(FILE_PARAMETERS, "<Q")
    block_size, flags = parameters & 0xFFFF_FFFF, parameters >> 32
    size, sector_size = number(DISK_SIZE, "<Q"), number(LOGICAL_SECTOR, "<I")
    physical = number(PHYSICAL_SECTOR, "<I")
    if not MIB <= block_size <= 256 * MIB or block_size & (block_size - 1):
        raise CorruptImageError(f"{name}: block size of {block_size} bytes")
    if sector_size not in (512, 4096) or physical not in (512, 4096):
        raise CorruptImageError(f"{name}: sector sizes of {sector_size} and {physical} bytes")
    if not size or size % sector_size or size > MAX_DISK_SIZE:
        raise CorruptImageError(f"{name}: disk size of {size} bytes")
    disk_id = items.get(DISK_ID, b"")
    if len(disk_id) != 16:
        raise CorruptImageError(f"{name}: metadata item {DISK_ID} is missing or has a wrong length")
    return Parameters(size, block_size, sector_size, physical, bool(flags & 2), UUID(bytes_le=disk_id))


def parse_locator(name: str, content: bytes) -> Mapping[str, str]:
    """Return the keys and values that tell of the parent. Section 2.6.2.6.

    Raises:
        UnsupportedFeatureError: they are of another kind.
        CorruptImageError: a key or value lies outside of the item.
    """
    if len(content) < 20:
        raise CorruptImageError(f"{name}: parent locator of {len(content)} bytes")
    kind, count = UUID(bytes_le=content[:16]), int.from_bytes(content[18:20], "little")
    if kind != LOCATOR_TYPE:
        raise UnsupportedFeatureError(f"{name}: parent locator of the unknown type {kind}")
    if 20 + count * 12 > len(content):
        raise CorruptImageError(f"{name}: parent locator with {count} entries")
    found: dict[str, str] = {}
    for at in range(20, 20 + count * 12, 12):
        key_at, value_at, key_size, value_size = struct.unpack_from("<IIHH", content, at)
        if key_at + key_size > len(content) or value_at + value_size > len(content):
            raise CorruptImageError(f"{name}: an entry of the parent locator lies outside of it")
        key = content[key_at : key_at + key_size].decode("utf-16-le", "replace")
        found[key] = content[value_at : value_at + value_size].decode("utf-16-le", "replace").rstrip("\0")
    return found
