"""What is drawn with rich on a terminal: tables and progress bars.

Only `mountfs.cli.render.human` loads this module, and only to draw. Data reaches rich as `Text`, which has
no markup, after `safe_text`: a file called ``[red]x`` is printed as that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task
from rich.progress import Progress as RichProgress
from rich.table import Column as TableColumn
from rich.table import Table
from rich.text import Text

from mountfs.cli.render.units import format_duration, format_size
from mountfs.names import safe_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import TextIO

    from mountfs.cli.render.model import Column
    from mountfs.cli.render.progress import LiveProgress, Meter


_ANY_WIDTH = 1 << 20


def draw_table(stream: TextIO, title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """Return a table drawn for the terminal behind ``stream``; every text is safe already."""
    table = Table(box=None, pad_edge=False, title=Text(title) if title else None, title_justify="left")
    for column in columns:
        head = Text(column.title, style="bold")
        table.add_column(head, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = _console(stream)
    table.collapse_padding = _natural_width(console, table) > console.width
    console.width = max(console.width, _natural_width(console, table))  # a folded row is hard to read
    with console.capture() as capture:
        console.print(table, crop=False)
    return capture.get().rstrip("\n")


def _natural_width(console: Console, table: Table) -> int:
    return console.measure(table, options=console.options.update(width=_ANY_WIDTH)).maximum


def _console(stream: TextIO) -> Console:
    return Console(file=stream, markup=False, highlight=False, emoji=False)


class _MeterColumn(ProgressColumn):
    """Bytes, speed and time left."""

    def __init__(self, meter: Meter) -> None:
        super().__init__(table_column=TableColumn(no_wrap=True))  # the label gives way, not the figures
        self._meter = meter

    def render(self, task: Task) -> Text:
        """Show the figures of the moment."""
        meter = self._meter
        total = "" if meter.total is None else f" of {format_size(meter.total)}"
        parts = [f"{format_size(meter.done)}{total}"]
        speed = meter.mean_speed if task.finished else meter.bytes_per_second
        if speed is not None:
            parts.append(f"{format_size(speed)}/s")
        left = meter.seconds_left
        if task.finished:
            parts.append(f"in {format_duration(meter.elapsed)}")
        elif left is not None:
            parts.append(f"{format_duration(left)} left")
        return Text("  ".join(parts))


class _LabelColumn(ProgressColumn):
    """What is being done, and to which file."""

    def render(self, task: Task) -> Text:
        """Show the label alone when it is over."""
        text = str(task.fields["text"])
        shown = f"{task.description} {text}" if text and not task.finished else task.description
        return Text(shown, overflow="ellipsis", no_wrap=True)


class Bar:
    """See `LiveProgress`. Puts itself on the list of live bars while it is open."""

    def __init__(self, stream: TextIO, label: str, meter: Meter, live: list[LiveProgress]) -> None:
        self._meter = meter
        self._live = live
        # rich would otherwise take over the standard streams, and with them what is piped elsewhere
        self._progress = RichProgress(
            SpinnerColumn(),
            BarColumn(bar_width=16),
            _MeterColumn(meter),
            _LabelColumn(),
            console=_console(stream),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(label, total=meter.total, text="")

    def advance(self, count: int) -> None:
        """See `Progress`."""
        self._meter.set(self._meter.done + count)
        self._progress.update(self._task, completed=self._meter.done)

    def update(self, done: int, text: bytes | str = "") -> None:
        """See `Progress`."""
        self._meter.set(done)
        self._progress.update(self._task, completed=done, text=safe_text(text))

    def print_above(self, line: str) -> None:
        """See `LiveProgress`."""
        self._progress.console.print(Text(line), soft_wrap=True)
        self._progress.refresh()

    def __enter__(self) -> Self:
        """See `Progress`."""
        self._live.append(self)
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `Progress`."""
        if error is None:
            self._progress.update(self._task, total=self._meter.done, completed=self._meter.done)
        self._progress.stop()
        self._live.remove(self)
