"""What status must find out of a plan: its points and their proofs, and which places have the data."""

from __future__ import annotations

import dataclasses
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from engine.copying import copy_facts as points_at
from engine.proof import oldest_proof, proven_fraction
from engine.proving import standing
from imageformat.errors import MountfsError, NotFoundError, PlanError
from imageformat.repository import Repository
from imageformat.storage.places import is_remote, open_storage
from mountfs.cli.answers import ANSWER_S, Answer
from mountfs.cli.render import Column, format_size, format_time
from mountfs.plans.health import CopyFacts, SetFacts, judge
from mountfs.plans.times import as_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from engine.copying import PointCopies
    from engine.proving import Standing
    from imageformat.repository import ImageSet
    from mountfs.cli.render import Cell, Renderer
    from mountfs.plans.health import Health
    from mountfs.plans.history import History
    from mountfs.plans.model import Plan
    from mountfs.plans.records import RunRecord

_SECOND_NS = 1_000_000_000
_SOUND = frozenset({"ok", "verified"})
_COLUMNS = (
    Column("plan"),
    Column("last run"),
    Column("last success"),
    Column("next run"),
    Column("late"),
    Column("points", right=True),
    Column("stored", right=True),
    Column("proven", right=True),
    Column("3-2-1"),
)


def set_facts(plan: Plan, now: int) -> list[SetFacts]:
    """Look at the sets of a plan; what cannot be read is a problem of its set."""
    found = []
    for source in plan.sources:
        try:
            found.append(_facts(plan.repository, source.set, now, plan.goals.unproven_after))
        except MountfsError as error:
            found.append(SetFacts(source.set, problem=str(error)))
    return found


def _facts(place: str, set_name: str, now: int, within: int) -> SetFacts:
    with closing(_opened(place)) as repository:
        image_set = repository.image_set(set_name)
        return facts_of_set(image_set, standing(repository.storage, image_set)[0], now, within)


def _opened(place: str) -> Repository:
    if not is_remote(place) and not Path(place).is_dir():
        raise NotFoundError(f"{place}: no such folder; is it not mounted?")
    return Repository(open_storage(place))


def facts_of_set(image_set: ImageSet, proofs: Standing, now: int, within: int) -> SetFacts:
    """Sum up a set; for ``within`` seconds a proof is new enough, and a point needs none yet."""
    now_ns = (now + 1) * _SECOND_NS - 1  # a proof of this very second is none of the future
    since_ns = (now - within) * _SECOND_NS
    sound = [
        (point, file)
        for point, file in zip(image_set.points, proofs.files, strict=True)
        if point.state in _SOUND
    ]
    files = [file for _, file in sound]
    made = [point.info.created_ns // _SECOND_NS if point.info else 0 for point, _ in sound]
    fresh = [proven_fraction(proofs.ledger, [file], now_ns, since_ns) == 1 for file in files]
    oldest = oldest_proof(proofs.ledger, files, now_ns)
    return SetFacts(
        image_set.name,
        points=len(image_set.points),
        size=sum(point.size for point in image_set.points),
        newest=max(made, default=None),
        damaged=sum(point.state in {"damaged", "broken"} for point in image_set.points),
        unproven=sum(not good and at < now - within for good, at in zip(fresh, made, strict=True)),
        oldest_proof=None if oldest is None else oldest // _SECOND_NS,
        proven=proven_fraction(proofs.ledger, files, now_ns, since_ns) if files else None,
    )


def copy_facts(
    plan: Plan, records: Sequence[RunRecord], sets: Sequence[SetFacts], now: int
) -> Iterator[CopyFacts]:
    """Yield the places that have the data: the sources, the repository, the copies.

    A copy is current while it has the newest points, or lacks them no longer than a run may be late. Each is
    looked at. A remote place that does not answer in time, or not to whoever asks, is believed to have what
    the last run copied to it. One on the file system of another is none.
    """
    if plan.clone is not None:
        return
    name = "the source" if len(plan.sources) == 1 else "the sources"
    yield CopyFacts(name, plan.source_media, offsite=False, current=True)
    devices = {_device(source.path, content=True): name for source in plan.sources}
    whole = all(entry.newest is not None and not entry.problem for entry in sets)
    problem = "" if whole else "it lacks a sound point"
    yield _place(plan.repository, plan.media, devices, problem, offsite=False)
    lacks = [_asked(plan, copy.to, now) if is_remote(copy.to) else None for copy in plan.copies]
    for copy, lack in zip(plan.copies, lacks, strict=True):
        unasked = ""
        try:
            problem = _lack(plan, copy.to, now) if lack is None else lack.within(ANSWER_S)
        except (MountfsError, TimeoutError) as error:
            problem = str(error)
            if lack is not None and not isinstance(error, NotFoundError):
                unasked, problem = problem, _lack_by_records(plan, records, copy.to, sets, now)
        yield _place(copy.to, copy.media, devices, problem, offsite=bool(copy.offsite), unasked=unasked)


def _asked(plan: Plan, to: str, now: int) -> Answer[str]:
    return Answer(lambda: _lack(plan, to, now))


def _lack_by_records(
    plan: Plan, records: Sequence[RunRecord], to: str, sets: Sequence[SetFacts], now: int
) -> str:
    copied = _last_copied(records, to)
    newest = max((entry.newest for entry in sets if entry.newest is not None), default=0)
    if copied is None:
        return "no run has copied to it"
    return "it lacks the newest points" if _is_old(copied, newest, plan, now) else ""


def _lack(plan: Plan, to: str, now: int) -> str:
    """Say what a place lacks of what the repository has; empty when nothing.

    Raises:
        MountfsError: it cannot be read.
    """
    for source in plan.sources:
        places = {to: _set_at(to, source.set)}
        with suppress(MountfsError):  # the copy is there nevertheless
            places[plan.repository] = _set_at(plan.repository, source.set)
        points = points_at(places)
        held = _newest(points, to)
        if held is None:
            return f"it has no sound point of {source.set}"
        if _is_old(held, _newest(points, plan.repository) or 0, plan, now):
            return f"it lacks the newest points of {source.set}"
    return ""


def _set_at(place: str, name: str) -> ImageSet:
    with closing(_opened(place)) as repository:
        return repository.image_set(name)


def _newest(points: Sequence[PointCopies], place: str) -> int | None:
    """Return when the newest point was made that is sound at a place."""
    return max(
        (
            point.created_ns // _SECOND_NS
            for point in points
            if any(copy.place == place and copy.state in _SOUND for copy in point.copies)
        ),
        default=None,
    )


def _is_old(held: int, newest: int, plan: Plan, now: int) -> bool:
    return held < newest and now - newest > plan.goals.late_after


def _place(
    place: str,
    media: str,
    devices: dict[int | None, str],
    problem: str,
    *,
    offsite: bool,
    unasked: str = "",
) -> CopyFacts:
    device = None if is_remote(place) else _device(place, content=False)
    if device is not None and device in devices and not problem:
        problem = f"it lies on the same file system as {devices[device]}"
    devices.setdefault(device, place)
    return CopyFacts(place, media, offsite, not problem, problem, unasked)


def _device(path: str, *, content: bool) -> int | None:
    """Return the number of the device that a path lies on or, of a disk with ``content``, that it is."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    own = getattr(status, "st_rdev", 0) if content else 0  # Windows has none
    return own or status.st_dev


def _last_copied(records: Sequence[RunRecord], to: str) -> int | None:
    """Return when the last run began that copied to a place well."""
    for record in reversed(records):
        for step in record.steps:
            if step.kind == "copy" and step.name == f"copy {to}" and step.outcome in {"ok", "warning"}:
                return record.ended or record.started
    return None


def show_status(
    out: Renderer, plans: Sequence[tuple[Plan, History]], broken: Mapping[Path, MountfsError]
) -> int:
    """Say how plans stand, and return the exit code: that of the gravest trouble, 0 without any.

    ``broken`` are the files that are no valid plans, which is graver than any trouble of the others.
    """
    now = int(time.time())
    found = [(plan, *_examined(plan, history, now)) for plan, history in plans]
    rows = {plan.name: _row(plan, sets, health) for plan, sets, _, health in found}
    told = {plan.name: _result(plan, sets, copies, health) for plan, sets, copies, health in found}
    for file, error in broken.items():
        rows[file.stem] = (file.stem, "not valid", "-", "-", "", None, None, "-", "-")
        told[file.stem] = {"plan": file.stem, "file": str(file), "problem": str(error)}
    out.result({"plans": [told[name] for name in sorted(told)]})
    if rows:
        out.table("", _COLUMNS, (rows[name] for name in sorted(rows)))
    else:
        out.line("no plans")
    for error in broken.values():
        out.warning(str(error))
    for plan, _, copies, health in found:
        for finding in health.findings:
            out.warning(f"{plan.name}: {finding.message}")
        for copy in copies:
            _tell_copy(out, plan, copy)
    if broken:
        return PlanError.exit_code
    return min((finding.trouble for *_, health in found for finding in health.findings), default=0)


def _tell_copy(out: Renderer, plan: Plan, copy: CopyFacts) -> None:
    if copy.unasked:
        out.note(f"{plan.name}: {copy.place} was not asked; the last run is believed: {copy.unasked}")
    if copy.problem:
        out.note(f"{plan.name}: {copy.place} does not count as a copy: {copy.problem}")


def _examined(plan: Plan, history: History, now: int) -> tuple[list[SetFacts], list[CopyFacts], Health]:
    records, unread = [], ""
    try:
        records = history.records()
    except MountfsError as error:
        unread = f"its runs cannot be read: {error}"
    sets = set_facts(plan, now)
    copies = list(copy_facts(plan, records, sets, now))
    known_since = int(plan.path.stat().st_mtime)
    return sets, copies, judge(plan, records, sets, copies, now, known_since, unread)


def shown_time(moment: int) -> str:
    """Return a moment as the other tables show one: as the clock here shows it."""
    return format_time(moment * _SECOND_NS, zone=False)


def _row(plan: Plan, sets: Sequence[SetFacts], health: Health) -> tuple[Cell, ...]:
    known = [entry.proven for entry in sets if entry.proven is not None]
    return (
        plan.name,
        health.last_outcome,
        "-" if health.last_good is None else shown_time(health.last_good),
        "-" if health.next is None else f"{shown_time(health.next.since)} {health.next.type}",
        "LATE" if health.late_since is not None else "",
        sum(entry.points for entry in sets),
        format_size(sum(entry.size for entry in sets)),
        f"{min(known):.0%}" if known else "-",
        f"{health.copies}-{len(health.media)}-{health.offsite}" if plan.clone is None else "-",
    )


def _result(
    plan: Plan, sets: Sequence[SetFacts], copies: Sequence[CopyFacts], health: Health
) -> dict[str, object]:
    return {
        "plan": plan.name,
        "file": str(plan.path),
        "last_outcome": health.last_outcome,
        "last_success": None if health.last_good is None else as_text(health.last_good, plan.zone),
        "next": None if health.next is None else as_text(health.next.since, plan.zone),
        "next_type": None if health.next is None else health.next.type,
        "due": health.due is not None,
        "late_since": None if health.late_since is None else as_text(health.late_since, plan.zone),
        "sets": [dataclasses.asdict(entry) for entry in sets],
        "places": [dataclasses.asdict(copy) for copy in copies],
        "copies": health.copies,
        "media": list(health.media),
        "offsite": health.offsite,
        "findings": [
            {
                "trouble": finding.trouble.name.lower(),
                "code": int(finding.trouble),
                "message": finding.message,
            }
            for finding in health.findings
        ],
    }
