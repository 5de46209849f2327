"""How far a long task is: the speed of it, and what it looks like in each mode."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    Clock = Callable[[], float]

_WINDOW = 15.0
"""Seconds over which the speed is taken."""
_SAMPLE_EVERY = 0.25


class Progress(Protocol):
    """A task under way; a context manager. `advance` and `update` may come from any one thread."""

    def advance(self, count: int) -> None:
        """Count ``count`` more bytes."""
        ...

    def update(self, done: int, text: bytes | str = "") -> None:
        """Say how many bytes are done in all, and what is being worked on."""
        ...

    def __enter__(self) -> Self:
        """Begin to show it."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show where it ended."""
        ...


class LiveProgress(Progress, Protocol):
    """A task that is drawn: other lines must go above it."""

    def print_above(self, line: str) -> None:
        """Print a line that is safe already."""
        ...


class Meter:
    """Counts bytes and measures the speed over the last seconds."""

    def __init__(self, total: int | None, clock: Clock) -> None:
        self.total = total
        self.done = 0
        self._clock = clock
        self.started = clock()
        self._samples: deque[tuple[float, int]] = deque([(self.started, 0)])

    def set(self, done: int) -> None:
        """Say how much is done now."""
        self.done = done
        now = self._clock()
        if now - self._samples[-1][0] >= _SAMPLE_EVERY:
            self._samples.append((now, done))
        while len(self._samples) > 1 and now - self._samples[1][0] >= _WINDOW:
            self._samples.popleft()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self.started

    @property
    def bytes_per_second(self) -> float | None:
        """Speed over the last seconds; None when there is nothing to tell it from yet."""
        then, before = self._samples[0]
        passed = self._clock() - then
        return (self.done - before) / passed if passed > 0 else None

    @property
    def mean_speed(self) -> float | None:
        """Speed since the start."""
        passed = self.elapsed
        return self.done / passed if passed > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """How long it will take at this speed; None when that cannot be told."""
        speed = self.bytes_per_second
        if self.total is None or not speed or speed < 0:
            return None
        return max(0, self.total - self.done) / speed
