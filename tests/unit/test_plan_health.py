"""How plans stand against their goals, and what a report of a run looks like."""

from __future__ import annotations

import html.parser
import re
import threading
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest

from imageformat.errors import AccessDeniedError
from mountfs.cli.answers import Answer
from mountfs.plans.execution import listed_points
from mountfs.plans.health import CopyFacts, SetFacts, Trouble, judge
from mountfs.plans.picture import MAX_POINTS, chain_picture
from mountfs.plans.reading import parse_plan
from mountfs.plans.records import PointRecord, RunRecord, StepRecord
from mountfs.plans.reports import html_report, text_report

PLAN = parse_plan(
    'sources = ["/dev/x"]\nrepository = "/b"\ntemplate = "grandfather-father-son"\nzone = "Europe/Berlin"\n',
    Path("/p/laptop.toml"),
)
DAY = 86_400
NOW = int(datetime(2026, 11, 18, 12, tzinfo=ZoneInfo("Europe/Berlin")).timestamp())


def run(outcome: str, started: int, type_: str = "full") -> RunRecord:
    step = StepRecord(
        name="backup x", kind="backup", command="mountfs backup", outcome=outcome, message="full"
    )
    return RunRecord(
        plan="laptop",
        id=f"r{started}",
        type=type_,
        started=started,
        ended=started + 1,
        outcome=outcome,
        steps=(step,),
    )


GOOD_SET = SetFacts("x", points=3, size=100, newest=NOW, proven=1.0)
SOURCE = CopyFacts("/dev/x", "disk", offsite=False, current=True)
REPOSITORY = CopyFacts("/b", "usb", offsite=False, current=True)
CLOUD = CopyFacts("s3://c", "s3", offsite=True, current=True)


@pytest.mark.parametrize(
    ("records", "sets", "places", "expected"),
    [
        ([run("ok", NOW - 3600)], [GOOD_SET], [SOURCE, REPOSITORY, CLOUD], []),
        ([run("ok", NOW - 9 * DAY)], [GOOD_SET], [SOURCE, REPOSITORY, CLOUD], [Trouble.LATE]),
        ([], [GOOD_SET], [SOURCE, REPOSITORY, CLOUD], [Trouble.LATE]),
        (
            [run("ok", NOW - 3600), run("failed", NOW - 60)],
            [GOOD_SET],
            [SOURCE, REPOSITORY, CLOUD],
            [Trouble.FAILED],
        ),
        ([run("ok", NOW - 3600), run("running", NOW - 60)], [GOOD_SET], [SOURCE, REPOSITORY, CLOUD], []),
        (
            [run("interrupted", NOW - 60)],
            [GOOD_SET],
            [SOURCE, REPOSITORY, CLOUD],
            [Trouble.FAILED, Trouble.LATE],
        ),
        (
            [run("ok", NOW - 3600)],
            [SetFacts("x", points=3, unproven=1), SetFacts("y", problem="gone"), SetFacts("z", damaged=2)],
            [SOURCE, REPOSITORY, CLOUD],
            [Trouble.UNREADABLE, Trouble.UNREADABLE, Trouble.UNPROVEN],
        ),
        (
            [run("ok", NOW - 3600)],
            [GOOD_SET],
            [SOURCE, REPOSITORY, CopyFacts("s3://c", "s3", offsite=True, current=False, problem="old")],
            [Trouble.COPIES, Trouble.COPIES],
        ),
        (
            [run("ok", NOW - 3600)],
            [GOOD_SET],
            [
                SOURCE,
                CopyFacts("/b", "disk", offsite=True, current=True),
                CopyFacts("/c", "disk", offsite=False, current=True),
            ],
            [Trouble.COPIES],
        ),
    ],
)
def test_a_plan_is_held_to_its_goals(
    records: list[RunRecord], sets: list[SetFacts], places: list[CopyFacts], expected: list[Trouble]
) -> None:
    health = judge(PLAN, records, sets, places, NOW, NOW - 30 * DAY)
    assert [finding.trouble for finding in health.findings] == expected
    assert (health.late_since is not None) == (Trouble.LATE in expected)


def test_the_codes_of_status_are_nobody_elses() -> None:
    assert [int(trouble) for trouble in Trouble] == [85, 86, 87, 88, 89]


HOSTILE = '<script>alert("x")</script>&\'"'


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_of_a_run_stands_alone_and_takes_nothing_for_markup() -> None:
    points = tuple(
        PointRecord(
            set=HOSTILE,
            number=number,
            kind=("full", "inc", HOSTILE)[number % 3],
            created_ns=0,
            size=1 << number % 60,
            parent=number - 1 or None,
            state=("ok", "verified", "damaged", HOSTILE)[number % 4],
        )
        for number in range(1, MAX_POINTS + 20)
    )
    step = StepRecord(
        name=HOSTILE,
        kind="hook",
        command=HOSTILE,
        outcome="failed",
        code=5,
        message=HOSTILE,
        warnings=(HOSTILE,),
    )
    record = msgspec.structs.replace(
        run("failed", NOW), plan=HOSTILE, steps=(step,), points=points, warnings=(HOSTILE,), due_since=NOW - 5
    )
    page = html_report(record, ZoneInfo("Europe/Berlin"))
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert "script" not in tags.seen
    assert {"svg", "rect", "path", "table", "style"} <= tags.seen
    assert tags.links == []
    assert "http" not in re.sub(r'xmlns="http://www\.w3\.org/2000/svg"', "", page)
    assert "prefers-color-scheme:dark" in page
    assert f"the last {MAX_POINTS} shown" in page
    assert "2026-11-18 12:00:00 +01:00" in page
    text = text_report(record, None)
    assert text.count(HOSTILE) >= 5
    assert chain_picture((), "empty").startswith("<svg")


def test_what_list_says_of_points_is_taken_or_left() -> None:
    told = (
        b'{"type":"result","repository":"/b","sets":[{"name":"s","points":['
        b'{"number":1,"kind":"full","created_ns":5,"size":7,"id":"a","parent_id":null,"state":"ok","disks":[]},'
        b'{"number":2,"kind":"inc","created_ns":6,"size":8,"id":"b","parent_id":"a","state":"verified"},'
        b'{"file":"broken.mfi","size":3,"state":"broken"}]}]}\n'
    )
    assert [(point.number, point.parent, point.state) for point in listed_points(told)] == [
        (1, None, "ok"),
        (2, 1, "verified"),
    ]
    for wrong in (b"", b"[]", b'{"sets":3}', b'{"sets":[{"name":"s","points":[{"number":"x"}]}]}', b"\xff"):
        assert listed_points(wrong) == []


def test_an_answer_is_waited_for_no_longer_than_asked() -> None:
    never = threading.Event()
    silent = Answer(never.wait)
    assert Answer(lambda: "there").within(60) == "there"
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 seconds"):
        silent.within(0.01)
    never.set()
    assert silent.within(60)

    def refuse() -> str:
        raise AccessDeniedError("not you")

    with pytest.raises(AccessDeniedError, match="not you"):
        Answer(refuse).within(60)
