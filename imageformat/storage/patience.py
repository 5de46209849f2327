"""How long a storage behind a network is given: what is tried again, and when it is given up."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


class PassingError(Exception):
    """A failure that may be over in a moment: a dropped connection, throttling, a server that restarts.

    Its cause is what failed.
    """


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds. The defaults outlast a server that restarts, and end within two minutes."""

    attempts: int = 8
    first_delay: float = 0.25
    """Doubled for each further attempt, and shortened by chance so that clients do not come in step."""
    longest_delay: float = 16.0
    connect: float = 10.0
    answer: float = 60.0
    """For each answer, or piece of one, to begin."""

    def run(self, action: Callable[[], Result]) -> Result:
        """Return what ``action`` returns, as often as it takes.

        Raises:
            PassingError: the last attempt failed as well.
        """
        for attempt in range(1, self.attempts):
            try:
                return action()
            except PassingError:
                time.sleep(self.delay(attempt))
        return action()

    def delay(self, attempt: int) -> float:
        """Return how long to wait after so many failures."""
        longest: float = min(self.longest_delay, self.first_delay * 2 ** (attempt - 1))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 (chance, not a secret)


DEFAULT_PATIENCE = Patience()
