"""Image files on btrfs and XFS: what still lies where a kept reflink of the last run has it did not change.

With each backup a reflink of the image file is kept beside it. It pins every place that it uses: as long
as it stands, the file system writes a changed block elsewhere. So a block that lies at the same place in the
reflinks of the last run and of this one has the bytes that the last run read; one that was written between
that reflink and the read lies elsewhere next time, and is read again.

What ties a reflink to a point are its inode, size and time of change, recorded in the image: any write,
replacement or renaming alters them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from engine.changes import ChangeProvider, ChangesUnknownError, Mark, Wanted
from engine.devices.fiemap import Mapped, clone, is_realtime, mapped, same_place
from engine.devices.mountinfo import mount_holding, mounts
from engine.devices.sysfs import LOCAL
from engine.snapshots.taking import PictureSource
from imageformat import system
from imageformat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "reflink"
FILE_SYSTEMS = frozenset({"btrfs", "xfs"})
"""Whose places are numbers of one space that every file shares, as far as documented."""
_MAX_EXTENTS = 1 << 20


class Reflinks:
    """See `ChangeTracker`."""

    name = NAME

    def __init__(self, path: Path, place: str, picture: str = "") -> None:
        """``picture`` is the copy that is read instead of the file; what is kept is of its moment."""
        key = hashlib.sha256(f"{place}\0{path}".encode(errors="surrogateescape")).hexdigest()[:16]
        self._path = path
        self._picture = picture
        self._prefix = f".mountfs-{key}-"
        self._kept: Path | None = None
        self._problem = "no reflink was made"

    def begin(self) -> Mark | None:
        """See `ChangeTracker.begin`; a file system that refuses is no reason to make no backup."""
        target = self._path.parent / f"{self._prefix}{secrets.token_hex(4)}.kept"
        try:
            with contextlib.ExitStack() as opened:
                fd = _open(self._path, opened) if not self._picture else _open_picture(self._picture, opened)
                kept = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | system.PRIVATE, 0o400)
                opened.callback(os.close, kept)
                self._kept = target
                clone(fd, kept)
                os.fsync(kept)
                status = os.fstat(kept)
        except OSError as error:
            self._problem = f"no reflink can be kept beside {self._path}: {error.strerror}"
            self._remove_kept()
            return None
        facts = {"inode": status.st_ino, "size": status.st_size, "changed_ns": status.st_ctime_ns}
        return {"tracker": NAME, "file": target.name, **facts}

    def unchanged(self, mark: Mark) -> Iterator[tuple[int, int]]:
        """See `ChangeTracker.unchanged`."""
        if self._kept is None:
            raise ChangesUnknownError(self._problem)
        name = mark.get("file")
        own = rf"{re.escape(self._prefix)}[0-9a-f]{{8}}\.kept"
        if not isinstance(name, str) or not re.fullmatch(own, name):
            raise ChangesUnknownError("the parent was made from another file, or into another set")
        try:
            with contextlib.ExitStack() as opened:
                old = _open(self._path.parent / name, opened)
                new = _open(self._kept, opened)
                size = _check_tied(os.fstat(old), mark)
                if is_realtime(old) or is_realtime(new):
                    raise ChangesUnknownError("the file lies on the real-time device of its XFS")
                before, now = _map(old), _map(new)
                if _map(old) != before:
                    raise ChangesUnknownError("the file system moved the reflink of the parent meanwhile")
        except OSError as error:
            reason = f"the reflink that the parent began cannot be used: {error.strerror}"
            raise ChangesUnknownError(reason) from error
        return same_place(before, now, size)

    def settle(self, *, published: bool) -> None:
        """See `ChangeTracker.settle`; what cannot be removed is left to the next run."""
        if not published:
            self._remove_kept()
            return
        with contextlib.suppress(OSError):
            for path in sorted(self._path.parent.glob(f"{self._prefix}*.kept")):
                if path != self._kept:
                    path.unlink()

    def _remove_kept(self) -> None:
        if self._kept is not None:
            with contextlib.suppress(OSError):
                self._kept.unlink()
        self._kept = None


def _open(path: Path, opened: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | system.NO_FOLLOW | system.PRIVATE)
    opened.callback(os.close, fd)
    return fd


def _open_picture(path: str, opened: contextlib.ExitStack) -> int:
    """Open what our own process made, which may be a link to a descriptor."""
    fd = os.open(path, os.O_RDONLY | system.PRIVATE)
    opened.callback(os.close, fd)
    return fd


def _check_tied(status: os.stat_result, mark: Mark) -> int:
    """Prove that a reflink is the one of the mark; its size."""
    found = {"inode": status.st_ino, "size": status.st_size, "changed_ns": status.st_ctime_ns}
    if not stat.S_ISREG(status.st_mode) or any(mark.get(fact) != value for fact, value in found.items()):
        raise ChangesUnknownError("the reflink that the parent began was touched since")
    return status.st_size


def _map(fd: int) -> tuple[Mapped, ...]:
    found = []
    for extent in mapped(fd):
        found.append(extent)
        if len(found) > _MAX_EXTENTS:
            raise ChangesUnknownError(f"the file lies in more than {_MAX_EXTENTS} pieces")
    return tuple(found)


def _can_be(wanted: Wanted) -> bool:
    if wanted.source.identity.kind != "file":
        return False
    mount = mount_holding(Path(wanted.source.identity.path), mounts(LOCAL), LOCAL)
    return mount is not None and mount.file_system in FILE_SYSTEMS


def _opened(wanted: Wanted) -> Reflinks:
    if not _can_be(wanted):
        raise UsageError(f"--changed {NAME} is for image files on {' and '.join(sorted(FILE_SYSTEMS))}")
    picture = wanted.source.place if isinstance(wanted.source, PictureSource) else ""
    return Reflinks(Path(wanted.source.identity.path), wanted.place, picture)


def _suits(wanted: Wanted) -> bool:
    """It leaves a file beside the source, so it goes on by itself only where it was asked for once."""
    if not _can_be(wanted):
        return False
    marks = wanted.marks()
    last = marks[-1] if marks else None
    return last is not None and last.get("tracker") == NAME


PLUGIN = ChangeProvider(NAME, _opened, _suits)
