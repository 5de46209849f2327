"""Extended attributes of SquashFS: a table of ids, each naming a list of names and values."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.drivers._content import read_at
from mountfs.drivers._squashfs_layout import NO_TABLE, NOTHING

if TYPE_CHECKING:
    from imageformat.device import BlockDevice
    from mountfs.drivers._squashfs_layout import Metadata, Superblock

_PREFIXES = {0: "user.", 1: "trusted.", 2: "security."}
_STORED_ELSEWHERE = 0x100
_MAX_ATTRIBUTES = 65_536
_MAX_LIST = 16 << 20
_MAX_VALUE = 65_536


class Attributes:
    """Reads the attributes of inodes. Any number of threads."""

    def __init__(self, device: BlockDevice, metadata: Metadata, superblock: Superblock) -> None:
        self._metadata = metadata
        self._table = superblock.xattr_table
        self._start = self._count = 0
        if self._table != NO_TABLE:
            raw = read_at(device, self._table, 16, "the table of attributes")
            self._start, self._count = struct.unpack("<QI4x", raw)

    def of(self, number: int) -> dict[str, bytes]:
        """Return the attributes that an inode names by number; `NOTHING` names none.

        Raises:
            VolumeError: they are damaged.
        """
        if number == NOTHING:
            return {}
        if number >= self._count:
            raise VolumeError(f"an inode has the attributes {number} of {self._count}")
        item = self._metadata.item(self._table + 16, number, 16, "the table of attributes")
        reference, count, size = struct.unpack("<QII", item)
        if count > _MAX_ATTRIBUTES or size > _MAX_LIST:
            raise VolumeError(f"an inode claims {count} attributes of {size} bytes")
        start, offset = self._start + (reference >> 16), reference & 0xFFFF
        found: dict[str, bytes] = {}
        for _ in range(count):
            kind, length = struct.unpack("<HH", self._metadata.read(start, offset, 4))
            name = self._metadata.read(start, offset + 4, length)
            offset += 4 + length
            value, stored = self._value(start, offset, elsewhere=bool(kind & _STORED_ELSEWHERE))
            offset += stored
            prefix = _PREFIXES.get(kind & 0xFF)
            if prefix is None:
                raise VolumeError(f"an attribute is damaged: of kind {kind}")
            found[prefix + name.decode("utf-8", "surrogateescape")] = value
        return found

    def _value(self, start: int, offset: int, *, elsewhere: bool) -> tuple[bytes, int]:
        """Return a value and how many bytes stand for it in the list."""
        (size,) = struct.unpack("<I", self._metadata.read(start, offset, 4))
        if not elsewhere:
            return self._sized(start, offset, size), 4 + size
        (reference,) = struct.unpack("<Q", self._metadata.read(start, offset + 4, 8))
        start, offset = self._start + (reference >> 16), reference & 0xFFFF
        (size,) = struct.unpack("<I", self._metadata.read(start, offset, 4))
        return self._sized(start, offset, size), 12

    def _sized(self, start: int, offset: int, size: int) -> bytes:
        if size > _MAX_VALUE:
            raise VolumeError(f"an attribute claims {size} bytes")
        return self._metadata.read(start, offset + 4, size)
