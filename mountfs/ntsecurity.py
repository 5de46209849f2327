"""Security descriptors of Windows in their self-relative form, as a volume stores them and a mount answers.

Source: [MS-DTYP] 2.4.2 (SID), 2.4.4 (ACE), 2.4.5 (ACL) and 2.4.6 (SECURITY_DESCRIPTOR).
"""

from __future__ import annotations

import struct

LIMIT = 64 << 10
"""No access list is longer ([MS-DTYP] 2.4.5: its size has 16 bits), and owner and group add little."""

_HEADER = struct.Struct("<BBHIIII")
_ACL = struct.Struct("<BBHHH")
_ACE = struct.Struct("<BBH")
_DACL_PRESENT, _SACL_PRESENT, _DACL_PROTECTED, _SELF_RELATIVE = 0x0004, 0x0010, 0x1000, 0x8000
_READ_AND_EXECUTE = 0x001200A9
ADMINISTRATORS = bytes.fromhex("01020000000000052000000020020000")
EVERYONE = bytes.fromhex("010100000000000100000000")


def readable_by(sid: bytes) -> bytes:
    """Return a descriptor that lets one group read and run: ``O:BAG:BAD:P(A;;FRFX;;;SID)``."""
    ace = _ACE.pack(0, 0, _ACE.size + 4 + len(sid)) + struct.pack("<I", _READ_AND_EXECUTE) + sid
    dacl = _ACL.pack(2, 0, _ACL.size + len(ace), 1, 0) + ace
    owner = _HEADER.size
    group = owner + len(ADMINISTRATORS)
    control = _SELF_RELATIVE | _DACL_PRESENT | _DACL_PROTECTED
    header = _HEADER.pack(1, 0, control, owner, group, 0, group + len(ADMINISTRATORS))
    return header + ADMINISTRATORS * 2 + dacl


def is_sound(raw: bytes) -> bool:
    """Tell whether bytes from a volume are a descriptor that may be handed to the operating system.

    Everything that it refers to must lie inside of it: owner, group, and every entry of its lists.
    """
    if not _HEADER.size <= len(raw) <= LIMIT:
        return False
    revision, _, control, owner, group, sacl, dacl = _HEADER.unpack_from(raw)
    if revision != 1 or not control & _SELF_RELATIVE or not owner or not group:
        return False
    return (
        _is_sid(raw, owner, len(raw))
        and _is_sid(raw, group, len(raw))
        and (not control & _SACL_PRESENT or not sacl or _is_acl(raw, sacl))
        and (not control & _DACL_PRESENT or not dacl or _is_acl(raw, dacl))
    )


def _is_sid(raw: bytes, at: int, end: int) -> bool:
    return (
        _HEADER.size <= at <= end - 8
        and raw[at] == 1
        and raw[at + 1] <= 15
        and at + 8 + 4 * raw[at + 1] <= end
    )


def _is_acl(raw: bytes, at: int) -> bool:
    if not _HEADER.size <= at <= len(raw) - _ACL.size:
        return False
    revision, _, size, count, _ = _ACL.unpack_from(raw, at)
    end = at + size
    if revision not in {2, 4} or size < _ACL.size or end > len(raw):
        return False
    at += _ACL.size
    for _ in range(count):
        if at + _ACE.size > end:
            return False
        _, _, length = _ACE.unpack_from(raw, at)
        if length < _ACE.size + 4 or length % 4 or at + length > end:
            return False
        at += length
    return True
