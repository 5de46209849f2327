r"""Reparse points: how Windows writes down a symbolic link. Source: [MS-FSCC] 2.1.2.4 and 2.1.2.5.

A target of POSIX (``../a/b``) is written relative with backslashes. What an NTFS volume itself holds of a
link or a junction is passed on as it is, once it is proven to be well formed.
"""

from __future__ import annotations

import struct

SYMLINK_TAG = 0xA000000C
JUNCTION_TAG = 0xA0000003
DATA_LIMIT = 16 << 10
"""MAXIMUM_REPARSE_DATA_BUFFER_SIZE, header included."""

_HEADER = struct.Struct("<IHH")
_SYMLINK = struct.Struct("<HHHHI")
_JUNCTION = struct.Struct("<HHHH")
_RELATIVE = 1


def symlink_data(target: str, *, is_relative: bool) -> bytes | None:
    """Return the reparse data of a symbolic link with backslashes in its target; None when it is too long."""
    name = target.encode("utf-16-le", "surrogatepass")
    if _HEADER.size + _SYMLINK.size + 2 * len(name) > DATA_LIMIT:
        return None
    body = _SYMLINK.pack(0, len(name), len(name), len(name), _RELATIVE if is_relative else 0) + name * 2
    return _HEADER.pack(SYMLINK_TAG, len(body), 0) + body


def resolved_data(path: str) -> bytes | None:
    """Return what WinFsp is told of a path in which all links were followed; None when it is too long.

    It reads it as a link of the volume itself with one name, which is both of the two.
    """
    name = path.encode("utf-16-le", "surrogatepass")
    if _HEADER.size + _SYMLINK.size + len(name) > DATA_LIMIT:
        return None
    body = _SYMLINK.pack(0, len(name), 0, len(name), _RELATIVE) + name
    return _HEADER.pack(SYMLINK_TAG, len(body), 0) + body


def link_tag(raw: bytes) -> int:
    """Return the tag of reparse data that is a well-formed link or junction; else 0."""
    if not _HEADER.size <= len(raw) <= DATA_LIMIT:
        return 0
    tag, length, _ = _HEADER.unpack_from(raw)
    body = {SYMLINK_TAG: _SYMLINK, JUNCTION_TAG: _JUNCTION}.get(tag)
    if body is None or length + _HEADER.size != len(raw) or length < body.size:
        return 0
    substitute, substitute_length, printed, printed_length, *_ = body.unpack_from(raw, _HEADER.size)
    room = length - body.size
    ends = (substitute + substitute_length, printed + printed_length)
    return tag if max(ends) <= room and not any(value % 2 for value in (substitute, *ends)) else 0
