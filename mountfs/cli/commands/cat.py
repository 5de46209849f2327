"""``mountfs cat``: write files from an image to standard output."""

from __future__ import annotations

import base64
import sys
from typing import Annotated

import typer

from imageformat.errors import UsageError
from imageformat.repository import Access
from mountfs.cli.command import At, DiskNumber, PointName, command
from mountfs.cli.images import find_node, opened_tree, parse_inner
from mountfs.cli.render import Renderer
from mountfs.cli.render.streams import written_to_output
from mountfs.disktree import DiskTree
from mountfs.tree import Node, NodeKind

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE:PARTITION/FILE ...",
        help="Files; FILE:STREAM is a named stream of NTFS.",
        show_default=False,
    ),
]
PIECE = 1 << 20

EXAMPLES = """\
mountfs cat /backups/sdb@3:2/etc/fstab
mountfs cat /backups/sdb:3/letter.doc:comment >comment    a named stream
"""


@command
def run(
    out: Renderer,
    access: Access,
    files: Files,
    point: PointName = None,
    at: At = None,
    disk: DiskNumber = None,
    *,
    json: bool = False,
) -> None:
    """Write files from an image to standard output. Ends with an error at the first damaged block."""
    for text in files:
        name = parse_inner(text, point=point, at=at)
        with opened_tree(name, read_ahead=True, disk=disk, access=access) as tree:
            node, stream = find_node(tree, name.inner)
            if node.kind is not NodeKind.FILE:
                raise UsageError(f"{text} is a {node.kind.value}, not a file; use cp or ls")
            _write(out, tree, node, stream, text, json=json)


def _write(out: Renderer, tree: DiskTree, node: Node, stream: bytes | None, text: str, *, json: bool) -> None:
    offset = 0
    while piece := tree.read(node, offset, PIECE, stream):
        if json:
            out.result({"file": text, "offset": offset, "base64": base64.b64encode(piece).decode()})
        else:
            with written_to_output():
                sys.stdout.buffer.write(piece)
        offset += len(piece)
    if not json:
        with written_to_output():
            sys.stdout.buffer.flush()
