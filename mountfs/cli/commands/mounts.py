"""``mountfs mounts``: what is mounted."""

from __future__ import annotations

from mountfs.cli.command import command
from mountfs.cli.render import Renderer
from mountfs.mounts import list_mounts

EXAMPLES = """\
mountfs mounts
mountfs mounts --json
"""


@command
def run(out: Renderer) -> None:
    """List the mounts of mountfs on this machine, and whether they still answer."""
    found = list_mounts()
    out.result(
        {
            "mounts": [
                {
                    "mountpoint": str(record.mountpoint),
                    "source": record.source,
                    "state": record.state.value,
                }
                for record in found
            ]
        }
    )
    if not found:
        out.note("nothing is mounted")
        return
    out.table(
        "",
        ("mounted at", "source", "state"),
        ((str(record.mountpoint), record.source, record.state.value) for record in found),
    )
