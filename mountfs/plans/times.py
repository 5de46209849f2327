"""When a plan is due. Pure: a plan's schedule, its last runs and a moment in; moments out.

A moment is a whole number of seconds since 1970, UTC. A time of day is one on the wall of the plan's zone:
what a change of the clocks repeats happens the first time, and what it leaves out happens as the clocks
change. An hour of the schedule is a real one: the hour that is repeated is two.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from mountfs.plans.forms import DAYS
from mountfs.plans.model import TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import tzinfo

    from mountfs.plans.model import Entry

SKEW_S = 600
"""How far a clock may be put back without anything being wrong."""
GRACE_S = 3600
"""A run that starts so much later was not missed."""
EARLIEST, LATEST = 0, 7_980_000_000
"""1970 and 2222: whatever a clock says, it is taken to be between them."""
_SHOWN = 60_000_000_000
"""Beyond it there are no dates."""
_LONGEST_DAYS = 740
"""No two moments of one entry are further apart."""


class Run(NamedTuple):
    """What counts of a run that was."""

    type: str
    started: int
    outcome: str
    """``ok``, ``warning``, ``failed``, ``interrupted`` or ``running``."""

    @property
    def good(self) -> bool:
        """Whether it did what it was to do."""
        return self.outcome in {"ok", "warning"}


class Due(NamedTuple):
    """A run that is to start, of which kind, and since when."""

    type: str
    since: int


def strength(type_: str) -> int:
    """Return the place of a kind of run among all; the strongest has the largest."""
    return TYPES.index(type_) if type_ in TYPES else -1


def wall_clock(moment: int, zone: tzinfo | None) -> datetime:
    """Return what the clock on the wall shows; without a zone in it."""
    return datetime.fromtimestamp(moment, zone).replace(tzinfo=None)


def moment_of(wall: datetime, zone: tzinfo | None) -> int:
    """Return when the clock on the wall first shows a time or, of one that it leaves out, goes past it."""
    first = _stamp(wall.replace(fold=0), zone)
    if wall_clock(first, zone).replace(fold=0) == wall.replace(fold=0):
        return first
    before, after = sorted((first, _stamp(wall.replace(fold=1), zone)))
    while after - before > 1:  # the change of the clocks lies between the two readings of that time
        middle = (before + after) // 2
        if wall_clock(middle, zone).replace(fold=0) > wall:
            after = middle
        else:
            before = middle
    return after


def _stamp(wall: datetime, zone: tzinfo | None) -> int:
    return int(wall.replace(tzinfo=zone).timestamp())


def _is_on(entry: Entry, day: date) -> bool:
    match entry.every:
        case "day":
            return True
        case "week":
            return DAYS[day.weekday()] in entry.days
        case "month":
            return day.day == entry.day or (day.day < entry.day and _is_last(day))
        case _:
            return day.month == entry.month and (
                day.day == entry.day or (day.day < entry.day and _is_last(day))
            )


def _is_last(day: date) -> bool:
    return (day + timedelta(days=1)).day == 1


def _moments(entry: Entry, days: Iterable[date], zone: tzinfo | None) -> Iterator[int]:
    for day in days:
        if _is_on(entry, day):
            for minutes in entry.at:
                wall = datetime.combine(day, time(minutes // 60, minutes % 60))
                yield moment_of(wall, zone)


def _days(moment: int, zone: tzinfo | None, step: int) -> Iterator[date]:
    """Yield days from that of a moment on or back, one before it first: the wall may have gone back."""
    today = wall_clock(moment, zone).date()
    return (today + timedelta(days=step * number) for number in range(-2, _LONGEST_DAYS))


def previous(entry: Entry, moment: int, zone: tzinfo | None) -> int | None:
    """Return the last moment of an entry up to and including ``moment``; None before there was one."""
    now = _clamped(moment)
    if entry.every == "hour":
        return _hourly(entry, now, zone, -1)
    days = iter(_days(now, zone, -1))
    for day in days:
        found = [at for at in _moments(entry, (day,), zone) if at <= now]
        if found:
            # a day before may end later only where whole days are left out, and then they are the same moment
            return max(found) if max(found) >= EARLIEST else None
    return None


def following(entry: Entry, moment: int, zone: tzinfo | None) -> int | None:
    """Return the first moment of an entry after ``moment``; None in the far future."""
    now = _clamped(moment)
    if entry.every == "hour":
        return _hourly(entry, now + 1, zone, 1)
    for day in _days(now, zone, 1):
        found = [at for at in _moments(entry, (day,), zone) if at > now]
        if found:
            return min(found) if min(found) <= LATEST else None
    return None


def _hourly(entry: Entry, moment: int, zone: tzinfo | None, step: int) -> int | None:
    """Go from minute to minute on the wall; an hour has at most three of them where clocks change."""
    at = moment
    for _ in range(24 * 60):
        seconds = wall_clock(at, zone).second
        if seconds:
            at += -seconds if step < 0 else 60 - seconds
        if wall_clock(at, zone).minute == entry.minute:
            return at
        at += 60 * step
    return None


def _clamped(moment: int) -> int:
    return min(max(moment, EARLIEST), LATEST)


def due(
    schedule: Sequence[Entry],
    runs: Iterable[Run],
    now: int,
    zone: tzinfo | None,
    *,
    catch_up: bool = True,
    retry: int = GRACE_S,
    jitter: int = 0,
) -> Due | None:
    """Return the strongest run that is due; None when none is.

    An entry is due from each of its moments until a good run of its strength, or a greater one, started after
    it. However many moments were missed, that is one run; without ``catch_up`` none. After a run that failed
    it is due again when ``retry`` has passed, or with its next moment when that is zero. Runs that are said
    to start in the future, by a clock that was wrong, do not count.
    """
    past = [run for run in runs if run.started <= now + SKEW_S]
    for entry in sorted(schedule, key=lambda entry: -strength(entry.type)):
        since = previous(entry, now, zone)
        if since is None or (not catch_up and now - since > GRACE_S + jitter):
            continue
        done = [run for run in past if run.started >= since and strength(run.type) >= strength(entry.type)]
        if any(run.good for run in done):
            continue
        failed = [run.started for run in done if run.outcome == "failed"]
        if failed and (not retry or now - max(failed) < retry):
            continue
        return Due(entry.type, since)
    return None


def next_runs(
    schedule: Sequence[Entry],
    now: int,
    zone: tzinfo | None,
    count: int,
    at_once: Due | None = None,
) -> list[Due]:
    """Return the next runs; of several that fall on one moment, the strongest alone.

    ``at_once`` is what is due already; it comes first.
    """
    found = [Due(at_once.type, now)] if at_once else []
    moment: int | None = now
    while moment is not None and len(found) < count:
        coming = [(following(entry, moment, zone), entry.type) for entry in schedule]
        moments = [at for at, _ in coming if at is not None]
        moment = min(moments, default=None)
        if moment is not None:
            types = [type_ for at, type_ in coming if at == moment]
            found.append(Due(max(types, key=strength), moment))
    return found


def late_since(
    schedule: Sequence[Entry],
    runs: Iterable[Run],
    now: int,
    zone: tzinfo | None,
    *,
    known_since: int,
    allowed: int,
) -> int | None:
    """Return since when a plan is late: the first moment that no good run answered within ``allowed``.

    That is in seconds. ``known_since`` is when the plan came into being: before it nothing was to be done.
    None: it is not late.
    """
    past = [run for run in runs if run.good and run.started <= now + SKEW_S]
    found = []
    for entry in schedule:
        answers = (run.started for run in past if strength(run.type) >= strength(entry.type))
        start = max(chain(answers, [min(known_since, now)]))
        missed = following(entry, start, zone)
        if missed is not None and missed + allowed < now:
            found.append(missed)
    return min(found, default=None)


def for_people(moment: int, zone: tzinfo | None) -> str:
    """Return a moment on the wall of the plan's zone, and its offset: ``2024-05-01 13:22:01 +02:00``."""
    shown = as_text(moment, zone)
    return f"{shown[:10]} {shown[11:19]} {shown[19:]}" if shown[10:11] == "T" else shown


def as_text(moment: int, zone: tzinfo | None) -> str:
    """Return a moment as ISO 8601 with the offset of the plan's zone."""
    if abs(moment) > _SHOWN:
        return f"{moment} s"
    shown = datetime.fromtimestamp(moment, UTC).astimezone(zone)
    return shown.isoformat(timespec="seconds")
