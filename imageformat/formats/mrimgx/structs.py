"""The bytes of a Macrium Reflect X container: trailer, metadata block, boot records, index entries.

All integers are little-endian and unaligned. Source: the publisher's documents FILE_LAYOUT.md and
ENCRYPTION.md of mrimgx_file_layout. Every function here is pure: bytes in, frozen values out, and an
`ImageError` for anything else.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from imageformat.errors import CorruptImageError

TRAILER_SIZE = 20
TRAILER_MAGIC = b"MACRIUM_FILE"
OLD_FIRST_BYTE = 0x03
"""Of the files of Reflect 8 and older, which bear the same names."""

BLOCK_HEADER_SIZE = 32
LAST, COMPRESSED, ENCRYPTED = 1, 2, 4
"""Flags of a metadata block."""
NO_MD5 = bytes(16)

JSON = b"$JSON   "
TRACK0 = b"$TRACK0 "
EPT = b"$EPT    "
BITMAP = b"$BITMAP "
INDEX = b"$INDEX  "

DATA_ALIGN = 4096
RESERVED_SEGMENT = 4 << 20
"""The reserved area is cut into pieces of this size."""
SECTOR = 512
TRACK0_SIZE = 63 * SECTOR
MAX_METADATA = 4 << 20
"""Decoded size of any metadata block but the index: documents say at most 1 MiB for the biggest."""
MAX_BLOCK_SIZE = 4 << 20

ENTRY_SIZE = 30
DELTA_ENTRY_SIZE = 34
_BLOCK_HEADER = struct.Struct("<8sI16sB3s")
_TRAILER = struct.Struct("<Q12s")
_ENTRY = struct.Struct("<q16sIH")
_COUNT = struct.Struct("<i")
_EPT_PLACE = struct.Struct("<QH")
_EPT_STRIDES = (528, 522)


class BlockHeader(NamedTuple):
    """The 32 bytes before the payload of a metadata block."""

    name: bytes
    length: int
    """Of the stored payload."""
    md5: bytes
    """Of the stored payload; zeros when there is none."""
    flags: int


class Entry(NamedTuple):
    """Where one block of a partition is stored, and what it must be."""

    position: int
    md5: bytes
    """Of the plain block."""
    length: int
    """Stored; 0: the block is not there."""
    file_number: int


class BootRecord(NamedTuple):
    """One sector of the chain of logical partitions."""

    sector: bytes
    offset: int
    """On the disk."""
    partition_number: int = 0


def md5(data: bytes | memoryview) -> bytes:
    """MD5, which this format uses against accidents only."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def unpack_trailer(data: bytes) -> int | None:
    """Return the position of the root list from the last 20 bytes, None when they are no trailer."""
    if len(data) != TRAILER_SIZE or data[8:] != TRAILER_MAGIC:
        return None
    return int(_TRAILER.unpack(data)[0])


def pack_trailer(root: int) -> bytes:
    """Return the last 20 bytes of a file."""
    return _TRAILER.pack(root, TRAILER_MAGIC)


def unpack_block_header(data: bytes) -> BlockHeader:
    """Parse the 32 bytes of a header; nothing in them can be wrong by itself."""
    name, length, checksum, flags, _ = _BLOCK_HEADER.unpack(data)
    return BlockHeader(name, length, checksum, flags)


def pack_block_header(name: bytes, length: int, checksum: bytes, flags: int) -> bytes:
    """Return the 32 bytes of a header."""
    return _BLOCK_HEADER.pack(name, length, checksum, flags, bytes(3))


def pack_block(name: bytes, payload: bytes, flags: int) -> bytes:
    """Return a whole metadata block, checksum included."""
    checksum = md5(payload) if payload else NO_MD5
    return pack_block_header(name, len(payload), checksum, flags) + payload


def unpack_entry(data: bytes, position: int = 0) -> Entry:
    """Read the entry at byte ``position``."""
    return Entry(*_ENTRY.unpack_from(data, position))


def pack_entry(entry: Entry) -> bytes:
    """Return the 30 bytes of an entry."""
    return _ENTRY.pack(*entry)


def unpack_count(data: bytes, position: int = 0) -> int:
    """Read a count of entries: signed, and nothing when it is negative."""
    return max(0, int(_COUNT.unpack_from(data, position)[0]))


def pack_count(count: int) -> bytes:
    """Return the 4 bytes of a count."""
    return _COUNT.pack(count)


def unpack_boot_records(data: bytes) -> tuple[BootRecord, ...]:
    """Parse ``$EPT``.

    Raises:
        CorruptImageError: its length is not that of its records.
    """
    count = unpack_count(data) if len(data) >= _COUNT.size else 0
    body = len(data) - _COUNT.size
    if not count and body <= 0:
        return ()
    stride, rest = divmod(body, count) if count else (0, 1)
    if rest or stride not in _EPT_STRIDES:
        raise CorruptImageError(f"$EPT of {len(data)} bytes cannot hold {count} boot records")
    return tuple(
        BootRecord(data[at : at + SECTOR], *_EPT_PLACE.unpack_from(data, at + SECTOR))
        for at in range(_COUNT.size, len(data), stride)
    )


def pack_boot_records(records: tuple[BootRecord, ...]) -> bytes:
    """Return the payload of ``$EPT``."""
    return pack_count(len(records)) + b"".join(
        record.sector + _EPT_PLACE.pack(record.offset, record.partition_number) + bytes(6)
        for record in records
    )
