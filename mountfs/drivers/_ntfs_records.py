"""NTFS file records and directory indexes, as far as libtsk does not show them exactly.

libtsk hides how much of a file is initialised, reparse points and file flags, and before its first
listing it walks the whole master file table. The layouts are those of the Linux-NTFS project's
documentation ("NTFS Documentation", chapters on attributes, file records and index records).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterator

STANDARD_INFORMATION = 0x10
ATTRIBUTE_LIST = 0x20
FILE_NAME = 0x30
SECURITY_DESCRIPTOR = 0x50
DATA = 0x80
INDEX_ROOT = 0x90
INDEX_ALLOCATION = 0xA0
BITMAP = 0xB0
REPARSE_POINT = 0xC0
OS2_ATTRIBUTES = 0xE0

_SECTOR = 512
_NUMBER = (1 << 48) - 1
_NAMESPACE_DOS = 2
_EPOCH = 116_444_736_000_000_000
"""1970 in units of 100 ns since 1601."""


class Attribute(NamedTuple):
    """One attribute in one record."""

    type: int
    name: bytes
    """UTF-16LE."""
    value: bytes | None
    """None: it lies on the volume."""
    first_cluster: int
    """Of the attribute's content that this record maps."""
    size: int
    initialized: int
    mapping: bytes = b""
    """Packed pairs of length and distance, where it lies on the volume."""


class FileRecord(NamedTuple):
    """One record of the master file table."""

    sequence: int
    links: int
    in_use: bool
    is_directory: bool
    attributes: tuple[Attribute, ...]

    def find(self, wanted: int, name: bytes = b"") -> Attribute | None:
        """Return the start of an attribute."""
        for attribute in self.attributes:
            if attribute.type == wanted and attribute.name == name and not attribute.first_cluster:
                return attribute
        return None


class IndexEntry(NamedTuple):
    """One name in a directory."""

    number: int
    sequence: int
    name: bytes
    """UTF-8; half a surrogate pair is kept (WTF-8)."""


def to_unix_ns(stamp: int) -> int:
    """Convert 100 ns since 1601 to nanoseconds since 1970."""
    return (stamp - _EPOCH) * 100


def fixed_up(raw: bytes, magic: bytes) -> bytes:
    """Check the magic number and undo the update sequence, which proves that no sector is stale.

    Raises:
        VolumeError: the record was torn or is no such record.
    """
    if raw[:4] != magic:
        raise VolumeError(f"an NTFS record is damaged: it starts with {raw[:4]!r}")
    offset, count = struct.unpack_from("<HH", raw, 4)
    if count != len(raw) // _SECTOR + 1 or offset + 2 * count > _SECTOR - 2:
        raise VolumeError("an NTFS record is damaged: a bad update sequence")
    fixed = bytearray(raw)
    stamp = raw[offset : offset + 2]
    for index in range(1, count):
        end = index * _SECTOR
        if raw[end - 2 : end] != stamp:
            raise VolumeError("an NTFS record is damaged: it was written only in part")
        fixed[end - 2 : end] = raw[offset + 2 * index : offset + 2 * index + 2]
    return bytes(fixed)


def parse_record(raw: bytes) -> FileRecord:
    """Parse a file record.

    Raises:
        VolumeError: it is damaged.
    """
    raw = fixed_up(raw, b"FILE")
    sequence, links, first, flags, used = struct.unpack_from("<HHHHI", raw, 16)
    if used > len(raw):
        raise VolumeError("an NTFS record is damaged: it uses more than its size")
    return FileRecord(sequence, links, bool(flags & 1), bool(flags & 2), tuple(_attributes(raw, first, used)))


def _attributes(raw: bytes, at: int, end: int) -> Iterator[Attribute]:
    while at + 8 <= end:
        kind, length = struct.unpack_from("<II", raw, at)
        if kind == 0xFFFF_FFFF:
            return
        if length < 24 or length % 8 or at + length > end:
            raise VolumeError("an NTFS record is damaged: a bad attribute length")
        yield _attribute(raw[at : at + length], kind)
        at += length


def _attribute(raw: bytes, kind: int) -> Attribute:
    on_volume, name_length, name_offset = struct.unpack_from("<BBH", raw, 8)
    name = raw[name_offset : name_offset + 2 * name_length]
    if on_volume:
        (first,) = struct.unpack_from("<Q", raw, 16)
        _, size, initialized = struct.unpack_from("<QQQ", raw, 40)
        (pairs,) = struct.unpack_from("<H", raw, 32)
        return Attribute(kind, name, None, first, size, initialized, raw[pairs:])
    size, offset = struct.unpack_from("<IH", raw, 16)
    value = raw[offset : offset + size]
    if len(value) < size:
        raise VolumeError("an NTFS record is damaged: a value longer than its attribute")
    return Attribute(kind, name, value, 0, size, size)


def attribute_list(raw: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield type, name (UTF-16LE), first cluster and record number of each entry of an attribute list."""
    at = 0
    while at + 26 <= len(raw):
        kind, length, name_length, name_offset, first, reference = struct.unpack_from("<IHBBQQ", raw, at)
        if length < 26:
            raise VolumeError("an NTFS attribute list is damaged")
        name = raw[at + name_offset : at + name_offset + 2 * name_length]
        yield kind, name, first, reference & _NUMBER
        at += length


def parent_of(file_name: bytes) -> int:
    """Return the number of the directory from the start of a file name attribute."""
    (reference,) = struct.unpack_from("<Q", file_name, 0)
    return int(reference) & _NUMBER


def index_root_entries(raw: bytes) -> Iterator[IndexEntry]:
    """Yield the names in the root of a directory's index."""
    yield from _index_entries(raw, 16)


def index_block_size(raw: bytes) -> int:
    """Return the size of the other blocks of an index, from its root.

    Raises:
        VolumeError: it makes no sense.
    """
    (size,) = struct.unpack_from("<I", raw, 8)
    if not _SECTOR <= size <= 65_536 or size & (size - 1):
        raise VolumeError(f"an NTFS directory is damaged: index blocks of {size} bytes")
    return int(size)


def index_block_entries(raw: bytes) -> Iterator[IndexEntry]:
    """Yield the names in one block of an index."""
    yield from _index_entries(fixed_up(raw, b"INDX"), 24)


def _index_entries(raw: bytes, header: int) -> Iterator[IndexEntry]:
    first, end = struct.unpack_from("<II", raw, header)
    at, end = header + first, header + end
    if end > len(raw):
        raise VolumeError("an NTFS directory is damaged: an index block longer than its size")
    while at + 16 <= end:
        reference, length, _, flags = struct.unpack_from("<QHHH", raw, at)
        if flags & 2:
            return
        if length < 16 + 66 or length % 8 or at + length > end:
            raise VolumeError("an NTFS directory is damaged: a bad index entry")
        name_length, namespace = struct.unpack_from("<BB", raw, at + 16 + 64)
        name = raw[at + 82 : at + 82 + 2 * name_length]
        if 82 + 2 * name_length > length:
            raise VolumeError("an NTFS directory is damaged: a name longer than its entry")
        if namespace != _NAMESPACE_DOS:
            yield IndexEntry(reference & _NUMBER, reference >> 48, to_utf8(name))
        at += length
    raise VolumeError("an NTFS directory is damaged: an index block without an end")


def to_utf8(name: bytes) -> bytes:
    """Convert UTF-16LE; half a surrogate pair is kept (WTF-8)."""
    return name.decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")
