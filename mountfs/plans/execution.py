"""Carrying out a plan once: its steps, its record, the picture of its chains, reports, and who is told."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Protocol

import msgspec

from imageformat.errors import MountfsError
from mountfs.plans.children import run_step
from mountfs.plans.notifying import is_wanted, notify_all
from mountfs.plans.records import PointRecord, RunRecord, StepRecord
from mountfs.plans.reports import headline, html_report, text_report
from mountfs.plans.running import ended, new_record, run_steps
from mountfs.plans.steps import PROGRAM, steps_of

if TYPE_CHECKING:
    from mountfs.plans.history import History
    from mountfs.plans.model import Plan
    from mountfs.plans.steps import Step

_LISTING_S = 600
_MAX_LISTING = 64 << 20


class Watcher(Protocol):
    """Who is told while a run is under way."""

    def begins(self, step: Step) -> None:
        """Take notice that a step begins."""
        ...

    def progress(self, done: int, total: int | None, label: str) -> None:
        """Take notice of how far it is."""
        ...

    def ends(self, step: StepRecord) -> None:
        """Take notice of what became of it."""
        ...


def execute(
    plan: Plan, type_: str, due_since: int | None, history: History, lock_fd: int, watcher: Watcher
) -> RunRecord:
    """Run a plan once and return the record of it; the caller holds the lock, ``lock_fd``.

    Steps that fail are in the record, not raised.

    Raises:
        DestinationError: a record could not be written, at the beginning or at the end.
        KeyboardInterrupt: the run was interrupted; that is recorded too.
    """
    steps = steps_of(plan, type_)
    latest = [new_record(plan, type_, steps, due_since)]
    history.save(latest[0])

    def run(step: Step) -> StepRecord:
        watcher.begins(step)
        done = run_step(step, lock_fd, watcher.progress)
        watcher.ends(done)
        return done

    def save(record: RunRecord) -> None:
        latest[0] = record
        try:
            history.save(record)
        except MountfsError as error:  # the run matters more than its record; the last one must be written
            note = f"the record of this run could not be written: {error}"
            latest[0] = msgspec.structs.replace(record, warnings=(note,))

    try:
        run_steps(latest[0], steps, run, save)
    except KeyboardInterrupt:
        _conclude(plan, ended(_stopped(latest[0]), "interrupted"), history)
        raise
    record = msgspec.structs.replace(latest[0], points=_points(plan))
    return _conclude(plan, ended(record), history)


def _conclude(plan: Plan, record: RunRecord, history: History) -> RunRecord:
    """Write the record and its reports, and tell people; return the record as it was written."""
    if is_wanted(plan.notify, record.outcome):
        problems = notify_all(plan.notify, record, headline(record), text_report(record, plan.zone))
        record = msgspec.structs.replace(record, warnings=(*record.warnings, *problems))
        if problems and record.outcome == "ok":
            record = msgspec.structs.replace(record, outcome="warning")
    history.save(record)
    history.save_report(record, ".txt", text_report(record, plan.zone))
    history.save_report(record, ".html", html_report(record, plan.zone))
    history.prune(plan.reports.keep)
    return record


def _stopped(record: RunRecord) -> RunRecord:
    steps = tuple(
        msgspec.structs.replace(step, outcome="interrupted") if step.outcome == "running" else step
        for step in record.steps
    )
    return msgspec.structs.replace(record, steps=steps)


def _points(plan: Plan) -> tuple[PointRecord, ...]:
    """Ask `mountfs list` for the points of the plan's sets; none where it cannot tell."""
    found: list[PointRecord] = []
    for source in plan.sources:
        words = [sys.executable, "-m", PROGRAM, "list", plan.set_place(source), "--json", "--quiet"]
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=_LISTING_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            continue
        if done.returncode == 0 and len(done.stdout) <= _MAX_LISTING:
            found += listed_points(done.stdout)
    return tuple(found)


class _Listed(msgspec.Struct):
    state: str = "ok"
    number: int | None = None
    kind: str = ""
    created_ns: int = 0
    size: int = 0
    id: str = ""
    parent_id: str | None = None


class _ListedSet(msgspec.Struct):
    name: str
    points: list[_Listed]


class _Listing(msgspec.Struct):
    sets: list[_ListedSet]


def listed_points(output: bytes) -> list[PointRecord]:
    """Return the points in what ``mountfs list --json`` says; none when it says something else."""
    try:
        listing = msgspec.json.decode(output, type=_Listing)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return []
    found = []
    for listed in listing.sets:
        numbers = {point.id: point.number for point in listed.points if point.id}
        found += [
            PointRecord(
                set=listed.name,
                number=point.number,
                kind=point.kind,
                created_ns=point.created_ns,
                size=point.size,
                parent=numbers.get(point.parent_id or ""),
                state=point.state,
            )
            for point in listed.points
            if point.number is not None
        ]
    return found
