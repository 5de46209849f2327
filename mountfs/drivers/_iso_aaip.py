"""Extended attributes and ACLs on ISO 9660, as libisofs keeps them in AL entries.

An attribute is a name and a value, each a chain of components of up to 255 bytes. A byte below 32 at the
start of a name stands for its namespace; an empty name is an ACL in a form of its own. Source: AAIP 2.0 of
the libburnia project, and what xorriso writes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NAMESPACES = {2: "system.", 3: "user.", 4: "isofs.", 5: "trusted.", 6: "security."}
_OWN = "isofs."
"""What libisofs remembers for itself: checksums, times of sessions."""
_LITERAL = 1

_ACL_TAGS = {1: 0x01, 3: 0x04, 5: 0x10, 6: 0x20, 10: 0x02, 12: 0x08}
"""Of the entries in Linux' attribute, by those of AAIP."""
_ACL_BY_NAME = {2, 4}
_ACL_DEFAULT = 8
_NO_ID = 0xFFFF_FFFF


def attributes(found: Iterable[tuple[bytes, bytes]]) -> dict[str, bytes]:
    """Collect the attributes of one record from its system use entries.

    Raises:
        VolumeError: they are damaged, or an ACL names people by names, which have no numbers here.
    """
    result: dict[str, bytes] = {}
    texts = list(_texts(found))
    for name, value in zip(texts[::2], texts[1::2], strict=False):
        if not name:
            result.update(_acls(value))
            continue
        full = _full_name(name)
        if not full.startswith(_OWN):
            result[full] = value
    if len(texts) % 2:
        raise VolumeError("the attributes of a record are damaged: a name without a value")
    return result


def _texts(found: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Join the components of all entries to names and values; an entry may end within one."""
    raw = b"".join(entry[5:] for signature, entry in found if signature == b"AL")
    text, at = b"", 0
    while at + 2 <= len(raw):
        flags, length = raw[at], raw[at + 1]
        at += 2 + length
        text += raw[at - length : at]
        if not flags & 1:
            yield text
            text = b""
    if text or at != len(raw):
        raise VolumeError("the attributes of a record are damaged: their end is missing")


def _full_name(name: bytes) -> str:
    if name[0] == _LITERAL:
        prefix, rest = "", name[1:]
    elif name[0] < 32:
        prefix, rest = _NAMESPACES.get(name[0], f"aaip-{name[0]}."), name[1:]
    else:
        prefix, rest = "", name
    return prefix + rest.decode("utf-8", "surrogateescape")


def _acls(value: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the ACL, and that for new files if there is one, as the attributes that Linux has."""
    name, raw, at = "system.posix_acl_access", b"", 0
    while at < len(value):
        kind, qualified, allowed = value[at] >> 4, value[at] & 8, value[at] & 7
        at += 1
        if kind == _ACL_DEFAULT:
            if raw:
                yield name, struct.pack("<I", 2) + raw
            name, raw = "system.posix_acl_default", b""
            continue
        who = _NO_ID
        if qualified:
            length = value[at]
            who = int.from_bytes(value[at + 1 : at + 1 + length], "big")
            at += 1 + length
        if kind in _ACL_BY_NAME:
            raise VolumeError("an ACL names people by names, which are not known here")
        if kind not in _ACL_TAGS or who > _NO_ID:
            raise VolumeError("an ACL is damaged")
        raw += struct.pack("<HHI", _ACL_TAGS[kind], allowed, who)
    if raw:
        yield name, struct.pack("<I", 2) + raw
