"""``mountfs tree``: draw a folder inside an image."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from imageformat.repository import Access
from mountfs.cli.command import At, DiskNumber, PointName, command
from mountfs.cli.commands.ls import Inside
from mountfs.cli.images import failures_of, find_node, opened_tree, parse_inner, raise_first
from mountfs.cli.render import Renderer
from mountfs.listing import branch, describe, tree_rows
from mountfs.names import safe_text

Depth = Annotated[
    int | None, typer.Option("--depth", "-d", min=1, help="How deep; default: all.", show_default=False)
]

EXAMPLES = """\
mountfs tree /backups/sdb@3:2/etc
mountfs tree --depth 2 /backups/sdb
"""


@command
def run(
    out: Renderer,
    access: Access,
    inside: Inside,
    depth: Depth = None,
    point: PointName = None,
    at: At = None,
    disk: DiskNumber = None,
) -> None:
    """Draw everything below a folder inside an image."""
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    named = parse_inner(inside, point=point, at=at)
    with opened_tree(named, disk=disk, access=access) as tree:
        node, _ = find_node(tree, named.inner)
        for row in tree_rows(tree, node, depth):
            out.result({"depth": len(row.last), "note": row.note or None, **describe(tree, row.node)})
            name = safe_text(row.node.name) or inside
            note = f"  [{row.note}]" if row.note else ""
            out.line(f"{branch(row, ascii_only=ascii_only)}{name}{note}")
        raise_first(out, failures_of(tree, node))
