"""Random samples that test a claim about many blocks, and what they can prove."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEFAULT_SAMPLES = 1024
"""Finds at least one wrong block with 64 % when 1 in 1000 is wrong, with 99.4 % when 1 in 200 is."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How many blocks are tested, and which."""

    blocks: int = DEFAULT_SAMPLES
    seed: int | None = None
    """For tests; None: nobody can foresee which."""

    def choose(self, count: int) -> list[int]:
        """Return ascending numbers below ``count``, each as likely as any other; all when they are few."""
        source = random.SystemRandom() if self.seed is None else random.Random(self.seed)  # noqa: S311
        return sorted(source.sample(range(count), min(self.blocks, count)))


def detection(wrong: int, total: int, samples: int) -> float:
    """Return the probability that ``samples`` of ``total`` blocks hold at least one of ``wrong`` blocks."""
    missed = 1.0
    for drawn in range(min(samples, total)):
        missed *= max(0, total - wrong - drawn) / (total - drawn)
    return 1 - missed


def positions(ranges: Iterable[tuple[int, int]], chosen: list[int]) -> Iterator[int]:
    """Yield the ``chosen``-th numbers, ascending, of ranges ``(first, end)`` laid end to end."""
    pending = iter(chosen)
    number = next(pending, None)
    passed = 0
    for first, end in ranges:
        while number is not None and number < passed + end - first:
            yield first + number - passed
            number = next(pending, None)
        passed += end - first
