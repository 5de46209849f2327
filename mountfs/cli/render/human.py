"""Output for people: plain text, drawn with rich only where a person sees it.

Rich takes longer to load than most commands take to run, so its module is loaded when something is drawn
on a terminal, and never for a pipe.
"""

from __future__ import annotations

import importlib
import itertools
import unicodedata
from typing import TYPE_CHECKING, Self

from mountfs.cli.render.model import Column
from mountfs.cli.render.progress import Meter
from mountfs.cli.render.streams import is_terminal
from mountfs.cli.render.units import format_duration, format_size
from mountfs.names import safe_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import ModuleType, TracebackType
    from typing import TextIO

    from imageformat.errors import MountfsError
    from mountfs.cli.render.model import Cell, Text
    from mountfs.cli.render.progress import Clock, LiveProgress, Progress
    from mountfs.cli.render.streams import Messages, Output

_WIDTH_SAMPLE = 1000
"""Rows from which a plain table takes its widths: a listing of a million files is not held in memory."""


def drawing() -> ModuleType:
    """Load the module that draws with rich; loading it costs more than most commands take."""
    return importlib.import_module("mountfs.cli.render.drawn")


class HumanRenderer:
    """See `Renderer`."""

    def __init__(
        self,
        output: Output,
        messages: Messages,
        answers: TextIO,
        *,
        quiet: bool,
        verbose: bool,
        drawn: bool,
        clock: Clock,
    ) -> None:
        self._output = output
        self._messages = messages
        self._answers = answers
        self._quiet = quiet
        self._verbose = verbose
        self._drawn = drawn
        self._clock = clock
        self._live: list[LiveProgress] = []

    def table(self, title: str, columns: Sequence[Column | str], rows: Iterable[Sequence[Cell]]) -> None:
        """See `Renderer`: drawn on a terminal, aligned plain columns elsewhere."""
        heads = [column if isinstance(column, Column) else Column(column) for column in columns]
        cells = (tuple(cell_text(cell) for cell in row) for row in rows)
        first = list(itertools.islice(cells, _WIDTH_SAMPLE))
        if self._drawn and self._output.is_terminal and not self._live and len(first) < _WIDTH_SAMPLE:
            self._output.write(drawing().draw_table(self._output.stream, safe_text(title), heads, first))
            return
        if title:
            self._out(safe_text(title))
        for line in plain_table(heads, first, cells):
            self._out(line)

    def line(self, text: Text) -> None:
        """See `Renderer`."""
        self._out(safe_text(text))

    def result(self, obj: Mapping[str, object]) -> None:
        """For programs only."""

    def note(self, text: Text) -> None:
        """See `Renderer`."""
        if not self._quiet:
            self._tell(safe_text(text))

    def detail(self, text: Text) -> None:
        """See `Renderer`."""
        if self._verbose:
            self._tell(safe_text(text))

    def warning(self, text: Text) -> None:
        """See `Renderer`."""
        self._tell(f"mountfs: warning: {safe_text(text)}")

    def error(self, error: MountfsError) -> None:
        """See `Renderer`; with ``--verbose`` also what it came from."""
        self._tell(f"mountfs: error: {safe_text(str(error) or type(error).__name__)}")
        for note in getattr(error, "__notes__", ()):
            self._tell(f"mountfs: hint: {safe_text(note)}")
        cause = error.__cause__
        while self._verbose and cause is not None:
            self._tell(f"mountfs: caused by: {type(cause).__name__}: {safe_text(str(cause))}")
            cause = cause.__cause__

    def progress(self, label: Text, total_bytes: int | None = None) -> Progress:
        """See `Renderer`: a bar on a terminal, one line at the end elsewhere."""
        meter = Meter(total_bytes, self._clock)
        if not self._drawn or not self._messages.is_terminal or self._quiet or self._live:
            return PlainProgress(self.note, safe_text(label), meter)
        bar: Progress = drawing().Bar(self._messages.stream, safe_text(label), meter, self._live)
        return bar

    def confirm(self, question: Text) -> bool:
        """See `Renderer`."""
        return self.ask(f"{safe_text(question)} [y/N]").casefold() in {"y", "yes"}

    def ask(self, question: Text, default: Text = "") -> str:
        """See `Renderer`."""
        known = safe_text(default)
        if not (is_terminal(self._answers) and self._messages.is_terminal):
            return known
        shown = f"{safe_text(question)} [{known}]" if known else safe_text(question)
        self._messages.write(f"{shown} ", end="")
        return self._answers.readline().strip() or known

    def _out(self, line: str) -> None:
        if self._live and self._output.is_terminal:
            self._live[-1].print_above(line)
        else:
            self._output.write(line)

    def _tell(self, line: str) -> None:
        if self._live:
            self._live[-1].print_above(line)
            return
        self._messages.write(line)


class PlainProgress:
    """See `Progress`: says nothing until the end, and then one line."""

    def __init__(self, tell: Callable[[str], None], label: str, meter: Meter) -> None:
        self._tell = tell
        self._label = label
        self._meter = meter

    def advance(self, count: int) -> None:
        """See `Progress`."""
        self._meter.set(self._meter.done + count)

    def update(self, done: int, text: Text = "") -> None:  # noqa: ARG002 (nobody is watching)
        """See `Progress`."""
        self._meter.set(done)

    def __enter__(self) -> Self:
        """See `Progress`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say what was done; nothing when it failed, since the error says it."""
        if error is None and self._meter.done:
            self._tell(f"{self._label}: {summary(self._meter)}")


def summary(meter: Meter) -> str:
    """Return what a finished task did: ``1.5 GiB in 12 s (128 MiB/s)``."""
    text = f"{format_size(meter.done)} in {format_duration(meter.elapsed)}"
    speed = meter.mean_speed
    return text if speed is None else f"{text} ({format_size(speed)}/s)"


def cell_text(cell: Cell) -> str:
    """Return the safe text of one cell."""
    if cell is None:
        return ""
    return str(cell) if isinstance(cell, int) else safe_text(cell)


def plain_table(
    columns: Sequence[Column], first: Sequence[Sequence[str]], rest: Iterable[Sequence[str]] = ()
) -> Iterator[str]:
    """Yield a table as aligned lines without any drawing; the widths are those of the ``first`` rows."""
    heads = tuple(column.title.upper() for column in columns)
    widths = [max(map(display_width, cells)) for cells in zip(heads, *first, strict=True)]
    for row in itertools.chain([heads], first, rest):
        padded = [
            _pad(cell, width, right=column.right)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        yield "  ".join(padded).rstrip(" ")


def _pad(text: str, width: int, *, right: bool) -> str:
    space = " " * (width - display_width(text))
    return space + text if right else text + space


def display_width(text: str) -> int:
    """Return how many columns a terminal gives to a safe text."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1
