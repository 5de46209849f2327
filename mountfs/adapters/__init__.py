"""Ways to show a tree: FUSE and others, one plug-in file each, with ``PLUGIN = MountAdapter(...)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mountfs.tree import FileTree


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a tree is shown to the users of this machine."""

    mountpoint: Path
    """An existing, empty folder that nothing is mounted on."""
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
