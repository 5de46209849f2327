"""Descriptors of UDF: checked tags, strings, times, file entries and file identifiers.

Sources: ECMA-167 3rd edition (parts 1, 3 and 4) and OSTA UDF 2.60. Numbers are little-endian.
"""

from __future__ import annotations

import binascii
import calendar
import struct
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import UnsupportedVolumeError, VolumeError
from mountfs.drivers._content import MAX_FILE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

TAG = 16
ANCHOR, POINTER, PARTITION, LOGICAL_VOLUME, TERMINATOR = 2, 3, 5, 6, 8
FILE_SET, IDENTIFIER, ALLOCATION, FILE_ENTRY, ATTRIBUTES, EXTENDED_ENTRY = 256, 257, 258, 261, 262, 266

RECORDED, ALLOCATED, UNALLOCATED, CONTINUED = range(4)
"""What the two high bits of an extent's length say."""
LENGTH_MASK = 0x3FFF_FFFF

SHORT, LONG, EXTENDED, EMBEDDED = range(4)
"""Forms of allocation descriptors."""

DIRECTORY, STREAM_DIRECTORY, VAT_FILE, METADATA_FILE, METADATA_MIRROR = 4, 13, 248, 250, 251

_STRATEGY = 4
_NO_OWNER = 0xFFFF_FFFF
_NO_ZONE = -2047
_DEVICE_ATTRIBUTE = 12


class Place(NamedTuple):
    """A logical block of a partition, by its reference in the logical volume."""

    partition: int
    block: int


class Extent(NamedTuple):
    """One allocation descriptor."""

    kind: int
    length: int
    """Bytes."""
    place: Place


class Entry(NamedTuple):
    """A file entry, extended or not."""

    place: Place
    kind: int
    flags: int
    uid: int
    gid: int
    permissions: int
    links: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    streams: Extent | None
    attributes: bytes
    allocation: bytes

    @property
    def form(self) -> int:
        """Of the allocation descriptors."""
        return self.flags & 7

    @property
    def mode(self) -> int:
        """Permission bits as Unix has them."""
        allowed = self.permissions
        bits = allowed & 7 | (allowed >> 5 & 7) << 3 | (allowed >> 10 & 7) << 6
        special = (self.flags >> 6 & 1) << 11 | (self.flags >> 7 & 1) << 10 | (self.flags >> 8 & 1) << 9
        return bits | special


class Identifier(NamedTuple):
    """A name in a directory."""

    name: bytes
    place: Place
    deleted: bool
    parent: bool


def tag_of(raw: bytes, what: str, *, location: int | None = None) -> int:
    """Return the kind of a descriptor after its checksum, its CRC and its place were checked.

    Raises:
        VolumeError: one of them is wrong.
    """
    if len(raw) < TAG:
        raise VolumeError(f"{what} is damaged: it is cut off")
    kind, checksum, crc, length, where = struct.unpack_from("<H2xB3xHHI", raw)
    if (sum(raw[:4]) + sum(raw[5:TAG])) & 0xFF != checksum:
        raise VolumeError(f"{what} is damaged: its tag does not have its checksum")
    if TAG + length > len(raw) or binascii.crc_hqx(raw[TAG : TAG + length], 0) != crc:
        raise VolumeError(f"{what} is damaged: it does not have its checksum")
    if location is not None and where != location:
        raise VolumeError(f"{what} is damaged: it belongs to block {where}, not {location}")
    return int(kind)


def expect(raw: bytes, kind: int, what: str, *, location: int | None = None) -> None:
    """Check a descriptor as `tag_of` does, and that it is of one kind."""
    found = tag_of(raw, what, location=location)
    if found != kind:
        raise VolumeError(f"{what} is damaged: a descriptor of kind {found} instead of {kind}")


def text(raw: bytes) -> bytes:
    """Decode compressed Unicode (OSTA CS0) to UTF-8."""
    if not raw:
        return b""
    if raw[0] in {8, 254}:
        return raw[1:].decode("latin-1").encode()
    if raw[0] in {16, 255} and len(raw) % 2:
        return raw[1:].decode("utf-16-be", "surrogatepass").encode("utf-8", "surrogatepass")
    raise VolumeError(f"a name is damaged: of compression {raw[0]}, {len(raw)} bytes")


def long_extent(raw: bytes, at: int) -> Extent:
    """Parse a long allocation descriptor."""
    length, block, partition = struct.unpack_from("<IIH", raw, at)
    return Extent(length >> 30, length & LENGTH_MASK, Place(partition, block))


def extents(raw: bytes, form: int, partition: int) -> Iterator[Extent]:
    """Parse allocation descriptors up to the first of no length; short ones are in ``partition``."""
    step = {SHORT: 8, LONG: 16, EXTENDED: 20}[form]
    for at in range(0, len(raw) - step + 1, step):
        if form == EXTENDED:
            extent = _extended(raw, at)
        elif form == LONG:
            extent = long_extent(raw, at)
        else:
            length, block = struct.unpack_from("<II", raw, at)
            extent = Extent(length >> 30, length & LENGTH_MASK, Place(partition, block))
        if not extent.length:
            return
        yield extent


def _extended(raw: bytes, at: int) -> Extent:
    length, recorded, information, block, partition = struct.unpack_from("<IIIIH", raw, at)
    if recorded != information:
        raise UnsupportedVolumeError("a file is compressed in a way that no standard describes")
    return Extent(length >> 30, information & LENGTH_MASK, Place(partition, block))


def parse_entry(raw: bytes, place: Place) -> Entry:
    """Parse the block of a file entry.

    Raises:
        VolumeError: it is none, or damaged.
        UnsupportedVolumeError: it is found by another strategy than the fourth.
    """
    kind = tag_of(raw, f"the file entry at block {place.block}", location=place.block)
    if kind not in {FILE_ENTRY, EXTENDED_ENTRY}:
        raise VolumeError(f"block {place.block} is no file entry but a descriptor of kind {kind}")
    strategy, file_kind, flags = struct.unpack_from("<H5xB6xH", raw, 20)
    if strategy != _STRATEGY:
        raise UnsupportedVolumeError(
            f"file entries by strategy {strategy} (write-once media) are not supported"
        )
    uid, gid, permissions, links, size = struct.unpack_from("<IIIH6xQ", raw, 36)
    if size > MAX_FILE_SIZE:
        raise VolumeError(f"the file entry at block {place.block} is damaged: a file of {size} bytes")
    streams, birth = None, 0
    if kind == EXTENDED_ENTRY:
        atime, mtime, birth, ctime = (timestamp(raw, at) for at in (80, 92, 104, 116))
        found = long_extent(raw, 152)
        streams = found if found.length else None
        attributes, allocation, start = *struct.unpack_from("<II", raw, 208), 216
    else:
        atime, mtime, ctime = (timestamp(raw, at) for at in (72, 84, 96))
        attributes, allocation, start = *struct.unpack_from("<II", raw, 168), 176
    end = start + attributes + allocation
    if end > len(raw):
        raise VolumeError(f"the file entry at block {place.block} is damaged: larger than its block")
    return Entry(
        place=place,
        kind=file_kind,
        flags=flags,
        uid=0 if uid == _NO_OWNER else uid,
        gid=0 if gid == _NO_OWNER else gid,
        permissions=permissions,
        links=links,
        size=size,
        atime_ns=atime,
        mtime_ns=mtime,
        ctime_ns=ctime,
        birth_ns=birth,
        streams=streams,
        attributes=raw[start : start + attributes],
        allocation=raw[start + attributes : end],
    )


def device_number(entry: Entry) -> tuple[int, int]:
    """Return the numbers of a device node, from the attributes in its entry; (0, 0): there are none."""
    raw, at = entry.attributes, 24
    if len(raw) < at:
        return 0, 0
    expect(raw, ATTRIBUTES, "the attributes of a device node")
    while at + 12 <= len(raw):
        kind, length = struct.unpack_from("<I4xI", raw, at)
        if length < 12 or at + length > len(raw):
            raise VolumeError("the attributes of a device node are damaged")
        if kind == _DEVICE_ATTRIBUTE and length >= 24:
            major, minor = struct.unpack_from("<II", raw, at + 16)
            return major, minor
        at += length
    return 0, 0


def identifiers(raw: bytes) -> Iterator[Identifier]:
    """Yield the entries of a directory.

    Raises:
        VolumeError: one of them is damaged; where the next one begins is not known then.
    """
    at = 0
    while at < len(raw):
        if at + 38 > len(raw):
            raise VolumeError("a directory is damaged: it ends within an entry")
        characteristics, name_length = raw[at + 18], raw[at + 19]
        (use_length,) = struct.unpack_from("<H", raw, at + 36)
        used = 38 + use_length + name_length
        padded = -(-used // 4) * 4
        one = raw[at : at + padded]
        expect(one, IDENTIFIER, f"the directory entry at byte {at}")
        if len(one) < used:
            raise VolumeError("a directory is damaged: it ends within an entry")
        extent, deleted = long_extent(one, 20), bool(characteristics & 4)
        name = b"" if deleted else text(one[38 + use_length : used])
        yield Identifier(name, extent.place, deleted, bool(characteristics & 8))
        at += padded


def link_target(raw: bytes) -> bytes:
    """Join the path components of a symbolic link (ECMA-167 4/14.16)."""
    parts: list[bytes] = []
    root = b""
    at = 0
    while at + 4 <= len(raw):
        kind, length = raw[at], raw[at + 1]
        name = raw[at + 4 : at + 4 + length]
        if kind in {1, 2}:
            root, parts = b"/", []
        elif kind in {3, 4}:
            parts.append(b".." if kind == 3 else b".")
        elif kind == 5 and len(name) == length:
            parts.append(text(name))
        else:
            raise VolumeError(f"a symbolic link is damaged: a component of kind {kind}")
        at += 4 + length
    return root + b"/".join(parts)


def timestamp(raw: bytes, at: int) -> int:
    """Decode a time (ECMA-167 1/7.3) to nanoseconds; 0 when it makes no sense."""
    zone, year, month, day, hour, minute, second, *small = struct.unpack_from("<HhBBBBBBBB", raw, at)
    if not (
        0 < year < 10_000
        and 1 <= month <= 12
        and 1 <= day <= 31
        and hour < 24
        and minute < 60
        and second <= 60
    ):
        return 0
    minutes = (zone & 0xFFF) - ((zone & 0x800) << 1)
    if zone >> 12 != 1 or minutes == _NO_ZONE:
        minutes = 0
    seconds = calendar.timegm((year, month, day, hour, minute, second)) - minutes * 60
    micros = small[0] * 10_000 + small[1] * 100 + small[2]
    return int(seconds * 1_000_000 + micros) * 1000
