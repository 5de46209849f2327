"""``mountfs umount``: end a mount."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mountfs.cli.command import command
from mountfs.cli.render import Renderer
from mountfs.mounts import unmount

MountPoint = Annotated[Path, typer.Argument(metavar="DIR", help="Where it is mounted.", show_default=False)]
Lazy = Annotated[bool, typer.Option("--lazy", "-z", help="Detach it now, even when it is in use.")]

EXAMPLES = """\
mountfs umount mnt
mountfs umount --lazy mnt    now, although something uses it
"""


@command
def run(out: Renderer, mountpoint: MountPoint, lazy: Lazy = False) -> None:
    """End a mount of mountfs and wait until it is gone."""
    unmount(mountpoint, lazy=lazy)
    out.result({"mountpoint": str(mountpoint), "state": "unmounted"})
    out.note(f"{mountpoint} is unmounted")
