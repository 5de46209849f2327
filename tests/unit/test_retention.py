"""What retention keeps, in cases that can be counted on one's fingers; and when it refuses."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from engine.policy import DAY_NS, PointFacts, Policy, _calendar
from engine.retention import Action, RetentionPlan, Trouble, plan_retention

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**9


def point(number: int, moment: datetime, parent: int | None = None, **facts: object) -> PointFacts:
    known = {"parent": f"s/{parent}" if parent else None, "size": 10, **facts}
    return PointFacts(f"s/{number}", "s", number, nanoseconds(moment), **known)  # type: ignore[arg-type]


def daily(count: int, *, until: datetime = NOW) -> list[PointFacts]:
    """One a day, the last one then."""
    return [point(number, until - timedelta(days=count - number)) for number in range(1, count + 1)]


def chain(count: int, every: int) -> list[PointFacts]:
    """A full each ``every`` points, increments between."""
    return [
        entry._replace(parent=None if (entry.number - 1) % every == 0 else f"s/{entry.number - 1}")
        for entry in daily(count)
    ]


def actions(plan: RetentionPlan) -> dict[int, Action]:
    return {verdict.point.number: verdict.action for verdict in plan.verdicts}


def numbers(plan: RetentionPlan, *wanted: Action) -> list[int]:
    return sorted(number for number, action in actions(plan).items() if action in wanted)


def plan(facts: list[PointFacts], policy: Policy, now: datetime = NOW, **given: object) -> RetentionPlan:
    return plan_retention(facts, policy, nanoseconds(now), **{"despite": (Trouble.MASS,), **given})  # type: ignore[arg-type]


def test_what_a_kept_increment_stands_on_stays_and_goes_with_it() -> None:
    found = plan(chain(14, 7), Policy(last=2))
    assert numbers(found, Action.KEEP) == [13, 14]
    assert numbers(found, Action.NEEDED) == [8, 9, 10, 11, 12]
    assert [gone.number for gone in found.deletions] == [7, 6, 5, 4, 3, 2, 1]
    assert found.verdicts[7].reasons == ("point 9 stands on it",)
    assert found.freed == 70


def test_merging_folds_what_is_only_stood_on_unless_something_on_it_cannot_be_merged() -> None:
    facts = chain(7, 7)
    found = plan(facts, Policy(last=2, fold=True))
    assert numbers(found, Action.MERGE) == [1, 2, 3, 4, 5]
    assert found.deletions == ()
    stiff = [*facts[:6], facts[6]._replace(foldable=False)]
    assert plan(stiff, Policy(last=2, fold=True)).merges == ()
    branch = [*facts, point(8, NOW, 2, foldable=False)]
    assert numbers(plan(branch, Policy(last=3, fold=True)), Action.MERGE) == [3, 4, 5]


def test_the_last_and_the_last_verified_and_the_pinned_always_stay() -> None:
    facts = daily(9)
    facts[3] = facts[3]._replace(verified=True)
    facts[8] = facts[8]._replace(sound=False)
    kept = plan(facts, Policy(within_ns=1, pinned=frozenset({"s/2"})))
    assert numbers(kept, Action.KEEP) == [2, 4, 8, 9]
    assert kept.verdicts[3].reasons == ("the last verified",)
    assert kept.verdicts[1].reasons == ("pinned",)


def test_a_damaged_point_takes_no_place_from_a_sound_one() -> None:
    facts = daily(4)
    facts[2] = facts[2]._replace(sound=False)
    assert numbers(plan(facts, Policy(last=2)), Action.KEEP) == [2, 3, 4]


def test_grandfather_father_son() -> None:
    found = plan(daily(800), Policy(daily=7, weekly=4, monthly=12, yearly=2, zone=UTC))
    kept = {entry.point.number: entry.reasons for entry in found.verdicts if entry.action is Action.KEEP}
    days = {800 - (NOW.date() - day.date()).days for day in month_ends(12)}
    assert {number for number, reasons in kept.items() if "monthly" in reasons} == days
    assert [number for number, reasons in kept.items() if "daily" in reasons] == list(range(794, 801))
    sundays = [800 - 3 - 7 * week for week in range(2, -1, -1)]  # 2026-11-25 is a Wednesday
    assert [number for number, reasons in kept.items() if "weekly" in reasons] == [*sundays, 800]
    assert [number for number, reasons in kept.items() if "yearly" in reasons] == [800 - 329, 800]


def month_ends(count: int) -> list[datetime]:
    """The last day of each of the last months, the running one's being today."""
    found = [NOW]
    while len(found) < count:
        found.append(found[-1].replace(day=1) - timedelta(days=1))
    return found


@pytest.mark.parametrize(
    ("first", "hours", "days"),
    [
        (datetime(2026, 10, 24, 22, tzinfo=UTC), 25, 1),  # the day on which Berlin repeats an hour
        (datetime(2026, 3, 28, 23, tzinfo=UTC), 23, 1),  # and the one on which it loses one
    ],
)
def test_days_of_23_and_25_hours(first: datetime, hours: int, days: int) -> None:
    facts = [point(number, first + timedelta(hours=number - 1)) for number in range(1, hours + 3)]
    now = first + timedelta(hours=hours + 2)
    assert len(numbers(plan(facts, Policy(hourly=hours + 2, zone=BERLIN), now), Action.KEEP)) == hours + 2
    kept = numbers(plan(facts, Policy(daily=9, zone=BERLIN), now), Action.KEEP)
    assert kept == [hours, hours + 2], "the last of that day, and the last of the next"
    utc = numbers(plan(facts, Policy(daily=9, zone=UTC), now), Action.KEEP)
    assert utc != kept, "the calendar is that of the zone"


def test_the_zone_of_the_machine_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [point(1, NOW.replace(hour=4)), point(2, NOW.replace(hour=6))]
    found = []
    try:
        for zone in ("America/New_York", "UTC"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            found.append(numbers(plan(facts, Policy(daily=5)), Action.KEEP))
            _calendar.cache_clear()
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found == [[1, 2], [2]]


def test_a_floor_of_free_space_takes_the_oldest_leaves() -> None:
    facts = [*daily(4), point(5, NOW, 4)]
    found = plan(facts, Policy(last=5, free_floor=125, largest_share=1), free=100)
    assert [gone.number for gone in found.deletions] == [1, 2, 3]
    assert found.verdicts[0].reasons == ("more free space is needed",)
    assert not found.warnings
    assert plan(facts, Policy(last=5, free_floor=125)).deletions == (), "what is free is not known"
    assert plan(facts, Policy(last=5, free_floor=125), free=130).deletions == ()
    short = plan(facts, Policy(last=5, free_floor=500, largest_share=1), free=100)
    assert numbers(short, Action.KEEP, Action.NEEDED) == [4, 5]
    assert len(short.warnings) == 1


@pytest.mark.parametrize(
    ("change", "now", "words"),
    [
        ({9: NOW + timedelta(days=3)}, NOW, "3 days ahead"),
        ({}, NOW - timedelta(days=365), "365 days ahead"),
        ({}, datetime(1970, 1, 1, tzinfo=UTC), "ahead of the clock"),
        ({}, NOW + timedelta(days=3650), "3650 days old"),
        ({1: datetime(1970, 1, 2, tzinfo=UTC)}, NOW, "not set"),
        ({5: NOW - timedelta(days=100)}, NOW, "point 5 is 95 days older than point 4"),
        ({4: NOW}, NOW, "point 5 is 4 days older than point 4"),
    ],
)
def test_clocks_that_cannot_be_right_stop_everything(
    change: dict[int, datetime], now: datetime, words: str
) -> None:
    facts = [
        entry._replace(created_ns=nanoseconds(change[entry.number])) if entry.number in change else entry
        for entry in daily(9)
    ]
    found = plan(facts, Policy(last=3), now)
    assert [refusal.trouble for refusal in found.refusals] == [Trouble.CLOCK]
    assert words in found.refusals[0].message
    told = plan(facts, Policy(last=3), now, despite=tuple(Trouble))
    assert not told.refusals
    assert any(words in warning for warning in told.warnings)


def test_small_differences_of_clocks_are_none() -> None:
    facts = daily(9)
    facts[8] = facts[8]._replace(created_ns=nanoseconds(NOW + timedelta(minutes=9)))
    facts[4] = facts[4]._replace(created_ns=facts[3].created_ns - 60 * 10**9)
    assert not plan(facts, Policy(last=3)).refusals


def test_a_file_that_cannot_be_read_stops_everything() -> None:
    facts = [*daily(4), PointFacts("s/odd", "s", 0, 0, 10, readable=False, sound=False)]
    found = plan(facts, Policy(last=1))
    assert [refusal.trouble for refusal in found.refusals] == [Trouble.UNREADABLE]
    told = plan(facts, Policy(last=1), despite=tuple(Trouble))
    assert [gone.number for gone in told.deletions] == [1, 2, 3], "and itself is never deleted"


def test_more_than_a_share_is_not_deleted_at_once() -> None:
    found = plan(daily(10), Policy(last=4), despite=())
    assert [refusal.trouble for refusal in found.refusals] == [Trouble.MASS]
    assert "6 of 10 points" in found.refusals[0].message
    assert not plan(daily(10), Policy(last=5), despite=()).refusals
    assert not plan(daily(10), Policy(last=4, largest_share=0.6), despite=()).refusals
    other = [entry._replace(set_name="t", key=f"t/{entry.number}") for entry in daily(10)]
    assert plan([*daily(10), *other[:9]], Policy(last=4), despite=()).refusals, "each set is judged alone"


def test_where_nothing_would_go_nothing_is_refused() -> None:
    assert not plan(daily(3), Policy(last=3), NOW + timedelta(days=3650)).refusals


def test_times_at_the_ends_of_the_format() -> None:
    facts = [point(1, NOW)._replace(created_ns=0), point(2, NOW)._replace(created_ns=2**64 - 1)]
    found = plan(facts, Policy(1, 1, 1, 1, 1, 1, within_ns=DAY_NS, zone=BERLIN))
    assert numbers(found, Action.KEEP) == [2]


def test_parents_in_a_ring_end() -> None:
    facts = [point(1, NOW, 2), point(2, NOW, 1), point(3, NOW)]
    found = plan(facts, Policy(last=1))
    assert numbers(found, Action.KEEP) == [3]
    assert found.deletions == (), "a ring has no leaf to begin with"
