"""QED, an older format of QEMU: two levels of tables, holes and a backing file.

Source: "docs/interop/qed_spec" of QEMU. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, IncompleteImageError, UnsupportedFeatureError
from imageformat.foreign import ForeignDisk, ForeignImage, ForeignLayer
from imageformat.formats._backing import open_backing
from imageformat.formats._identity import file_identity
from imageformat.formats._runs import Kind, Run, RunDisk, joined
from imageformat.formats._sectors import sector_size_of
from imageformat.formats._shown import shown_name
from imageformat.formats._tables import Tables, table_cache
from imageformat.layer import ImageFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.cache import BlockCache
    from imageformat.device import BlockDevice
    from imageformat.layer import Opening

_MAGIC = b"QED\0"
_HEADER = struct.Struct("<4sIIIQQQQQII")
_BACKING, _NEEDS_CHECK, _RAW_BACKING = 1, 2, 4
_MIN_CLUSTER, _MAX_CLUSTER = 4 << 10, 64 << 20
_MAX_TABLE = 16
_MAX_NAME = 1023
_ABSENT, _ZERO = 0, 1


@dataclass(frozen=True, slots=True)
class Header:
    """What the header says; every number is checked against the others and the file."""

    cluster_size: int
    entries: int
    """Of each table."""
    features: int
    l1_offset: int
    size: int
    backing_offset: int
    backing_size: int


def probe(device: BlockDevice) -> bool:
    """Tell whether the file starts like a QED image."""
    return device.size >= len(_MAGIC) and device.pread(0, len(_MAGIC)) == _MAGIC


def parse_header(start: bytes, file_size: int, name: str) -> Header:
    """Read the header from the first bytes of the file.

    Raises:
        IncompleteImageError, CorruptImageError
        UnsupportedFeatureError: it needs a feature that is not known here.
    """
    if len(start) < _HEADER.size:
        raise IncompleteImageError(f"{name}: ends inside the header, at {len(start)} bytes")
    magic, cluster, table, clusters, features, _, _, l1, size, at, length = _HEADER.unpack_from(start)
    if magic != _MAGIC:
        raise CorruptImageError(f"{name}: does not start like a QED image")
    unknown = features & ~(_BACKING | _NEEDS_CHECK | _RAW_BACKING)
    if unknown:
        raise UnsupportedFeatureError(f"{name}: needs features that are not known here: {unknown:#x}")
    if cluster.bit_count() != 1 or not _MIN_CLUSTER <= cluster <= _MAX_CLUSTER:
        raise CorruptImageError(f"{name}: offset 4: clusters of {cluster} bytes")
    if table.bit_count() != 1 or table > _MAX_TABLE:
        raise CorruptImageError(f"{name}: offset 8: tables of {table} clusters")
    entries = table * cluster // 8
    if size > entries * entries * cluster:
        raise CorruptImageError(f"{name}: offset 48: a disk of {size} bytes is too large for its tables")
    if l1 % cluster or not l1:
        raise CorruptImageError(f"{name}: offset 40: L1 table at {l1}")
    if l1 + table * cluster > file_size:
        raise IncompleteImageError(f"{name}: the L1 table at {l1} lies after the end of the file")
    if features & _BACKING and (length > _MAX_NAME or at + length > clusters * cluster):
        raise CorruptImageError(f"{name}: offset 56: name of the backing file at {at}, {length} bytes")
    return Header(cluster, entries, features, l1, size, at, length)


class ClusterMap:
    """Where each cluster lies. Any number of threads may call it at once."""

    def __init__(self, device: BlockDevice, header: Header, cache: BlockCache, name: str) -> None:
        self._tables = Tables(device, cache, name, 8, "little")
        self._header = header
        self._name = name

    def runs(self, offset: int, size: int) -> Iterator[Run]:
        """Describe a range of the disk, neighbours joined where they can be.

        Raises:
            CorruptImageError, IncompleteImageError: a table makes no sense, or is not in the file.
        """
        return joined(self._parts(offset, offset + size))

    def _parts(self, offset: int, end: int) -> Iterator[Run]:
        cluster, entries = self._header.cluster_size, self._header.entries
        span = entries * cluster
        while offset < end:
            table = self._aligned(self._tables.entry(self._header.l1_offset, entries, offset // span), offset)
            if table == _ABSENT:
                stop = min(end, (offset // span + 1) * span)
                yield Run(Kind.ABSENT, offset, stop - offset, 0)
                offset = stop
                continue
            skip = offset % cluster
            length = min(cluster - skip, end - offset)
            entry = self._tables.entry(table, entries, offset // cluster % entries)
            if entry == _ABSENT:
                yield Run(Kind.ABSENT, offset, length, 0)
            elif entry == _ZERO:
                yield Run(Kind.ZERO, offset, length, 0)
            else:
                yield Run(Kind.STORED, offset, length, self._aligned(entry, offset) + skip)
            offset += length

    def _aligned(self, place: int, offset: int) -> int:
        if place % self._header.cluster_size:
            raise CorruptImageError(f"{self._name}: disk offset {offset}: a table leads to {place}")
        return place


def open_qed(opening: Opening) -> ForeignLayer:
    """Open an image and its backing file, which is raw, or of the format that its content tells.

    Raises:
        IncompleteImageError, CorruptImageError, UnsupportedFeatureError
        AccessDeniedError, ParentMissingError, ChainCycleError: the backing file cannot be opened.
    """
    with ExitStack() as files:
        files.callback(opening.device.close)
        start = opening.device.pread(0, min(_HEADER.size, opening.device.size))
        header = parse_header(start, opening.device.size, opening.name)
        sample = opening.device.pread(header.l1_offset, header.entries * 8)
        identity = [start, sample]
        details: dict[str, object] = {"cluster_size": header.cluster_size}
        below = None
        if header.features & _BACKING:
            stored = opening.device.pread(header.backing_offset, header.backing_size)
            backing_name = stored.decode("utf-8", "surrogateescape")
            details["parent"] = shown_name(backing_name)
            kind = "raw" if header.features & _RAW_BACKING else ""
            backing = open_backing(opening, backing_name, kind)
            files.callback(backing.close)
            below = backing.device
            identity += [stored, backing.identity]
        if header.features & _NEEDS_CHECK:
            details["dirty"] = True
        clusters = ClusterMap(opening.device, header, table_cache(opening.cache), opening.name)
        disk = RunDisk(opening.name, header.size, clusters.runs, opening.device, below)
        sector_size = sector_size_of(disk)
        image = ForeignImage(
            "qed",
            (ForeignDisk(disk, sector_size),),
            file_identity(opening, *identity),
            created_ns=opening.siblings.modified_ns,
            stored_size=opening.device.size,
            details=details,
            close=files.pop_all().close,
        )
        return ForeignLayer(opening.name, image)


PLUGIN = ImageFormat("qed", (".qed",), probe, open_qed)
