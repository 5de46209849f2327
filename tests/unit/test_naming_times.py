"""A time names the newest point at or before the end of what it states: a day, an hour, a minute."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from imageformat.errors import NotFoundError, UsageError
from imageformat.layer import DiskInfo, ImageInfo, ImageType
from imageformat.repository import ImageSet, Point
from imageformat.selection import end_of_time, point_at, select_point, split_image_path

SECOND = 1_000_000_000


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


@pytest.mark.parametrize(
    ("when", "end"),
    [
        ("2026-11-20", "2026-11-20T23:00:00"),
        ("20261120", "2026-11-20T23:00:00"),
        ("2026-03-29", "2026-03-29T22:00:00"),
        ("2026-10-25", "2026-10-25T23:00:00"),
        ("2026-11-20T12", "2026-11-20T12:00:00"),
        ("2026-11-20 12", "2026-11-20T12:00:00"),
        ("20261120T12", "2026-11-20T12:00:00"),
        ("2026-11-20T12:00", "2026-11-20T11:01:00"),
        ("20261120T1200", "2026-11-20T11:01:00"),
        ("2026-11-20T12:00:30", "2026-11-20T11:00:31"),
        ("2026-11-20T12Z", "2026-11-20T13:00:00"),
        ("2026-11-20T12:00Z", "2026-11-20T12:01:00"),
        ("2026-11-20T12:00+05:30", "2026-11-20T06:31:00"),
        ("2026-11-20T12:00:30-03:00", "2026-11-20T15:00:31"),
        ("2026-11-20 12:00:30 +01:00", "2026-11-20T11:00:31"),
        ("2026-11-23T103011Z", "2026-11-23T10:30:12"),
        ("2026-10-25T02", "2026-10-25T02:00:00"),
        ("2026-10-25T02:30", "2026-10-25T01:31:00"),
        ("9999-12-31", "9999-12-31T23:59:59"),
    ],
)
def test_the_end_of_what_is_stated(when: str, end: str) -> None:
    assert end_of_time(when) // SECOND == utc(end) // SECOND


def test_a_fraction_is_as_exact_as_json_gives_it() -> None:
    assert end_of_time("2026-11-20T12:00:30.123456789Z") == utc("2026-11-20T12:00:30") + 123_457_000


@pytest.mark.parametrize(
    "when", ["", "today", "2026-13-01", "2026-11-20T25", "T12", "0001-01-01T00:00", "12:00"]
)
def test_what_is_no_time(when: str) -> None:
    with pytest.raises(UsageError, match="2026-11-20"):
        end_of_time(when)


def point(number: int, created_ns: int) -> Point:
    info = ImageInfo(
        format="mfi", id=uuid.UUID(int=number), set_id=uuid.UUID(int=0), number=number, type=ImageType.FULL,
        created_ns=created_ns, root=bytes(16), parent_id=None, parent_root=None, depth=0, stored_size=1,
        disks=(DiskInfo(4096, 4096, 512),), details={},
    )  # fmt: skip
    return Point("disk", f"disk/{number}.mfi", 1, info, None)


def test_the_newest_point_of_the_day_the_hour_the_minute() -> None:
    times = ["2026-11-20T00:30:00", "2026-11-20T11:00:59", "2026-11-20T11:59:59", "2026-11-20T22:59:59"]
    points = [point(number, utc(when) + SECOND - 1) for number, when in enumerate(times, 1)]
    points.append(point(5, utc("2026-11-20T23:00:00")))
    image_set = ImageSet("disk", "disk/", tuple(points))
    expected = {"2026-11-20T12:00": 2, "2026-11-20T12": 3, "2026-11-20": 4, "2026-11-21": 5}
    assert {when: select_point(image_set, when).number for when in expected} == expected
    with pytest.raises(NotFoundError, match="at or before 2026-11-19"):
        point_at(image_set, "2026-11-19")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("repo/s@2026-11-20T12:00:2/etc", ("repo/s", "2026-11-20T12:00", "2/etc")),
        ("repo/s@2026-11-20T12:00", ("repo/s", "2026-11-20T12:00", None)),
        ("repo/s@2026-11-20T12:00:30", ("repo/s", "2026-11-20T12:00:30", None)),
        ("repo/s@2026-11-20T12:00:30:10/a:b", ("repo/s", "2026-11-20T12:00:30", "10/a:b")),
        ("repo/s@2026-11-20 12:00:2/etc", ("repo/s", "2026-11-20 12:00", "2/etc")),
        ("repo/s@2026-11-20T12:00+01:00:2/etc", ("repo/s", "2026-11-20T12:00+01:00", "2/etc")),
        ("repo/s@2026-11-20T12:00:30-03:30:2", ("repo/s", "2026-11-20T12:00:30-03:30", "2")),
        ("repo/s@2026-11-20T12:00:10/etc", ("repo/s", "2026-11-20T12:00", "10/etc")),
        ("repo/s@2026-11-20:10/etc", ("repo/s", "2026-11-20", "10/etc")),
        ("repo/s@2026-11-20T12:2/etc", ("repo/s", "2026-11-20T12", "2/etc")),
        ("repo/s@17:10", ("repo/s", "17", "10")),
        ("repo/s:2/etc@12", ("repo/s", None, "2/etc@12")),
    ],
)
def test_colons_of_a_time_are_not_the_colon_before_the_path(
    text: str, expected: tuple[str, str | None, str | None]
) -> None:
    assert split_image_path(text, lambda path: path == "repo/s") == expected
