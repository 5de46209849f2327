"""Extended attributes of EROFS: those behind an inode, and those it shares with others."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.drivers._erofs_layout import Inode, Superblock
    from mountfs.drivers._tree import ChunkReader

_PREFIXES = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    5: "lustre.",
    6: "security.",
}
_HEADER = 12


def attributes(chunks: ChunkReader, superblock: Superblock, inode: Inode) -> dict[str, bytes]:
    """Return the attributes of an inode.

    Raises:
        VolumeError: they are damaged.
    """
    place, length = inode.attributes
    if not length:
        return {}
    raw = chunks.read(place, length, "extended attributes")
    shared = raw[4]
    at = _HEADER + 4 * shared
    if at > length:
        raise VolumeError(f"inode {inode.number} shares {shared} attributes in {length} bytes")
    found = dict(_entries(raw[at:]))
    for number in struct.unpack_from(f"<{shared}I", raw, _HEADER):
        start = superblock.attributes + 4 * number
        name_length, _, size = struct.unpack("<BBH", chunks.read(start, 4, "a shared attribute"))
        found.update(_entries(chunks.read(start, 4 + name_length + size, "a shared attribute")))
    return found


def _entries(raw: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at + 4 <= len(raw):
        name_length, index, size = struct.unpack_from("<BBH", raw, at)
        end = at + 4 + name_length + size
        prefix = _PREFIXES.get(index)
        if end > len(raw) or prefix is None:
            # Zeros fill the rest of an area.
            if not any(raw[at:]):
                return
            raise VolumeError(f"an extended attribute is damaged: of kind {index}")
        name = raw[at + 4 : at + 4 + name_length]
        yield prefix + name.decode("utf-8", "surrogateescape"), raw[end - size : end]
        at = -(-end // 4) * 4
