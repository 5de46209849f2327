"""Output for programs: results on standard output, all else on standard error, one JSON object a line.

So what a command found can be handed to ``jq`` as it is, and a log of what happened is no part of it.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Self

import msgspec

from mountfs.cli.render.progress import Meter
from mountfs.names import safe_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from imageformat.errors import MountfsError
    from mountfs.cli.render.model import Cell, Column, Text
    from mountfs.cli.render.progress import Clock
    from mountfs.cli.render.streams import Messages, Output

_EVERY = 0.5
"""Seconds between two lines of progress."""
_NOT_PLAIN = re.compile(r"[^ -~]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def to_json(obj: object) -> str:
    r"""Encode as one line of JSON in printable ASCII: everything else is escaped as ``\uNNNN``.

    So it is the same in every locale, and steers no terminal. Halves of surrogate pairs, which no JSON
    can carry, become U+FFFD.
    """
    try:
        encoded = msgspec.json.encode(obj)
    except UnicodeEncodeError:
        encoded = msgspec.json.encode(_repair(msgspec.to_builtins(obj)))
    return _NOT_PLAIN.sub(_escape, encoded.decode("utf-8"))


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[index]:02x}{units[index + 1]:02x}" for index in range(0, len(units), 2))


def _repair(value: object) -> object:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_repair(key): _repair(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_repair(inner) for inner in value]
    return value


class JsonRenderer:
    """See `Renderer`."""

    def __init__(
        self, output: Output, messages: Messages, *, quiet: bool, verbose: bool, clock: Clock
    ) -> None:
        self._output = output
        self._messages = messages
        self._quiet = quiet
        self._verbose = verbose
        self._clock = clock

    def table(self, title: str, columns: Sequence[Column | str], rows: Iterable[Sequence[Cell]]) -> None:
        """For people only."""

    def line(self, text: Text) -> None:
        """For people only."""

    def result(self, obj: Mapping[str, object]) -> None:
        """See `Renderer`."""
        if "type" in obj:
            raise ValueError("a result cannot have a type of its own")
        self._output.write(to_json({"type": "result", **obj}), flush=True)

    def note(self, text: Text) -> None:
        """See `Renderer`."""
        if not self._quiet:
            self._emit({"type": "note", "message": safe_text(text)})

    def detail(self, text: Text) -> None:
        """See `Renderer`."""
        if self._verbose:
            self._emit({"type": "detail", "message": safe_text(text)})

    def warning(self, text: Text) -> None:
        """See `Renderer`."""
        self._emit({"type": "warning", "message": safe_text(text)})

    def error(self, error: MountfsError) -> None:
        """See `Renderer`."""
        told: dict[str, object] = {
            "type": "error",
            "error": type(error).__name__,
            "message": safe_text(str(error)),
            "exit_code": error.exit_code,
            "errno": errno.errorcode.get(error.errno, str(error.errno)),
        }
        hints = [safe_text(note) for note in getattr(error, "__notes__", ())]
        if hints:
            told["hints"] = hints
        self._emit(told)

    def progress(self, label: Text, total_bytes: int | None = None) -> JsonProgress:
        """See `Renderer`: about two lines a second, and one at the end."""
        return JsonProgress(self, safe_text(label), Meter(total_bytes, self._clock), self._clock)

    def confirm(self, question: Text) -> bool:  # noqa: ARG002 (a program is never asked)
        """A program agrees by an option, never by an answer."""
        return False

    def ask(self, question: Text, default: Text = "") -> str:  # noqa: ARG002 (a program is never asked)
        """A program answers by an option."""
        return safe_text(default)

    def emit_progress(self, told: Mapping[str, object]) -> None:
        """Write one line of progress; not with ``--quiet``."""
        if not self._quiet:
            self._emit(told)

    def _emit(self, told: Mapping[str, object]) -> None:
        self._messages.write(to_json(told))


class JsonProgress:
    """See `Progress`."""

    def __init__(self, renderer: JsonRenderer, label: str, meter: Meter, clock: Clock) -> None:
        self._renderer = renderer
        self._label = label
        self._meter = meter
        self._clock = clock
        self._text = ""
        self._told_at = clock()

    def advance(self, count: int) -> None:
        """See `Progress`."""
        self.update(self._meter.done + count, self._text)

    def update(self, done: int, text: Text = "") -> None:
        """See `Progress`."""
        self._meter.set(done)
        self._text = safe_text(text)
        now = self._clock()
        if now - self._told_at >= _EVERY:
            self._told_at = now
            self._tell()

    def __enter__(self) -> Self:
        """See `Progress`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell where it ended, also when it failed."""
        if error is None or isinstance(error, Exception):
            self._tell()

    def _tell(self) -> None:
        speed, left = self._meter.bytes_per_second, self._meter.seconds_left
        told: dict[str, object] = {
            "type": "progress",
            "label": self._label,
            "done": self._meter.done,
            "total": self._meter.total,
            "bytes_per_second": None if speed is None else round(speed),
            "seconds_left": None if left is None else round(left, 1),
        }
        if self._text:
            told["text"] = self._text
        self._renderer.emit_progress(told)
