"""What a command can say, in whatever form it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from imageformat.errors import MountfsError
    from mountfs.cli.render.progress import Progress

Text: TypeAlias = bytes | str
"""Anything from outside: a name, a message. Made safe by the renderer, never before."""
Cell: TypeAlias = bytes | str | int | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    right: bool = False
    """Aligned to the right, as numbers are."""


class Renderer(Protocol):
    """The only way out: everything a command says passes here and is made safe for a terminal.

    `table` and `line` are for people, `result` is for programs: each is silent in the other's mode, so
    every command calls both. Any number of threads may call it at once.

    Raises:
        OutputClosedError: the reader of standard output has gone; `run_to_exit_code` deals with it.
        DestinationError: standard output is a file that cannot be written.
    """

    def table(self, title: str, columns: Sequence[Column | str], rows: Iterable[Sequence[Cell]]) -> None:
        """Show a table on standard output. An empty title shows none."""
        ...

    def line(self, text: Text) -> None:
        """Show one line on standard output. Line breaks inside it are escaped."""
        ...

    def result(self, obj: Mapping[str, object]) -> None:
        """Give a program the outcome: one JSON object ``{"type": "result", ...}`` on one line.

        Raises:
            ValueError: the object has a ``type`` of its own.
        """
        ...

    def note(self, text: Text) -> None:
        """Tell something beside the output, on standard error; not with ``--quiet``."""
        ...

    def detail(self, text: Text) -> None:
        """Tell something that only ``--verbose`` shows, on standard error."""
        ...

    def warning(self, text: Text) -> None:
        """Tell something that is wrong but does not end the command."""
        ...

    def error(self, error: MountfsError) -> None:
        """Tell why the command failed. Notes added to the error are shown as hints."""
        ...

    def progress(self, label: Text, total_bytes: int | None = None) -> Progress:
        """Show how far a task is, while the returned context manager is open."""
        ...

    def confirm(self, question: Text) -> bool:
        """Ask a person; False when there is none, or for any answer but yes."""
        ...

    def ask(self, question: Text, default: Text = "") -> str:
        """Ask a person for a line; ``default`` for an empty one, and when there is nobody to ask."""
        ...
