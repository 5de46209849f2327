"""Names that a hostile volume cannot abuse.

A file system inside an image may hold names that no path can carry (``..``, a slash, a NUL) and names
that play with the terminal. Trees keep the raw bytes; whoever shows or creates a name goes through here.
"""

from __future__ import annotations

import re
import unicodedata

_RESERVED = {b"": b"%empty", b".": b"%2E", b"..": b"%2E%2E"}
_NEEDS_ESCAPE = re.compile(rb"[/\0]|%(?=2[FfEe5]|00)|^%(?=empty\Z)")
_ESCAPE = re.compile(rb"%(2[FfEe5]|00)")
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def to_path_name(raw: bytes) -> bytes:
    """Return a name that is legal as one component of a POSIX path; the same when it already is.

    Reversible, so two names never become one: ``/``, NUL and the dots of the reserved names become ``%2F``,
    ``%00`` and ``%2E``, no name at all becomes ``%empty``; a percent sign that would read as one of those
    becomes ``%25``.
    """
    if raw in _RESERVED:
        return _RESERVED[raw]
    return _NEEDS_ESCAPE.sub(lambda match: b"%%%02X" % match[0][0], raw)


def from_path_name(name: bytes) -> bytes:
    """Undo `to_path_name`."""
    if name == _RESERVED[b""]:
        return b""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), name)


def safe_text(name: bytes | str) -> str:
    r"""Return a name as text that is harmless on a terminal and fits on one line.

    Control characters (C0, DEL, C1), bidirectional overrides, line separators, unassigned characters
    become ``\xNN`` (ASCII) or ``\uNNNN``, bytes that are not UTF-8 ``\xNN``; a backslash becomes ``\\``
    only when the name needed any of that. Safe text is left as it is.
    """
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    if text.isprintable() and not any(char in _BIDI for char in text):
        return text
    return "".join(_safe_char(char) for char in text)


def _safe_char(char: str) -> str:
    code = ord(char)
    if char == "\\":
        return "\\\\"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if char == " " or (unicodedata.category(char)[0] not in "CZ" and char not in _BIDI):
        return char
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
