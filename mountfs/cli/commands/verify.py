"""``mountfs verify``: prove every block."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, TypeAlias

import typer

from engine.proving import prove_oldest, record_whole, standing
from engine.verify import Damage, FileReport, points_of_chain, verify, worst_exit_code
from imageformat.errors import MountfsError, UsageError
from imageformat.repository import Access, Point
from mountfs.cli.command import At, PointName, Threads, command
from mountfs.cli.images import ImageName, parse_name
from mountfs.cli.problems import causes, dependents_text
from mountfs.cli.render import Renderer, counted, format_size, format_time
from mountfs.cli.reports import damage_result, point_result, show_damages
from mountfs.cli.unreadable import show_unreadable, unreadable_result
from mountfs.damage import name_damage
from mountfs.quantities import Budget, parse_budget
from mountfs.session import Session
from mountfs.unreadable import Unreadable, find_unreadable

Place = Annotated[
    str,
    typer.Argument(
        metavar="REPO|SET|IMAGE",
        help="All images, those of a set, or one point with all it depends on.",
        show_default=False,
    ),
]

FilesOf: TypeAlias = Mapping[Damage, Sequence[str]]
"""Names of the files that a damage belongs to."""

BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="SIZE|TIME",
        help="Read so much at most (20GiB, 30min), what was proven longest ago first; the rest another time.",
        show_default=False,
    ),
]

EXAMPLES = """\
mountfs verify /backups          every image
mountfs verify /backups/sdb@3    what point 3 depends on, and nothing else
mountfs verify /backups --budget 20GiB
"""


@command
def run(
    out: Renderer,
    access: Access,
    place: Place,
    point: PointName = None,
    at: At = None,
    budget: BudgetOption = None,
    threads: Threads = 0,
) -> int:
    """Read every block, decode it, compare it with its checksum, and prove the links of the chain.

    All errors are listed, each with the place on the disk and the files that the damaged block belongs to.
    What the storage does not give is no damage: it is listed as not read, and the rest is verified.
    """
    limit = parse_budget(budget) if budget is not None else None
    with Session(parse_name(place).path, read_ahead=False, access=access) as session:
        if limit is not None:
            return _verify_some(out, session, parse_name(place, point=point, at=at), limit, threads)
        started_ns = time.time_ns()
        points = chosen_points(session, parse_name(place, point=point, at=at))
        total = sum(chosen.size for chosen in points)
        with out.progress("verify", total) as progress:
            reports = list(
                verify(
                    session.location.repository,
                    points,
                    threads=threads,
                    report=lambda state: progress.update(state.done, state.point.file_name),
                )
            )
        record_whole(session.location.repository, reports, started_ns)
        files = {report.point.key: _named(session, report) for report in reports}
        blamed = {cause.point.key: cause for cause in causes(points)}
        victims = {point.key for cause in blamed.values() for point in cause.dependents}
        for report in reports:
            cause = blamed.get(report.point.key)
            unreadable = _unreadable(session, report)
            _tell_program(out, report, files[report.point.key], unreadable)
            _tell(
                out,
                _own(report) if report.point.key in victims else report,
                files[report.point.key],
                dependents_text(cause.dependents) if cause is not None else "",
            )
            show_unreadable(out, unreadable, report.point.key)
    blocks = sum(report.blocks for report in reports)
    summary = f"{counted(len(reports), 'image')}, {counted(blocks, 'block')}, {format_size(total)} read: "
    out.line(summary + _verdict(reports, victims))
    return worst_exit_code(reports)


def _verify_some(out: Renderer, session: Session, name: ImageName, budget: Budget, threads: int) -> int:
    """Verify what was proven longest ago, as far as the budget goes, and tell how far that has come."""
    location = session.location
    if name.selector is not None or location.key is not None:
        raise UsageError("--budget is for a set or a repository, not for one point; leave one of both out")
    repository, sets = location.repository, location.sets()
    size = sum(point.size for image_set in sets for point in image_set.points)
    deadline = None if budget.seconds is None else time.monotonic() + budget.seconds
    reports: list[FileReport] = []
    with out.progress("verify", size if budget.size is None else min(size, budget.size)) as progress:
        reports.extend(
            prove_oldest(
                repository,
                sets,
                budget=budget.size,
                stop=lambda: deadline is not None and time.monotonic() >= deadline,
                threads=threads,
                warn=out.warning,
                report=progress.update,
            )
        )
    for report in reports:
        named = _named(session, report)
        _tell_program(out, report, named, _unreadable(session, report))
        _tell(out, report, named, "")
    now_ns = time.time_ns()
    known = [standing(repository.storage, image_set)[0] for image_set in sets]
    files = sum(file.size for entry in known for file in entry.files)
    proven = sum(entry.proven_fraction(now_ns) * sum(file.size for file in entry.files) for entry in known)
    oldest = [entry.oldest_proof(now_ns) for entry in known]
    since = min((moment for moment in oldest if moment is not None), default=None) if all(oldest) else None
    share = proven / files if files else 1.0
    out.result({"proven_fraction": share, "proven_since_ns": since})
    stored = sum(report.stored_bytes for report in reports)
    tail = f", all of it since {format_time(since)}" if since is not None else ""
    out.line(
        f"{counted(sum(report.blocks for report in reports), 'block')}, {format_size(stored)} read: "
        f"{_verdict(reports, frozenset())}; {share:.1%} was proven at some time{tail}"
    )
    return worst_exit_code(reports)


def chosen_points(session: Session, name: ImageName) -> tuple[Point, ...]:
    """Return what is to be verified: everything that was named, or one point and its ancestors."""
    location = session.location
    if name.selector is None and location.key is None:
        location.sets()
        return location.points()
    chosen = location.point(name.selector)
    image_set = next(entry for entry in location.sets() if entry.name == chosen.set_name)
    return points_of_chain(chosen, image_set.points)


def _named(session: Session, report: FileReport) -> FilesOf:
    """Name the files that each damage of an image belongs to."""
    names: dict[Damage, Sequence[str]] = {}
    placed = [damage for damage in report.damages if damage.disk_offset is not None]
    for disk in sorted({damage.disk for damage in placed}):
        here = [damage for damage in placed if damage.disk == disk]
        ranges = [(damage.disk_offset or 0, damage.length) for damage in here]
        found = name_damage(session, report.point, ranges, disk=disk)
        names |= {damage: found.get(place, ()) for damage, place in zip(here, ranges, strict=True)}
    return names


def _own(report: FileReport) -> FileReport:
    """Leave out what a report says of the parent of its image: it was said of the image that is to blame."""
    problem = report.point.problem
    own = tuple(damage for damage in report.damages if problem is None or damage.message != problem.message)
    return dataclasses.replace(
        report, damages=own, damaged_count=report.damaged_count - len(report.damages) + len(own)
    )


def _verdict(reports: Sequence[FileReport], victims: Collection[str]) -> str:
    damaged = sum(1 for report in reports if report.damages and report.point.key not in victims)
    unread = sum(1 for report in reports if report.unread)
    depending = sum(1 for report in reports if report.point.key in victims) if damaged else 0
    wrong = [f"{counted(damaged, 'image')} damaged"] if damaged else []
    wrong += [f"{depending} more depend on that"] if depending else []
    wrong += [f"{counted(unread, 'image')} could not be read"] if unread else []
    return ", ".join(wrong) or "everything is right"


def _unreadable(session: Session, report: FileReport) -> Unreadable:
    """Find what was unreadable at the source; nothing where the index itself cannot be read."""
    if report.point.problem is not None or report.damages or report.unread:
        return Unreadable()
    try:
        return find_unreadable(session, report.point)
    except MountfsError:
        return Unreadable()


def _tell_program(out: Renderer, report: FileReport, named: FilesOf, unreadable: Unreadable) -> None:
    out.result(
        {
            **point_result(report.point),
            "blocks": report.blocks,
            "stored_bytes": report.stored_bytes,
            "transient_errors": report.transient,
            "damaged": report.damaged_count,
            "damages": [damage_result(damage, named.get(damage, ())) for damage in report.damages],
            "unread": report.unread_count,
            "failures": [damage_result(failure, ()) for failure in report.unread],
            **unreadable_result(unreadable),
        }
    )


def _tell(out: Renderer, report: FileReport, named: FilesOf, after: str) -> None:
    if report.transient:
        out.warning(
            f"{report.point.key}: {report.transient} reads were wrong once: the medium may be failing"
        )
    if report.damages or report.unread:
        show_damages(out, (report,), named, after=after)
    elif report.point.problem is None:
        out.line(f"ok       {report.point.key}: {counted(report.blocks, 'block')}")
