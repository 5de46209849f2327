r"""Names as Windows can show them: reversible, and different even where case is not told apart.

A name that Windows has no way to write (``a:b``, ``aux.c``, ``name.``, bytes that are not UTF-8) becomes
``%escaped%`` and the name with ``%XX`` for the bytes in question; so does a name that begins like that. Of
names in one folder that differ in case only, the first in the order of their bytes keeps its own; the others
become ``%escaped%%!`` and the name with every letter escaped that is not in lower case, so that no two are
the same to Windows.
Rules of names: "Naming Files, Paths, and Namespaces" in the documentation of the Windows API.
"""

from __future__ import annotations

import re

from xxhash import xxh3_64_hexdigest

MARK = "%escaped%"
NAME_UNITS = 255
"""Longest name of Windows, in UTF-16 units."""

_FORBIDDEN = frozenset('<>:"/\\|?*') | {chr(code) for code in range(32)}
_DEVICE = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3]) *(\.|$)",
    re.IGNORECASE,
)
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_LONG = "%~"
_DISTINCT = "%!"
"""Neither is an escaped byte, so no other name goes on like that."""
_KEPT_OF_LONG = 200


def fold(name: str) -> str:
    """Return a name as Windows compares it: each UTF-16 unit in upper case, when that is one unit too."""
    return "".join(_upper(char) for char in name)


def _upper(char: str) -> str:
    upper = char.upper()
    return upper if len(upper) == 1 and char <= "\uffff" and upper <= "\uffff" else char


def to_windows_name(raw: bytes, *, distinct: bool = False) -> str:
    """Return a name that Windows takes; the same when it already is one.

    Args:
        raw: the name as the tree has it.
        distinct: escape it, with all that is not in lower case; see above.
    """
    text = raw.decode("utf-8", "surrogateescape")
    if distinct or _needs_escape(text):
        text = MARK + (_DISTINCT if distinct else "") + _escape(text, distinct=distinct)
    if _units(text) <= NAME_UNITS:
        return text
    kept = text.removeprefix(MARK)[: _KEPT_OF_LONG // 2]
    return MARK + _LONG + xxh3_64_hexdigest(raw) + kept.rstrip(" .")


def from_windows_name(name: str) -> bytes | None:
    """Undo `to_windows_name`; None for the name of a longer one, which only its folder can tell."""
    if not name.startswith(MARK):
        return name.encode("utf-8", "surrogatepass")
    rest = name[len(MARK) :]
    if rest.startswith(_LONG):
        return None
    coded = rest.removeprefix(_DISTINCT).encode("utf-8", "surrogatepass")
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), coded)


def shown_names(raws: list[bytes]) -> dict[bytes, str]:
    """Return the names under which the entries of one folder are shown, no two the same to Windows."""
    shown: dict[bytes, str] = {}
    taken: set[str] = set()
    for raw in sorted(raws):
        name = to_windows_name(raw)
        if fold(name) in taken:
            name = to_windows_name(raw, distinct=True)
        taken.add(fold(name))
        shown[raw] = name
    return shown


def _needs_escape(text: str) -> bool:
    return (
        not text
        or fold(text).startswith(fold(MARK))
        or text[-1] in " ."
        or any(char in _FORBIDDEN or "\ud800" <= char <= "\udfff" for char in text)
        or _DEVICE.match(text) is not None
    )


def _escape(text: str, *, distinct: bool) -> str:
    device = _DEVICE.match(text) is not None
    last = len(text) - 1
    return "".join(
        _coded(char)
        if char == "%"
        or char in _FORBIDDEN
        or "\ud800" <= char <= "\udfff"
        or (distinct and char != _lower(_upper(char)))
        or (device and index == 0)
        or (index == last and char in " .")
        else char
        for index, char in enumerate(text)
    )


def _lower(char: str) -> str:
    lower = char.lower()
    return lower if len(lower) == 1 and char <= "\uffff" and lower <= "\uffff" else char


def _coded(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))


def _units(text: str) -> int:
    return len(text) + sum(char > "\uffff" for char in text)
