"""``mountfs merge``: fold neighbouring points into the youngest of them."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.merge import points_between
from imageformat.errors import UsageError
from imageformat.selection import select_point
from mountfs.cli.command import command
from mountfs.cli.images import parse_name
from mountfs.cli.removal import only_set, remove
from mountfs.cli.render import Renderer
from mountfs.session import Session

Points = Annotated[
    str,
    typer.Argument(
        metavar="SET@A..B", help="From point A to point B, which stands on it.", show_default=False
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before merging (for scripts).")]

EXAMPLES = """\
mountfs merge /backups/sdb@1..30    point 30 becomes the full image
mountfs merge /backups/sdb@8..14 --yes
"""


@command
def run(out: Renderer, points: Points, yes: Yes = False) -> None:
    """Fold points A to B into B: B stays the same point, and those before it are gone.

    Stored blocks are copied, not compressed again. B, and all that stands on a point that goes, is written
    anew and verified before any old file is removed; an interruption loses nothing.
    """
    name = parse_name(points)
    first, dots, last = (name.selector or "").partition("..")
    if not (first and dots and last):
        raise UsageError(f"'{points}' names no neighbours: use SET@A..B")
    with Session(name.path, read_ahead=False) as session:
        image_set = only_set(session.location)
        between = points_between(image_set, select_point(image_set, first), select_point(image_set, last))
        keys = {point.key for point in between}
        remove(out, session.location.repository, image_set, keys, yes=yes)
