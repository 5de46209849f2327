"""``mountfs verify``: prove every block."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.verify import FileReport, points_of_chain, verify, worst_exit_code
from imageformat.repository import Point
from mountfs.cli.command import At, PointName, Threads, command
from mountfs.cli.images import ImageName, parse_name
from mountfs.cli.render import Renderer, counted, format_size
from mountfs.cli.reports import damage_result, point_result, show_damages
from mountfs.damage import FilesByDamage, name_damage
from mountfs.session import Session

Place = Annotated[
    str,
    typer.Argument(
        metavar="REPO|SET|IMAGE",
        help="All images, those of a set, or one point with all it depends on.",
        show_default=False,
    ),
]


@command
def run(out: Renderer, place: Place, point: PointName = None, at: At = None, threads: Threads = 0) -> int:
    """Read every block, decode it, compare it with its checksum, and prove the links of the chain.

    All errors are listed, each with the place on the disk and the files that the damaged block belongs to.
    What the storage does not give is no damage: it is listed as not read, and the rest is verified.
    """
    with Session(parse_name(place).path, read_ahead=False) as session:
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
        files = {report.point.key: name_damage(session, report.point, _ranges(report)) for report in reports}
        for report in reports:
            _tell(out, report, files[report.point.key])
    damaged = sum(1 for report in reports if report.damages)
    blocks = sum(report.blocks for report in reports)
    summary = f"{counted(len(reports), 'image')}, {counted(blocks, 'block')}, {format_size(total)} read: "
    unread = sum(1 for report in reports if report.unread)
    wrong = [f"{counted(damaged, 'image')} damaged"] if damaged else []
    wrong += [f"{counted(unread, 'image')} could not be read"] if unread else []
    out.line(summary + (", ".join(wrong) or "everything is right"))
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


def _ranges(report: FileReport) -> tuple[tuple[int, int], ...]:
    return tuple(
        (damage.disk_offset, damage.length) for damage in report.damages if damage.disk_offset is not None
    )


def _tell(out: Renderer, report: FileReport, files: FilesByDamage) -> None:
    named = {
        damage: files.get((damage.disk_offset, damage.length), ())
        for damage in report.damages
        if damage.disk_offset is not None
    }
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
        }
    )
    if report.transient:
        out.warning(
            f"{report.point.key}: {report.transient} reads were wrong once: the medium may be failing"
        )
    if report.damages or report.unread:
        show_damages(out, (report,), named)
    else:
        out.line(f"ok       {report.point.key}: {counted(report.blocks, 'block')}")
