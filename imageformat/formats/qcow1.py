"""qcow, the first disk image format of QEMU: two levels of tables, compressed clusters, a backing file.

Source: the description in "block/qcow.c" of QEMU of its header and entries. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, IncompleteImageError, UnsupportedFeatureError
from imageformat.foreign import ForeignDisk, ForeignImage, ForeignLayer
from imageformat.formats._backing import open_backing
from imageformat.formats._deflated import inflate_cluster
from imageformat.formats._identity import file_identity
from imageformat.formats._packed import PackedClusters
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

_START = b"QFI\xfb\0\0\0\1"
_HEADER = struct.Struct(">8sQIIQBBHIQ")
_MAX_NAME = 1023
_MAX_L1 = 32 << 20
_SAMPLE = 1 << 20
_COMPRESSED = 1 << 63


@dataclass(frozen=True, slots=True)
class Header:
    """What the header says; every number is checked against the others and the file."""

    cluster_bits: int
    l2_entries: int
    l1_entries: int
    l1_offset: int
    size: int
    backing_offset: int
    backing_size: int

    @property
    def cluster_size(self) -> int:
        """In bytes."""
        return 1 << self.cluster_bits


def probe(device: BlockDevice) -> bool:
    """Tell whether the file starts like a qcow image of version 1."""
    return device.size >= len(_START) and device.pread(0, len(_START)) == _START


def parse_header(start: bytes, file_size: int, name: str) -> Header:
    """Read the header from the first bytes of the file.

    Raises:
        IncompleteImageError, CorruptImageError
        UnsupportedFeatureError: it is encrypted inside.
    """
    if len(start) < _HEADER.size:
        raise IncompleteImageError(f"{name}: ends inside the header, at {len(start)} bytes")
    magic, backing, backing_size, _, size, bits, l2_bits, _, cipher, l1 = _HEADER.unpack_from(start)
    if magic != _START:
        raise CorruptImageError(f"{name}: does not start like a qcow image of version 1")
    if not 9 <= bits <= 16 or not 6 <= l2_bits <= 13:
        raise CorruptImageError(
            f"{name}: offset 32: clusters of 2^{bits} bytes, tables of 2^{l2_bits} entries"
        )
    if cipher:
        raise UnsupportedFeatureError(f"{name}: is encrypted inside (AES); decrypt it with qemu-img convert")
    if size >> 63:
        raise CorruptImageError(f"{name}: offset 24: a disk of {size} bytes")
    entries = -(-size // (1 << (bits + l2_bits)))
    if entries * 8 > _MAX_L1:
        raise CorruptImageError(f"{name}: offset 24: an L1 table of {entries} entries")
    if l1 + entries * 8 > file_size:
        raise IncompleteImageError(f"{name}: the L1 table at {l1} lies after the end of the file")
    if backing and backing_size > _MAX_NAME:
        raise CorruptImageError(f"{name}: offset 16: a name of {backing_size} bytes")
    if backing + backing_size > file_size:
        raise IncompleteImageError(f"{name}: the name of the backing file lies after the end of the file")
    return Header(bits, 1 << l2_bits, entries, l1, size, backing, backing_size)


class ClusterMap:
    """Where each cluster lies. Any number of threads may call it at once."""

    def __init__(self, device: BlockDevice, header: Header, cache: BlockCache, name: str) -> None:
        self._tables = Tables(device, cache, name, 8, "big")
        self._header = header
        self._name = name

    def runs(self, offset: int, size: int) -> Iterator[Run]:
        """Describe a range of the disk, neighbours joined where they can be.

        Raises:
            IncompleteImageError: a table is not in the file.
        """
        return joined(self._parts(offset, offset + size))

    def _parts(self, offset: int, end: int) -> Iterator[Run]:
        header = self._header
        cluster = header.cluster_size
        span = header.l2_entries * cluster
        while offset < end:
            table = self._tables.entry(header.l1_offset, header.l1_entries, offset // span)
            if not table:
                stop = min(end, (offset // span + 1) * span)
                yield Run(Kind.ABSENT, offset, stop - offset, 0)
                offset = stop
                continue
            skip = offset % cluster
            length = min(cluster - skip, end - offset)
            entry = self._tables.entry(table, header.l2_entries, offset // cluster % header.l2_entries)
            if entry == 0:
                yield Run(Kind.ABSENT, offset, length, 0)
            elif entry & _COMPRESSED:
                yield Run(Kind.PACKED, offset, length, entry & (_COMPRESSED - 1))
            else:
                yield Run(Kind.STORED, offset, length, entry + skip)
            offset += length


def _packed(opening: Opening, header: Header, cache: BlockCache) -> PackedClusters:
    shift = 63 - header.cluster_bits

    def locate(place: int) -> tuple[int, int]:
        begin = place & ((1 << shift) - 1)
        return begin, begin + (place >> shift)

    def decode(stored: bytes) -> bytes:
        return inflate_cluster(stored, header.cluster_size)

    return PackedClusters(opening.device, cache, opening.name, header.cluster_size, locate, decode)


def open_qcow1(opening: Opening) -> ForeignLayer:
    """Open an image and its backing file, whose format its content tells.

    Raises:
        IncompleteImageError, CorruptImageError, UnsupportedFeatureError
        AccessDeniedError, ParentMissingError, ChainCycleError: the backing file cannot be opened.
    """
    with ExitStack() as files:
        files.callback(opening.device.close)
        start = opening.device.pread(0, min(_HEADER.size, opening.device.size))
        header = parse_header(start, opening.device.size, opening.name)
        sample = opening.device.pread(header.l1_offset, min(header.l1_entries * 8, _SAMPLE))
        identity = [start, sample]
        details: dict[str, object] = {"cluster_size": header.cluster_size}
        below = None
        if header.backing_offset:
            stored = opening.device.pread(header.backing_offset, header.backing_size)
            backing_name = stored.decode("utf-8", "surrogateescape")
            details["parent"] = shown_name(backing_name)
            backing = open_backing(opening, backing_name, "")
            files.callback(backing.close)
            below = backing.device
            identity += [stored, backing.identity]
        cache = table_cache(opening.cache)
        clusters = ClusterMap(opening.device, header, cache, opening.name)
        packed = _packed(opening, header, cache)
        disk = RunDisk(opening.name, header.size, clusters.runs, opening.device, below, packed.unpack)
        sector_size = sector_size_of(disk)
        image = ForeignImage(
            "qcow1",
            (ForeignDisk(disk, sector_size),),
            file_identity(opening, *identity),
            created_ns=opening.siblings.modified_ns,
            stored_size=opening.device.size,
            details=details,
            close=files.pop_all().close,
        )
        return ForeignLayer(opening.name, image)


PLUGIN = ImageFormat("qcow1", (".qcow",), probe, open_qcow1)
