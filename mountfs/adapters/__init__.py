"""Ways to show a tree: FUSE and others, one plug-in file each, with ``PLUGIN = MountAdapter(...)``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.plugins import discover
from mountfs.mounts import check_mountpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mountfs.tree import FileTree


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a tree is shown to the users of this machine."""

    mountpoint: Path
    """What the adapter's `place` returned: on Linux an existing, empty folder that nothing is mounted on."""
    source: str
    """Shown as the source of the mount, as in ``findmnt``: the image or repository. Any text."""
    uid: int | None = None
    """Show every file as owned by this user; None: as in the image."""
    gid: int | None = None
    """Show every file as owned by this group; None: as in the image."""
    umask: int | None = None
    """Permission bits taken away from every file; None: as in the image."""
    allow_other: bool = False
    """Let other users in, under the permissions of the files."""
    acl: bool = False
    """Windows: under the access lists of an NTFS volume; else everyone may read everything."""
    size: int = 0
    """Windows: what is shown as the size of the drive, in bytes."""


@dataclass(frozen=True, slots=True)
class MountAdapter:
    """The plug-in record of one way to mount."""

    name: str
    unavailable: Callable[[], str | None]
    """None when it can mount here; else one sentence saying what is missing and the command that mends
    it. Cheap, changes nothing, and never raises."""
    rank: int
    """Of those that can mount here, the lowest is taken."""
    mount: Callable[[FileTree, MountOptions, Callable[[], None]], None]
    """Serve a tree, read-only, until it is unmounted or the process gets SIGTERM, SIGINT or SIGHUP; the
    mount is gone when it returns. Called in the main thread. ``ready()`` is called exactly once, from any
    thread, when the operating system answers at the mount point; it must not raise. The tree is not
    closed.

    Raises:
        FuseUnavailableError: what `unavailable` says.
        MountPointError: the mount point is missing, not a folder, not empty or already a mount.
        MountError: the operating system refused the mount.
        MountfsError: the top folder of the tree cannot be read.
    """
    platforms: frozenset[str] = frozenset({"linux"})
    """Where it can work at all, as in `sys.platform`."""
    place: Callable[[Path], Path] = check_mountpoint
    """Return the mount point in the form that `mount` takes, before anything is opened. Raises
    `MountPointError` with the reason why nothing can be mounted there."""


def adapters_here(platform: str = sys.platform) -> tuple[MountAdapter, ...]:
    """Return the ways to mount that this kind of system has, best first; some may lack something."""
    found: tuple[MountAdapter, ...] = discover(sys.modules[__name__]).available
    return tuple(sorted((one for one in found if platform in one.platforms), key=lambda one: one.rank))
