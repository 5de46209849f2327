"""Plans and records that anything may have happened to: a plan, or one error that names its file."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageformat.errors import PlanError
from mountfs.plans.forms import DAYS
from mountfs.plans.health import judge
from mountfs.plans.history import History
from mountfs.plans.installing import cron_lines, systemd_service, systemd_timer, windows_task
from mountfs.plans.model import SECTIONS, TABLES, TOP, keys_of
from mountfs.plans.reading import parse_plan
from mountfs.plans.records import PointRecord, RunRecord, StepRecord, encode_record
from mountfs.plans.reports import html_report, text_report
from mountfs.plans.steps import steps_of
from mountfs.plans.templates import TEMPLATES
from mountfs.plans.times import next_runs
from mountfs.plans.writing import new_plan

FILE = Path("/plans/x.toml")
NOW = 1_795_000_000
TEXT = new_plan("x", "grandfather-father-son", sources=("/dev/x",), repository="/b", copies=("s3://b/c",))
WHOLE = TEXT.replace("\n# ", "\n").encode()

words = st.sampled_from(
    [
        *DAYS,
        "full",
        "diff",
        "inc",
        "clone",
        "hour",
        "day",
        "week",
        "month",
        "year",
        "02:00",
        "24:00",
        "30d",
        "1h",
        "20GiB",
    ]
) | st.text(max_size=8)
values = st.recursive(
    words | st.integers(-2, 70) | st.booleans() | st.floats() | st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)


def section_of(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from([*names, "odd"]), values, max_size=4)


plans = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(TOP, values),
        "template": st.sampled_from([*TEMPLATES, "x"]),
        "sources": st.lists(st.just("/dev/x") | values, max_size=2),
        "repository": st.just("/b") | values,
        **{name: section_of(list(keys_of(section))) | values for name, section in SECTIONS.items()},
        **{
            name: st.lists(section_of(list(keys_of(section))) | values, max_size=2)
            for name, (section, _) in TABLES.items()
        },
    },
)


def use(text: str) -> None:
    """Read a plan and, if it is one, do with it all that is done with plans."""
    try:
        plan = parse_plan(text, FILE)
    except PlanError as error:
        assert str(error).startswith(f"{FILE}")  # noqa: PT017 (most of what is tried ends here)
        return
    for entry in plan.schedule:
        steps_of(plan, entry.type)
    next_runs(plan.schedule, NOW, plan.zone, 3)
    judge(plan, (), (), (), NOW, NOW - 9)
    command = ["python", *(source.path for source in plan.sources)]
    for made in (systemd_service(plan, command), systemd_timer(plan), *cron_lines(plan, command)):
        assert "\0" not in made
    windows_task(plan, command, datetime(2026, 1, 1, tzinfo=UTC))


def test_what_is_mutated_is_a_valid_plan_at_first() -> None:
    tomllib.loads(TEXT)
    use(TEXT)


@given(
    cuts=st.lists(st.tuples(st.integers(0, len(WHOLE)), st.binary(max_size=4), st.integers(0, 6)), max_size=6)
)
@settings(max_examples=60)
def test_a_damaged_file_is_a_plan_or_an_error(cuts: list[tuple[int, bytes, int]]) -> None:
    content = WHOLE
    for place, put, gone in cuts:
        content = content[:place] + put + content[place + gone :]
    use(content.decode("utf-8", "replace"))


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            escaped = "".join(letter if letter.isalnum() else f"\\U{ord(letter):08x}" for letter in value)
            return f'"{escaped}"'
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{_toml(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
        case datetime():
            return value.isoformat()
        case _:
            return str(value)


@given(content=plans)
@settings(max_examples=60)
def test_any_value_of_any_key_is_taken_or_refused(content: dict[str, Any]) -> None:
    use("\n".join(f"{key} = {_toml(value)}" for key, value in content.items()))


records = st.builds(
    RunRecord,
    plan=st.text(max_size=4),
    id=st.text("ab/.", max_size=4),
    type=words,
    started=st.integers(-(2**62), 2**62),
    outcome=words,
    steps=st.lists(
        st.builds(StepRecord, name=words, kind=words, command=words, outcome=words), max_size=2
    ).map(tuple),
    points=st.lists(
        st.builds(
            PointRecord,
            set=words,
            number=st.integers(-1, 3),
            kind=words,
            created_ns=st.just(0),
            size=st.integers(0, 9),
        ),
        max_size=3,
    ).map(tuple),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("history")


@given(
    record=records, name=st.sampled_from(["a", "b"]), damage=st.integers(0, 2000), put=st.binary(max_size=3)
)
@settings(max_examples=40)
def test_any_record_on_disk_can_be_read_and_shown(
    folder: Path, record: RunRecord, name: str, damage: int, put: bytes
) -> None:
    content = encode_record(record)
    (folder / f"{name}.json").write_bytes(content[:damage] + put + content[damage + len(put) :])
    plan = parse_plan(TEXT, FILE)
    found = History(folder).records(locked=True)
    judge(plan, found, (), (), NOW, NOW - 9)
    for one in (record, *found):
        text_report(one, None)
        html_report(one, plan.zone)
