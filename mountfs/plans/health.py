"""How a plan stands against its goals: late, unproven, or with too few copies. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mountfs.plans.times import due, for_people, late_since, next_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mountfs.plans.model import Plan
    from mountfs.plans.records import RunRecord
    from mountfs.plans.times import Due


class Trouble(enum.IntEnum):
    """What is wrong with a plan, the gravest first. The value is the exit code of ``mountfs status``."""

    FAILED = 85
    """Its last run failed or was interrupted."""
    LATE = 86
    """A run was due, and no good one came in time."""
    UNREADABLE = 87
    """Its repository or its past runs cannot be read, or points of it are damaged."""
    UNPROVEN = 88
    """A point was not verified, or too long ago."""
    COPIES = 89
    """Too few copies, kinds of media, or places."""


class Finding(NamedTuple):
    """One thing that is wrong."""

    trouble: Trouble
    message: str


@dataclass(frozen=True, slots=True)
class SetFacts:
    """What was found of one set of a plan."""

    name: str
    points: int = 0
    size: int = 0
    newest: int | None = None
    """When its newest sound point was made."""
    damaged: int = 0
    unproven: int = 0
    """Sound points that were not verified, or too long ago."""
    oldest_proof: int | None = None
    """Of the sound points; None when one was never verified."""
    proven: float | None = None
    """Share of the stored bytes that was proven in time; None when there are none."""
    problem: str = ""
    """Why nothing can be known of it."""


@dataclass(frozen=True, slots=True)
class CopyFacts:
    """What was found of one place that has the data."""

    place: str
    media: str
    offsite: bool
    current: bool
    """Whether it has the newest points."""
    problem: str = ""
    """Why it does not count."""
    unasked: str = ""
    """Why it was not asked, and the last run is believed."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a plan stands."""

    last_good: int | None
    last_outcome: str
    due: Due | None
    next: Due | None
    late_since: int | None
    copies: int
    media: tuple[str, ...]
    offsite: int
    findings: tuple[Finding, ...]


def judge(
    plan: Plan,
    records: Sequence[RunRecord],
    sets: Sequence[SetFacts],
    copies: Sequence[CopyFacts],
    now: int,
    known_since: int,
    unread: str = "",
) -> Health:
    """Judge a plan by its runs and by what was found of its sets and of all places, the source first.

    ``unread``: why its runs are not known.
    """
    runs = [record.fact for record in records]
    timing = plan.timing
    at_once = due(
        plan.schedule,
        runs,
        now,
        plan.zone,
        catch_up=timing.catch_up,
        retry=timing.retry,
        jitter=timing.jitter,
    )
    coming = next_runs(plan.schedule, now, plan.zone, 1, at_once)
    late = late_since(
        plan.schedule,
        runs,
        now,
        plan.zone,
        known_since=known_since,
        allowed=plan.goals.late_after,
    )
    counted = [copy for copy in copies if copy.current]
    media = tuple(dict.fromkeys(copy.media for copy in counted))
    offsite = sum(copy.offsite for copy in counted)
    ended = [record for record in records if record.outcome != "running"]
    findings = [
        *_run_findings(ended),
        *_lateness(late, plan),
        *([Finding(Trouble.UNREADABLE, unread)] if unread else []),
        *_set_findings(sets, plan),
    ]
    if plan.clone is None:
        findings += _copy_findings(plan, len(counted), media, offsite)
    return Health(
        last_good=max((run.started for run in runs if run.good), default=None),
        last_outcome=records[-1].outcome if records else "never",
        due=at_once,
        next=coming[0] if coming else None,
        late_since=late,
        copies=len(counted),
        media=media,
        offsite=offsite,
        findings=tuple(sorted(findings)),
    )


def _run_findings(ended: Sequence[RunRecord]) -> list[Finding]:
    if not ended or ended[-1].outcome not in {"failed", "interrupted"}:
        return []
    failure = ended[-1].failure
    reason = f" at '{failure.name}': {failure.message}" if failure is not None else ""
    return [Finding(Trouble.FAILED, f"the last run {_was(ended[-1].outcome)}{reason}")]


def _lateness(since: int | None, plan: Plan) -> list[Finding]:
    if since is None:
        return []
    return [Finding(Trouble.LATE, f"late: nothing good ran since it was due {for_people(since, plan.zone)}")]


def _was(outcome: str) -> str:
    return "was interrupted" if outcome == "interrupted" else "failed"


def _set_findings(sets: Sequence[SetFacts], plan: Plan) -> list[Finding]:
    found = []
    for entry in sets:
        if entry.problem:
            found.append(Finding(Trouble.UNREADABLE, f"{entry.name}: {entry.problem}"))
        if entry.damaged:
            found.append(Finding(Trouble.UNREADABLE, f"{entry.name}: {entry.damaged} damaged or broken"))
        if entry.unproven:
            days = plan.goals.unproven_after // 86_400
            said = f"{entry.name}: {entry.unproven} of {entry.points} points not verified within {days} days"
            found.append(Finding(Trouble.UNPROVEN, said))
    return found


def _copy_findings(plan: Plan, copies: int, media: Sequence[str], offsite: int) -> list[Finding]:
    goals, found = plan.goals, []
    if copies < goals.copies:
        found.append(f"{copies} of {goals.copies} copies that there should be, the source counted")
    if len(media) < goals.media:
        found.append(f"{len(media)} of {goals.media} kinds of media that the copies should lie on")
    if offsite < goals.offsite:
        found.append(f"{offsite} of {goals.offsite} copies that should be off-site")
    return [Finding(Trouble.COPIES, said) for said in found]
