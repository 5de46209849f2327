"""What retention is told: facts of points, and the policy that says which of them are kept.

A period is an hour, day, week, month or year of the calendar of one time zone, so that a day on which the
clocks change has 23 or 25 hours, and is one day.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS


class PointFacts(NamedTuple):
    """What retention must know of one image file."""

    key: str
    set_name: str
    number: int
    created_ns: int
    size: int
    parent: str | None = None
    """Key of the file it stands on."""
    readable: bool = True
    """Its own file says what it is and what it stands on."""
    sound: bool = True
    """Nothing is known to be wrong with it or with what it stands on."""
    verified: bool = False
    """All of its chain was verified and found right."""
    foldable: bool = True
    """What it stands on can be merged into it."""
    foreign: bool = False
    """An image of another tool: never deleted, and it takes no place in a rule."""

    @property
    def judged(self) -> bool:
        """Whether rules apply to it."""
        return self.readable and not self.foreign


@dataclass(frozen=True, slots=True)
class Policy:
    """What is to be kept. A count is of periods that have a point; the youngest point of a period stays."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    """Weeks begin on Monday."""
    monthly: int = 0
    yearly: int = 0
    within_ns: int = 0
    """Everything that is not older than this."""
    free_floor: int = 0
    """Free bytes below which the oldest points go although a rule keeps them."""
    pinned: frozenset[str] = frozenset()
    """Keys of points that stay."""
    zone: tzinfo | None = None
    """Whose calendar has the hours, days and weeks; None: this machine's."""
    fold: bool = False
    """Merge what only others stand on into them, where that can be done."""
    largest_share: float = 0.5
    """Of the points of a set, from 0 to 1: more are not deleted in one go."""

    @property
    def has_rules(self) -> bool:
        """Whether anything but what always stays is kept."""
        counts = (self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly)
        return any(counts) or self.within_ns > 0


class _Calendar(NamedTuple):
    hour: tuple[int, ...]
    day: tuple[int, ...]
    week: tuple[int, ...]
    month: tuple[int, ...]
    year: tuple[int, ...]


@lru_cache(maxsize=1 << 14)
def _calendar(seconds: int, zone: tzinfo | None) -> _Calendar:
    """Return the periods of a moment; the hour that a change of the clocks repeats is two hours."""
    moment = datetime.fromtimestamp(seconds, UTC).astimezone(zone)
    offset = moment.utcoffset()
    ahead = int(offset.total_seconds()) if offset is not None else 0
    day = (moment.year, moment.month, moment.day)
    week = moment.isocalendar()
    return _Calendar(
        (*day, moment.hour, ahead), day, (week.year, week.week), (moment.year, moment.month), (moment.year,)
    )


class Rule(NamedTuple):
    """Keep the youngest point of each of so many periods."""

    name: str
    periods: int
    period_of: Callable[[PointFacts], tuple[int, ...]]


def rules(policy: Policy) -> tuple[Rule, ...]:
    """Return the counted rules that a policy has."""

    def calendar(point: PointFacts) -> _Calendar:
        return _calendar(point.created_ns // SECOND_NS, policy.zone)

    every = (
        Rule("last", policy.last, lambda point: (point.created_ns, point.number)),
        Rule("hourly", policy.hourly, lambda point: calendar(point).hour),
        Rule("daily", policy.daily, lambda point: calendar(point).day),
        Rule("weekly", policy.weekly, lambda point: calendar(point).week),
        Rule("monthly", policy.monthly, lambda point: calendar(point).month),
        Rule("yearly", policy.yearly, lambda point: calendar(point).year),
    )
    return tuple(rule for rule in every if rule.periods > 0)
