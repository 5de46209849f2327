"""Patterns that name files to be left out of an image. Pure: paths in, answers out.

A pattern is a path of names joined by ``/``. In a name, ``*`` stands for any text, ``?`` for one character,
``[abc]``, ``[a-z]`` and ``[!a]`` for one of a class, and a backslash takes the special meaning from what
follows. A part that is ``**`` stands for any number of folders, also none; at the end, for everything below.

- With ``/`` at its start it is held against the whole path as a mount shows it, the folder of the volume
  first: ``/3-ntfs-Windows/Users/*/Downloads/**``, ``/*/var/cache``.
- Without, against the end of the path, below any folder of any volume: ``*.iso``, ``Temp/**``.
- What matches a folder matches all that is below it. With ``/`` at its end it matches folders only.
- On NTFS, FAT and exFAT, upper and lower case are the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from imageformat.errors import UsageError

_MAX_LENGTH = 4096
_ANY_DEPTH = "**"

Positions: TypeAlias = tuple[frozenset[int], ...]
"""For each pattern, the parts of it that may come next."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern, taken apart."""

    text: str
    """As the user wrote it."""
    parts: tuple[str | None, ...]
    """A regular expression for each name; None for any number of folders."""
    folders_only: bool


def parse_pattern(text: str) -> Pattern:
    """Take a pattern apart.

    Raises:
        UsageError: it names nothing, or could never match.
    """
    names = [name for name in text.split("/") if name]
    if not names or len(text) > _MAX_LENGTH or "\0" in text or set(names) & {".", ".."}:
        raise UsageError(
            f"'{text}' cannot be a pattern of --exclude; give a path or a part of one, such as '*.iso' or "
            "'/2-ntfs-Data/Temp/**'"
        )
    if not text.startswith("/"):
        names.insert(0, _ANY_DEPTH)
    if names[-1] == _ANY_DEPTH:
        names.append("*")
    parts = tuple(None if name == _ANY_DEPTH else _expression(name, text) for name in names)
    return Pattern(text, parts, text.endswith("/"))


def _expression(name: str, text: str) -> str:
    """Translate one name; a part without special characters matches itself."""
    found: list[str] = []
    at = 0
    while at < len(name):
        character, at = name[at], at + 1
        if character == "*":
            found.append(".*" if not found or found[-1] != ".*" else "")
        elif character == "?":
            found.append(".")
        elif character == "\\" and at < len(name):
            found.append(re.escape(name[at]))
            at += 1
        elif character == "[":
            end = name.find("]", at + 1 + (name[at : at + 1] in {"!", "^"}))
            if end < 0:
                raise UsageError(f"'{text}': a '[' of a pattern needs its ']'; put a backslash before it")
            found.append(_class(name[at:end]))
            at = end + 1
        else:
            found.append(re.escape(character))
    return "".join(found)


def _class(inside: str) -> str:
    negated = inside[0] in "!^"
    members = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[1:] if negated else inside)
    ranges = re.findall(r"(\\?.)-(\\?.)", members)
    if any(low[-1] > high[-1] for low, high in ranges):
        return "(?!)"
    return f"[{'^' if negated else ''}{members}]"


class Matcher:
    """Holds paths against patterns, name by name. Any number of threads."""

    def __init__(self, patterns: tuple[Pattern, ...], *, ignore_case: bool) -> None:
        flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
        self._patterns = patterns
        self._parts = tuple(
            tuple(None if part is None else re.compile(part, flags) for part in pattern.parts)
            for pattern in patterns
        )

    def start(self) -> Positions:
        """Return where a path begins: at the folder that holds those of the volumes."""
        return tuple(self._reached(parts, {0}) for parts in self._parts)

    def step(self, positions: Positions, name: bytes) -> Positions:
        """Go one name deeper."""
        text = name.decode("utf-8", "surrogateescape")
        return tuple(
            self._reached(parts, {n for at in here if (n := _after(parts, at, text)) is not None})
            for parts, here in zip(self._parts, positions, strict=True)
        )

    def match(self, positions: Positions, *, is_folder: bool) -> Pattern | None:
        """Return the first pattern that a path to here matches."""
        for pattern, parts, here in zip(self._patterns, self._parts, positions, strict=True):
            if len(parts) in here and (is_folder or not pattern.folders_only):
                return pattern
        return None

    @staticmethod
    def is_open(positions: Positions) -> bool:
        """Tell whether anything below could match."""
        return any(positions)

    @staticmethod
    def _reached(parts: tuple[re.Pattern[str] | None, ...], here: set[int]) -> frozenset[int]:
        """Add what follows any number of folders that are none."""
        for at, part in enumerate(parts):
            if part is None and at in here:
                here.add(at + 1)
        return frozenset(here)


def _after(parts: tuple[re.Pattern[str] | None, ...], at: int, name: str) -> int | None:
    """Return the part that follows when ``name`` stands at part ``at``; None when it cannot."""
    if at == len(parts):
        return None
    part = parts[at]
    if part is None:
        return at
    return at + 1 if part.fullmatch(name) else None
