"""What makes a machine run a plan by itself: systemd units, crontab lines, a Task Scheduler task. Pure text.

All three only wake `mountfs plan run NAME --due`, which finds out by itself whether and what to run. So they
may wake it too often, and do where one cannot say exactly what the schedule says: a change of the clocks, the
last day of a month, what was missed while the machine was off.
"""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from mountfs.plans.forms import DAYS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from mountfs.plans.model import Entry, Plan

MARK = "written by 'mountfs plan install'"
"""Stands in everything that is installed, so that nothing else is ever removed."""
TASK_FOLDER = "mountfs"
_LONG_DAYS = {
    "mon": "Monday",
    "tue": "Tuesday",
    "wed": "Wednesday",
    "thu": "Thursday",
    "fri": "Friday",
    "sat": "Saturday",
    "sun": "Sunday",
}
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


def unit_name(plan: Plan) -> str:
    """Return the name of the units of a plan, without their suffix."""
    return f"mountfs-plan-{plan.name}"


def _wakes_hourly(plan: Plan) -> bool:
    return plan.timing.catch_up and all(entry.every != "hour" for entry in plan.schedule)


def systemd_service(plan: Plan, command: Sequence[str], *, user: bool = False) -> str:
    """Return the unit that runs a plan once; ``user``: of one user, who has no network target."""
    lines = [
        f"# Plan {plan.name}, {MARK}; change the plan and install it again.",
        "[Unit]",
        f"Description=mountfs plan {plan.name}",
        "Documentation=man:systemd.timer(5)",
    ]
    if plan.needs_network and not user:
        lines += ["Wants=network-online.target", "After=network-online.target"]
    if not plan.timing.on_battery:
        lines.append("ConditionACPower=true")
    lines += [
        "",
        "[Service]",
        "Type=oneshot",
        f"ExecStart={' '.join(map(_systemd_word, command))}",
        "SuccessExitStatus=3",
        "KillMode=mixed",
        "TimeoutStopSec=2min",
    ]
    return "\n".join(lines) + "\n"


def systemd_timer(plan: Plan) -> str:
    """Return the unit that wakes the other one."""
    zone = f" {plan.zone_name}" if plan.zone_name else ""
    moments = list(dict.fromkeys(moment for entry in plan.schedule for moment in _calendar(entry)))
    if _wakes_hourly(plan):
        moments.append("*-*-* *:00:00")
    lines = [
        f"# Plan {plan.name}, {MARK}; change the plan and install it again.",
        "[Unit]",
        f"Description=Schedule of mountfs plan {plan.name}",
        "",
        "[Timer]",
        *(f"OnCalendar={moment}{zone}" for moment in moments),
        f"Persistent={'true' if plan.timing.catch_up else 'false'}",
        "AccuracySec=1s",
    ]
    if plan.timing.jitter:
        lines.append(f"RandomizedDelaySec={plan.timing.jitter}s")
    lines += ["", "[Install]", "WantedBy=timers.target"]
    return "\n".join(lines) + "\n"


def _calendar(entry: Entry) -> Iterator[str]:
    if entry.every == "hour":
        yield f"*-*-* *:{entry.minute:02}:00"
        return
    days = ["*-*-*"]
    if entry.every == "week":
        days = [f"{','.join(day.capitalize() for day in DAYS if day in entry.days)} *-*-*"]
    elif entry.every in {"month", "year"}:
        month = "*" if entry.every == "month" else f"{entry.month:02}"
        days = [f"*-{month}-{entry.day:02}"]
        if entry.day > 28:  # on the last day of shorter months
            days.append(f"*-{month}~01")
    for day in days:
        for minutes in entry.at:
            yield f"{day} {minutes // 60:02}:{minutes % 60:02}:00"


def _systemd_word(word: str) -> str:
    quoted = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    plain = quoted == word and word and not any(letter.isspace() or letter in "';" for letter in word)
    return word if plain else f'"{quoted}"'


def cron_lines(plan: Plan, command: Sequence[str]) -> list[str]:
    """Return the lines of a crontab for a plan, between two that mark them.

    Cron knows the zone of the machine alone: with one of its own, a plan is woken each hour.
    """
    words = [*command, "--jitter"] if plan.timing.jitter else command
    line = shlex.join(words).replace("%", "\\%")
    whens = dict.fromkeys(
        when for entry in plan.schedule for when in _cron(entry, hourly=bool(plan.zone_name))
    )
    if _wakes_hourly(plan) and not plan.zone_name:
        whens["0 * * * *"] = None
    return [
        f"# begin of mountfs plan {plan.name}, {MARK}",
        *(f"{when} {line}" for when in whens),
        f"# end of mountfs plan {plan.name}",
    ]


def _cron(entry: Entry, *, hourly: bool) -> Iterator[str]:
    if entry.every == "hour":
        yield f"{entry.minute} * * * *"
        return
    for minutes in entry.at:
        hour, minute = divmod(minutes, 60)
        if hourly:
            yield f"{minute} * * * *"
            continue
        days = str(entry.day) if entry.day < 29 else f"28-{entry.day}"
        match entry.every:
            case "day":
                yield f"{minute} {hour} * * *"
            case "week":
                numbers = ",".join(str((DAYS.index(day) + 1) % 7) for day in DAYS if day in entry.days)
                yield f"{minute} {hour} * * {numbers}"
            case "month":
                yield f"{minute} {hour} {days} * *"
            case _:
                yield f"{minute} {hour} {days} {entry.month} *"


def without_cron_lines(crontab: str, name: str) -> str:
    """Return a crontab without the lines of a plan; all others are as they were."""
    kept, inside = [], False
    for line in crontab.splitlines(keepends=True):
        if line.startswith(f"# begin of mountfs plan {name}, "):
            inside = True
        if not inside:
            kept.append(line)
        if line.rstrip("\n") == f"# end of mountfs plan {name}":
            inside = False
    return "".join(kept)


def windows_task(plan: Plan, command: Sequence[str], now: datetime) -> str:
    """Return the XML of a Task Scheduler task: schema version 1.3, elements in the order that it demands.

    Source: Task Scheduler Schema, taskType and below. ``now`` is the local time from which it counts.
    """
    triggers = [trigger for entry in plan.schedule for trigger in _triggers(entry, plan, now)]
    if _wakes_hourly(plan):
        triggers.append(_trigger(plan, now, 0, _by_day(), hourly=True))
    arguments = escape(subprocess.list2cmdline(command[1:]))
    return "\n".join(
        (
            '<?xml version="1.0" encoding="UTF-16"?>',
            '<Task version="1.3" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">',
            "  <RegistrationInfo>",
            f"    <URI>\\{TASK_FOLDER}\\{escape(plan.name)}</URI>",
            f"    <Description>Plan {escape(plan.name)}, {escape(MARK)}</Description>",
            "  </RegistrationInfo>",
            "  <Triggers>",
            *dict.fromkeys(triggers),
            "  </Triggers>",
            "  <Settings>",
            *_settings(plan),
            "  </Settings>",
            "  <Principals>",
            '    <Principal id="Author">',
            "      <UserId>S-1-5-18</UserId>",
            "      <RunLevel>HighestAvailable</RunLevel>",
            "    </Principal>",
            "  </Principals>",
            '  <Actions Context="Author">',
            "    <Exec>",
            f"      <Command>{escape(command[0])}</Command>",
            f"      <Arguments>{arguments}</Arguments>",
            "    </Exec>",
            "  </Actions>",
            "</Task>\n",
        )
    )


def _settings(plan: Plan) -> Iterator[str]:
    for name, value in (
        ("MultipleInstancesPolicy", "IgnoreNew"),
        ("DisallowStartIfOnBatteries", _boolean(not plan.timing.on_battery)),
        ("StopIfGoingOnBatteries", "false"),
        ("StartWhenAvailable", _boolean(plan.timing.catch_up)),
        ("RunOnlyIfNetworkAvailable", _boolean(plan.needs_network)),
        ("ExecutionTimeLimit", "PT0S"),
        ("Priority", "7"),
    ):
        yield f"    <{name}>{value}</{name}>"


def _boolean(value: bool) -> str:  # noqa: FBT001 (it is the value itself)
    return "true" if value else "false"


def _triggers(entry: Entry, plan: Plan, now: datetime) -> Iterator[str]:
    if entry.every == "hour":
        yield _trigger(plan, now, entry.minute, _by_day(), hourly=True)
        return
    for minutes in entry.at:
        yield _trigger(plan, now, minutes, _schedule(entry))


def _by_day() -> Sequence[str]:
    return ("<ScheduleByDay>", "  <DaysInterval>1</DaysInterval>", "</ScheduleByDay>")


def _schedule(entry: Entry) -> Sequence[str]:
    if entry.every == "day":
        return _by_day()
    if entry.every == "week":
        days = [f"    <{_LONG_DAYS[day]} />" for day in DAYS if day in entry.days]
        return (
            "<ScheduleByWeek>",
            "  <WeeksInterval>1</WeeksInterval>",
            "  <DaysOfWeek>",
            *days,
            "  </DaysOfWeek>",
            "</ScheduleByWeek>",
        )
    months = _MONTHS if entry.every == "month" else [_MONTHS[entry.month - 1]]
    days = [f"    <Day>{day}</Day>" for day in ((entry.day,) if entry.day < 29 else (entry.day, "Last"))]
    return (
        "<ScheduleByMonth>",
        "  <DaysOfMonth>",
        *days,
        "  </DaysOfMonth>",
        "  <Months>",
        *(f"    <{month} />" for month in months),
        "  </Months>",
        "</ScheduleByMonth>",
    )


def _trigger(
    plan: Plan, now: datetime, minutes: int, schedule: Sequence[str], *, hourly: bool = False
) -> str:
    start = now.replace(hour=minutes // 60, minute=minutes % 60, second=0, microsecond=0, tzinfo=None)
    lines = ["<Enabled>true</Enabled>", f"<StartBoundary>{start.isoformat()}</StartBoundary>"]
    if hourly:
        lines += [
            "<Repetition>",
            "  <Interval>PT1H</Interval>",
            "  <Duration>P1D</Duration>",
            "</Repetition>",
        ]
    if plan.timing.jitter:
        lines.append(f"<RandomDelay>PT{plan.timing.jitter}S</RandomDelay>")
    body = "\n".join(f"      {line}" for line in (*lines, *schedule))
    return f"    <CalendarTrigger>\n{body}\n    </CalendarTrigger>"
