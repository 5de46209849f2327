"""From a plan to commands, and what runs when one of them fails."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer import Context
from typer.main import get_command

from mountfs.cli.__main__ import application
from mountfs.cli.images import parse_name
from mountfs.cli.planning import wrapped
from mountfs.plans.conditions import has_network, on_battery
from mountfs.plans.reading import parse_plan
from mountfs.plans.records import RunRecord, StepRecord, decode_record, encode_record
from mountfs.plans.running import ended, new_record, run_steps
from mountfs.plans.steps import steps_of
from mountfs.quantities import Budget, parse_budget

if TYPE_CHECKING:
    from collections.abc import Collection

    from mountfs.plans.model import Plan
    from mountfs.plans.steps import Step

WHOLE = parse_plan(
    """
sources = ["/dev/disk/by-id/a", { path = "/data/b c.img", exclude = ["*.tmp"] }]
repository = "/backups/"
copies = ["/mnt/nas", { to = "s3://b/x/", retention = { last = 3, monthly = 12, max_share = 80 } }]
exclude = ["/swapfile"]
zone = "Europe/Berlin"
[[schedule]]
type = "diff"
every = "day"
[backup]
level = 5
snapshot = "auto"
before = ["stop", "my db"]
after = "start db"
changed = "scan"
rescue = true
[retention]
daily = 7
within = "3d"
free = "10%"
pin = ["1"]
merge = true
[verify]
each = "file"
budget = "20GiB"
[hooks]
before = ["first", "second"]
after = "sync; true"
failed = "mail"
[limits]
rate = 20
threads = 2
nice = 10
io = "idle"
""",
    Path("/p/whole.toml"),
)
CLONE = parse_plan(
    'template = "clone-nightly"\n[clone]\nsource = "/dev/a"\ntarget = "/dev/b"\nserial = "S1"\n'
    "partitions = [1, 3]\n",
    Path("/p/clone.toml"),
)
LIMITED = "nice -n 10 ionice -c 3 "


def test_a_plan_is_the_commands_that_one_would_type() -> None:
    options = (
        "--exclude /swapfile{} --level 5 --snapshot auto --before 'stop '\"'\"'my db'\"'\"'' "
        "--after 'start db' --changed scan --rescue --verify file --threads 2 --rate-limit 20"
    )
    there = "--keep-last 3 --keep-monthly 12 --max-share 80 --zone Europe/Berlin --yes"
    kept = "--keep-daily 7 --keep-within 3d --free 10% --zone Europe/Berlin --pin 1 --merge --yes"
    assert [step.typed for step in steps_of(WHOLE, "diff")] == [
        "first",
        "second",
        LIMITED + f"mountfs backup /dev/disk/by-id/a /backups/ --set a --type diff {options.format('')}",
        LIMITED
        + "mountfs backup '/data/b c.img' /backups/ --set b-c --type diff "
        + options.format(" --exclude '*.tmp'"),
        LIMITED + "mountfs verify /backups/a --budget 20GiB --threads 2",
        LIMITED + "mountfs verify /backups/b-c --budget 20GiB --threads 2",
        LIMITED + "mountfs copy /backups/ /mnt/nas --set a --set b-c --rate-limit 20",
        LIMITED + "mountfs copy /backups/ s3://b/x/ --set a --set b-c --rate-limit 20",
        LIMITED + f"mountfs retention s3://b/x/a {there}",
        LIMITED + f"mountfs retention s3://b/x/b-c {there}",
        LIMITED + f"mountfs retention /backups/a {kept}",
        LIMITED + f"mountfs retention /backups/b-c {kept}",
        "mail",
        "sync; true",
    ]
    assert [step.typed for step in steps_of(CLONE, "clone")] == [
        "mountfs clone /dev/a /dev/b --delta --partitions 1,3 --target-serial S1 --yes"
    ]


VERIFIED = parse_plan(
    'sources = ["/a"]\nrepository = "/b"\n[[schedule]]\ntype = "full"\nevery = "day"\n'
    '[backup]\nraw = true\nwhole_blocks = true\nblock_size = 128\nsnapshot = "none"\n[verify]\n'
    'each = "source"\nbudget = "30min"\n[retention]\nlast = 1\nmax_share = 90\n',
    Path("/p/verified.toml"),
)
COMMANDS = [
    step
    for plan, type_ in ((WHOLE, "diff"), (WHOLE, "inc"), (VERIFIED, "full"), (CLONE, "clone"))
    for step in steps_of(plan, type_)
    if step.kind != "hook"
]


def understood(step: Step) -> dict[str, Any]:
    """What the real command understands of a step; fails where it would end with 2."""
    group = get_command(application([step.kind]))
    command = group.get_command(Context(group), step.kind)  # type: ignore[attr-defined]
    found: dict[str, Any] = command.make_context(step.kind, list(step.words[2:])).params
    return found


@pytest.mark.parametrize("step", COMMANDS, ids=lambda step: step.name)
def test_a_command_understands_its_step(step: Step) -> None:
    found = understood(step)
    given = {word for word in step.words if word.startswith("--")}
    group = get_command(application([step.kind]))
    options = group.get_command(Context(group), step.kind).params  # type: ignore[attr-defined]
    named = {option.name: set(option.opts) for option in options}
    for word in given:
        (name,) = [name for name, words in named.items() if word in words]
        assert found[name] not in (None, False, (), []), word


@pytest.mark.parametrize("step", COMMANDS, ids=lambda step: step.name)
def test_long_lines_are_shown_in_several_that_a_shell_takes_as_one(step: Step) -> None:
    lines = wrapped(step)
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == [*step.prefix, *step.words]
    assert all(len(line) <= 100 for line in lines)


def test_what_a_plan_says_is_what_the_commands_understand() -> None:
    steps = {step.name: understood(step) for step in steps_of(WHOLE, "diff") if step.kind != "hook"}
    made = steps["backup b-c"]
    assert (made["before"], made["after"]) == ("stop 'my db'", "start db")
    assert list(made["exclude"]) == ["/swapfile", "*.tmp"]
    assert (made["snapshot"], made["changed"], made["rescue"]) == ("auto", "scan", True)
    assert (made["verify_after"], made["type_"], made["rate_limit"]) == ("file", "diff", 20)
    assert parse_budget(steps["verify a"]["budget"]) == Budget(20 << 30, None)
    there = steps["retention a at s3://b/x/"]
    assert (there["last"], there["daily"], there["monthly"], there["max_share"]) == (3, 0, 12, 80)
    assert parse_name(there["place"]).path == "s3://b/x/a"
    verified = {step.kind: understood(step) for step in steps_of(VERIFIED, "full")}
    assert verified["backup"]["verify_after"] == "source"
    assert (verified["backup"]["raw"], verified["backup"]["whole_blocks"]) == (True, True)
    assert verified["retention"]["max_share"] == 90
    cloned = understood(steps_of(CLONE, "clone")[0])
    assert (cloned["delta"], cloned["partitions"], cloned["target_serial"]) == (True, "1,3", "S1")


def outcome_with(plan: Plan, failing: Collection[str]) -> RunRecord:
    steps = steps_of(plan, plan.schedule[0].type)
    saved: list[RunRecord] = []

    def run(step: Step) -> StepRecord:
        assert [done.outcome for done in saved[-1].steps if done.name == step.name] == ["running"]
        outcome = "failed" if step.name in failing else "ok"
        return StepRecord(name=step.name, kind=step.kind, command=step.typed, outcome=outcome, code=0)

    record = run_steps(new_record(plan, "diff", steps, None), steps, run, saved.append)
    assert saved[-1] == record
    return ended(record)


def became(plan: Plan, *failing: str) -> dict[str, str]:
    return {step.name: step.outcome for step in outcome_with(plan, failing).steps}


def test_nothing_is_deleted_after_a_failure() -> None:
    assert "skipped" not in set(became(WHOLE).values()) - {became(WHOLE)["failed 1"]}
    assert became(WHOLE)["retention a"] == "ok"
    for failing in ("backup a", "backup b-c", "verify a", "copy /mnt/nas", "before 1"):
        found = became(WHOLE, failing)
        assert (found["retention a"], found["retention b-c"]) == ("skipped", "skipped"), failing
        assert (found["failed 1"], found["after 1"]) == ("ok", "ok"), failing
    for failing in ("backup b-c", "verify a", "copy s3://b/x/", "before 1"):
        assert became(WHOLE, failing)["retention a at s3://b/x/"] == "skipped", failing
    assert became(WHOLE, "copy /mnt/nas")["retention a at s3://b/x/"] == "ok"
    assert became(WHOLE, "retention a at s3://b/x/")["retention a"] == "ok"
    assert became(WHOLE, "backup a")["backup b-c"] == "ok"
    assert became(WHOLE, "backup a")["verify a"] == "ok"
    assert became(WHOLE, "verify a")["copy /mnt/nas"] == "skipped"
    before = became(WHOLE, "before 1")
    assert {before[name] for name in before if not name.startswith(("before", "failed", "after"))} == {
        "skipped"
    }
    assert became(WHOLE)["failed 1"] == "skipped"
    assert outcome_with(WHOLE, ["retention a"]).outcome == "failed"
    assert outcome_with(WHOLE, []).outcome == "ok"


names = [step.name for step in steps_of(WHOLE, "diff")]


@given(failing=st.sets(st.sampled_from(names)))
@settings(max_examples=50)
def test_a_step_runs_only_when_all_that_it_needs_went_well(failing: set[str]) -> None:
    found = became(WHOLE, *failing)
    for step in steps_of(WHOLE, "diff"):
        if not step.only_after_failure:
            good = all(found[name] == "ok" for name in step.needs)
            expected = ("failed" if step.name in failing else "ok") if good else "skipped"
            assert found[step.name] == expected, step.name


@given(content=st.binary(max_size=200), cut=st.integers(0, 5000))
def test_a_record_is_what_was_written_or_none(content: bytes, cut: int) -> None:
    record = msgspec.structs.replace(outcome_with(WHOLE, ["backup a"]), warnings=("ü \ud83d",)[:0])
    written = encode_record(record)
    assert decode_record(written) == record
    assert decode_record(content) is None
    assert decode_record(written[: min(cut, len(written) - 1)]) is None


def test_battery_and_network_are_what_the_kernel_says(tmp_path: Path) -> None:
    def supply(name: str, **facts: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        for key, value in facts.items():
            (tmp_path / name / key).write_text(f"{value}\n")

    assert not on_battery(tmp_path)
    supply("AC", type="Mains", online="1")
    supply("BAT0", type="Battery", status="Charging")
    assert not on_battery(tmp_path)
    supply("AC", type="Mains", online="0")
    supply("BAT0", type="Battery", status="Discharging")
    assert on_battery(tmp_path)

    four, six = tmp_path / "route", tmp_path / "ipv6_route"
    assert has_network((four,))
    head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    four.write_text(head + "eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n")
    assert not has_network((four, six))
    four.write_text(head + "eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")
    assert has_network((four, six))
    four.write_text(head)
    zero = "0" * 32
    six.write_text(f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n")
    assert not has_network((four, six))
    six.write_text(f"{zero} 00 {zero} 00 {'fe80' + '0' * 28} 00000400 00000001 00000000 00450003 eth0\n")
    assert has_network((four, six))
