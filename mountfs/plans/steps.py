"""From a plan to the commands that it means, each as anyone could type it. Pure.

A step names what it needs: it runs only when all of that went well. So nothing is ever deleted after a
backup, a verification or a copy that failed.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mountfs.plans.model import Backup, Clone, Command, Plan, Retention, Source

PROGRAM = "mountfs"
_IO_CLASSES = {"idle": ("-c", "3"), "low": ("-c", "2", "-n", "7"), "normal": ("-c", "2", "-n", "4")}


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a run."""

    name: str
    kind: str
    """``hook`` or the mountfs command."""
    words: tuple[str, ...]
    """As typed, without limits; of a hook for the shell, its one text."""
    needs: tuple[str, ...] = ()
    """Names of steps that must have gone well."""
    prefix: tuple[str, ...] = ()
    """What limits it: nice, ionice."""
    shell: bool = False
    only_after_failure: bool = False

    @property
    def typed(self) -> str:
        """Return the line that anyone could type."""
        line = self.words[0] if self.shell else shlex.join(self.words)
        return f"{shlex.join(self.prefix)} {line}" if self.prefix else line


@dataclass(slots=True)
class _Steps:
    prefix: tuple[str, ...]
    steps: list[Step] = field(default_factory=list)

    def add(self, name: str, *words: str, needs: Sequence[str] = ()) -> str:
        self.steps.append(Step(name, words[0], (PROGRAM, *words), tuple(needs), self.prefix))
        return name

    def hook(self, name: str, command: Command, *, needs: Sequence[str] = (), failed: bool = False) -> str:
        shell = isinstance(command, str)
        words = (command,) if isinstance(command, str) else command
        self.steps.append(Step(name, "hook", words, tuple(needs), (), shell, failed))
        return name


def steps_of(plan: Plan, type_: str) -> tuple[Step, ...]:
    """Return the steps of a run of some type, in order: ``full``, ``diff``, ``inc`` or ``clone``."""
    made = _Steps(_limits(plan))
    before: list[str] = []
    for number, command in enumerate(plan.hooks.before, 1):
        before.append(made.hook(f"before {number}", command, needs=tuple(before)))
    if plan.clone is not None:
        made.add("clone", "clone", *_clone_words(plan, plan.clone), needs=before)
    else:
        _image_steps(plan, type_, made, before)
    for number, command in enumerate(plan.hooks.failed, 1):
        made.hook(f"failed {number}", command, failed=True)
    for number, command in enumerate(plan.hooks.after, 1):
        made.hook(f"after {number}", command)
    return tuple(made.steps)


def _image_steps(plan: Plan, type_: str, made: _Steps, before: Sequence[str]) -> None:
    backups = [
        made.add(f"backup {source.set}", "backup", *_backup_words(plan, source, type_), needs=before)
        for source in plan.sources
    ]
    proofs = [
        made.add(
            f"verify {source.set}",
            "verify",
            plan.set_place(source),
            "--budget",
            plan.verify.budget,
            *_threads(plan),
            needs=before,
        )
        for source in plan.sources
        if plan.verify.budget is not None
    ]
    good = (*before, *backups, *proofs)
    copies = []
    for copy in plan.copies:
        copied = made.add(f"copy {copy.to}", "copy", *_copy_words(plan, copy.to), needs=(*before, *proofs))
        copies.append(copied)
        _retention_steps(plan, copy.retention, copy.to, made, (*good, copied))
    _retention_steps(plan, plan.retention, "", made, (*good, *copies))


def _retention_steps(
    plan: Plan, retention: Retention | None, place: str, made: _Steps, needs: Sequence[str]
) -> None:
    """Delete at a place, or else in the repository, what its rules do not keep."""
    if retention is None or not retention.has_rules:
        return
    at = f" at {place}" if place else ""
    for source in plan.sources:
        made.add(
            f"retention {source.set}{at}",
            "retention",
            plan.set_place(source, place),
            *_retention_words(plan, retention),
            needs=needs,
        )


def _limits(plan: Plan) -> tuple[str, ...]:
    nice = () if plan.limits.nice is None else ("nice", "-n", str(plan.limits.nice))
    io = () if plan.limits.io is None else ("ionice", *_IO_CLASSES[plan.limits.io])
    return (*nice, *io)


def _threads(plan: Plan) -> tuple[str, ...]:
    return () if plan.limits.threads is None else ("--threads", str(plan.limits.threads))


def _backup_words(plan: Plan, source: Source, type_: str) -> Iterator[str]:
    backup = plan.backup
    yield from (source.path, plan.repository, "--set", source.set)
    if type_ != "inc":  # without a type: full first, then increments, and no warning about the first
        yield from ("--type", type_)
    for pattern in (*plan.exclude, *source.exclude):
        yield from ("--exclude", pattern)
    yield from _backup_options(backup)
    if plan.verify.each is not None:
        yield from ("--verify", plan.verify.each)
    yield from _threads(plan)
    if plan.limits.rate is not None:
        yield from ("--rate-limit", str(plan.limits.rate))


def _copy_words(plan: Plan, to: str) -> Iterator[str]:
    """Name the sets: the repository may have others, of other plans."""
    yield from (plan.repository, to)
    for source in plan.sources:
        yield from ("--set", source.set)
    if plan.limits.rate is not None:
        yield from ("--rate-limit", str(plan.limits.rate))


def _backup_options(backup: Backup) -> Iterator[str]:
    for option, value in (
        ("--level", backup.level),
        ("--block-size", backup.block_size),
        ("--snapshot", backup.snapshot),
        ("--before", _as_line(backup.before)),
        ("--after", _as_line(backup.after)),
        ("--changed", backup.changed),
    ):
        if value is not None:
            yield from (option, str(value))
    for option, given in (
        ("--raw", backup.raw),
        ("--whole-blocks", backup.whole_blocks),
        ("--rescue", backup.rescue),
    ):
        if given:
            yield option


def _as_line(command: Command | None) -> str | None:
    return shlex.join(command) if isinstance(command, tuple) else command


def _retention_words(plan: Plan, retention: Retention) -> Iterator[str]:
    for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly"):
        if kept := getattr(retention, name):
            yield from (f"--keep-{name}", str(kept))
    for option, value in (
        ("--keep-within", retention.within),
        ("--free", retention.free),
        ("--max-share", retention.max_share),
        ("--zone", plan.zone_name or None),
    ):
        if value is not None:
            yield from (option, str(value))
    for point in retention.pin:
        yield from ("--pin", point)
    if retention.merge:
        yield "--merge"
    yield "--yes"


def _clone_words(plan: Plan, clone: Clone) -> Iterator[str]:
    yield from (clone.source, clone.target)
    if clone.delta:
        yield "--delta"
    if clone.partitions:
        yield from ("--partitions", ",".join(map(str, clone.partitions)))
    if clone.serial:
        yield from ("--target-serial", clone.serial)
    yield from _threads(plan)
    yield "--yes"
