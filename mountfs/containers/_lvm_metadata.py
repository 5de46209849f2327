"""The metadata of LVM2: labels of physical volumes, and the volume groups that they describe.

After the documentation of LVM2 (label, PV and metadata headers), and "LVM format" of the libvslvm project.
The text lies in a ring; a checksum proves each part.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import MountfsError, VolumeError
from mountfs.containers._lvm_text import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from mountfs.containers._lvm_text import Section, Value

SECTOR = 512
_LABEL = struct.Struct("<8sQII8s")
_LABEL_MAGIC, _LABEL_TYPE = b"LABELONE", b"LVM2 001"
_PLACE = struct.Struct("<QQ")
_AREA = struct.Struct("<I16sIQQ")
_AREA_MAGIC = b" LVM2 x[5A%r0N*>"
_TEXT_PLACE = struct.Struct("<QQII")
_IGNORED = 1
_CRC_START = 0xF597A6CF
_MAX_AREAS = 8
_MAX_TEXT = 8 << 20
_MAX_SIZE = 1 << 62


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """A device that carries an LVM label."""

    uuid: str
    """Without dashes."""
    group: VolumeGroup | None
    """What its own metadata says; None when it has none, or none that is right."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """A physical volume as its group describes it."""

    uuid: str
    hint: str
    """The device that it was, the last time."""
    start: int
    """Byte at which its first extent lies."""


@dataclass(frozen=True, slots=True)
class LvSegment:
    """A run of extents of a logical volume. Sizes in bytes."""

    start: int
    size: int
    type: str
    stripes: tuple[tuple[str, int], ...]
    """Name of the physical volume, and byte behind its first extent, of each stripe."""
    stripe_size: int
    related: tuple[str, ...]
    """Names of volumes that a snapshot is made of: its origin, and what holds the differences."""


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """A logical volume."""

    name: str
    visible: bool
    size: int
    segments: tuple[LvSegment, ...]
    """In order, without gaps."""


@dataclass(frozen=True, slots=True)
class VolumeGroup:
    """A volume group."""

    name: str
    uuid: str
    sequence: int
    carriers: dict[str, Carrier]
    """By the names that segments use."""
    volumes: tuple[LogicalVolume, ...]


def read_physical_volume(device: BlockDevice) -> PhysicalVolume:
    """Read the label of a device and the newest of its copies of the metadata.

    Raises:
        VolumeError: it has no label that is right.
    """
    for sector in range(4):
        raw = _piece(device, sector * SECTOR, SECTOR)
        magic, own, crc, start, kind = _LABEL.unpack_from(raw)
        if magic != _LABEL_MAGIC or own != sector or kind != _LABEL_TYPE or crc != checksum(raw[20:]):
            continue
        if not _LABEL.size <= start <= SECTOR - 56:
            continue
        uuid = raw[start : start + 32].decode("ascii", "replace")
        groups = list(_groups(device, raw[start + 40 :]))
        return PhysicalVolume(uuid, max(groups, key=lambda group: group.sequence, default=None))
    raise VolumeError("its LVM label is damaged")


def _groups(device: BlockDevice, lists: bytes) -> Iterator[VolumeGroup]:
    """Yield what each metadata area holds; two lists, of data areas and of metadata areas, end in zeros."""
    places = [_PLACE.unpack_from(lists, at) for at in range(0, len(lists) - _PLACE.size + 1, _PLACE.size)]
    ends = [index for index, place in enumerate(places) if not place[0] and not place[1]]
    if len(ends) < 2:
        return
    for offset, size in places[ends[0] + 1 : ends[1]][:_MAX_AREAS]:
        try:
            text = _area_text(device, offset, size)
            if text is not None:
                yield read_group(text)
        except MountfsError:
            continue


def _area_text(device: BlockDevice, offset: int, size: int) -> str | None:
    header = _piece(device, offset, SECTOR)
    crc, magic, version, start, length = _AREA.unpack_from(header)
    if (
        crc != checksum(header[4:])
        or magic != _AREA_MAGIC
        or version != 1
        or (start, length) != (offset, size)
    ):
        raise VolumeError("an LVM metadata area is damaged")
    at, used, text_crc, flags = _TEXT_PLACE.unpack_from(header, _AREA.size)
    if not at or not used or flags & _IGNORED:
        return None
    if used > _MAX_TEXT or not SECTOR <= at < size or used > size - SECTOR:
        raise VolumeError("an LVM metadata area contradicts itself")
    first = min(used, size - at)
    text = _piece(device, offset + at, first) + _piece(device, offset + SECTOR, used - first)
    if checksum(text) != text_crc:
        raise VolumeError("the LVM metadata does not match its checksum")
    return text.rstrip(b"\0").decode("utf-8", "replace")


def checksum(data: bytes) -> int:
    """Return the CRC-32 that LVM uses: with a start of its own, and nothing inverted."""
    return zlib.crc32(data, _CRC_START ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def read_group(text: str) -> VolumeGroup:
    """Read the metadata of a volume group.

    Raises:
        VolumeError: it cannot be understood, or makes no sense.
    """
    name, fields = next(
        ((name, value) for name, value in parse(text).items() if isinstance(value, dict)), ("", None)
    )
    if fields is None:
        raise VolumeError("the LVM metadata describes no volume group")
    extent = _number(fields, "extent_size") * SECTOR
    if not extent:
        raise VolumeError("the LVM metadata claims extents of no size")
    carriers = _section(fields, "physical_volumes")
    volumes = _section(fields, "logical_volumes")
    return VolumeGroup(
        name,
        _uuid(fields),
        _number(fields, "seqno"),
        {key: _carrier(_section(carriers, key)) for key in carriers},
        tuple(_volume(key, _section(volumes, key), extent) for key in volumes),
    )


def _carrier(fields: Section) -> Carrier:
    hint = fields.get("device", "")
    return Carrier(_uuid(fields), hint if isinstance(hint, str) else "", _number(fields, "pe_start") * SECTOR)


def _volume(name: str, fields: Section, extent: int) -> LogicalVolume:
    segments = []
    position = 0
    for number in range(1, _number(fields, "segment_count") + 1):
        segment = _segment(_section(fields, f"segment{number}"), extent)
        if segment.start != position:
            raise VolumeError(f"the segments of the logical volume {name} leave a gap, or overlap")
        position += segment.size
        segments.append(segment)
    return LogicalVolume(name, "VISIBLE" in _list(fields, "status"), position, tuple(segments))


def _segment(fields: Section, extent: int) -> LvSegment:
    kind = fields.get("type")
    size = _number(fields, "extent_count") * extent
    if not isinstance(kind, str) or not 0 < size < _MAX_SIZE:
        raise VolumeError("a segment of a logical volume makes no sense")
    names = _list(fields, "stripes")
    stripes = tuple(
        (str(name), start * extent)
        for name, start in zip(names[::2], names[1::2], strict=False)
        if isinstance(start, int) and start >= 0
    )
    related = (fields.get(key) for key in ("origin", "cow_store", "merging_store"))
    return LvSegment(
        _number(fields, "start_extent") * extent,
        size,
        kind.split("+", 1)[0],
        stripes,
        _number(fields, "stripe_size") * SECTOR if len(stripes) > 1 else 0,
        tuple(name for name in related if isinstance(name, str)),
    )


def _section(fields: Section, name: str) -> Section:
    value = fields.get(name, {})
    if not isinstance(value, dict):
        raise VolumeError(f"the LVM metadata has no proper {name[:40]}")
    return value


def _number(fields: Section, name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or not 0 <= value < 1 << 48:
        raise VolumeError(f"the LVM metadata has no proper {name}")
    return value


def _list(fields: Section, name: str) -> list[int | str]:
    value: Value = fields.get(name, [])
    return value if isinstance(value, list) else []


def _uuid(fields: Section) -> str:
    value = fields.get("id")
    if not isinstance(value, str):
        raise VolumeError("the LVM metadata has no proper id")
    return value.replace("-", "")


def _piece(device: BlockDevice, offset: int, size: int) -> bytes:
    if offset + size > device.size:
        raise VolumeError("the LVM metadata is cut off")
    return device.pread(offset, size)
