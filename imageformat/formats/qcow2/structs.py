"""The header of a qcow2 image, its extensions and its table of snapshots: pure parsing.

Source: "docs/interop/qcow2" of QEMU, sections Header, Header extensions, Snapshots.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, IncompleteImageError, UnsupportedFeatureError
from imageformat.formats._shown import shown_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAGIC = b"QFI\xfb"
MAX_CLUSTER_BITS = 21
"""2 MiB: the limit of QEMU, and so of all images."""
_MIN_CLUSTER_BITS = 9
_MIN_EXTENDED_BITS = 14
MAX_L1_SIZE = 32 << 20
"""Bytes; the limit of QEMU."""
_MAX_BACKING_NAME = 1023
_MAX_SNAPSHOTS = 65536

_VERSION_2 = struct.Struct(">4sIQIIQIIQQIIQ")
_VERSION_3 = struct.Struct(">QQQII")

DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION_TYPE, EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2
RAW_DATA = 1 << 1
"""Of the autoclear features: the data file is a raw image of the disk."""

_BACKING_FORMAT = 0xE2792ACA
_FEATURE_NAMES = 0x6803F857
_DATA_FILE = 0x44415441
_CIPHERS = {1: "AES", 2: "LUKS"}

ZLIB, ZSTD = 0, 1


@dataclass(frozen=True, slots=True)
class Header:
    """What the first cluster says; every number is checked against the others and the file."""

    version: int
    cluster_bits: int
    size: int
    """Of the disk, in bytes."""
    l1_offset: int
    l1_entries: int
    incompatible: int
    autoclear: int
    compression: int
    snapshots_offset: int
    snapshots_count: int
    backing_name: str
    """As it is written; empty when there is no backing file."""
    backing_format: str
    """As QEMU calls it; empty when it is not said."""
    data_name: str
    """Of the external data file; empty when there is none, or when it is not said."""

    @property
    def cluster_size(self) -> int:
        """In bytes."""
        return 1 << self.cluster_bits

    @property
    def extended(self) -> bool:
        """Whether entries of L2 tables have 16 bytes and describe 32 subclusters each."""
        return bool(self.incompatible & EXTENDED_L2)

    @property
    def external(self) -> bool:
        """Whether the clusters of the disk lie in a file of their own."""
        return bool(self.incompatible & EXTERNAL_DATA)

    @property
    def entries_per_table(self) -> int:
        """Clusters that one L2 table describes."""
        return self.cluster_size // (16 if self.extended else 8)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One internal snapshot."""

    id: str
    name: str
    created_ns: int
    vm_state_size: int

    def described(self) -> dict[str, object]:
        """Return it as JSON values."""
        moment = datetime.fromtimestamp(self.created_ns // 10**9, UTC).isoformat()
        return {"id": self.id, "name": self.name, "created": moment, "vm_state_size": self.vm_state_size}


def header_area(start: bytes) -> int:
    """Return how many bytes `parse_header` wants to see: the first cluster, as far as it can hold anything.

    0 when this is no qcow2 image.
    """
    if len(start) < 24 or start[:4] != MAGIC:
        return 0
    bits = int.from_bytes(start[20:24], "big")
    return 1 << max(_MIN_CLUSTER_BITS, min(bits, MAX_CLUSTER_BITS))


def parse_header(area: bytes, file_size: int, name: str) -> Header:
    """Read the first cluster. ``area`` may be shorter if the file is.

    Raises:
        IncompleteImageError, CorruptImageError
        UnsupportedFeatureError: it needs a feature that is not known here, which the message names.
    """
    if len(area) < _VERSION_2.size:
        raise IncompleteImageError(f"{name}: ends inside the header, at {len(area)} bytes")
    fields = _VERSION_2.unpack_from(area)
    _, version, backing_offset, backing_size, bits, size, cipher, l1_entries, l1_offset = fields[:9]
    snapshots_count, snapshots_offset = fields[11:13]
    if version not in {2, 3}:
        raise UnsupportedFeatureError(f"{name}: is qcow of version {version}; 2 and 3 are known")
    if not _MIN_CLUSTER_BITS <= bits <= MAX_CLUSTER_BITS:
        raise CorruptImageError(f"{name}: offset 20: clusters of 2^{bits} bytes")
    incompatible = autoclear = compression = 0
    extensions_start = _VERSION_2.size
    if version == 3:
        incompatible, autoclear, extensions_start, compression = _version_3(area, name)
    extensions_end = backing_offset if extensions_start <= backing_offset < len(area) else len(area)
    extensions = dict(_extensions(area[:extensions_end], extensions_start, name))
    _refuse_unknown(incompatible & ~_KNOWN, extensions.get(_FEATURE_NAMES, b""), name)
    if cipher:
        kind = _CIPHERS.get(cipher, f"method {cipher}")
        raise UnsupportedFeatureError(
            f"{name}: is encrypted inside ({kind}); decrypt it first: qemu-img convert with its secret"
        )
    if bool(incompatible & COMPRESSION_TYPE) != bool(compression):
        raise CorruptImageError(f"{name}: offset 104: compression {compression} against the feature bit")
    if compression not in {ZLIB, ZSTD}:
        raise UnsupportedFeatureError(f"{name}: compression type {compression}; zlib and zstd are known")
    header = Header(
        version=version,
        cluster_bits=bits,
        size=size,
        l1_offset=l1_offset,
        l1_entries=l1_entries,
        incompatible=incompatible,
        autoclear=autoclear,
        compression=compression,
        snapshots_offset=snapshots_offset,
        snapshots_count=snapshots_count,
        backing_name=_backing_name(area, backing_offset, backing_size, name),
        backing_format=extensions.get(_BACKING_FORMAT, b"").decode("utf-8", "replace"),
        data_name=extensions.get(_DATA_FILE, b"").decode("utf-8", "surrogateescape"),
    )
    _check(header, file_size, name)
    return header


def _version_3(area: bytes, name: str) -> tuple[int, int, int, int]:
    """Return the incompatible and autoclear features, the length of the header, the compression type."""
    if len(area) < _VERSION_2.size + _VERSION_3.size:
        raise IncompleteImageError(f"{name}: ends inside the header, at {len(area)} bytes")
    incompatible, _, autoclear, _, length = _VERSION_3.unpack_from(area, _VERSION_2.size)
    if not _VERSION_2.size + _VERSION_3.size <= length <= len(area) or length % 8:
        raise CorruptImageError(f"{name}: offset 100: a header of {length} bytes")
    compression = area[104] if length > 104 else 0
    return incompatible, autoclear, length, compression


def _extensions(area: bytes, position: int, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield (type, data) of each header extension."""
    while position + 8 <= len(area):
        kind, length = struct.unpack_from(">II", area, position)
        if kind == 0:
            return
        if length > len(area) - position - 8:
            raise CorruptImageError(f"{name}: offset {position}: an extension of {length} bytes")
        yield kind, area[position + 8 : position + 8 + length]
        position += 8 + -(-length // 8) * 8


def _refuse_unknown(unknown: int, table: bytes, name: str) -> None:
    """Raise for incompatible features that are not known, by the names the image has for them."""
    if not unknown:
        return
    names = {
        table[at + 1]: table[at + 2 : at + 48].rstrip(b"\0").decode("utf-8", "replace")
        for at in range(0, len(table) - 47, 48)
        if table[at] == 0
    }
    needed = [names.get(bit) or f"bit {bit}" for bit in range(64) if unknown >> bit & 1]
    raise UnsupportedFeatureError(f"{name}: needs features that are not known here: {', '.join(needed)}")


def _backing_name(area: bytes, offset: int, length: int, name: str) -> str:
    if not offset:
        return ""
    if length > _MAX_BACKING_NAME or offset + length > len(area):
        raise CorruptImageError(f"{name}: offset 8: name of the backing file at {offset}, {length} bytes")
    return area[offset : offset + length].decode("utf-8", "surrogateescape")


def _check(header: Header, file_size: int, name: str) -> None:
    if header.size >> 63:
        raise CorruptImageError(f"{name}: offset 24: a disk of {header.size} bytes")
    if header.extended and header.cluster_bits < _MIN_EXTENDED_BITS:
        raise CorruptImageError(f"{name}: subclusters in clusters of {header.cluster_size} bytes")
    if header.external and header.snapshots_count:
        raise CorruptImageError(f"{name}: snapshots beside an external data file")
    if header.l1_entries * 8 > MAX_L1_SIZE:
        raise CorruptImageError(f"{name}: offset 36: an L1 table of {header.l1_entries} entries")
    if header.l1_entries * header.entries_per_table << header.cluster_bits < header.size:
        raise CorruptImageError(f"{name}: offset 36: the L1 table is too small for {header.size} bytes")
    if header.l1_offset % header.cluster_size:
        raise CorruptImageError(f"{name}: offset 40: L1 table at {header.l1_offset}, between clusters")
    if header.l1_entries and header.l1_offset + header.l1_entries * 8 > file_size:
        raise IncompleteImageError(
            f"{name}: the L1 table at {header.l1_offset} lies after the end of the file, at {file_size}"
        )


def snapshots_area(header: Header) -> int:
    """Return how many bytes of the table of snapshots are worth a look."""
    return min(header.snapshots_count, _MAX_SNAPSHOTS) * 512


def parse_snapshots(table: bytes, count: int, name: str) -> Iterator[Snapshot]:
    """Yield the snapshots that lie in ``table`` as a whole, at most ``count``.

    Raises:
        CorruptImageError: an entry makes no sense.
    """
    position = 0
    for _ in range(count):
        if position + 40 > len(table):
            return
        id_size, name_size, seconds, nanoseconds = struct.unpack_from(">HHII", table, position + 12)
        state, extra = struct.unpack_from(">II", table, position + 32)
        if extra > 1024:
            raise CorruptImageError(f"{name}: table of snapshots: {extra} bytes of extra data")
        if extra >= 8 and position + 48 <= len(table):
            (state,) = struct.unpack_from(">Q", table, position + 40)
        start = position + 40 + extra
        middle, end = start + id_size, start + id_size + name_size
        if end > len(table):
            return
        yield Snapshot(
            table[start:middle].decode("utf-8", "replace"),
            table[middle:end].decode("utf-8", "replace"),
            seconds * 10**9 + nanoseconds % 10**9,
            state,
        )
        position += -(-(end - position) // 8) * 8


def notes(header: Header) -> Mapping[str, object]:
    """Return what is worth showing of a header, as JSON values."""
    found: dict[str, object] = {"version": header.version, "cluster_size": header.cluster_size}
    if header.compression == ZSTD:
        found["compression"] = "zstd"
    if header.extended:
        found["subclusters"] = True
    if header.backing_name:
        found["parent"] = shown_name(header.backing_name)
    if header.data_name:
        found["data_file"] = shown_name(header.data_name)
    if header.incompatible & DIRTY:
        found["dirty"] = True
    if header.incompatible & CORRUPT:
        found["corrupt"] = True
    return found
