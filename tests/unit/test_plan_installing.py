"""What wakes plans: held against systemd itself, the rules of cron and the schema of the Task Scheduler."""

from __future__ import annotations

import calendar
import os
import re
import shlex
import subprocess
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import DestinationError, UsageError
from mountfs.plans import installed
from mountfs.plans.installed import files_of, install, remove
from mountfs.plans.installing import (
    cron_lines,
    systemd_service,
    systemd_timer,
    windows_task,
    without_cron_lines,
)
from mountfs.plans.reading import parse_plan
from mountfs.plans.times import following
from support.requirements import require_tool

if TYPE_CHECKING:
    from mountfs.plans.model import Plan

COMMAND = [
    "/opt/py 3/bin/python",
    "-m",
    "mountfs",
    "plan",
    "run",
    "lap-top_1.x",
    "--due",
    "--plans",
    '/a%b/$c"d',
]
NOW = datetime(2026, 11, 18, 12, 30, tzinfo=UTC)


def plan_of(schedule: str, more: str = "") -> Plan:
    text = f'sources = "/dev/x"\nrepository = "/b"\n{more}\n{schedule}'
    return parse_plan(text, Path("/p/lap-top_1.x.toml"))


def entry(**keys: object) -> str:
    lines = [f"{key} = {value!r}" for key, value in keys.items()]
    return "[[schedule]]\n" + "\n".join(lines) + "\n"


PLANS = {
    "daily": plan_of(entry(type="inc", every="day", at=["02:00", "14:30"])),
    "weekly": plan_of(entry(type="diff", every="week", days=["mon", "sun"])),
    "month's end": plan_of(entry(type="full", every="month", day=31)),
    "yearly": plan_of(entry(type="full", every="year", month=2, day=30, at="23:59")),
    "hourly": plan_of(entry(type="inc", every="hour", minute=7)),
    "zone": plan_of(entry(type="inc", every="day"), 'zone = "America/New_York"'),
    "everything": plan_of(
        entry(type="full", every="month", day=1)
        + entry(type="diff", every="week", days=["sat"])
        + entry(type="inc", every="day")
        + "[timing]\njitter = '10min'\non_battery = false\nnetwork = true\n"
    ),
    "no catching up": plan_of(entry(type="inc", every="day") + "[timing]\ncatch_up = false\n"),
}


@pytest.mark.parametrize("name", PLANS)
def test_systemd_takes_the_units(name: str, tmp_path: Path) -> None:
    require_tool("systemd-analyze")
    plan = PLANS[name]
    command = ["/bin/true", *COMMAND[1:]]
    for suffix, text in ((".service", systemd_service(plan, command)), (".timer", systemd_timer(plan))):
        (tmp_path / f"mountfs-plan-x{suffix}").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "mountfs-plan" in line]
    assert ours == []


@pytest.mark.parametrize("name", PLANS)
def test_systemd_wakes_the_plan_at_every_moment_of_its_schedule(name: str) -> None:
    require_tool("systemd-analyze")
    plan = PLANS[name]
    moments = re.findall(r"^OnCalendar=(.*)$", systemd_timer(plan), re.MULTILINE)
    start = int(datetime(2027, 1, 15, 12, tzinfo=UTC).timestamp())
    told = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=40", "--base-time=2027-01-15 12:00:00 UTC", *moments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TZ": "UTC", "LC_ALL": "C"},
    ).stdout
    found = re.findall(r"(?:elapse|Iter\. #\d+|in UTC\)): \w+ ([\d-]+ [\d:]+) UTC", told)
    woken = {int(datetime.fromisoformat(f"{text}+00:00").timestamp()) for text in found}
    for one in plan.schedule:
        moment = start
        for _ in range(4):
            moment = following(one, moment, plan.zone or UTC) or 0
            assert moment in woken, (moments, moment)


def test_units_say_what_the_plan_wants() -> None:
    plan = PLANS["everything"]
    timer, service = systemd_timer(plan), systemd_service(plan, COMMAND)
    assert {"Persistent=true", "RandomizedDelaySec=600s"} <= set(timer.splitlines())
    assert {"ConditionACPower=true", "After=network-online.target"} <= set(service.splitlines())
    assert (
        'ExecStart="/opt/py 3/bin/python" -m mountfs plan run lap-top_1.x --due --plans "/a%%b/$$c\\"d"'
        in service
    )
    assert "network-online" not in systemd_service(plan, COMMAND, user=True)
    assert "Persistent=false" in systemd_timer(PLANS["no catching up"])
    assert "*-*-* *:00:00" not in systemd_timer(PLANS["no catching up"])
    assert "OnCalendar=*-*-* 02:00:00 America/New_York" in systemd_timer(PLANS["zone"])


CRON = {
    "daily": ["0 2 * * *", "30 14 * * *", "0 * * * *"],
    "weekly": ["0 2 * * 1,0", "0 * * * *"],
    "month's end": ["0 2 28-31 * *", "0 * * * *"],
    "yearly": ["59 23 28-30 2 *", "0 * * * *"],
    "hourly": ["7 * * * *"],
    "zone": ["0 * * * *"],
    "no catching up": ["0 2 * * *"],
}


@pytest.mark.parametrize("name", CRON)
def test_cron_wakes_the_plan(name: str) -> None:
    first, *lines, last = cron_lines(PLANS[name], COMMAND)
    assert [" ".join(line.split()[:5]) for line in lines] == CRON[name]
    assert first.startswith("# begin of mountfs plan lap-top_1.x, ")
    assert last == "# end of mountfs plan lap-top_1.x"
    for line in lines:
        assert not re.search(r"(?<!\\)%", line)  # a bare one ends the command
        assert shlex.split(line.split(maxsplit=5)[5].replace("\\%", "%")) == COMMAND
    assert "--jitter" in cron_lines(PLANS["everything"], COMMAND)[1]


def test_a_crontab_loses_only_what_was_put_in() -> None:
    others = (
        "# begin of mountfs plan lap, written\n1 2 * * * x\n# end of mountfs plan lap\nMAILTO=me\n\n@reboot y"
    )
    lines = "\n".join(cron_lines(PLANS["daily"], COMMAND))
    for crontab in (f"{lines}\n{others}", f"{others}\n{lines}\n", f"MAILTO=me\n{lines}\n{others}\n{lines}\n"):
        left = without_cron_lines(crontab, "lap-top_1.x")
        assert left == crontab.replace(f"{lines}\n", "")
    assert without_cron_lines(others, "top") == others


NAMESPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
# From the published schema: of each element its children; "seq" ones stand in this order, "all" ones in any.
SCHEMA: dict[str, tuple[str, list[str]]] = {
    "Task": ("all", ["RegistrationInfo", "Triggers", "Settings", "Data", "Principals", "Actions"]),
    "RegistrationInfo": (
        "all",
        ["URI", "SecurityDescriptor", "Source", "Date", "Author", "Version", "Description", "Documentation"],
    ),
    "Triggers": ("many", ["CalendarTrigger", "TimeTrigger", "BootTrigger", "LogonTrigger"]),
    "CalendarTrigger": (
        "seq",
        [
            "Enabled",
            "StartBoundary",
            "EndBoundary",
            "Repetition",
            "ExecutionTimeLimit",
            "RandomDelay",
            "ScheduleByDay",
            "ScheduleByWeek",
            "ScheduleByMonth",
            "ScheduleByMonthDayOfWeek",
        ],
    ),
    "Repetition": ("all", ["Interval", "Duration", "StopAtDurationEnd"]),
    "ScheduleByDay": ("all", ["DaysInterval"]),
    "ScheduleByWeek": ("all", ["WeeksInterval", "DaysOfWeek"]),
    "ScheduleByMonth": ("all", ["DaysOfMonth", "Months"]),
    "DaysOfWeek": ("all", ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]),
    "DaysOfMonth": ("many", ["Day"]),
    "Months": (
        "all",
        [*calendar.month_name[1:]],
    ),
    "Settings": (
        "all",
        [
            "AllowStartOnDemand",
            "RestartOnFailure",
            "MultipleInstancesPolicy",
            "DisallowStartIfOnBatteries",
            "StopIfGoingOnBatteries",
            "AllowHardTerminate",
            "StartWhenAvailable",
            "NetworkProfileName",
            "RunOnlyIfNetworkAvailable",
            "WakeToRun",
            "Enabled",
            "Hidden",
            "DeleteExpiredTaskAfter",
            "IdleSettings",
            "NetworkSettings",
            "ExecutionTimeLimit",
            "Priority",
            "RunOnlyIfIdle",
            "UseUnifiedSchedulingEngine",
            "DisallowStartOnRemoteAppSession",
        ],
    ),
    "Principals": ("many", ["Principal"]),
    "Principal": (
        "all",
        [
            "UserId",
            "LogonType",
            "GroupId",
            "DisplayName",
            "RunLevel",
            "ProcessTokenSidType",
            "RequiredPrivileges",
        ],
    ),
    "Actions": ("many", ["Exec", "ComHandler", "SendEmail", "ShowMessage"]),
    "Exec": ("all", ["Command", "Arguments", "WorkingDirectory"]),
}
DURATION = r"P(\d+D)?(T(\d+H)?(\d+M)?(\d+S)?)?"
TEXTS = {
    "StartBoundary": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d",
    "Enabled": "true|false",
    "Interval": DURATION,
    "Duration": DURATION,
    "RandomDelay": DURATION,
    "ExecutionTimeLimit": DURATION,
    "DaysInterval": r"[1-9]\d{0,2}",
    "WeeksInterval": r"[1-9]|[1-4]\d|5[0-2]",
    "Day": r"[1-9]|[1-2][0-9]|3[0-1]|Last",
    "MultipleInstancesPolicy": "Parallel|Queue|IgnoreNew|StopExisting",
    "DisallowStartIfOnBatteries": "true|false",
    "StopIfGoingOnBatteries": "true|false",
    "StartWhenAvailable": "true|false",
    "RunOnlyIfNetworkAvailable": "true|false",
    "Priority": r"\d|10",
    "RunLevel": "LeastPrivilege|HighestAvailable",
    "UserId": ".+",
    "Command": ".{1,260}",
    "URI": r"\\.+",
}


def conforms(element: ET.Element) -> None:
    name = element.tag.removeprefix(NAMESPACE)
    assert element.tag.startswith(NAMESPACE)
    children = [child.tag.removeprefix(NAMESPACE) for child in element]
    if name not in SCHEMA:
        assert children == []
        assert re.fullmatch(TEXTS.get(name, ".*"), element.text or ""), (name, element.text)
        return
    order, known = SCHEMA[name]
    assert set(children) <= set(known), name
    if order != "many":
        assert len(set(children)) == len(children), name
    if order == "seq":
        assert children == sorted(children, key=known.index), name
    for child in element:
        conforms(child)


@pytest.mark.parametrize("name", PLANS)
def test_the_task_is_as_the_published_schema_has_it(name: str) -> None:
    text = windows_task(PLANS[name], COMMAND, NOW)
    task = ET.fromstring(text.encode("utf-16"))
    assert task.tag == f"{NAMESPACE}Task"
    assert task.get("version") == "1.3"
    conforms(task)
    triggers = task.findall(f".//{NAMESPACE}CalendarTrigger")
    assert 1 <= len(triggers) <= 48
    for trigger in triggers:
        assert len([child for child in trigger if "ScheduleBy" in child.tag]) == 1
    principals = {principal.get("id") for principal in task.iter(f"{NAMESPACE}Principal")}
    assert {task.find(f"{NAMESPACE}Actions").get("Context")} == principals  # type: ignore[union-attr]
    assert task.findtext(f".//{NAMESPACE}Command") == COMMAND[0]
    assert task.findtext(f".//{NAMESPACE}Arguments") == subprocess.list2cmdline(COMMAND[1:])


def test_the_last_day_of_a_month_is_woken_by_all() -> None:
    text = windows_task(PLANS["month's end"], COMMAND, NOW)
    assert "<Day>31</Day>" in text
    assert "<Day>Last</Day>" in text
    assert "*-*~01 02:00:00" in systemd_timer(PLANS["month's end"])


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A crontab and a systemctl that only remember."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "crontab").write_text(
        f'#!/bin/sh\nif [ "$1" != -l ]; then cat >{tmp_path}/tab; exit; fi\n'
        f'cat {tmp_path}/tab 2>/dev/null || {{ echo "no crontab for you" >&2; exit 1; }}\n'
    )
    (folder / "systemctl").write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n')
    for program in folder.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(installed, "_units", lambda: tmp_path / "units")
    return tmp_path


def test_remove_undoes_exactly_what_install_did(programs: Path) -> None:
    plan = PLANS["daily"]
    (programs / "tab").write_text("MAILTO=me")  # without a line break at its end
    install(plan, "cron", COMMAND)
    install(plan, "cron", COMMAND)
    assert (programs / "tab").read_text().count("# begin") == 1
    assert remove(plan.name, "cron")
    assert (programs / "tab").read_text() == "MAILTO=me\n"
    assert remove(plan.name, "cron") == []

    units = programs / "units"
    units.mkdir()
    (units / "mountfs-plan-other.timer").write_text("other")
    install(plan, "systemd", COMMAND)
    install(plan, "systemd", COMMAND)
    assert len(list(units.iterdir())) == 3
    calls = (programs / "calls").read_text()
    assert f"enable --now mountfs-plan-{plan.name}.timer" in calls
    assert len(remove(plan.name, "systemd")) == 2
    assert f"disable --now mountfs-plan-{plan.name}.timer" in (programs / "calls").read_text()
    assert [path.name for path in units.iterdir()] == ["mountfs-plan-other.timer"]


def test_what_is_not_ours_is_left_alone(programs: Path) -> None:
    plan = PLANS["daily"]
    (programs / "units").mkdir()
    unit = programs / "units" / f"mountfs-plan-{plan.name}.service"
    unit.write_text("mine")
    for change in (lambda: install(plan, "systemd", COMMAND), lambda: remove(plan.name, "systemd")):
        with pytest.raises(UsageError, match="left as it is"):
            change()
    assert unit.read_text() == "mine"


def test_a_system_that_refuses_is_an_error(programs: Path) -> None:
    (programs / "bin" / "systemctl").write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2; exit 1\n")
    with pytest.raises(DestinationError, match="Failed to connect to bus"):
        install(PLANS["daily"], "systemd", COMMAND)
    (programs / "bin" / "crontab").write_text("#!/bin/sh\necho 'you are not allowed' >&2; exit 1\n")
    with pytest.raises(DestinationError, match="not allowed"):
        install(PLANS["daily"], "cron", COMMAND)


@pytest.mark.parametrize("way", ["systemd", "cron", "windows"])
def test_files_alone_are_written_and_taken_away(way: str, tmp_path: Path) -> None:
    plan = PLANS["daily"]
    install(plan, way, COMMAND, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(files_of(plan, way, COMMAND))
    remove(plan.name, way, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == []
