"""Where in a TOML file each key stands, which the reader of the standard library does not tell. Pure.

The text is known to be valid TOML when this is asked, so the scanner only has to tell keys from values.
"""

from __future__ import annotations

import tomllib
from typing import NamedTuple

Path = tuple[str | int, ...]


class Position(NamedTuple):
    """Both count from one."""

    line: int
    column: int


def key_positions(text: str) -> dict[Path, Position]:
    """Return where each key of a valid TOML text stands, by its path; tables of a list by their number."""
    scanner = _Scanner(text)
    scanner.document()
    return {path: _position(text, at) for path, at in scanner.found.items()}


def _position(text: str, at: int) -> Position:
    start = text.rfind("\n", 0, at) + 1
    return Position(text.count("\n", 0, at) + 1, at - start + 1)


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counts: dict[Path, int] = {}
        self.found: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        self._skip(" \t\r\n")
        while self._at < len(self._text):
            if self._peek() == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(" \t\r\n")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, blanks: str) -> None:
        """Go on past blanks, and past comments where lines may end."""
        while (letter := self._peek()) and (letter in blanks or letter == "#"):
            if letter == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
                if "\n" not in blanks:
                    return
            else:
                self._at += 1

    def _header(self) -> Path:
        many = self._text.startswith("[[", self._at)
        self._at += 2 if many else 1
        start, names = self._names()
        self._at += 2 if many else 1
        path: Path = ()
        for name in names[:-1]:
            self.found.setdefault((*path, name), start)
            path = self._within((*path, name))
        path = (*path, names[-1])
        self.found.setdefault(path, start)
        if not many:
            return self._within(path)
        self._counts[path] = self._counts.get(path, 0) + 1
        path = self._within(path)
        self.found.setdefault(path, start)
        return path

    def _within(self, path: Path) -> Path:
        """Return where keys below a name go: into the last table, when it is a list of them."""
        return (*path, self._counts[path] - 1) if path in self._counts else path

    def _names(self) -> tuple[int, list[str]]:
        """Read a dotted name; return where it begins, and its parts."""
        self._skip(" \t")
        start, names = self._at, []
        while True:
            begin = self._at
            if self._peek() in {'"', "'"}:
                self._string()
                names.append(str(tomllib.loads(f"k={self._text[begin : self._at]}")["k"]))
            else:
                while (letter := self._peek()).isalnum() or letter in {"-", "_"}:
                    self._at += 1
                names.append(self._text[begin : self._at])
            self._skip(" \t")
            if self._peek() != ".":
                return start, names
            self._at += 1
            self._skip(" \t")

    def _pair(self, table: Path) -> None:
        start, names = self._names()
        path = table
        for name in names:
            path = (*path, name)
            self.found.setdefault(path, start)
        self._at += 1  # the equals sign
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip(" \t\r\n")
        letter = self._peek()
        if letter in {'"', "'"}:
            self._string()
        elif letter == "[":
            self._list(path)
        elif letter == "{":
            self._table(path)
        else:
            while (letter := self._peek()) and letter not in ",]}\n#":
                self._at += 1

    def _list(self, path: Path) -> None:
        self._at += 1
        number = 0
        while True:
            self._skip(" \t\r\n,")
            if self._peek() == "]":
                break
            self.found.setdefault((*path, number), self._at)
            self._value((*path, number))
            number += 1
        self._at += 1

    def _table(self, path: Path) -> None:
        self._at += 1
        while True:
            self._skip(" \t\r\n,")
            if self._peek() == "}":
                break
            self._pair(path)
        self._at += 1

    def _string(self) -> None:
        quote = self._peek()
        fence = quote * 3 if self._text.startswith(quote * 3, self._at) else quote
        self._at += len(fence)
        while not self._text.startswith(fence, self._at):
            self._at += 2 if quote == '"' and self._peek() == "\\" else 1
        self._at += len(fence)
        while len(fence) == 3 and self._peek() == quote:  # a quote or two may stand before the end
            self._at += 1
