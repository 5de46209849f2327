"""``mountfs mount``: show a repository, a set or an image as a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from imageformat import system
from imageformat.errors import FuseUnavailableError, UsageError
from imageformat.repository import NO_ACCESS, Access
from imageformat.storage.places import is_remote
from mountfs.adapters import MountAdapter, MountOptions, adapters_here
from mountfs.cli.command import At, PointName, command, path
from mountfs.cli.images import ImageName, parse_name
from mountfs.cli.render import Renderer
from mountfs.daemon import run_in_background
from mountfs.session import Session

Place = Annotated[
    str,
    typer.Argument(
        metavar="REPO|SET|IMAGE",
        help="All points of all sets, all points of a set, or one point (SET@POINT, or a file).",
        show_default=False,
    ),
]
MountPoint = Annotated[
    Path,
    typer.Argument(
        parser=path, metavar="DIR", help="An empty folder; on Windows also X: or *.", show_default=False
    ),
]
DiskOnly = Annotated[bool, typer.Option("--disk", help="Show only disk.img, for losetup, qemu, testdisk ...")]
Foreground = Annotated[bool, typer.Option("--foreground", "-f", help="Stay until unmounted or Ctrl-C.")]
Uid = Annotated[int | None, typer.Option("--uid", min=0, help="Show all files as owned by this user.")]
Gid = Annotated[int | None, typer.Option("--gid", min=0, help="Show all files as owned by this group.")]
Umask = Annotated[
    str | None, typer.Option("--umask", metavar="OCTAL", help="Take these permission bits from all files.")
]
AllowOther = Annotated[bool, typer.Option("--allow-other", help="Let other users of this machine in.")]
Acl = Annotated[bool, typer.Option("--acl", help="Windows: let in whom the NTFS access lists let in.")]
AdapterName = Annotated[
    str | None, typer.Option("--adapter", metavar="NAME", help="How to mount; default: the fastest that can.")
]
CacheSize = Annotated[int, typer.Option("--cache", min=1, metavar="MIB", help="Memory for decoded blocks.")]

EXAMPLES = """\
mountfs mount /backups mnt               all points of all sets
mountfs mount /backups/sdb@3 mnt         one point
mountfs mount /backups/sdb mnt --disk    only disk.img, for qemu or losetup
"""


@command
def run(
    out: Renderer,
    access: Access,
    place: Place,
    mountpoint: MountPoint,
    point: PointName = None,
    at: At = None,
    disk_only: DiskOnly = False,
    foreground: Foreground = False,
    uid: Uid = None,
    gid: Gid = None,
    umask: Umask = None,
    allow_other: AllowOther = False,
    acl: Acl = False,
    adapter_name: AdapterName = None,
    cache: CacheSize = 64,
) -> None:
    """Mount read-only: DIR/SET/POINT/{disk.img, 1-fat32-EFI/..., 2-ntfs-Data/...}, or one point alone.

    Returns when the folder can be used. New points appear while it is mounted. End it with
    'mountfs umount DIR'.
    """
    adapter = fuse_adapter(adapter_name)
    name = parse_name(place, point=point, at=at)
    if not is_remote(name.path):
        name = name._replace(path=str(Path(name.path).absolute()))
    options = MountOptions(
        mountpoint=adapter.place(mountpoint),
        source=name.path if name.selector is None else f"{name.path}@{name.selector}",
        uid=uid,
        gid=gid,
        umask=_octal(umask),
        allow_other=allow_other,
        acl=acl,
    )

    def serve(ready: Callable[[], None]) -> None:
        serve_tree(adapter, name, options, ready, access, disk_only=disk_only, capacity=cache << 20)

    facts: dict[str, object] = {"mountpoint": str(options.mountpoint), "source": options.source}
    if foreground or not system.CAN_FORK:
        serve(lambda: _tell(out, facts, "Ctrl-C"))
        return
    run_in_background(serve)
    _tell(out, facts, f"mountfs umount {mountpoint}")


def _tell(out: Renderer, facts: dict[str, object], end: str) -> None:
    out.result({**facts, "state": "mounted"})
    out.note(f"{facts['source']} is mounted at {facts['mountpoint']}; end it with: {end}")


def fuse_adapter(name: str | None) -> MountAdapter:
    """Return the adapter that mounts on this machine: the named one, or the best that can.

    Raises:
        UsageError: there is none of that name.
        FuseUnavailableError: none can; what is missing, and what works without it.
    """
    known: dict[str, MountAdapter] = {adapter.name: adapter for adapter in adapters_here()}
    if name is not None and name not in known:
        raise UsageError(f"--adapter {name}: known are {', '.join(sorted(known))}")
    wanted = [known[name]] if name is not None else list(known.values())
    reasons = {}
    for adapter in wanted:
        reason = adapter.unavailable()
        if reason is None:
            return adapter
        reasons[reason] = adapter
    error = FuseUnavailableError("; ".join(reasons) or "no way to mount is installed")
    error.add_note("ls, tree, cat, cp, verify and restore work without it")
    raise error


def serve_tree(
    adapter: MountAdapter,
    name: ImageName,
    options: MountOptions,
    ready: Callable[[], None],
    access: Access = NO_ACCESS,
    *,
    disk_only: bool,
    capacity: int,
) -> None:
    """Open what was named and serve it until it is unmounted."""
    system.raise_open_file_limit()
    with Session(name.path, capacity=capacity, access=access) as session:
        tree = session.tree(name.selector, disk_only=disk_only)
        try:
            adapter.mount(tree, options, ready)
        finally:
            tree.close()


def _octal(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        value = int(text, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o777:
        raise UsageError(f"--umask {text}: three octal digits are expected, such as 022")
    return value
