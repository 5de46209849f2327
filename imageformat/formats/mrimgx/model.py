"""What the ``$JSON`` of a Macrium file says, as frozen values. Every number in it is hostile.

Source: the JSON schemas of mrimgx_file_layout. Missing keys get what the publisher's reader assumes;
unknown keys are ignored; a value of another kind than the schema's is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from imageformat.errors import CorruptImageError, UnsupportedFeatureError
from imageformat.formats.mrimgx.structs import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_DISKS = 256
MAX_PARTITIONS = 1024
MAX_DISK_SIZE = 1 << 60
_MAX_HISTORY = 1 << 16
_IMAGE_ID = re.compile(r"[0-9A-Fa-f]{16}")
_HMAC = re.compile(r"[0-9A-Fa-f]{64}")
COMPRESSION_LEVELS = ("none", "medium", "high")
KEY_LENGTHS = {"aes-128": 16, "aes-192": 24, "aes-256": 32}


@dataclass(frozen=True, slots=True)
class Encryption:
    """How the blocks are encrypted, and how a password is checked."""

    key_length: int
    """In bytes: 16, 24 or 32."""
    iterations: int
    hmac: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its place in its set."""

    image_id: bytes
    """8 bytes, common to the set."""
    file_number: int
    increment_number: int
    delta_index: bool
    split_file: bool
    owned: frozenset[int]
    """Numbers of all files whose blocks are in this one."""
    index_file_position: int
    backup_type: str
    """Of the job, not of this file."""
    backup_format: str
    backup_time: int
    """Unix seconds."""
    host: str


@dataclass(frozen=True, slots=True)
class PartitionModel:
    """One imaged partition. All places are bytes of the disk."""

    number: int
    block_size: int
    block_count: int
    start: int
    length: int
    """0 when it is not recorded."""
    first: int
    """Where block 0 begins."""
    reserved_start: int
    reserved_length: int
    file_system: str
    label: str
    history: Sequence[object]
    """Files of the set as this one recorded them; see `recorded_names`."""

    @property
    def layout(self) -> tuple[int, int, int, int]:
        """What must be the same in every file of a chain."""
        return self.number, self.start, self.first, self.block_size


@dataclass(frozen=True, slots=True)
class DiskModel:
    """One disk of which partitions were imaged."""

    number: int
    format: str
    size: int
    sector_size: int
    description: str
    serial: str
    partitions: tuple[PartitionModel, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """All of ``$JSON`` that is needed to read blocks."""

    header: Header
    compressed: bool
    compression: str
    encryption: Encryption | None
    disks: tuple[DiskModel, ...]


class _Keys:
    """Typed access to one JSON object."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise CorruptImageError(f"$JSON: {where} is no object")
        self._values: Mapping[str, object] = value
        self._where = where

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _wrong(self, key: str, value: object) -> CorruptImageError:
        return CorruptImageError(f"$JSON: {self._where}.{key} is {value!r:.60}, which cannot be")

    def number(self, key: str, default: int | None = None, top: int = MAX_DISK_SIZE) -> int:
        """Return an integer from 0 to ``top``."""
        value = self._values.get(key, default)
        if type(value) is not int or not 0 <= value <= top:
            raise self._wrong(key, value)
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value)
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value)
        return value

    def hexadecimal(self, key: str, pattern: re.Pattern[str]) -> bytes:
        value = self.text(key)
        if not pattern.fullmatch(value):
            raise self._wrong(key, value)
        return bytes.fromhex(value)

    def items(self, key: str, top: int) -> list[object]:
        value = self._values.get(key, [])
        if not isinstance(value, list) or len(value) > top:
            raise self._wrong(key, value)
        return value

    def inner(self, key: str) -> _Keys:
        return _Keys(self._values.get(key, {}), f"{self._where}.{key}".lstrip("."))

    def each(self, key: str, top: int) -> list[_Keys]:
        """Return the objects of a list."""
        return [_Keys(value, f"{self._where}.{key}[{at}]") for at, value in enumerate(self.items(key, top))]


def parse_document(data: bytes) -> Document:
    """Parse the payload of ``$JSON``.

    Raises:
        CorruptImageError: it is no JSON, or not what the schema says; the message names the key.
        UnsupportedFeatureError: blocks are compressed or encrypted in a way that is not known.
    """
    try:
        decoded = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptImageError(f"$JSON cannot be read: {error}") from error
    top = _Keys(decoded, "")
    compression = _compression(top.inner("_compression"))
    return Document(
        _header(top.inner("_header")),
        compression != "none",
        compression,
        _encryption(top.inner("_encryption")),
        tuple(_disk(keys) for keys in top.each("disks", MAX_DISKS)),
    )


def _header(keys: _Keys) -> Header:
    merged = keys.items("merged_files", _MAX_HISTORY)
    if any(type(number) is not int or not 0 <= number <= 0xFFFF for number in merged):
        raise CorruptImageError("$JSON: _header.merged_files has what is no file number")
    file_number = keys.number("file_number", top=0xFFFF)
    return Header(
        image_id=keys.hexadecimal("imageid", _IMAGE_ID),
        file_number=file_number,
        increment_number=keys.number("increment_number", top=0xFFFF),
        delta_index=keys.flag("delta_index", default=True),
        split_file=keys.flag("split_file", default=False),
        owned=frozenset((file_number, *(number for number in merged if isinstance(number, int)))),
        index_file_position=keys.number("index_file_position"),
        backup_type=keys.text("backup_type"),
        backup_format=keys.text("backup_format", "partition"),
        backup_time=keys.number("backup_time", 0, top=1 << 33),
        host=keys.text("netbios_name"),
    )


def _compression(keys: _Keys) -> str:
    level, method = keys.text("compression_level", "medium"), keys.text("compression_method", "zstd")
    if level not in COMPRESSION_LEVELS or (level != "none" and method != "zstd"):
        raise UnsupportedFeatureError(f"compression {level!r:.60} by {method!r:.60} is not known")
    return level


def _encryption(keys: _Keys) -> Encryption | None:
    kind = keys.text("aes_type", "none")
    if kind == "none":
        if keys.flag("enable", default=False):
            raise CorruptImageError("$JSON: encryption is enabled, but no cipher is named")
        return None
    length = KEY_LENGTHS.get(kind)
    if length is None:
        raise UnsupportedFeatureError(f"encryption with {kind!r:.60} is not known")
    return Encryption(length, keys.number("key_iterations", top=1 << 32), keys.hexadecimal("hmac", _HMAC))


def _disk(keys: _Keys) -> DiskModel:
    header, geometry, descriptor = (keys.inner(name) for name in ("_header", "_geometry", "_descriptor"))
    sector_size = geometry.number("bytes_per_sector", 512, top=1 << 16)
    return DiskModel(
        number=header.number("disk_number", 0, top=1 << 32),
        format=header.text("disk_format", "mbr"),
        size=geometry.number("disk_size", 0),
        sector_size=sector_size if sector_size in {512, 1024, 2048, 4096} else 512,
        description=descriptor.text("disk_description"),
        serial=descriptor.text("disk_serialno"),
        partitions=tuple(_partition(part) for part in keys.each("partitions", MAX_PARTITIONS)),
    )


def _partition(keys: _Keys) -> PartitionModel:
    header, geometry, system = (keys.inner(name) for name in ("_header", "_geometry", "_file_system"))
    start = geometry.number("start")
    reserved = system.number("reserved_sectors_byte_length", 0)
    block_size = header.number("block_size", top=MAX_BLOCK_SIZE)
    if not block_size:
        raise CorruptImageError("$JSON: a partition has blocks of 0 bytes")
    return PartitionModel(
        number=header.number("partition_number", top=1 << 32),
        block_size=block_size,
        block_count=header.number("block_count", 0),
        start=start,
        length=geometry.number("length", 0),
        first=start + _lcn0(system, start, reserved),
        reserved_start=start + geometry.number("boot_sector_offset", 0),
        reserved_length=reserved,
        file_system=system.text("type", "unknown"),
        label=system.text("volume_label"),
        history=header.items("file_history", _MAX_HISTORY),
    )


def _lcn0(system: _Keys, start: int, reserved: int) -> int:
    """Return the distance of block 0 from the start of the partition.

    File-and-folder images give the two numbers in different units of reference: there the difference is
    negative, and the distance is the length of the reserved area.
    """
    lcn0 = system.number("lcn0_offset", start)
    distance = lcn0 - system.number("start", start)
    if distance < 0 and lcn0 - start == reserved:
        return reserved
    if distance < 0:
        raise CorruptImageError("$JSON: a partition's first block lies before the partition")
    return distance


def recorded_names(document: Document) -> dict[int, str]:
    """Return the names, without folders, that files of the set had by number; for messages and hints."""
    found: dict[int, str] = {}
    for partition in (partition for disk in document.disks for partition in disk.partitions):
        for entry in partition.history:
            match entry:
                case {"file_number": int(number), "file_name": str(path)}:
                    found.setdefault(number, re.split(r"[/\\]", path)[-1])
    return found
