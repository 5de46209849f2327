"""Folders of the target, held open: nothing that was just extracted is ever followed.

Every step goes from an open folder to one name in it, without following symbolic links, so that no link
in a hostile tree, nor one put there meanwhile by someone else, leads out of the target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from typing import TYPE_CHECKING, NamedTuple

from imageformat import system
from imageformat.errors import (
    AccessDeniedError,
    DestinationError,
    DestinationFullError,
    DestinationReadOnlyError,
    MountfsError,
)
from mountfs.copyout.report import Overwrite
from mountfs.names import safe_text

if TYPE_CHECKING:
    from collections.abc import Iterator

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_BROKEN = frozenset({errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN})
FATAL = _FULL | _BROKEN | {errno.EROFS}
"""What the target answers to one file and would answer to all."""
_CANNOT_LINK = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_FOLDER = getattr(os, "O_DIRECTORY", 0) | system.PRIVATE
_ERRORS: dict[int, type[MountfsError]] = {
    errno.ENOSPC: DestinationFullError,
    errno.EDQUOT: DestinationFullError,
    errno.EROFS: DestinationReadOnlyError,
    errno.EACCES: AccessDeniedError,
    errno.EPERM: AccessDeniedError,
}
_REASONS = {
    errno.EEXIST: "exists; --overwrite replaces it",
    errno.EISDIR: "a folder has that name",
    errno.ENOTDIR: "something that is not a folder has that name",
    errno.ELOOP: "a symbolic link has that name, and is not followed",
}


def target_error(error: OSError, path: bytes) -> MountfsError:
    """Translate what the operating system said of a path of the target."""
    code = error.errno or errno.EIO
    reason = _REASONS.get(code) or os.strerror(code)
    return _ERRORS.get(code, DestinationError)(f"cannot write {safe_text(path)}: {reason}")


class Space(NamedTuple):
    """Room in a file system, in bytes."""

    total: int
    free: int


class Folder:
    """One folder of the target, open. The caller closes it."""

    def __init__(self, fd: int, place: bytes, *, fresh: bool) -> None:
        self.fd = fd
        self.place = place
        """From the top folder of the copy, names joined by ``/``."""
        self.fresh = fresh
        """Made by this copy."""
        self._made: set[int] = set()
        self._staged: bytes | None = None

    def close(self) -> None:
        """Let it go, with what an interrupt left staged."""
        try:
            self._unstage()
        finally:
            os.close(self.fd)

    def again(self) -> Folder:
        """Open it once more."""
        return Folder(os.dup(self.fd), self.place, fresh=False)

    def enter(self, name: bytes) -> Folder:
        """Make a folder in it, or open the one that is there.

        Raises:
            DestinationError: this copy made it under another spelling of the name.
            OSError: something else has the name, or the system refused.
        """
        try:
            os.mkdir(name, 0o700, dir_fd=self.fd)
            fresh = True
        except FileExistsError:
            fresh = False
        fd = os.open(name, os.O_RDONLY | _FOLDER | os.O_NOFOLLOW, dir_fd=self.fd)
        folder = Folder(fd, self.place + name + b"/", fresh=fresh)
        try:
            self._add(os.fstat(fd).st_ino, name)
        except BaseException:
            folder.close()
            raise
        return folder

    def _add(self, inode: int, name: bytes) -> None:
        self._check_new(inode, name)
        self._made.add(inode)

    def _check_new(self, inode: int, name: bytes) -> None:
        # a target that ignores case, or normalises Unicode, gives two names of a folder to one file
        if inode in self._made:
            raise DestinationError(f"the target takes {safe_text(name)} for another name in the same folder")

    def status(self, name: bytes) -> os.stat_result:
        """Look at one name, without following it."""
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def check_free(self, name: bytes, overwrite: Overwrite) -> None:
        """Raise what `publish` would raise as things are now, before work is put into it."""
        try:
            status = self.status(name)
        except FileNotFoundError:
            return
        if overwrite is Overwrite.REFUSE:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._check_new(status.st_ino, name)

    @contextlib.contextmanager
    def staged(self) -> Iterator[bytes]:
        """Give a free temporary name; whatever stands there at the end is removed."""
        name = f".mountfs-{secrets.token_hex(8)}.part".encode()
        # remembered, because an interrupt may come while this very clean-up runs
        self._staged = name
        try:
            yield name
        finally:
            self._unstage()

    def _unstage(self) -> None:
        if self._staged is None:
            return
        try:
            os.unlink(self._staged, dir_fd=self.fd)
        except FileNotFoundError:
            pass
        except OSError:
            self._staged = None
            raise
        self._staged = None

    def publish(self, staged: bytes, name: bytes, overwrite: Overwrite) -> None:
        """Give what is staged its name, in one step.

        Raises:
            OSError: FileExistsError when the name is taken and must not be.
        """
        inode = self.status(staged).st_ino
        if overwrite is Overwrite.REPLACE:
            self._rename(staged, name)
        else:
            self._publish_new(staged, name)
        self._made.add(inode)

    def _publish_new(self, staged: bytes, name: bytes) -> None:
        try:
            os.link(staged, name, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            self.check_free(name, Overwrite.REFUSE)
            self._rename(staged, name)

    def _rename(self, staged: bytes, name: bytes) -> None:
        os.rename(staged, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    @contextlib.contextmanager
    def below(self, place: bytes) -> Iterator[int]:
        """Open the folder at a path of names below this one, following no link."""
        fd = os.dup(self.fd)
        try:
            for name in place.split(b"/"):
                if name:
                    inner = os.open(name, os.O_PATH | _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                    os.close(fd)
                    fd = inner
            yield fd
        finally:
            os.close(fd)

    def space(self) -> Space:
        """Return how much can be written; without limits when the file system does not tell."""
        found = os.fstatvfs(self.fd)
        if not found.f_blocks:
            return Space(sys.maxsize, sys.maxsize)
        free = found.f_bfree if os.geteuid() == 0 else found.f_bavail
        return Space(found.f_blocks * found.f_frsize, free * found.f_frsize)


def open_folder(path: bytes) -> Folder:
    """Open the folder that the user named; links in this path are the user's own and are followed.

    Raises:
        MountfsError: it is not there, not a folder, or not accessible.
        DestinationError: Windows cannot hold a folder open by name and step from it.
    """
    if sys.platform == "win32":
        raise DestinationError("cp does not write on Windows yet: mount the image and copy from the drive")
    try:
        return Folder(os.open(path, os.O_RDONLY | _FOLDER), b"", fresh=False)
    except OSError as error:
        raise target_error(error, path) from error
