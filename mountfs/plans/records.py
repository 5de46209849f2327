"""What is remembered of a run: as it is written to disk, and read back from a disk that may hold anything."""

from __future__ import annotations

import msgspec

from mountfs.plans.times import Run

MAX_SIZE = 16 << 20


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one step."""

    name: str
    kind: str
    command: str
    outcome: str = "waiting"
    """``ok``, ``warning``, ``failed``, ``skipped``, ``interrupted``, ``running`` or ``waiting``."""
    code: int | None = None
    seconds: float = 0.0
    message: str = ""
    warnings: tuple[str, ...] = ()
    result: dict[str, object] = {}
    """What the command gave a program: its one result, when it was short."""


class PointRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One point as it was at the end of a run, for the picture of its chain."""

    set: str
    number: int
    kind: str
    created_ns: int
    size: int
    parent: int | None = None
    state: str = "ok"


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a plan."""

    plan: str
    id: str
    type: str
    started: int
    """Seconds since 1970, as all times here."""
    ended: int | None = None
    due_since: int | None = None
    outcome: str = "running"
    """``ok``, ``warning``, ``failed``, ``interrupted`` or ``running``."""
    steps: tuple[StepRecord, ...] = ()
    points: tuple[PointRecord, ...] = ()
    warnings: tuple[str, ...] = ()
    """Of the run itself; those of its steps are with them."""

    @property
    def fact(self) -> Run:
        """What counts of it for what is due next."""
        return Run(self.type, self.started, self.outcome)

    @property
    def failure(self) -> StepRecord | None:
        """The first step that failed."""
        return next((step for step in self.steps if step.outcome == "failed"), None)


def encode_record(record: RunRecord) -> bytes:
    """Return a record as JSON."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1)


def decode_record(content: bytes) -> RunRecord | None:
    """Return what was encoded; None when it is something else."""
    try:
        return msgspec.json.decode(content, type=RunRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
