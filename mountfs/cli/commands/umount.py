"""``mountfs umount``: end a mount."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mountfs.cli.command import command, path
from mountfs.cli.render import Renderer
from mountfs.mounts import unmount

MountPoint = Annotated[
    Path, typer.Argument(parser=path, metavar="DIR", help="Where it is mounted.", show_default=False)
]
Lazy = Annotated[bool, typer.Option("--lazy", "-z", help="Detach it now, even when it is in use.")]

EXAMPLES = """\
mountfs umount mnt
mountfs umount --lazy mnt    now, although something uses it
"""


@command
def run(out: Renderer, mountpoint: MountPoint, lazy: Lazy = False) -> None:
    """End a mount of mountfs and wait until it is gone.

    When something uses it, nothing is changed and the users are named. Never waits longer than some seconds,
    also for a mount that does not answer.
    """
    place = Path(os.path.abspath(mountpoint))  # noqa: PTH100 - Path.absolute keeps ".."
    os.chdir("/")  # where this command itself stands must not keep the mount busy
    unmount(place, lazy=lazy)
    out.result({"mountpoint": str(mountpoint), "state": "unmounted"})
    out.note(f"{mountpoint} is unmounted")
