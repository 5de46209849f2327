"""What NTFS keeps of a file beside its content, as the extended attributes that ntfs-3g gives it.

Names and forms are those of ntfs-3g (its page "Extended attributes"), so that its tools understand them:
little-endian numbers, and security descriptor, reparse point and OS/2 attributes as they are stored.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterator

ACL = "system.ntfs_acl"
REPARSE = "system.ntfs_reparse_data"
OS2 = "system.ntfs_ea"
_ATTRIBUTES = "system.ntfs_attrib"
_BIRTH = "system.ntfs_crtime"

_DIRECTORY = 0x10
_NORMAL = 0x80


def plain_attributes(flags: int, birth: int, *, is_directory: bool) -> dict[str, bytes]:
    """Give the DOS attributes and the time of creation, in units of 100 ns since 1601."""
    shown = flags & ~_DIRECTORY | (_DIRECTORY if is_directory else 0)
    return {_ATTRIBUTES: struct.pack("<I", shown or _NORMAL), _BIRTH: struct.pack("<Q", birth)}


def os2_attributes(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and value of each OS/2 attribute (FILE_FULL_EA_INFORMATION, [MS-FSCC] 2.4.16).

    Raises:
        VolumeError: they are damaged.
    """
    at = 0
    while at + 8 <= len(raw):
        following, _, name_length, length = struct.unpack_from("<IBBH", raw, at)
        end = at + 8 + name_length + 1 + length
        if end > len(raw) or (following and following < 8):
            raise VolumeError("the extended attributes of a file are damaged")
        yield raw[at + 8 : at + 8 + name_length], raw[end - length : end]
        if not following:
            return
        at += following
