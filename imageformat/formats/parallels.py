"""Parallels disk images: the expanding ``.hds`` file of a virtual disk, which QEMU writes as well.

Source: "docs/interop/parallels" of QEMU. All numbers are little-endian. A virtual disk of several files with
snapshots, which an XML file describes, is not put together here: each file is what it is.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, IncompleteImageError, UnsupportedFeatureError
from imageformat.foreign import ForeignDisk, ForeignImage, ForeignLayer
from imageformat.formats._identity import file_identity
from imageformat.formats._runs import Kind, Run, RunDisk, joined
from imageformat.formats._sectors import sector_size_of
from imageformat.formats._tables import Tables, table_cache
from imageformat.layer import ImageFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.cache import BlockCache
    from imageformat.device import BlockDevice
    from imageformat.layer import Opening

_OLD, _EXTENDED = b"WithoutFreeSpace", b"WithouFreSpacExt"
_HEADER = struct.Struct("<16sIIIIIQIIIQ")
_VERSION = 2
_SECTOR = 512
_IN_USE = 0x746F6E59
_EMPTY = 1
_SAMPLE = 1 << 20


@dataclass(frozen=True, slots=True)
class Header:
    """What the header says; every number is checked against the others and the file."""

    cluster_size: int
    entries: int
    size: int
    unit: int
    """Bytes that an entry of the table counts in."""
    in_use: bool
    """It was not closed."""
    empty: bool
    """It is marked as holding nothing."""


def probe(device: BlockDevice) -> bool:
    """Tell whether the file starts like an expanding disk of Parallels."""
    return device.size >= len(_OLD) and device.pread(0, len(_OLD)) in {_OLD, _EXTENDED}


def parse_header(start: bytes, file_size: int, name: str) -> Header:
    """Read the header from the first bytes of the file.

    Raises:
        IncompleteImageError, CorruptImageError
        UnsupportedFeatureError: another version.
    """
    if len(start) < _HEADER.size:
        raise IncompleteImageError(f"{name}: ends inside the header, at {len(start)} bytes")
    magic, version, _, _, tracks, entries, sectors, in_use, _, flags, _ = _HEADER.unpack_from(start)
    if magic not in {_OLD, _EXTENDED}:
        raise CorruptImageError(f"{name}: does not start like a disk of Parallels")
    if version != _VERSION:
        raise UnsupportedFeatureError(f"{name}: is a disk of Parallels of version {version}, not {_VERSION}")
    if not 0 < tracks <= 1 << 21:
        raise CorruptImageError(f"{name}: offset 28: clusters of {tracks} sectors")
    cluster = tracks * _SECTOR
    if magic == _OLD:
        sectors &= 0xFFFF_FFFF
    size = sectors * _SECTOR
    if size >> 63 or size > entries * cluster:
        raise CorruptImageError(f"{name}: offset 36: {sectors} sectors in {entries} clusters of {cluster}")
    if _HEADER.size + entries * 4 > file_size:
        raise IncompleteImageError(f"{name}: ends inside its table of {entries} entries")
    unit = cluster if magic == _EXTENDED else _SECTOR
    return Header(cluster, entries, size, unit, in_use == _IN_USE, empty=bool(flags & _EMPTY))


class ClusterMap:
    """Where each cluster lies. Any number of threads may call it at once."""

    def __init__(self, device: BlockDevice, header: Header, cache: BlockCache, name: str) -> None:
        self._tables = Tables(device, cache, name, 4, "little")
        self._header = header
        self._name = name

    def runs(self, offset: int, size: int) -> Iterator[Run]:
        """Describe a range of the disk, neighbours joined where they can be.

        Raises:
            CorruptImageError: a cluster lies where it cannot.
        """
        return joined(self._parts(offset, offset + size))

    def _parts(self, offset: int, end: int) -> Iterator[Run]:
        header = self._header
        while offset < end:
            number, skip = divmod(offset, header.cluster_size)
            length = min(header.cluster_size - skip, end - offset)
            entry = self._tables.entry(_HEADER.size, header.entries, number)
            if entry:
                place = entry * header.unit
                if place < _HEADER.size + header.entries * 4:
                    raise CorruptImageError(
                        f"{self._name}: disk offset {offset}: is kept in the table, at {place}"
                    )
                yield Run(Kind.STORED, offset, length, place + skip)
            else:
                yield Run(Kind.ABSENT, offset, length, 0)
            offset += length


def open_parallels(opening: Opening) -> ForeignLayer:
    """Open one file of a virtual disk.

    Raises:
        IncompleteImageError, CorruptImageError, UnsupportedFeatureError
    """
    with ExitStack() as files:
        files.callback(opening.device.close)
        start = opening.device.pread(0, min(_HEADER.size, opening.device.size))
        header = parse_header(start, opening.device.size, opening.name)
        sample = opening.device.pread(_HEADER.size, min(header.entries * 4, _SAMPLE))
        if header.empty and any(sample):
            raise CorruptImageError(f"{opening.name}: is marked as empty, but it is not")
        clusters = ClusterMap(opening.device, header, table_cache(opening.cache), opening.name)
        disk = RunDisk(opening.name, header.size, clusters.runs, opening.device)
        sector_size = sector_size_of(disk)
        details: dict[str, object] = {"cluster_size": header.cluster_size}
        if header.in_use:
            details["dirty"] = True
        image = ForeignImage(
            "parallels",
            (ForeignDisk(disk, sector_size),),
            file_identity(opening, start, sample),
            created_ns=opening.siblings.modified_ns,
            stored_size=opening.device.size,
            details=details,
            close=files.pop_all().close,
        )
        return ForeignLayer(opening.name, image)


PLUGIN = ImageFormat("parallels", (".hds", ".hdd", ".parallels"), probe, open_parallels)
