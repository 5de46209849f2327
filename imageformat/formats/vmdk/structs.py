"""The structures of VMDK files: pure parsing.

Source: VMware, Virtual Disk Format 5.0; of the COW disks of ESX: what libvmdk's documentation tells of them.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTOR = 512
HEADER_SIZE = 512
MAX_DESCRIPTOR = 1 << 20
MAX_DISK = 1 << 50
NO_PARENT = "ffffffff"
SPARSE_MAGIC = b"KDMV"
COWD_MAGIC = b"COWD"
SESPARSE_MAGIC = bytes.fromhex("bebafeca00000000")
DESCRIPTOR_MARK = b"# Disk DescriptorFile"
AT_END = (1 << 64) - 1
"""In the place of the grain directory: a second header at the end of the file tells where it is."""

_SPARSE = struct.Struct("<4sIIQQQQIQQQB4sH")
_COWD = struct.Struct("<4sIIIIIII")
_NEWLINES_CHECKED, _REDUNDANT, _ZEROED_GRAINS, _COMPRESSED, _MARKERS = 1, 2, 4, 1 << 16, 1 << 17
_KNOWN_FLAGS = _NEWLINES_CHECKED | _REDUNDANT | _ZEROED_GRAINS | _COMPRESSED | _MARKERS
_MAX_GRAIN = 32 << 20
_MAX_TABLE = 1 << 16
_COWD_TABLE = 4096
_DEFLATE = 1
_MAX_EXTENTS = 4096
_EXTENT = re.compile(r'(RW|RDONLY|NOACCESS)\s+(\d{1,16})\s+([A-Z0-9]+)(?:\s+"([^"]*)"(?:\s+(\d{1,16}))?)?')
_VALUE = re.compile(r'([\w.]+)\s*=\s*"?([^"]*)"?\s*')
_ENCODINGS = {"windows-1252": "cp1252", "gbk": "gbk", "big5": "big5", "shift_jis": "shift_jis"}


@dataclass(frozen=True, slots=True)
class SparseHeader:
    """Of a file of grains. Lengths and places in bytes."""

    capacity: int
    grain_size: int
    table_entries: int
    """Grains in one grain table."""
    directory: int
    redundant_directory: int
    """0: there is none."""
    descriptor: int
    descriptor_size: int
    is_compressed: bool
    has_zeroed_grains: bool
    is_unclean: bool
    at_end: bool
    """The directory's place is told at the end of the file."""

    @property
    def tables(self) -> int:
        """Entries of the grain directory."""
        return -(-self.capacity // (self.grain_size * self.table_entries))


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """A part of the disk, as the descriptor has it."""

    access: str
    size: int
    kind: str
    name: str
    offset: int
    """Of its first byte in that file."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a disk is made of."""

    values: Mapping[str, str]
    """By key in lower case."""
    extents: tuple[ExtentLine, ...]
    content: bytes

    @property
    def content_id(self) -> str:
        """Changes when the disk is written to."""
        return self.values.get("cid", "").lower().rjust(8, "0")

    @property
    def parent_content_id(self) -> str:
        """Of the parent when the child was made; `NO_PARENT` when there is none."""
        return self.values.get("parentcid", NO_PARENT).lower().rjust(8, "0")


def parse_sparse(name: str, block: bytes) -> SparseHeader:
    """Return the header of a hosted sparse file.

    Raises:
        UnsupportedFeatureError: a version, flag or compression that is not known.
        CorruptImageError: it is damaged.
    """
    (
        magic,
        version,
        flags,
        capacity,
        grain,
        descriptor,
        descriptor_size,
        entries,
        redundant,
        directory,
        _,
        unclean,
        newlines,
        method,
    ) = _SPARSE.unpack_from(block)
    if magic != SPARSE_MAGIC:
        raise CorruptImageError(f"{name}: is no sparse VMDK file, or its header is damaged")
    if version not in (1, 2, 3) or flags & ~_KNOWN_FLAGS:
        raise UnsupportedFeatureError(f"{name}: sparse VMDK of version {version} with flags {flags:#x}")
    if flags & _NEWLINES_CHECKED and newlines != b"\n \r\n":
        raise CorruptImageError(f"{name}: line ends in it were changed, as by a transfer as text")
    if flags & _COMPRESSED and method != _DEFLATE:
        raise UnsupportedFeatureError(f"{name}: grains compressed by the unknown method {method}")
    return _sane(
        name,
        SparseHeader(
            capacity * SECTOR,
            grain * SECTOR,
            entries,
            directory * SECTOR,
            redundant * SECTOR if flags & _REDUNDANT else 0,
            descriptor * SECTOR,
            descriptor_size * SECTOR,
            bool(flags & _COMPRESSED),
            bool(flags & _ZEROED_GRAINS),
            bool(unclean),
            directory == AT_END,
        ),
    )


def parse_cowd(name: str, block: bytes) -> SparseHeader:
    """Return the header of a COW disk of ESX (vmfsSparse).

    Raises:
        UnsupportedFeatureError, CorruptImageError: as `parse_sparse`.
    """
    magic, version, _, sectors, grain, directory, entries, _ = _COWD.unpack_from(block)
    if magic != COWD_MAGIC:
        raise CorruptImageError(f"{name}: is no COW disk, or its header is damaged")
    if version != 1:
        raise UnsupportedFeatureError(f"{name}: COW disk of version {version}")
    header = SparseHeader(
        sectors * SECTOR,
        grain * SECTOR,
        _COWD_TABLE,
        directory * SECTOR,
        redundant_directory=0,
        descriptor=0,
        descriptor_size=0,
        is_compressed=False,
        has_zeroed_grains=False,
        is_unclean=False,
        at_end=False,
    )
    if _sane(name, header).tables > entries:
        raise CorruptImageError(f"{name}: a directory of {entries} entries is too small")
    return header


def _sane(name: str, header: SparseHeader) -> SparseHeader:
    grain = header.grain_size
    if not SECTOR <= grain <= _MAX_GRAIN or grain & (grain - 1):
        raise CorruptImageError(f"{name}: grains of {grain} bytes")
    if not 1 <= header.table_entries <= _MAX_TABLE:
        raise CorruptImageError(f"{name}: grain tables of {header.table_entries} entries")
    if not header.capacity or header.capacity > MAX_DISK:
        raise CorruptImageError(f"{name}: capacity of {header.capacity} bytes")
    return header


def parse_descriptor(name: str, content: bytes) -> Descriptor:
    """Return what a descriptor says.

    Raises:
        CorruptImageError: it is none, or has no part of a disk.
        UnsupportedFeatureError: a part cannot be read.
    """
    content = content.split(b"\0")[0]
    if not content.lstrip().startswith(DESCRIPTOR_MARK):
        raise CorruptImageError(f"{name}: has no VMDK descriptor, or it is damaged")
    named = re.search(rb'(?im)^\s*encoding\s*=\s*"?([\w-]+)', content)
    encoding = _ENCODINGS.get(named[1].decode().lower(), "utf-8") if named else "utf-8"
    values: dict[str, str] = {}
    extents: list[ExtentLine] = []
    for line in content.decode(encoding, "replace").splitlines():
        text = line.strip()
        if (found := _EXTENT.match(text)) is not None:
            access, sectors, kind, path, offset = found.groups()
            extents.append(
                ExtentLine(access, int(sectors) * SECTOR, kind, path or "", int(offset or 0) * SECTOR)
            )
        elif not text.startswith("#") and (found := _VALUE.fullmatch(text)) is not None:
            values.setdefault(found[1].lower(), found[2])
    if not extents or len(extents) > _MAX_EXTENTS:
        raise CorruptImageError(f"{name}: its descriptor names {len(extents)} parts of a disk")
    for extent in extents:
        if extent.access == "NOACCESS":
            raise UnsupportedFeatureError(f"{name}: a part of the disk is marked as not to be read")
        if not extent.size:
            raise CorruptImageError(f"{name}: a part of the disk is empty")
    if sum(extent.size for extent in extents) > MAX_DISK:
        raise CorruptImageError(f"{name}: the parts of the disk are too large together")
    return Descriptor(values, tuple(extents), content)
