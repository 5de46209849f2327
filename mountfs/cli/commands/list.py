"""``mountfs list``: what there is in a repository."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated
from uuid import UUID

import typer

from imageformat.repository import Access, ImageSet, Point
from mountfs.cli.command import At, PointName, command
from mountfs.cli.images import parse_name
from mountfs.cli.problems import problem_lines
from mountfs.cli.render import Cell, Column, Renderer, format_size, format_time
from mountfs.cli.reports import point_result, shown_parent
from mountfs.session import Session

Place = Annotated[
    str,
    typer.Argument(
        metavar="REPO|SET|IMAGE", help="Everything in it, or one point: SET@POINT.", show_default=False
    ),
]

_COLUMNS = (
    Column("set"),
    Column("point", right=True),
    Column("type"),
    Column("time"),
    Column("disk", right=True),
    Column("stored", right=True),
    Column("parent", right=True),
    Column("id"),
    Column("state"),
)

_FOREIGN_COLUMNS = (Column("format"), Column("file"))

EXAMPLES = """\
mountfs list /backups               every point of every set
mountfs list /backups/sdb@latest    one point
"""


@command
def run(out: Renderer, access: Access, place: Place, point: PointName = None, at: At = None) -> None:
    """List sets and points: number, type, local time, size of the disk, size stored, parent, state.

    The states: ok (opens, not verified yet), verified, damaged (a verification said so), locked (encrypted,
    and no password was given that opens it), broken (cannot be used; the reason stands below the table).
    Images of other tools have their format and file beside them.
    """
    name = parse_name(place, point=point, at=at)
    with Session(name.path, read_ahead=False, access=access) as session:
        location = session.location
        listed = location.points() if name.selector is None else (location.point(name.selector),)
        chosen = {entry.key for entry in listed}
        sets = [entry for entry in location.sets() if chosen.intersection(p.key for p in entry.points)]
        out.result(
            {
                "repository": location.repository.storage.url,
                "sets": [
                    {
                        "name": image_set.name,
                        "points": [point_result(point) for point in image_set.points if point.key in chosen],
                    }
                    for image_set in sets
                ],
            }
        )
        foreign = any(entry.is_foreign for entry in listed)
        columns = (*_COLUMNS, *_FOREIGN_COLUMNS) if foreign else _COLUMNS
        rows = (row for image_set in sets for row in _rows(image_set, chosen, wide=foreign))
        out.table("", columns, (row[: len(columns)] for row in rows))
        for image_set in sets:
            for line in problem_lines(image_set.points, chosen):
                out.warning(line)


def _rows(image_set: ImageSet, chosen: set[str], *, wide: bool) -> Iterator[tuple[Cell, ...]]:
    numbers = {point.info.id: point.info.number for point in image_set.points if point.info}
    for point in image_set.points:
        if point.key in chosen:
            yield _row(point, numbers, wide=wide)


def _row(point: Point, numbers: dict[UUID, int], *, wide: bool) -> tuple[Cell, ...]:
    info = point.info
    if info is None:
        return (
            point.set_name,
            point.number or None,
            None,
            None,
            None,
            format_size(point.size),
            None,
            None if wide else point.file_name,
            point.state,
            None,
            point.file_name,
        )
    parent = "-" if info.parent_id is None else str(numbers.get(info.parent_id, "?"))
    if point.is_foreign:
        parent = shown_parent(info) or parent
    return (
        point.set_name,
        info.number,
        info.type.value,
        format_time(info.created_ns, zone=False),
        format_size(sum(disk.size for disk in info.disks)),
        format_size(point.size),
        parent,
        info.id.hex[:8],
        point.state,
        info.format if point.is_foreign else None,
        point.file_name if point.is_foreign else None,
    )
