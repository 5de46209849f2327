"""``mountfs ls``: list a folder inside an image."""

from __future__ import annotations

from typing import Annotated

import typer

from imageformat.repository import Access
from mountfs.cli.command import At, DiskNumber, PointName, command
from mountfs.cli.images import failures_of, find_node, opened_tree, parse_inner, raise_first
from mountfs.cli.render import Column, Renderer, format_time
from mountfs.listing import LongRow, describe, list_directory, long_row

Inside = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE:PARTITION/PATH",
        help="As in a mount: SET@latest:2/home, FILE.mfi:0/docs; without a path: the partitions.",
        show_default=False,
    ),
]
Long = Annotated[bool, typer.Option("--long", "-l", help="Type, mode, owner, size, time, link target.")]

_LONG = (
    Column("mode"),
    Column("links", right=True),
    Column("owner"),
    Column("size", right=True),
    Column("modified"),
    Column("name"),
)

EXAMPLES = """\
mountfs ls /backups/sdb               the partitions of the latest point
mountfs ls -l /backups/sdb@3:2/etc    a folder of the second partition
"""


@command
def run(
    out: Renderer,
    access: Access,
    inside: Inside,
    long: Long = False,
    point: PointName = None,
    at: At = None,
    disk: DiskNumber = None,
) -> None:
    """List a folder inside an image, without mounting anything."""
    name = parse_inner(inside, point=point, at=at)
    with opened_tree(name, disk=disk, access=access) as tree:
        node, _ = find_node(tree, name.inner)
        entries = list_directory(tree, node)
        out.result({"entries": [describe(tree, entry) for entry in entries]})
        if long:
            out.table("", _LONG, (_row(long_row(tree, entry)) for entry in entries))
        else:
            for entry in entries:
                out.line(entry.name)
        raise_first(out, failures_of(tree, node))


def _row(row: LongRow) -> tuple[str | int, ...]:
    size = row.device if row.size is None else row.size
    return row.mode, row.links, row.owner, size, format_time(row.mtime_ns), row.label
