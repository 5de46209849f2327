"""Names that a hostile volume cannot abuse.

A file system inside an image may hold names that no path can carry (``..``, a slash, a NUL) and names
that play with the terminal. Trees keep the raw bytes; whoever shows or creates a name goes through here.
"""

from __future__ import annotations

import re
import unicodedata

_MARK = b"%escaped%"
_ESCAPES = {b"%": b"%25", b"/": b"%2F", b"\0": b"%00"}
_ESCAPED = re.compile(rb"%(25|2[Ff]|00|2[Ee])")
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def to_path_name(raw: bytes) -> bytes:
    """Return a name that is legal as one component of a path; the same when it already is.

    A name that no path can carry becomes ``%escaped%`` and the name with ``%25``, ``%2F``, ``%00``, ``%2E``
    in it. Reversible, so two names never become one: a name that begins like that is escaped as well.
    """
    if raw in {b".", b".."}:
        return _MARK + raw.replace(b".", b"%2E")
    if raw and b"/" not in raw and b"\0" not in raw and not raw.startswith(_MARK):
        return raw
    return _MARK + re.sub(rb"[%/\0]", lambda match: _ESCAPES[match[0]], raw)


def from_path_name(name: bytes) -> bytes:
    """Undo `to_path_name`."""
    if not name.startswith(_MARK):
        return name
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), name[len(_MARK) :])


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
