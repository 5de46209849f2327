"""A part of an image file that is verified by itself, and what became of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from imageformat.layer import BlockRef


class Passed(NamedTuple):
    """``[start, end)`` was read; places as in `engine.proof`."""

    start: int
    end: int
    right: bool
    """Whether all of it, and all that names it, was right."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of what a file stores is verified; places as in `engine.proof`."""

    start: int
    end: int
    passed: Callable[[Passed], None]
    """Told of each piece that was read, ascending."""
    stop: Callable[[], bool]
    """Asked after each; the rest is then left."""

    def refuse(self) -> None:
        """Tell that nothing of it could be proven."""
        self.passed(Passed(self.start, self.end, right=False))


class Batch(Protocol):
    """Frames that are read together."""

    @property
    def refs(self) -> tuple[BlockRef, ...]:
        """Where they are."""
        ...


AnyBatch = TypeVar("AnyBatch", bound=Batch)


class PartProgress:
    """Takes the batches of a part out of all, and tells what became of them. One use, one thread.

    Args:
        part: None: all of the file, and nothing is told.
        size: of the file.
        found: all that is wrong, kept up by the caller: with links and index first, later with blocks.
    """

    def __init__(self, part: Part | None, size: int, found: Sequence[object]) -> None:
        self._part = part
        self._last = max(0, size - 1)
        self._found = found
        self._expected = -1 if found else 0
        """How many things are wrong if all of them are with blocks; -1: links or index are wrong as well."""
        self._ends: deque[int] = deque()
        self._reached = part.start if part is not None else 0

    def batches(self, batches: Iterable[AnyBatch]) -> Iterator[AnyBatch]:
        """Yield those whose first byte lies in the part."""
        position = 0
        for batch in batches:
            start = min(position, self._last)
            position += sum(ref.length for ref in batch.refs)
            if self._part is None:
                yield batch
            elif start >= self._part.end:
                return
            elif start >= self._part.start:
                self._ends.append(position if position <= self._last else self._part.end)
                yield batch

    def stops_after(self, damages: int, *, elsewhere: bool) -> bool:
        """Tell of the next batch that was read, in how many blocks it is wrong; return whether to stop.

        ``elsewhere``: something of it could not be proven because of another file.
        """
        if self._part is None:
            return False
        end = min(self._ends.popleft(), self._part.end)
        self._expected += damages if self._expected >= 0 else 0
        self._part.passed(Passed(self._reached, end, self._is_sound() and not damages and not elsewhere))
        self._reached = end
        return self._part.stop()

    def finish(self) -> None:
        """Tell of what lies behind the last batch: nothing is stored there."""
        if self._part is not None and self._reached < self._part.end:
            self._part.passed(Passed(self._reached, self._part.end, self._is_sound()))

    def _is_sound(self) -> bool:
        """Tell whether what names the blocks is right, as far as it was read."""
        return len(self._found) == self._expected
