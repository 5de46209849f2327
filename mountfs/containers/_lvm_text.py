"""The text in which LVM2 writes its metadata: sections, numbers, strings and lists.

The grammar is that of lvm.conf(5), "syntax". Sections become dictionaries.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from imageformat.errors import VolumeError

Value: TypeAlias = "int | str | list[int | str] | dict[str, Value]"
Section: TypeAlias = dict[str, Value]

_MAX_DEPTH = 8
_TOKEN = re.compile(
    r"""\s*(?:\#[^\n]*(?:\n\s*|\Z))*(?:
      (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<number>-?\d{1,19}(?:\.\d+)?(?![\w.+-]))
    | (?P<word>[\w.+-]+)
    | (?P<mark>[{}=\[\],])
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def parse(text: str) -> Section:
    """Parse metadata.

    Raises:
        VolumeError: it does not follow the grammar, or is nested too deeply.
    """
    reader = _Reader(text)
    return reader.section(0, last="end")


class _Reader:
    """Reads one token after another."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def _next(self) -> tuple[str, str]:
        """Return the kind of the next token and its text; a mark is its own kind."""
        match = _TOKEN.match(self._text, self._position)
        if match is None or match.lastgroup is None:
            raise self._error()
        self._position = match.end()
        token = match[match.lastgroup]
        return (token if match.lastgroup == "mark" else match.lastgroup), token

    def section(self, depth: int, last: str = "}") -> Section:
        """Read what a section holds, up to its end."""
        if depth > _MAX_DEPTH:
            raise VolumeError("the LVM metadata is nested too deeply")
        found: Section = {}
        while True:
            kind, name = self._next()
            if kind == last:
                return found
            if kind not in {"word", "number"}:
                raise self._error()
            kind, _ = self._next()
            if kind == "{":
                found[name] = self.section(depth + 1)
            elif kind == "=":
                found[name] = self._value()
            else:
                raise self._error()

    def _value(self) -> Value:
        kind, token = self._next()
        if kind != "[":
            return self._scalar(kind, token)
        values: list[int | str] = []
        while True:
            kind, token = self._next()
            if kind == "]":
                return values
            if kind != ",":
                values.append(self._scalar(kind, token))

    def _scalar(self, kind: str, token: str) -> int | str:
        if kind == "string":
            return _ESCAPE.sub(r"\1", token[1:-1])
        if kind == "number":
            return int(token.split(".", 1)[0])
        if kind == "word":
            return token
        raise self._error()

    def _error(self) -> VolumeError:
        line = self._text.count("\n", 0, self._position) + 1
        return VolumeError(f"the LVM metadata cannot be understood in line {line}")
