"""``mountfs plan run``: choose what is to be run, watch it, and say how it went."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import msgspec

from imageformat.errors import MountfsError, UsageError
from mountfs.cli.render import format_duration
from mountfs.plans.children import WARNING_EXIT
from mountfs.plans.conditions import has_network, on_battery
from mountfs.plans.execution import execute
from mountfs.plans.history import RunLock
from mountfs.plans.steps import steps_of
from mountfs.plans.times import due, strength

if TYPE_CHECKING:
    from contextlib import ExitStack

    from mountfs.cli.render import Progress, Renderer
    from mountfs.plans.history import History
    from mountfs.plans.model import Plan
    from mountfs.plans.records import RunRecord, StepRecord
    from mountfs.plans.steps import Step
    from mountfs.plans.times import Due


def run_plan(
    out: Renderer,
    stack: ExitStack,
    plan: Plan,
    history: History,
    *,
    type_: str | None,
    if_due: bool,
    jitter: bool,
) -> int:
    """Run a plan once and return the exit code: that of the first step that failed, 3 with warnings.

    With ``if_due`` nothing is run when nothing is due, or the conditions of the plan are not met; that is no
    failure, and the run stays due. ``type_`` None: what is due or, when nothing is, the weakest of the plan.

    Raises:
        PlanBusyError: another run of this plan is under way.
    """
    types = sorted({entry.type for entry in plan.schedule}, key=strength)
    allowed = {"clone"} if plan.clone is not None else {"full", "diff", "inc"}
    if type_ is not None and type_ not in allowed:
        raise UsageError(f"--type {type_}: this plan makes {', '.join(sorted(allowed))}")
    if if_due and jitter and plan.timing.jitter and _due(plan, history) is not None:
        time.sleep(random.uniform(0, plan.timing.jitter))  # noqa: S311 (it only spreads load)
    lock = stack.enter_context(RunLock(history))
    found = _due(plan, history, locked=True)
    if if_due:
        reason = "nothing is due" if found is None else _unfit(plan)
        if reason or found is None:
            out.line(f"{plan.name}: {reason}")
            out.result({"plan": plan.name, "ran": False, "reason": reason})
            return 0
    chosen = type_ or (found.type if found is not None else types[0])
    watcher = _Shown(out)
    record = execute(plan, chosen, found.since if found is not None else None, history, lock.fd, watcher)
    return conclude(out, history, record)


def show_steps(out: Renderer, plan: Plan, type_: str) -> None:
    """Say what a run would do, as anyone could type it."""
    steps = steps_of(plan, type_)
    for step in steps:
        out.line(step.typed)
    out.result(
        {
            "plan": plan.name,
            "run": type_,
            "steps": [
                {"name": step.name, "command": step.typed, "needs": list(step.needs)} for step in steps
            ],
        }
    )


def conclude(out: Renderer, history: History, record: RunRecord) -> int:
    """Say how a run went, and return the exit code."""
    page = history.folder / f"{record.id}.html"
    facts = msgspec.to_builtins(record)
    kind = facts.pop("type")
    out.result({"ran": True, "run": kind, **facts, "report": str(page)})
    for warning in record.warnings:
        out.warning(warning)
    spent = (record.ended or record.started) - record.started
    out.line(f"{record.plan}: {record.type} run {record.outcome} in {format_duration(spent)}; report: {page}")
    failure = record.failure
    if failure is None:
        return WARNING_EXIT if record.outcome == "warning" else 0
    out.error(MountfsError(f"plan {record.plan}: step '{failure.name}' failed: {failure.message}"))
    own = failure.kind != "hook" and failure.code is not None and failure.code > 0
    return failure.code or 1 if own else 1


def _due(plan: Plan, history: History, *, locked: bool = False) -> Due | None:
    runs = [record.fact for record in history.records(locked=locked)]
    timing = plan.timing
    return due(
        plan.schedule,
        runs,
        int(time.time()),
        plan.zone,
        catch_up=timing.catch_up,
        retry=timing.retry,
        jitter=timing.jitter,
    )


def _unfit(plan: Plan) -> str:
    if not plan.timing.on_battery and on_battery():
        return "due, but this machine runs on battery; it will be tried again"
    if plan.needs_network and not has_network():
        return "due, but there is no network; it will be tried again"
    return ""


class _Shown:
    """Shows a run while it is under way."""

    def __init__(self, out: Renderer) -> None:
        self._out = out
        self._bar: Progress | None = None
        self._name = ""

    def begins(self, step: Step) -> None:
        """Name the step."""
        self._out.detail(f"{step.name}: {step.typed}")
        self._name = step.name

    def progress(self, done: int, total: int | None, label: str) -> None:
        """Draw how far it is."""
        if self._bar is None:
            self._bar = self._out.progress(f"{self._name}: {label}", total)
            self._bar.__enter__()
        self._bar.update(done)

    def ends(self, step: StepRecord) -> None:
        """Say what became of it."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
        for warning in step.warnings:
            self._out.warning(f"{step.name}: {warning}")
        self._out.line(f"{step.outcome:8} {step.name}: {format_duration(step.seconds)}")
