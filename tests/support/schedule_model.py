"""When an entry of a schedule falls, found by watching the clock on the wall minute by minute."""

from __future__ import annotations

import calendar
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from mountfs.plans.forms import DAYS
from mountfs.plans.model import TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from zoneinfo import ZoneInfo

    from mountfs.plans.model import Entry
    from mountfs.plans.times import Run


def falls(entry: Entry, zone: ZoneInfo, start: int, end: int) -> list[int]:
    """All moments of an entry from ``start`` to ``end``, both whole minutes and included."""
    seen: set[datetime] = set()
    found: list[int] = []
    last: datetime | None = None
    for moment in range(start - 3 * 86_400, end + 1, 60):
        wall = datetime.fromtimestamp(moment, zone).replace(tzinfo=None, fold=0)
        if entry.every == "hour":
            hit = wall.minute == entry.minute
        else:
            shown = {wall} | set(_skipped(last, wall))
            hit = any(_names(entry, time) and time not in seen for time in shown)
            seen |= shown
        last = wall
        if hit and moment >= start:
            found.append(moment)
    return found


def _skipped(last: datetime | None, wall: datetime) -> Iterator[datetime]:
    """The minutes that the clock never showed."""
    while last is not None and last + timedelta(minutes=1) < wall:
        last += timedelta(minutes=1)
        yield last


def _names(entry: Entry, wall: datetime) -> bool:
    if wall.hour * 60 + wall.minute not in entry.at:
        return False
    if entry.every == "week":
        return DAYS[wall.weekday()] in entry.days
    if entry.every in {"month", "year"}:
        length = calendar.monthrange(wall.year, wall.month)[1]
        right_month = entry.every == "month" or wall.month == entry.month
        return right_month and wall.day == min(entry.day, length)
    return True


def due_type(
    schedule: Sequence[Entry], runs: Sequence[Run], now: int, falls_before: dict[Entry, list[int]]
) -> str | None:
    """What is due when everything missed is caught up and a failure is never tried again before its time."""
    best = None
    for entry in schedule:
        past = [at for at in falls_before[entry] if at <= now]
        if not past:
            continue
        answered = any(
            past[-1] <= run.started <= now + 600
            and TYPES.index(run.type) >= TYPES.index(entry.type)
            and run.outcome in {"ok", "warning", "failed"}
            for run in runs
        )
        if not answered and (best is None or TYPES.index(entry.type) > TYPES.index(best)):
            best = entry.type
    return best
