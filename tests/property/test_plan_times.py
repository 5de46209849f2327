"""When plans are due, against a second implementation that watches the clock, when clocks change."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountfs.plans.forms import DAYS
from mountfs.plans.model import Entry
from mountfs.plans.times import Due, Run, due, following, late_since, moment_of, next_runs, previous
from support.schedule_model import due_type, falls

BERLIN = ZoneInfo("Europe/Berlin")
DAY = 86_400


def at(text: str, zone: ZoneInfo = BERLIN) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp())


# Clocks that change by an hour both ways, by half an hour, that lost a whole day, and that never change.
CHANGES = [
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Australia/Lord_Howe", "2026-10-04"),
    ("Pacific/Apia", "2011-12-30"),
    ("Asia/Kathmandu", "2024-02-29"),
    ("UTC", "2027-02-28"),
    ("Africa/Casablanca", "2026-02-15"),
]

minutes = st.integers(0, 23).map(lambda hour: hour * 60) | st.integers(0, 24 * 60 - 1) | st.integers(0, 239)
entries = st.builds(
    Entry,
    type=st.sampled_from(["full", "diff", "inc"]),
    every=st.sampled_from(["hour", "day", "week", "month", "year"]),
    at=st.lists(minutes, min_size=1, max_size=3, unique=True).map(tuple),
    minute=st.integers(0, 59),
    days=st.lists(st.sampled_from(DAYS), min_size=1, unique=True).map(tuple),
    day=st.integers(1, 31),
    month=st.sampled_from([1, 2, 3, 4, 10, 11, 12]),
)


@given(change=st.sampled_from(CHANGES), entry=entries, offset=st.integers(-2 * DAY, 2 * DAY))
@settings(max_examples=80)
def test_moments_are_those_that_the_clock_on_the_wall_shows(
    change: tuple[str, str], entry: Entry, offset: int
) -> None:
    zone = ZoneInfo(change[0])
    middle = at(change[1], ZoneInfo("UTC"))
    start, end = middle - 3 * DAY, middle + 3 * DAY
    expected = falls(entry, zone, start, end)
    found, moment = [], start - 1
    while (coming := following(entry, moment, zone)) is not None and coming <= end:
        found.append(coming)
        moment = coming
    assert found == expected
    now = middle + offset
    assert [at for at in [previous(entry, now, zone)] if at and at >= start] == [
        at for at in expected if at <= now
    ][-1:]


runs = st.lists(
    st.builds(
        Run,
        type=st.sampled_from(["full", "diff", "inc"]),
        started=st.integers(at("2026-03-25"), at("2026-04-02")),
        outcome=st.sampled_from(["ok", "warning", "failed", "interrupted"]),
    ),
    max_size=5,
)


@given(schedule=st.lists(entries, min_size=1, max_size=4), past=runs, minute=st.integers(0, 4 * 24 * 60))
@settings(max_examples=40)
def test_what_is_due_is_what_nothing_has_answered(
    schedule: list[Entry], past: list[Run], minute: int
) -> None:
    now = at("2026-03-27") + minute * 60
    near = [entry for entry in schedule if entry.every in {"hour", "day"}]
    moments = {entry: falls(entry, BERLIN, now // 60 * 60 - 3 * DAY, now // 60 * 60) for entry in near}
    found = due(near, past, now, BERLIN, retry=0)
    assert (found.type if found else None) == due_type(near, past, now, moments)


@given(schedule=st.lists(entries, min_size=1, max_size=3), now=st.integers(0, 7_900_000_000))
@settings(max_examples=40)
def test_running_what_is_due_leaves_nothing_due(schedule: list[Entry], now: int) -> None:
    found = due(schedule, [], now, BERLIN)
    if found is not None:
        assert found.since <= now
        assert due(schedule, [Run(found.type, now, "ok")], now, BERLIN) is None
    coming = next_runs(schedule, now, BERLIN, 5)
    assert [entry.since for entry in coming] == sorted({entry.since for entry in coming})
    assert all(entry.since > now for entry in coming)


GFS = (
    Entry(type="full", every="month", day=1),
    Entry(type="diff", every="week", days=("sun",)),
    Entry(type="inc", every="day"),
)


def test_the_strongest_of_what_falls_together_is_run_alone() -> None:
    found = next_runs(GFS, at("2026-10-30T12:00"), BERLIN, 4)
    assert [entry.type for entry in found] == ["inc", "full", "inc", "inc"]  # the first is a Sunday
    assert found[1] == Due("full", at("2026-11-01T02:00"))


def test_a_full_run_answers_all_and_an_increment_answers_only_itself() -> None:
    now = at("2026-11-01T03:00")
    assert due(GFS, [Run("full", now - 60, "ok")], now, BERLIN) is None
    assert due(GFS, [Run("inc", now - 60, "ok")], now, BERLIN) == Due("full", at("2026-11-01T02:00"))


def test_many_missed_runs_are_one() -> None:
    runs = [Run("full", at("2026-06-01T02:00"), "ok")]
    now = at("2026-11-15T12:00")
    assert due(GFS, runs, now, BERLIN) == Due("full", at("2026-11-01T02:00"))
    assert due(GFS, [*runs, Run("full", now, "ok")], now, BERLIN) is None
    assert due(GFS, runs, now, BERLIN, catch_up=False) is None
    assert due(GFS, runs, at("2026-11-15T02:30"), BERLIN, catch_up=False) == Due(
        "diff", at("2026-11-15T02:00")
    )


def test_a_failed_run_is_tried_again_when_its_pause_is_over() -> None:
    now = at("2026-11-03T03:00")
    runs = [Run("full", at("2026-11-02T02:00"), "ok"), Run("inc", now, "failed")]
    assert due(GFS, runs, now + 3599, BERLIN, retry=3600) is None
    assert due(GFS, runs, now + 3600, BERLIN, retry=3600) == Due("inc", at("2026-11-03T02:00"))
    assert due(GFS, runs, now + 7200, BERLIN, retry=0) is None
    interrupted = [runs[0], Run("inc", now, "interrupted")]
    assert due(GFS, interrupted, now + 1, BERLIN, retry=0) == Due("inc", at("2026-11-03T02:00"))


@pytest.mark.parametrize("years", [10, -10])
def test_a_clock_that_jumps_ten_years_makes_one_run_and_no_pause(years: int) -> None:
    now = at("2026-11-15T12:00")
    jumped = now + years * 365 * DAY
    runs = [Run("full", now, "ok")]
    found = due(GFS, runs, jumped, BERLIN)
    assert found is not None
    assert jumped - 32 * DAY < found.since <= jumped
    runs.append(Run(found.type, jumped, "ok"))
    assert due(GFS, runs, jumped, BERLIN) is None
    back = now + DAY  # the clock is right again: the run of the wrong time counts for nothing
    assert due(GFS, runs, back, BERLIN) == Due("inc", at("2026-11-16T02:00"))


@pytest.mark.parametrize("now", [-(10**12), 0, 10**11, 2**62])
def test_no_clock_is_too_wrong_to_be_answered(now: int) -> None:
    due(GFS, [], now, BERLIN)
    next_runs(GFS, now, BERLIN, 3)


def test_a_plan_is_late_once_its_time_and_the_grace_are_over() -> None:
    made = at("2026-11-10T12:00")
    first = at("2026-11-11T02:00")

    def late(now: int, runs: list[Run]) -> int | None:
        return late_since(GFS, runs, now, BERLIN, known_since=made, allowed=DAY)

    assert late(first + DAY, []) is None
    assert late(first + DAY + 1, []) == first
    assert late(first + DAY + 1, [Run("inc", first, "ok")]) is None
    assert late(first + DAY + 1, [Run("inc", first, "failed")]) == first
    assert late(at("2026-11-17T12:00"), [Run("inc", at("2026-11-17T02:00"), "ok")]) == at("2026-11-15T02:00")


def test_the_zone_of_the_machine_is_used_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for name in ("Europe/Berlin", "America/New_York", "nonsense"):
            monkeypatch.setenv("TZ", name)
            time.tzset()
            zone = ZoneInfo("UTC") if name == "nonsense" else ZoneInfo(name)
            for day in ("2026-03-08", "2026-03-29", "2026-10-25", "2026-11-01", "2026-06-01"):
                wall = datetime.fromisoformat(f"{day}T02:30")
                assert moment_of(wall, None) == moment_of(wall, zone), (name, day)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_time_that_the_clocks_leave_out_is_the_moment_they_change() -> None:
    assert moment_of(datetime(2026, 3, 29, 2, 30), BERLIN) == at("2026-03-29T03:00")  # noqa: DTZ001
    assert moment_of(datetime(2026, 10, 25, 2, 30), BERLIN) == int(  # noqa: DTZ001
        datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp()
    )
    assert os.environ.get("TZ", "") != "nonsense"
