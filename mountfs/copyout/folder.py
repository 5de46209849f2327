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
from typing import TYPE_CHECKING, NamedTuple, Protocol

from imageformat import system
from imageformat.errors import (
    AccessDeniedError,
    DestinationError,
    DestinationFullError,
    DestinationReadOnlyError,
    MountfsError,
)
from mountfs.copyout.places import NamedPlace, OpenPlace
from mountfs.copyout.report import Overwrite
from mountfs.names import safe_text, to_path_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from mountfs.copyout.places import Place

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


class NewFile(Protocol):
    """A file that is being written. The caller closes it, and does that once."""

    fd: int

    def finish(self, set_them: Callable[[Place], os.stat_result], *, sync: bool) -> os.stat_result:
        """Set its attributes when its content is whole; with ``sync`` make it durable."""
        ...

    def close(self) -> None:
        """Close it; that may fail, as it does on network file systems out of quota."""
        ...


class Folder(Protocol):
    """One folder of the target, kept from being replaced while it is open. The caller closes it.

    Names are those of the target, as `name_of` gives them. Where no error is named, OSError is what the
    operating system says.
    """

    place: bytes
    """From the top folder of the copy, names joined by ``/``."""
    fresh: bool
    """Made by this copy."""

    def close(self) -> None:
        """Let it go, with what an interrupt left staged."""
        ...

    def again(self) -> Folder:
        """Open it once more."""
        ...

    def name_of(self, raw: bytes) -> bytes:
        """Return the name that the target can give to a node."""
        ...

    def enter(self, name: bytes) -> Folder:
        """Make a folder in it, or open the one that is there; never follows a link.

        Raises:
            DestinationError: this copy made it under another spelling of the name.
            OSError: something else has the name, or the system refused.
        """
        ...

    def status(self, name: bytes) -> os.stat_result:
        """Look at one name, without following it."""
        ...

    def check_free(self, name: bytes, overwrite: Overwrite) -> None:
        """Raise what `publish` would raise as things are now, before work is put into it."""
        ...

    def staged(self) -> AbstractContextManager[bytes]:
        """Give a free temporary name; whatever stands there at the end is removed."""
        ...

    def publish(self, staged: bytes, name: bytes, overwrite: Overwrite) -> None:
        """Give what is staged its name, in one step.

        Raises:
            OSError: FileExistsError when the name is taken and must not be.
        """
        ...

    def create(self, staged: bytes) -> NewFile:
        """Make a file under a temporary name."""
        ...

    def symlink(self, target: bytes, staged: bytes, *, to_folder: bool) -> None:
        """Make a symbolic link under a temporary name; ``to_folder``: it is known to lead to one."""
        ...

    def make_special(self, staged: bytes, kind: int, device: tuple[int, int]) -> None:
        """Make a FIFO, socket or device node under a temporary name."""
        ...

    def link(self, place: bytes, name: bytes, staged: bytes) -> None:
        """Make another name of a file below the top folder, under a temporary name; follows no link."""
        ...

    def own_place(self) -> Place:
        """Return it as something that has attributes."""
        ...

    def place_of(self, name: bytes) -> Place:
        """Return something in it, never followed, as something that has attributes."""
        ...

    def sync(self) -> None:
        """Make its attributes durable."""
        ...

    def space(self) -> Space:
        """Return how much can be written; without limits when the file system does not tell."""
        ...


class OpenFile:
    """See `NewFile`: all of it by one descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def finish(self, set_them: Callable[[Place], os.stat_result], *, sync: bool) -> os.stat_result:
        """See `NewFile`."""
        status = set_them(OpenPlace(self.fd))
        if sync:
            os.fsync(self.fd)
        return status

    def close(self) -> None:
        """See `NewFile`."""
        os.close(self.fd)


class OpenFolder:
    """See `Folder`: held by its descriptor, from which every step is made."""

    def __init__(self, fd: int, place: bytes, *, fresh: bool, top: OpenFolder | None = None) -> None:
        self.fd = fd
        self.place = place
        self.fresh = fresh
        self._top = top or self
        self._made: set[int] = set()
        self._staged: bytes | None = None

    def close(self) -> None:
        """See `Folder`."""
        try:
            self._unstage()
        finally:
            os.close(self.fd)

    def again(self) -> OpenFolder:
        """See `Folder`."""
        return OpenFolder(os.dup(self.fd), self.place, fresh=False, top=self._top)

    def name_of(self, raw: bytes) -> bytes:
        """See `Folder`."""
        return to_path_name(raw)

    def enter(self, name: bytes) -> OpenFolder:
        """See `Folder`."""
        try:
            os.mkdir(name, 0o700, dir_fd=self.fd)
            fresh = True
        except FileExistsError:
            fresh = False
        fd = os.open(name, os.O_RDONLY | _FOLDER | os.O_NOFOLLOW, dir_fd=self.fd)
        folder = OpenFolder(fd, self.place + name + b"/", fresh=fresh, top=self._top)
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
        """See `Folder`."""
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def check_free(self, name: bytes, overwrite: Overwrite) -> None:
        """See `Folder`."""
        try:
            status = self.status(name)
        except FileNotFoundError:
            return
        if overwrite is Overwrite.REFUSE:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._check_new(status.st_ino, name)

    @contextlib.contextmanager
    def staged(self) -> Iterator[bytes]:
        """See `Folder`."""
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
        """See `Folder`."""
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

    def create(self, staged: bytes) -> OpenFile:
        """See `Folder`."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return OpenFile(os.open(staged, flags, 0o600, dir_fd=self.fd))

    def symlink(self, target: bytes, staged: bytes, *, to_folder: bool) -> None:  # noqa: ARG002 (all one)
        """See `Folder`."""
        os.symlink(target, staged, dir_fd=self.fd)

    def make_special(self, staged: bytes, kind: int, device: tuple[int, int]) -> None:
        """See `Folder`."""
        os.mknod(staged, 0o600 | kind, os.makedev(*device), dir_fd=self.fd)

    def link(self, place: bytes, name: bytes, staged: bytes) -> None:
        """See `Folder`."""
        with self._top.below(place) as source:
            os.link(name, staged, src_dir_fd=source, dst_dir_fd=self.fd, follow_symlinks=False)

    def own_place(self) -> OpenPlace:
        """See `Folder`."""
        return OpenPlace(self.fd)

    def place_of(self, name: bytes) -> NamedPlace:
        """See `Folder`."""
        return NamedPlace(self.fd, name)

    def sync(self) -> None:
        """See `Folder`."""
        os.fsync(self.fd)

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
        """See `Folder`."""
        found = os.fstatvfs(self.fd)
        if not found.f_blocks:
            return Space(sys.maxsize, sys.maxsize)
        free = found.f_bfree if os.geteuid() == 0 else found.f_bavail
        return Space(found.f_blocks * found.f_frsize, free * found.f_frsize)


def open_folder(path: bytes) -> OpenFolder:
    """Open the folder that the user named; links in this path are the user's own and are followed.

    Raises:
        MountfsError: it is not there, not a folder, or not accessible.
    """
    try:
        return OpenFolder(os.open(path, os.O_RDONLY | _FOLDER), b"", fresh=False)
    except OSError as error:
        raise target_error(error, path) from error
