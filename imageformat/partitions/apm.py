"""The Apple partition map, as in Inside Macintosh: Devices, chapter 3, "The Partition Map".

One entry a block from block 1 on, the map itself among them; each says how many there are. Linux and macOS
count all of them. Free space is left out, since it is nobody's partition.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import MountfsError
from imageformat.partitions import Partition, PartitionScheme, PartitionTable
from imageformat.partitions.layout import Warnings, fit, warn_overlaps
from imageformat.partitions.type_names import APM_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

_DRIVERS = struct.Struct(">2sHI")
_ENTRY = struct.Struct(">2s2xIII32s32sIII")
_MAX_ENTRIES = 256
_BLOCK_SIZES = (512, 1024, 2048, 4096)
_FREE = frozenset({"Apple_Free", "Apple_Void", "Apple_Scratch", "Apple_Extra"})
_ISO9660 = (32769, b"CD001")


class _Entry(NamedTuple):
    """One entry; places count blocks."""

    entries: int
    start: int
    blocks: int
    name: str
    type: str


def read(device: BlockDevice, sector_size: int | None = None) -> PartitionTable | None:
    """Read an Apple partition map; None when there is none, or when it only goes with a CD's own file system.

    Raises:
        MountfsError: the first block cannot be read.
    """
    if device.size < 2 * _BLOCK_SIZES[0]:
        return None
    signature, stated, _ = _DRIVERS.unpack(device.pread(0, _DRIVERS.size))
    if signature != b"ER" or _at(device, *_ISO9660):
        return None
    wanted = (sector_size,) if sector_size is not None else ()
    for size in dict.fromkeys((stated, *wanted, 512, 2048)):
        first = _entry(device, size, 1) if size in _BLOCK_SIZES else None
        if first is not None:
            return _table(device, size, first)
    return None


def _table(device: BlockDevice, size: int, first: _Entry) -> PartitionTable:
    warnings = Warnings()
    count = first.entries
    if not 1 <= count <= _MAX_ENTRIES:
        warnings.add(f"the partition map claims {count} entries; only {_MAX_ENTRIES} were looked at")
        count = min(max(count, 1), _MAX_ENTRIES)
    partitions = tuple(_partitions(device, size, count, warnings))
    warn_overlaps(partitions, warnings)
    return PartitionTable("apm", size, "", partitions, warnings.all())


def _partitions(device: BlockDevice, size: int, count: int, warnings: Warnings) -> Iterator[Partition]:
    for number in range(1, count + 1):
        entry = _entry(device, size, number)
        if entry is None:
            warnings.add(f"entry {number} of the partition map is damaged; partitions may be missing")
            continue
        if entry.type in _FREE or not entry.blocks:
            continue
        place = fit(number, entry.start * size, entry.blocks * size, device.size, warnings)
        if place is not None:
            kind = entry.type or "?"
            yield Partition(number, *place, kind, APM_TYPES.get(kind, kind), entry.name)


def _entry(device: BlockDevice, size: int, number: int) -> _Entry | None:
    if (number + 1) * size > device.size:
        return None
    try:
        raw = device.pread(number * size, _ENTRY.size)
    except MountfsError:
        return None
    signature, entries, start, blocks, name, kind, _, _, _ = _ENTRY.unpack(raw)
    if signature != b"PM":
        return None
    return _Entry(entries, start, blocks, _text(name), _text(kind))


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("mac_roman")


def _at(device: BlockDevice, offset: int, magic: bytes) -> bool:
    if offset + len(magic) > device.size:
        return False
    try:
        return device.pread(offset, len(magic)) == magic
    except MountfsError:
        return False


PLUGIN = PartitionScheme("apm", 6, read)
