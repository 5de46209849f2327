"""Volume headers of HFS, HFS+ and APFS.

Layouts from Apple's TN1150, "Inside Macintosh: Files" and the Apple File System Reference.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING
from uuid import UUID

from mountfs.signatures.window import Signature
from mountfs.tree import FileSystemInfo

if TYPE_CHECKING:
    from mountfs.signatures.window import Window

_HEADER = 1024
_UUID_SPACE = bytes.fromhex("b3e20f39f29211d697a400306543ecac")
"""The name space in which macOS hashes the 64-bit id of a volume to a UUID."""
_UNMOUNTED = 1 << 8
_NOT_CLEAN = "dirty: not cleanly unmounted"


def _hfs_uuid(raw: bytes) -> str:
    if not any(raw):
        return ""
    digest = hashlib.md5(_UUID_SPACE + raw, usedforsecurity=False).digest()
    return str(UUID(bytes=digest, version=3))


def _hfs_plus(window: Window) -> FileSystemInfo | None:
    return _hfs_plus_at(window, _HEADER)


def _hfs_plus_at(window: Window, header: int) -> FileSystemInfo | None:
    start = header - _HEADER
    block_size = window.number(header + 40, ">I")
    if block_size < 512 or block_size & (block_size - 1):
        return None
    attributes = window.number(header + 4, ">I")
    return FileSystemInfo(
        "hfs+",
        _catalog_label(window, start, header, block_size),
        _hfs_uuid(window.at(header + 104, 8)),
        "" if attributes & _UNMOUNTED else _NOT_CLEAN,
    )


def _catalog_label(window: Window, start: int, header: int, block_size: int) -> str:
    """The label is the name in the first record of the catalogue: the root folder's."""
    extents = [
        (window.number(at, ">I"), window.number(at + 4, ">I"))
        for at in range(header + 288, header + 288 + 64, 8)
    ]
    tree = start + extents[0][0] * block_size
    leaf, node_size = window.number(tree + 24, ">I"), window.number(tree + 32, ">H")
    if node_size < 512 or not leaf:
        return ""
    wanted = leaf * node_size
    for first, count in extents:
        if wanted < count * block_size:
            return _leaf_label(window, start + first * block_size + wanted)
        wanted -= count * block_size
    return ""


def _leaf_label(window: Window, node: int) -> str:
    if window.number(node + 8, ">b") != -1 or window.number(node + 16, ">I") != 1:
        return ""
    length = window.number(node + 20, ">H")
    return window.at(node + 22, 2 * min(length, 255)).decode("utf-16-be", "replace")


def _hfs(window: Window) -> FileSystemInfo | None:
    block_size = window.number(_HEADER + 20, ">I")
    if not block_size or block_size % 512:
        return None
    if window.at(_HEADER + 124, 2) in {b"H+", b"HX"}:
        first, embedded = window.number(_HEADER + 28, ">H"), window.number(_HEADER + 126, ">H")
        header = first * 512 + embedded * block_size + _HEADER
        return _hfs_plus_at(window, header) if window.at(header, 2) in {b"H+", b"HX"} else None
    label = window.at(_HEADER + 37, min(window.number(_HEADER + 36, ">B"), 27))
    return FileSystemInfo(
        "hfs", label.decode("mac-roman").rstrip("\0 "), _hfs_uuid(window.at(_HEADER + 116, 8))
    )


def _apfs(window: Window) -> FileSystemInfo | None:
    if window.number(24, "<H") != 1:
        return None
    return FileSystemInfo("apfs", "", window.uuid(72))


SIGNATURES = (
    Signature(((_HEADER, b"H+"), (_HEADER, b"HX")), _hfs_plus),
    Signature(((_HEADER, b"BD"),), _hfs),
    Signature(((32, b"NXSB"),), _apfs),
)
