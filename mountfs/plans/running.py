"""A run: one step after the other, each only when what it needs went well, and a record of all of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec

from mountfs.plans.children import redacted
from mountfs.plans.records import RunRecord, StepRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mountfs.plans.model import Plan
    from mountfs.plans.steps import Step

GOOD = frozenset({"ok", "warning"})


def new_record(plan: Plan, type_: str, steps: Sequence[Step], due_since: int | None) -> RunRecord:
    """Return the record of a run that begins now."""
    started = int(time.time())
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(started))
    waiting = (StepRecord(name=step.name, kind=step.kind, command=redacted(step.typed)) for step in steps)
    return RunRecord(
        plan=plan.name,
        id=f"{stamp}-{uuid4().hex[:6]}",
        type=type_,
        started=started,
        due_since=due_since,
        steps=tuple(waiting),
    )


def run_steps(
    record: RunRecord,
    steps: Sequence[Step],
    run: Callable[[Step], StepRecord],
    save: Callable[[RunRecord], None],
) -> RunRecord:
    """Run the steps of a record; return it with what became of each, and how all of it ended.

    ``save`` gets the record whenever it has changed. A step runs only when all that it needs went well.
    """
    for number, step in enumerate(steps):
        missing = _missing(record, step)
        if missing:
            done = msgspec.structs.replace(record.steps[number], outcome="skipped", message=missing)
        else:
            running = msgspec.structs.replace(record.steps[number], outcome="running")
            record = _with(record, number, running)
            save(record)
            done = run(step)
        record = _with(record, number, done)
        save(record)
    return record


def ended(record: RunRecord, outcome: str = "") -> RunRecord:
    """Return a record of a run that is over."""
    return msgspec.structs.replace(record, outcome=outcome or outcome_of(record), ended=int(time.time()))


def outcome_of(record: RunRecord) -> str:
    """Return how a run ended by how its steps did."""
    outcomes = {step.outcome for step in record.steps}
    if "failed" in outcomes:
        return "failed"
    return "warning" if "warning" in outcomes or record.warnings else "ok"


def _missing(record: RunRecord, step: Step) -> str:
    """Say why a step does not run; empty when it does."""
    if step.only_after_failure:
        return "" if any(done.outcome == "failed" for done in record.steps) else "nothing failed"
    outcomes = {done.name: done.outcome for done in record.steps}
    lacking = [name for name in step.needs if outcomes.get(name) not in GOOD]
    return f"it needs '{lacking[0]}', which {_became(outcomes.get(lacking[0]))}" if lacking else ""


def _became(outcome: str | None) -> str:
    return "failed" if outcome == "failed" else "did not run"


def _with(record: RunRecord, number: int, step: StepRecord) -> RunRecord:
    steps = (*record.steps[:number], step, *record.steps[number + 1 :])
    return msgspec.structs.replace(record, steps=steps)
