"""Files of NTFS that are not plain: reparse points, and what Interix and ntfs-3g keep in system files.

Sources: [MS-FSCC] 2.1.2 (reparse tags) and the Linux-NTFS documentation (Interix special files).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from mountfs.drivers._ntfs_compact import compact_algorithm
from mountfs.drivers._ntfs_records import to_utf8
from mountfs.tree import NodeKind

if TYPE_CHECKING:
    from collections.abc import Mapping

FLAG_HIDDEN = 0x2
FLAG_SYSTEM = 0x4
FLAG_REPARSE = 0x400
FLAG_ENCRYPTED = 0x4000
_FLAGS_NOT_HERE = 0x1000 | 0x4_0000 | 0x40_0000
"""Offline, recall on open, recall on data access."""

_MOUNT_POINT = 0xA000_0003
_SYMLINK = 0xA000_000C
_LX_SYMLINK = 0xA000_001D
_CLOUD = 0x9000_001A
_OVERLAY = 0x8000_0017
_KINDS = {
    0x8000_0023: NodeKind.SOCKET,
    0x8000_0024: NodeKind.FIFO,
    0x8000_0025: NodeKind.CHARACTER_DEVICE,
    0x8000_0026: NodeKind.BLOCK_DEVICE,
}
_DEVICES = frozenset({NodeKind.CHARACTER_DEVICE, NodeKind.BLOCK_DEVICE})
_LX_DEVICE = b"$LXDEV"
_TAGS = {
    0x8000_0013: "deduplicated by Windows",
    _OVERLAY: "compressed by Windows (CompactOS, WIM)",
    0x8000_0018: "kept in the image of a container",
    0x8000_001B: "an alias of an app from the store",
    0x9000_001C: "projected by another program, not in the image",
    0xC000_0004: "moved away by a hierarchical storage manager",
    0x8000_0007: "kept in the single-instance store",
}


class Special(NamedTuple):
    """What such a file is."""

    kind: NodeKind | None = None
    """None: what it looks like."""
    target: bytes = b""
    is_windows: bool = False
    """The target is in the form of Windows."""
    device: tuple[int, int] = (0, 0)
    refusal: str = ""
    """Why its main stream does not hold its content."""
    compact: int | None = None
    """How a stream beside the main one holds its content, compressed."""


def from_reparse(raw: bytes, flags: int, os2: Mapping[bytes, bytes]) -> Special:
    """Interpret a reparse point; ``os2`` are the file's OS/2 attributes, where WSL keeps device numbers."""
    tag, length = struct.unpack_from("<IH", raw, 0)
    if tag in {_MOUNT_POINT, _SYMLINK}:
        target = _windows_target(raw, 16 if tag == _MOUNT_POINT else 20)
        return Special(NodeKind.SYMLINK, target, is_windows=True)
    if tag == _LX_SYMLINK:
        return Special(NodeKind.SYMLINK, raw[12 : 8 + length])
    if tag in _KINDS:
        kind, device = _KINDS[tag], os2.get(_LX_DEVICE, b"")
        known = kind in _DEVICES and len(device) == 8
        return Special(kind, device=struct.unpack("<II", device) if known else (0, 0))
    if tag & 0xFFFF_0FFF == _CLOUD:
        return Special(refusal="is kept in a cloud, not in the image" if flags & _FLAGS_NOT_HERE else "")
    compact = compact_algorithm(raw) if tag == _OVERLAY else None
    what = _TAGS.get(tag, f"a reparse point of kind {tag:#x}")
    return Special(refusal=f"is {what}; this is not supported", compact=compact)


def _windows_target(raw: bytes, buffer: int) -> bytes:
    substitute_at, substitute_size, print_at, print_size = struct.unpack_from("<HHHH", raw, 8)
    shown = raw[buffer + print_at : buffer + print_at + print_size]
    real = raw[buffer + substitute_at : buffer + substitute_at + substitute_size]
    return to_utf8(real[: len(real) & ~1]) or to_utf8(shown[: len(shown) & ~1])


def from_system_file(data: bytes | None, size: int, flags: int) -> Special:
    """Interpret a regular file with the system flag; ``data`` is None unless it lies in its record."""
    if size <= 1:
        empty = NodeKind.SOCKET if size else NodeKind.FIFO
        return Special() if flags & FLAG_HIDDEN else Special(empty)
    if data is None:
        return Special()
    if data[:8] == b"IntxLNK\1" and len(data) % 2 == 0:
        return Special(NodeKind.SYMLINK, to_utf8(data[8:]))
    kind = {b"IntxCHR\0": NodeKind.CHARACTER_DEVICE, b"IntxBLK\0": NodeKind.BLOCK_DEVICE}.get(data[:8])
    if kind is None or len(data) < 24:
        return Special()
    major, minor = struct.unpack_from("<QQ", data, 8)
    return Special(kind, device=(major & 0xFFFF_FFFF, minor & 0xFFFF_FFFF))
