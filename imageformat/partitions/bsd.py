"""The BSD disklabel, as in disklabel(5): alone on a disk, or in a slice of an MBR.

A slice is one partition of the MBR, divided again; Linux goes on counting behind the last partition of the
MBR, and so does this. The letter by which BSD knows a partition is its name.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import MountfsError
from imageformat.partitions import Partition, PartitionScheme, PartitionTable
from imageformat.partitions.layout import Warnings, fit, warn_overlaps
from imageformat.partitions.type_names import BSD_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

SLICE_TYPES = frozenset({0xA5, 0xA6, 0xA9})
"""MBR types of slices: FreeBSD, OpenBSD, NetBSD."""
_FREEBSD = "a5"
_MAGIC = 0x82564557
_PLACES = (512, 64, 0)
"""Where a label lies, from the start of its slice: most machines, Alpha, and the rest."""
_HEAD_SIZE = 148
_ENTRY = struct.Struct("<IIIBBH")
_MAX_ENTRIES = 22
_RAW = 2
"""The third partition, c, is the whole slice or disk."""


class _Label(NamedTuple):
    """A label, recognised by both of its magic numbers."""

    sector_size: int
    entries: tuple[tuple[int, int, int], ...]
    """Start and size in sectors, and the type, of each partition in order of its letter."""
    proven: bool
    """Whether its checksum is right. Linux does not ask, and GNU parted writes others."""


def read(device: BlockDevice, sector_size: int | None = None) -> PartitionTable | None:
    """Read a disklabel that stands alone on a disk; None when there is none. Never raises."""
    label = _read_label(device, 0, device.size)
    if label is None:
        return None
    warnings = Warnings()
    size = sector_size or label.sector_size
    partitions = tuple(
        _partitions(label, size, 0, device.size, warnings, Partition(0, 0, device.size, "", ""))
    )
    warn_overlaps(partitions, warnings)
    return PartitionTable("bsd", size, "", partitions, warnings.all())


def slice_partitions(
    device: BlockDevice, parent: Partition, first_number: int, sector_size: int, warnings: Warnings
) -> Iterator[Partition]:
    """Yield the partitions of the label in a slice, counted from ``first_number``; none without a label."""
    label = _read_label(device, parent.offset, parent.size)
    if label is None:
        return
    relative = parent.type_id == _FREEBSD and len(label.entries) > _RAW and not label.entries[_RAW][0]
    base = parent.offset if relative else 0
    yield from _partitions(label, sector_size, base, device.size, warnings, parent, first_number)


def _partitions(
    label: _Label,
    sector_size: int,
    base: int,
    disk_size: int,
    warnings: Warnings,
    parent: Partition,
    number: int = 1,
) -> Iterator[Partition]:
    if not label.proven:
        warnings.add("the BSD disklabel does not match its checksum")
    for index, (start, sectors, kind) in enumerate(label.entries):
        offset, size = base + start * sector_size, sectors * sector_size
        if not kind or not size or (offset, size) == (parent.offset, parent.size):
            continue
        letter = chr(ord("a") + index)
        if offset < parent.offset or offset + size > parent.offset + parent.size:
            where = f"partition {parent.number}" if parent.number else "the disk"
            warnings.add(f"BSD partition {letter} does not lie inside {where}, and was left out")
            continue
        place = fit(number, offset, size, disk_size, warnings)
        if place is not None:
            type_id = f"{kind:02x}"
            yield Partition(
                number, *place, type_id, BSD_TYPES.get(kind, type_id), letter, within=parent.number
            )
            number += 1


def _read_label(device: BlockDevice, start: int, size: int) -> _Label | None:
    """Return the label of a slice, or None."""
    for place in _PLACES:
        try:
            label = _parse(device.pread(start + place, _HEAD_SIZE + _MAX_ENTRIES * _ENTRY.size))
        except (MountfsError, struct.error):
            continue
        if label is not None and place + _HEAD_SIZE <= size:
            return label
    return None


def _parse(raw: bytes) -> _Label | None:
    sector_size = struct.unpack_from("<I", raw, 40)[0]
    count = struct.unpack_from("<H", raw, 138)[0]
    if struct.unpack_from("<I", raw)[0] != _MAGIC or struct.unpack_from("<I", raw, 132)[0] != _MAGIC:
        return None
    if not 1 <= count <= _MAX_ENTRIES:
        return None
    entries = []
    for index in range(count):
        sectors, first, _, kind, _, _ = _ENTRY.unpack_from(raw, _HEAD_SIZE + index * _ENTRY.size)
        entries.append((first, sectors, kind))
    return _Label(
        sector_size if sector_size in {512, 1024, 2048, 4096} else 512,
        tuple(entries),
        not _checksum(raw[: _HEAD_SIZE + count * _ENTRY.size]),
    )


def _checksum(raw: bytes) -> int:
    """Combine all 16-bit words; 0 when the checksum among them is right."""
    combined = 0
    for word in struct.unpack(f"<{len(raw) // 2}H", raw):
        combined ^= word
    return combined


PLUGIN = PartitionScheme("bsd", 5, read)
