"""``mountfs delete``: take one point out of a set, wherever it stands."""

from __future__ import annotations

from typing import Annotated

import typer

from imageformat.errors import NotFoundError, UsageError
from imageformat.repository import ImageSet, Point
from imageformat.selection import select_point
from mountfs.cli.command import At, PointName, command
from mountfs.cli.images import parse_name
from mountfs.cli.removal import only_set, remove
from mountfs.cli.render import Renderer
from mountfs.session import Session

Name = Annotated[
    str, typer.Argument(metavar="SET@POINT", help="The point that is to go.", show_default=False)
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before deleting (for scripts).")]

EXAMPLES = """\
mountfs delete /backups/sdb@3
mountfs delete /backups/sdb --at 2026-11-20 --yes
"""


@command
def run(out: Renderer, name: Name, point: PointName = None, at: At = None, yes: Yes = False) -> None:
    """Delete one point. What stands on it takes up what it held, and stays what it is.

    All that stands on it is written anew and verified before any old file is removed; an interruption loses
    nothing. The only point of a set is not deleted.
    """
    parsed = parse_name(name, point=point, at=at)
    if parsed.selector is None:
        raise UsageError(f"{name} names no point: use SET@POINT")
    with Session(parsed.path, read_ahead=False) as session:
        image_set = only_set(session.location)
        chosen = _chosen(image_set, parsed.selector)
        remove(out, session.location.repository, image_set, {chosen.key}, yes=yes)


def _chosen(image_set: ImageSet, selector: str) -> Point:
    """Return the point that is named; a broken one can be named by its file as well."""
    named = next((point for point in image_set.points if point.file_name == selector), None)
    if named is not None:
        return named
    try:
        return select_point(image_set, selector)
    except NotFoundError as error:
        error.add_note("a file that cannot be read is named as SET@FILE")
        raise
