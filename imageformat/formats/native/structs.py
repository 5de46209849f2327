"""The bytes of a native image: header, frame, record, footer. The law is docs/format.md.

Every function here is pure: bytes in, frozen values out, and `CorruptImageError` for anything that
docs/format.md does not allow.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from imageformat.codec import check64, digest
from imageformat.errors import CorruptImageError, IncompleteImageError, UnsupportedFeatureError
from imageformat.layer import ImageType

MAGIC = b"\x89MFI\r\n\x1a\n"
VERSION = (0, 2)
HEADER_SIZE = 4096
FOOTER_SIZE = 512
FOOTER_MAGIC = b"MFI-END\n"
FRAME_MAGIC = b"MFfr"
FRAME_HEADER_SIZE = 64
RECORD_SIZE = 32
DIRECTORY_RECORD_SIZE = 64
ROOT_SIZE = 32
MIN_BLOCK_SIZE = 4096
MAX_BLOCK_SIZE = 4 << 20
MAX_DISK_SIZE = 1 << 60
MAX_DEPTH = 1024
PAGE_BITS = 8

DELTA_FRAMES = 1 << 0
"""Incompatible feature: a block may be stored as what differs from an older version of it."""
FOREIGN_BASE = 1 << 1
"""Incompatible feature: depth 0 of the chain is an image of another tool; records name places on its disk."""
EXCLUDED_FILES = 1 << 2
"""Incompatible feature: blocks of files that were left out on purpose have a state of their own."""
KNOWN_INCOMPATIBLE = DELTA_FRAMES | FOREIGN_BASE | EXCLUDED_FILES
DELTA_FRAMES_NAME = (1, b"\0\0sub-block deltas")
FOREIGN_BASE_NAME = (1, b"\0\1base of another tool")
EXCLUDED_FILES_NAME = (1, b"\0\2excluded files")
"""Their names, as extension records, for readers that lack them."""

NO_UUID = UUID(int=0)
NO_ROOT = bytes(ROOT_SIZE)

_TYPE_CODES = {ImageType.FULL: 0, ImageType.DIFFERENTIAL: 1, ImageType.INCREMENTAL: 2}
_TYPES = {code: kind for kind, code in _TYPE_CODES.items()}

_HEADER = struct.Struct("<8sHHIQQ16s16s16s32sQQIIBBHII")
_HEADER_HASH_AT = HEADER_SIZE - 16
_EXTENSIONS_AT = 512
_EXTENSION = struct.Struct("<II")
_FOOTER = struct.Struct("<8s16sQ32s64sQIIQQQQQQQ16sQ")
_FOOTER_HASH_AT = FOOTER_SIZE - 16
_FRAME = struct.Struct("<4sBBHIIQ16s16s8s")
_FRAME_CHECK_AT = FRAME_HEADER_SIZE - 8
_RECORD = struct.Struct("<16sQII")


class State(enum.IntEnum):
    """What a record says. The numbers are part of the format; 0 is never valid."""

    DATA = 1
    ZERO = 2
    UNUSED = 3
    BAD = 4
    PAGE = 5
    EXCLUDED = 6


class FrameKind(enum.IntEnum):
    """What a frame holds. The numbers are part of the format."""

    BLOCK = 1
    PAGE = 2
    ANCESTORS = 3


class ExtensionType(enum.IntEnum):
    """Known header extensions; others are skipped."""

    END = 0
    FEATURE_NAME = 1
    ORIGIN = 2


@dataclass(frozen=True, slots=True)
class Header:
    """The first 4096 bytes of an image: what is known before the first block is written."""

    image_id: UUID
    set_id: UUID
    type: ImageType
    number: int
    created_ns: int
    disk_size: int
    sector_size: int
    block_size: int
    parent_id: UUID = NO_UUID
    parent_root: bytes = NO_ROOT
    depth: int = 0
    page_bits: int = PAGE_BITS
    incompatible: int = 0
    compatible: int = 0
    extensions: tuple[tuple[int, bytes], ...] = ()

    @property
    def origin(self) -> bytes:
        """The ORIGIN extension: JSON about source, host and writer; ``{}`` when absent."""
        return next((data for kind, data in self.extensions if kind == ExtensionType.ORIGIN), b"{}")


class Record(NamedTuple):
    """Where a block or a page is, or what a range is filled with."""

    digest: bytes
    offset: int
    length: int
    state: int
    layer: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What one image file holds of its own, in blocks and bytes."""

    data_blocks: int = 0
    zero_blocks: int = 0
    unused_blocks: int = 0
    bad_blocks: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    excluded_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Footer:
    """The last 512 bytes: where the index starts, and what the point is."""

    image_id: UUID
    file_size: int
    root: bytes
    top: bytes
    """Directory record of the top page: 32 bytes of record, 32 bytes of logical digest."""
    ancestors_offset: int
    ancestors_length: int
    height: int
    counts: Counts
    finished_ns: int
    header_digest: bytes


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The 64 bytes before every payload."""

    kind: int
    codec: int
    payload_length: int
    raw_length: int
    number: int
    image_id: bytes
    digest: bytes


def pack_record(record: Record) -> bytes:
    """Return the 32 bytes of a record."""
    return _RECORD.pack(record.digest, record.offset, record.length, record.state | record.layer << 8)


def unpack_record(page: bytes, position: int) -> Record:
    """Read the record at byte ``position`` of a page."""
    digest_, offset, length, word = _RECORD.unpack_from(page, position)
    return Record(digest_, offset, length, word & 0xFF, word >> 8)


def fill_record(state: State, layer: int) -> bytes:
    """Return the record of a block, or of a whole subtree, that is filled with one state."""
    return _RECORD.pack(bytes(16), 0, 0, state | layer << 8)


def pack_header(header: Header) -> bytes:
    """Return the 4096 bytes of a header.

    Raises:
        ValueError: the extensions do not fit.
    """
    fixed = _HEADER.pack(
        MAGIC,
        *VERSION,
        HEADER_SIZE,
        header.incompatible,
        header.compatible,
        header.image_id.bytes,
        header.set_id.bytes,
        header.parent_id.bytes,
        header.parent_root,
        header.created_ns,
        header.disk_size,
        header.sector_size,
        header.block_size,
        _TYPE_CODES[header.type],
        header.page_bits,
        0,
        header.depth,
        header.number,
    )
    extensions = b"".join(
        _EXTENSION.pack(kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in header.extensions
    )
    room = _HEADER_HASH_AT - _EXTENSIONS_AT - _EXTENSION.size
    if len(extensions) > room:
        raise ValueError(f"header extensions take {len(extensions)} bytes, {room} are free")
    body = (fixed.ljust(_EXTENSIONS_AT, b"\0") + extensions).ljust(_HEADER_HASH_AT, b"\0")
    return body + digest(body)


def unpack_header(data: bytes, name: str) -> Header:
    """Parse and prove a header.

    Raises:
        IncompleteImageError: fewer than 4096 bytes.
        CorruptImageError: the checksum or a field is wrong.
        UnsupportedFeatureError: another major version, or an unknown incompatible feature.
    """
    if len(data) < HEADER_SIZE:
        raise IncompleteImageError(f"{name}: only {len(data)} bytes, cut off inside the header")
    if digest(data[:_HEADER_HASH_AT]) != data[_HEADER_HASH_AT:HEADER_SIZE]:
        raise CorruptImageError(f"{name}: the header (first {HEADER_SIZE} bytes) is damaged")
    fields = _HEADER.unpack_from(data)
    if fields[1] != VERSION[0] or fields[3] != HEADER_SIZE:
        raise UnsupportedFeatureError(
            f"{name}: format version {fields[1]}.{fields[2]} is not known here; a newer mountfs opens it"
        )
    extensions = _unpack_extensions(data, name)
    _check_features(fields[4], extensions, name)
    if fields[14] not in _TYPES:
        raise CorruptImageError(f"{name}: unknown image type {fields[14]}")
    header = Header(
        image_id=UUID(bytes=fields[6]),
        set_id=UUID(bytes=fields[7]),
        type=_TYPES[fields[14]],
        number=fields[18],
        created_ns=fields[10],
        disk_size=fields[11],
        sector_size=fields[12],
        block_size=fields[13],
        parent_id=UUID(bytes=fields[8]),
        parent_root=fields[9],
        depth=fields[17],
        page_bits=fields[15],
        incompatible=fields[4],
        compatible=fields[5],
        extensions=extensions,
    )
    _check_header(header, name)
    return header


def _unpack_extensions(data: bytes, name: str) -> tuple[tuple[int, bytes], ...]:
    found: list[tuple[int, bytes]] = []
    position = _EXTENSIONS_AT
    while position + _EXTENSION.size <= _HEADER_HASH_AT:
        kind, length = _EXTENSION.unpack_from(data, position)
        if kind == ExtensionType.END:
            return tuple(found)
        position += _EXTENSION.size
        if length > _HEADER_HASH_AT - position:
            break
        found.append((kind, data[position : position + length]))
        position += length + -length % 8
    raise CorruptImageError(f"{name}: the header's extension records do not end")


def _check_features(incompatible: int, extensions: tuple[tuple[int, bytes], ...], name: str) -> None:
    unknown = incompatible & ~KNOWN_INCOMPATIBLE
    if not unknown:
        return
    names = {
        data[1]: data[2:].decode("utf-8", "replace")
        for kind, data in extensions
        if kind == ExtensionType.FEATURE_NAME and len(data) > 2 and data[0] == 0
    }
    lacking = [names.get(bit, f"feature {bit}") for bit in range(64) if unknown >> bit & 1]
    raise UnsupportedFeatureError(f"{name}: needs {', '.join(lacking)}, which this version does not have")


def _check_header(header: Header, name: str) -> None:
    block_size, sector_size = header.block_size, header.sector_size
    has_parent = header.parent_id != NO_UUID
    sane = (
        block_size & (block_size - 1) == 0
        and MIN_BLOCK_SIZE <= block_size <= MAX_BLOCK_SIZE
        and sector_size & (sector_size - 1) == 0
        and 256 <= sector_size <= block_size
        and header.disk_size <= MAX_DISK_SIZE
        and 4 <= header.page_bits <= 12
        and header.depth <= MAX_DEPTH
        and has_parent == (header.depth > 0)
        and has_parent == (header.type is not ImageType.FULL)
        and (has_parent or header.parent_root == NO_ROOT)
        and header.number > 0
        and header.image_id != NO_UUID
    )
    if not sane:
        raise CorruptImageError(f"{name}: the header contradicts itself")


def pack_footer(footer: Footer) -> bytes:
    """Return the 512 bytes of a footer."""
    counts = footer.counts
    body = _FOOTER.pack(
        FOOTER_MAGIC,
        footer.image_id.bytes,
        footer.file_size,
        footer.root,
        footer.top,
        footer.ancestors_offset,
        footer.ancestors_length,
        footer.height,
        counts.data_blocks,
        counts.zero_blocks,
        counts.unused_blocks,
        counts.bad_blocks,
        counts.raw_bytes,
        counts.stored_bytes,
        footer.finished_ns,
        footer.header_digest,
        counts.excluded_blocks,
    ).ljust(_FOOTER_HASH_AT, b"\0")
    return body + digest(body)


def unpack_footer(data: bytes, file_size: int, name: str) -> Footer:
    """Parse and prove a footer.

    Raises:
        IncompleteImageError: there is none: the backup never finished or the file was cut short.
        CorruptImageError: it is damaged or does not fit the file.
    """
    intact = digest(data[:_FOOTER_HASH_AT]) == data[_FOOTER_HASH_AT:]
    if not intact and data[: len(FOOTER_MAGIC)] != FOOTER_MAGIC:
        raise IncompleteImageError(
            f"{name}: has no end: the backup never finished, or the file was cut short or extended"
        )
    if not intact:
        raise CorruptImageError(f"{name}: the footer (last {FOOTER_SIZE} bytes) is damaged")
    fields = _FOOTER.unpack_from(data)
    footer = Footer(
        image_id=UUID(bytes=fields[1]),
        file_size=fields[2],
        root=fields[3],
        top=fields[4],
        ancestors_offset=fields[5],
        ancestors_length=fields[6],
        height=fields[7],
        counts=Counts(*(*fields[8:14], fields[16])),
        finished_ns=fields[14],
        header_digest=fields[15],
    )
    if fields[0] != FOOTER_MAGIC or footer.file_size != file_size:
        raise CorruptImageError(
            f"{name}: the footer was written for a file of {footer.file_size} bytes, this one has {file_size}"
        )
    return footer


def pack_frame(header: FrameHeader, payload: bytes | memoryview) -> bytes:
    """Return header and payload of one frame, with the checksum over both."""
    fixed = _FRAME.pack(
        FRAME_MAGIC,
        header.kind,
        header.codec,
        0,
        header.payload_length,
        header.raw_length,
        header.number,
        header.image_id,
        header.digest,
        b"",
    )[:_FRAME_CHECK_AT]
    return b"".join((fixed, check64(fixed, payload), payload))


def unpack_frame(data: bytes | memoryview) -> tuple[FrameHeader, memoryview]:
    """Split a stored frame into header and payload, proving the checksum of the stored bytes.

    Raises:
        CorruptImageError: what is wrong, without the place; the caller knows it.
    """
    if len(data) < FRAME_HEADER_SIZE:
        raise CorruptImageError("the frame is shorter than its header")
    magic, kind, codec, flags, payload_length, raw_length, number, image_id, raw_digest, check = (
        _FRAME.unpack_from(data)
    )
    if magic != FRAME_MAGIC or flags or payload_length != len(data) - FRAME_HEADER_SIZE:
        raise CorruptImageError("there is no frame of the expected length")
    payload = memoryview(data)[FRAME_HEADER_SIZE:]
    if check64(data[:_FRAME_CHECK_AT], payload) != check:
        raise CorruptImageError("the stored bytes do not match their checksum")
    return FrameHeader(kind, codec, payload_length, raw_length, number, image_id, raw_digest), payload


def peek_frame(data: bytes) -> FrameHeader | None:
    """Read a frame header without its payload, for scanning; None when there is none."""
    if len(data) < FRAME_HEADER_SIZE or data[:4] != FRAME_MAGIC:
        return None
    _, kind, codec, _, payload_length, raw_length, number, image_id, raw_digest, _ = _FRAME.unpack_from(data)
    return FrameHeader(kind, codec, payload_length, raw_length, number, image_id, raw_digest)


def page_number(level: int, page: int) -> int:
    """Return the frame number of an index page."""
    return level << 56 | page
