"""``mountfs retention``: delete the points that no rule keeps, or see what rules leave over the years."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from engine.expire import expire, facts_of
from engine.merge import plan_removal
from engine.policy import SECOND_NS, PointFacts, Policy
from engine.retention import RetentionPlan, Trouble, Verdict, plan_retention
from engine.simulation import MAX_YEARS, Schedule, simulate
from imageformat.errors import MountfsError, NotConfirmedError, NotFoundError, UsageError
from imageformat.repository import ImageSet, Repository
from imageformat.selection import select_point
from imageformat.storage.failures import read_error, write_error
from imageformat.storage.places import is_remote
from mountfs.cli.chart import svg_chart, text_chart
from mountfs.cli.command import command
from mountfs.cli.images import parse_name
from mountfs.cli.removal import carry_out
from mountfs.cli.render import Cell, Column, Renderer, counted, format_size, format_time
from mountfs.quantities import parse_part, parse_size, parse_span
from mountfs.session import Session

SIMULATE = "simulate"

Place = Annotated[
    str,
    typer.Argument(
        metavar="SET|REPO|simulate", help="Whose points; 'simulate': made-up ones.", show_default=False
    ),
]
Last = Annotated[int, typer.Option("--keep-last", min=0, metavar="N", help="The last points.")]
Hourly = Annotated[int, typer.Option("--keep-hourly", min=0, metavar="N", help="The last of each hour.")]
Daily = Annotated[int, typer.Option("--keep-daily", min=0, metavar="N", help="The last of each day.")]
Weekly = Annotated[int, typer.Option("--keep-weekly", min=0, metavar="N", help="The last of each week.")]
Monthly = Annotated[int, typer.Option("--keep-monthly", min=0, metavar="N", help="The last of each month.")]
Yearly = Annotated[int, typer.Option("--keep-yearly", min=0, metavar="N", help="The last of each year.")]
Within = Annotated[
    str | None, typer.Option("--keep-within", metavar="SPAN", help="All that is younger: 36h, 30d, 8w, 1y.")
]
Free = Annotated[
    str | None,
    typer.Option(
        "--free", metavar="SIZE", help="While less is free (50G, 10%), the oldest kept ones go as well."
    ),
]
Pin = Annotated[
    list[str] | None,
    typer.Option("--pin", metavar="POINT", help="Always keep this point. Repeatable.", show_default=False),
]
Zone = Annotated[
    str | None, typer.Option("--zone", metavar="ZONE", help="Whose days count: Europe/Berlin; default: ours.")
]
Share = Annotated[
    int, typer.Option("--max-share", min=0, max=100, metavar="PERCENT", help="Of a set, at most, at once.")
]
Despite = Annotated[
    list[Trouble] | None,
    typer.Option("--despite", help="Go on in spite of it. Repeatable.", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Show what would go, and delete nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before deleting (for scripts).")]
Years = Annotated[int, typer.Option("--years", min=1, max=MAX_YEARS, metavar="N", help="simulate: so long.")]
Every = Annotated[str, typer.Option("--every", metavar="SPAN", help="simulate: a point each.")]
FullEvery = Annotated[
    int, typer.Option("--full-every", min=0, metavar="N", help="simulate: each n-th is full; 0: the first.")
]
FullSize = Annotated[str, typer.Option("--full-size", metavar="SIZE", help="simulate: of a full image.")]
IncSize = Annotated[str, typer.Option("--inc-size", metavar="SIZE", help="simulate: of an increment.")]
Merge = Annotated[
    bool, typer.Option("--merge", help="Merge what others stand on into them instead of keeping it.")
]
Svg = Annotated[
    Path | None, typer.Option("--svg", metavar="FILE", help="simulate: draw it there.", show_default=False)
]

EXAMPLES = """\
mountfs retention /backups --keep-daily 7 --keep-weekly 4 --dry-run
mountfs retention /backups/sdb --keep-within 30d --keep-monthly 12 --yes
mountfs retention simulate --years 5 --keep-daily 7 --keep-monthly 12
"""

_COLUMNS = (
    Column("set"),
    Column("point", right=True),
    Column("time"),
    Column("size", right=True),
    Column("then"),
    Column("because"),
)
_SIMULATED = (Column("time"), Column("points", right=True), Column("stored", right=True), Column("at most"))


@command
def run(
    out: Renderer,
    place: Place,
    last: Last = 0,
    hourly: Hourly = 0,
    daily: Daily = 0,
    weekly: Weekly = 0,
    monthly: Monthly = 0,
    yearly: Yearly = 0,
    within: Within = None,
    free: Free = None,
    pin: Pin = None,
    zone: Zone = None,
    max_share: Share = 50,
    despite: Despite = None,
    merge: Merge = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    years: Years = 5,
    every: Every = "1d",
    full_every: FullEvery = 0,
    full_size: FullSize = "100G",
    inc_size: IncSize = "1G",
    svg: Svg = None,
) -> None:
    """Delete the points that no rule keeps, from the youngest of a chain to the oldest.

    A rule keeps the last point of each of the last N periods that have one. Never deleted: what a kept
    point stands on, the last point, the last verified one, pinned ones, images of other tools.

    Nothing is deleted when a clock is wrong, a file cannot be read, or more than half of a set would go,
    until --despite names that. Asks before it deletes.
    """
    policy = Policy(
        last=last,
        hourly=hourly,
        daily=daily,
        weekly=weekly,
        monthly=monthly,
        yearly=yearly,
        within_ns=parse_span(within) * SECOND_NS if within is not None else 0,
        fold=merge,
        zone=_zone(zone),
        largest_share=max_share / 100,
    )
    if not policy.has_rules:
        raise UsageError("no rule keeps anything; give one, such as --keep-daily 7")
    if place == SIMULATE:
        start = datetime.now(UTC).astimezone(policy.zone).replace(hour=0, minute=0, second=0, microsecond=0)
        schedule = Schedule(
            start, years, _interval(every), full_every, parse_size(full_size), parse_size(inc_size)
        )
        _simulate(out, policy, schedule, svg)
        return
    if svg is not None:
        raise UsageError(f"--svg belongs to: mountfs retention {SIMULATE}")
    name = parse_name(place)
    if name.selector is not None:
        raise UsageError(f"{place} names a point; retention judges whole sets; to keep it, use --pin")
    with Session(name.path, read_ahead=False) as session:
        location = session.location
        if location.key is not None:
            raise UsageError(f"{place} is one image; retention judges whole sets")
        sets = location.sets()
        available, total = _space(location.repository) if free is not None else (0, 0)
        policy = replace(
            policy,
            pinned=_pinned(sets, pin or ()),
            free_floor=parse_part(free, total) if free is not None else 0,
        )
        judge = partial(
            plan_retention,
            policy=policy,
            now_ns=time.time_ns(),
            free=available if free is not None else None,
            despite=tuple(despite or ()),
        )
        plan = judge(facts_of(point for image_set in sets for point in image_set.points))
        _show(out, plan, dry_run=dry_run)
        _check(out, plan)
        if (plan.deletions or plan.merges) and not dry_run:
            _confirm(out, plan, yes=yes)
            _expire(out, location.repository, [image_set.name for image_set in sets], plan, judge)
        _conclude(out, plan, dry_run=dry_run)


def _zone(name: str | None) -> tzinfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(f"'{name}' is no time zone known here; use a name such as Europe/Berlin") from error


def _interval(text: str) -> timedelta:
    span = parse_span(text)
    if span < 3600:
        raise UsageError("--every is at least 1h")
    return timedelta(seconds=span)


def _space(repository: Repository) -> tuple[int, int]:
    """Return the bytes that are free where the images lie, and all of them."""
    if is_remote(repository.storage.url):
        raise UsageError(f"{repository.storage.url}: nobody tells how much is free there; leave out --free")
    place = Path(repository.storage.url)
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        raise read_error(error, place) from error
    return usage.free, usage.total


def _pinned(sets: Sequence[ImageSet], selectors: Sequence[str]) -> frozenset[str]:
    """Return the keys of the points that are pinned; each selector must name one in some set."""
    keys = set()
    for selector in selectors:
        found = []
        for image_set in sets:
            with contextlib.suppress(NotFoundError):
                found.append(select_point(image_set, selector).key)
        if not found:
            raise NotFoundError(f"--pin {selector}: there is no such point")
        keys.update(found)
    return frozenset(keys)


def _show(out: Renderer, plan: RetentionPlan, *, dry_run: bool) -> None:
    out.table("", _COLUMNS, map(_row, plan.verdicts))
    for warning in plan.warnings:
        out.warning(warning)
    if dry_run or plan.refusals or not (plan.deletions or plan.merges):
        out.result(_result(plan, dry_run=dry_run))


def _row(verdict: Verdict) -> tuple[Cell, ...]:
    point = verdict.point
    return (
        point.set_name,
        point.number or None,
        format_time(point.created_ns, zone=False) if point.readable else None,
        format_size(point.size),
        verdict.action.value,
        ", ".join(verdict.reasons),
    )


def _result(plan: RetentionPlan, *, dry_run: bool) -> dict[str, object]:
    return {
        "points": [
            {
                "set": verdict.point.set_name,
                "file": verdict.point.key,
                "number": verdict.point.number,
                "size": verdict.point.size,
                "action": verdict.action.value,
                "reasons": list(verdict.reasons),
            }
            for verdict in plan.verdicts
        ],
        "deletions": [point.key for point in plan.deletions],
        "merges": [point.key for point in plan.merges],
        "freed": plan.freed,
        "refusals": [
            {"trouble": refusal.trouble.value, "message": refusal.message} for refusal in plan.refusals
        ],
        "warnings": list(plan.warnings),
        "dry_run": dry_run,
    }


def _check(out: Renderer, plan: RetentionPlan) -> None:
    """Stop when the plan refuses.

    Raises:
        NotConfirmedError: it does.
    """
    if not plan.refusals:
        return
    first, *others = plan.refusals
    for refusal in others:
        out.warning(refusal.message)
    error = NotConfirmedError(f"nothing was deleted: {first.message}")
    options = " ".join(dict.fromkeys(f"--despite {refusal.trouble.value}" for refusal in plan.refusals))
    error.add_note(f"if that is as it should be: {options}")
    raise error


def _confirm(out: Renderer, plan: RetentionPlan, *, yes: bool) -> None:
    merges = f" and merge {counted(len(plan.merges), 'point')} into others" if plan.merges else ""
    question = f"delete {counted(len(plan.deletions), 'point')} ({format_size(plan.freed)}){merges}?"
    if not yes and not out.confirm(question):
        raise NotConfirmedError("nothing was deleted; answer yes, or use --yes in scripts")


def _expire(
    out: Renderer,
    repository: Repository,
    set_names: Collection[str],
    plan: RetentionPlan,
    judge: Callable[[tuple[PointFacts, ...]], RetentionPlan],
) -> None:
    gone: list[str] = []

    def note(point: PointFacts) -> None:
        gone.append(point.key)
        out.detail(f"deleted {point.key}")

    try:
        expire(repository, set_names, plan, judge, note)
    except MountfsError as error:
        if gone:
            error.add_note(f"{counted(len(gone), 'point')} of {len(plan.deletions)} were deleted before")
        raise
    for name in dict.fromkeys(point.set_name for point in plan.merges):
        keys = {point.key for point in plan.merges if point.set_name == name}
        carry_out(out, repository, name, plan_removal(repository.image_set(name), keys))
    out.result(_result(plan, dry_run=False))


def _conclude(out: Renderer, plan: RetentionPlan, *, dry_run: bool) -> None:
    stays = len(plan.verdicts) - len(plan.deletions) - len(plan.merges)
    if not plan.deletions and not plan.merges:
        out.line(f"nothing to delete; {counted(stays, 'point')} kept")
        return
    be = "would be " if dry_run else ""
    merged = f", {counted(len(plan.merges), 'point')} {be}merged" if plan.merges else ""
    out.line(
        f"{counted(len(plan.deletions), 'point')} {be}deleted, {format_size(plan.freed)} free{merged}; "
        f"{counted(stays, 'point')} kept"
    )


def _simulate(out: Renderer, policy: Policy, schedule: Schedule, svg: Path | None) -> None:
    days = list(simulate(policy, schedule))
    out.result(
        {
            "days": [
                {
                    "day": day.day.isoformat(),
                    "points": day.points,
                    "stored": day.stored,
                    "deleted": day.deleted,
                    "merged": day.merged,
                }
                for day in days
            ],
            "svg": str(svg) if svg is not None else None,
        }
    )
    out.table("", _SIMULATED, text_chart(days))
    if svg is not None:
        try:
            svg.write_text(svg_chart(days, f"{schedule.years} years"), "utf-8")
        except OSError as error:
            raise write_error(error, svg) from error
    points = max(day.points for day in days)
    stored = max(day.stored for day in days)
    out.line(
        f"after {counted(schedule.years, 'year')}: {counted(days[-1].points, 'point')}, "
        f"{format_size(days[-1].stored)}; at most {counted(points, 'point')}, {format_size(stored)}"
    )
