"""What a policy would leave over the years: points and bytes, day by day, from made-up backups.

It runs the very planning that retention runs. Sizes are taken to be constant, and a merged image to be as
large as both together, but no larger than a full one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from engine.policy import SECOND_NS, PointFacts
from engine.retention import Trouble, plan_retention

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date

    from engine.policy import Policy

MAX_YEARS = 100
_SET = "simulated"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which backups are made."""

    start: datetime
    """Of the first; with a zone."""
    years: int = 5
    every: timedelta = timedelta(days=1)
    full_every: int = 0
    """A full image after so many points; 0: only the first is full."""
    full_size: int = 100 << 30
    increment_size: int = 1 << 30


class Day(NamedTuple):
    """What there is at the end of a day, after retention ran once."""

    day: date
    points: int
    stored: int
    """Bytes."""
    deleted: int
    merged: int


def simulate(policy: Policy, schedule: Schedule) -> Iterator[Day]:
    """Yield each day of so many years of 365 days; retention runs at the end of each."""
    points: list[PointFacts] = []
    number = 0
    moment = schedule.start.astimezone(UTC)
    evening = moment + timedelta(days=1)
    for _ in range(schedule.years * 365):
        while moment < evening:
            number += 1
            points.append(_next_point(points, number, moment, schedule))
            moment += schedule.every
        now_ns = int(evening.timestamp()) * SECOND_NS
        plan = plan_retention(points, policy, now_ns, despite=(Trouble.MASS,))
        points = _carried_out(points, {gone.key for gone in plan.deletions})
        for merged in plan.merges:
            points = _folded(points, merged.key, schedule.full_size)
        yield Day(
            (evening - timedelta(seconds=1)).astimezone(policy.zone).date(),
            len(points),
            sum(point.size for point in points),
            len(plan.deletions),
            len(plan.merges),
        )
        evening += timedelta(days=1)


def _next_point(
    points: Sequence[PointFacts], number: int, moment: datetime, schedule: Schedule
) -> PointFacts:
    full = not points or (schedule.full_every > 0 and (number - 1) % schedule.full_every == 0)
    return PointFacts(
        key=str(number),
        set_name=_SET,
        number=number,
        created_ns=int(moment.timestamp()) * SECOND_NS,
        size=schedule.full_size if full else schedule.increment_size,
        parent=None if full else points[-1].key,
    )


def _carried_out(points: Sequence[PointFacts], gone: set[str]) -> list[PointFacts]:
    return [point for point in points if point.key not in gone]


def _folded(points: Sequence[PointFacts], key: str, largest: int) -> list[PointFacts]:
    """Fold one point into those that stand on it, each of which then holds what it held."""
    folded = next(point for point in points if point.key == key)
    return [
        point._replace(parent=folded.parent, size=min(largest, point.size + folded.size))
        if point.parent == key
        else point
        for point in points
        if point.key != key
    ]
