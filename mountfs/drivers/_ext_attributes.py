"""Extended attributes of ext2, ext3 and ext4, in the inode and in a block of their own.

Source: "ext4 Data Structures and Algorithms", section Extended Attributes; ACLs are stored in a short
form (``fs/ext4/acl.h``) and answered in the form of the system call (``posix_acl_xattr.h``).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.drivers._ext_layout import Inode

_MAGIC = 0xEA02_0000
_PREFIXES = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    6: "security.",
    7: "system.",
    8: "system.richacl",
}
_ACL_INDEXES = {2, 3}
_BLOCK_HEADER = 32
_ENTRY = 16

INLINE_DATA = "system.data"
"""Not an attribute: where inline files keep what does not fit in the inode's block area."""


class Attribute(NamedTuple):
    """One attribute; its value is `value`, or the content of inode `inode` of `size` bytes."""

    name: str
    value: bytes
    inode: int
    size: int


def inode_attributes(inode: Inode) -> Iterator[Attribute]:
    """Yield the attributes kept inside an inode; those of the kernel's own (encryption) are left out."""
    start = 128 + inode.extra_size
    if not inode.extra_size or start + 4 > len(inode.raw):
        return
    if struct.unpack_from("<I", inode.raw, start)[0] == _MAGIC:
        yield from _entries(inode.raw[start + 4 :], 0)


def block_attributes(raw: bytes) -> Iterator[Attribute]:
    """Yield the attributes of an attribute block.

    Raises:
        VolumeError: it is not one.
    """
    if struct.unpack_from("<I", raw, 0)[0] != _MAGIC:
        raise VolumeError("a block of extended attributes is damaged: no magic number")
    yield from _entries(raw, _BLOCK_HEADER)


def _entries(raw: bytes, at: int) -> Iterator[Attribute]:
    while at + 4 <= len(raw) and raw[at : at + 4] != bytes(4):
        name_length, index, offset, inode, size, _ = struct.unpack_from("<BBHIII", raw, at)
        name = raw[at + _ENTRY : at + _ENTRY + name_length]
        value = b"" if inode else raw[offset : offset + size]
        if len(name) < name_length or (not inode and len(value) < size):
            raise VolumeError("an extended attribute is damaged: it does not fit")
        if index in _ACL_INDEXES:
            value = _acl(value)
        if index in _PREFIXES:
            text = _PREFIXES[index] + name.decode("utf-8", "surrogateescape")
            yield Attribute(text, value, inode, size)
        at += _ENTRY + (name_length + 3) // 4 * 4


def _acl(stored: bytes) -> bytes:
    """Unpack the short form: entries of users and groups have an id, the others do not."""
    if len(stored) < 4 or struct.unpack_from("<I", stored, 0)[0] != 1:
        raise VolumeError("an access control list is damaged")
    out, at = [struct.pack("<I", 2)], 4
    while at < len(stored):
        tag, permissions = struct.unpack_from("<HH", stored, at)
        named = tag in {0x2, 0x8}
        (identity,) = struct.unpack_from("<I", stored, at + 4) if named else (0xFFFF_FFFF,)
        out.append(struct.pack("<HHI", tag, permissions, identity))
        at += 8 if named else 4
    return b"".join(out)
