r"""Folders of the target on Windows, where no step can be made from an open folder.

Paths are used instead. What makes that safe: while a folder is held open without FILE_SHARE_DELETE, Windows
lets nobody rename or remove it, nor anything above it, so the path of a held folder leads where it led when
it was looked at. Each folder is held from when it is entered until it is left, and one that is a link or a
junction is not entered. New things get names that nobody can guess, and are then renamed.
Source: CreateFileW, in the documentation of the Windows API.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from imageformat import system
from imageformat.errors import DestinationError
from imageformat.windowspath import extended
from mountfs.copyout.folder import Space, target_error
from mountfs.copyout.report import Overwrite
from mountfs.copyout.windowsattributes import WindowsPlace
from mountfs.copyout.windowscalls import calls_of_this_machine
from mountfs.names import safe_text
from mountfs.windowsnames import fold, to_windows_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mountfs.copyout.places import Place
    from mountfs.copyout.windowsattributes import WindowsCalls


class WrittenFile:
    """See `NewFile`. Attributes are set once it is closed: closing sets the time of the last write."""

    def __init__(self, path: Path, calls: WindowsCalls) -> None:
        self._path = path
        self._calls = calls
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | system.PRIVATE
        self.fd = os.open(path, flags, 0o600)

    def finish(self, set_them: Callable[[Place], os.stat_result], *, sync: bool) -> os.stat_result:
        """See `NewFile`; ``sync`` is of the content, NTFS logs the rest."""
        if sync:
            os.fsync(self.fd)
        self.close()
        return set_them(WindowsPlace(self._path, self._calls))

    def close(self) -> None:
        """See `NewFile`."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class WindowsFolder:
    """See `Folder`."""

    def __init__(
        self,
        path: Path,
        place: bytes,
        calls: WindowsCalls,
        *,
        fresh: bool,
        top: WindowsFolder | None = None,
    ) -> None:
        """Hold a folder.

        Raises:
            OSError: ELOOP for a link or junction, ENOTDIR for a file.
        """
        self._path = path
        self._calls = calls
        self._top = top or self
        self._held = calls.hold_folder(str(path))
        self.place = place
        self.fresh = fresh
        self._shown: dict[bytes, bytes] = {}
        self._taken: set[str] = set()
        self._made: set[int] = set()
        self._staged: bytes | None = None

    def close(self) -> None:
        """See `Folder`."""
        try:
            self._unstage()
        finally:
            self._calls.release(self._held)

    def again(self) -> WindowsFolder:
        """See `Folder`."""
        return WindowsFolder(self._path, self.place, self._calls, fresh=False, top=self._top)

    def name_of(self, raw: bytes) -> bytes:
        """See `Folder`; of names that differ in case only, the first keeps its own."""
        name = self._shown.get(raw)
        if name is None:
            text = to_windows_name(raw)
            if fold(text) in self._taken:
                text = to_windows_name(raw, distinct=True)
            self._taken.add(fold(text))
            name = self._shown[raw] = text.encode("utf-8", "surrogatepass")
        return name

    def enter(self, name: bytes) -> WindowsFolder:
        """See `Folder`."""
        path = self.path_of(name)
        try:
            path.mkdir()
            fresh = True
        except FileExistsError:
            fresh = False
        place = self.place + name + b"/"
        folder = WindowsFolder(path, place, self._calls, fresh=fresh, top=self._top)
        try:
            self._add(path.lstat().st_ino, name)
        except BaseException:
            folder.close()
            raise
        return folder

    def path_of(self, name: bytes) -> Path:
        """Return the path of a name in it, or of names joined by ``/`` below it."""
        return self._path / name.decode("utf-8", "surrogatepass")

    def _add(self, inode: int, name: bytes) -> None:
        self._check_new(inode, name)
        self._made.add(inode)

    def _check_new(self, inode: int, name: bytes) -> None:
        if inode in self._made:
            raise DestinationError(f"the target takes {safe_text(name)} for another name in the same folder")

    def status(self, name: bytes) -> os.stat_result:
        """See `Folder`."""
        return self.path_of(name).lstat()

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
        self._staged = name
        try:
            yield name
        finally:
            self._unstage()

    def _unstage(self) -> None:
        if self._staged is None:
            return
        path = self.path_of(self._staged)
        try:
            path.unlink(missing_ok=True)
        except PermissionError:
            self._calls.clear_attributes(str(path))  # what is read-only cannot be removed
            path.unlink(missing_ok=True)
        finally:
            self._staged = None

    def publish(self, staged: bytes, name: bytes, overwrite: Overwrite) -> None:
        """See `Folder`: MoveFileEx, which replaces only where that is asked for."""
        inode = self.status(staged).st_ino
        if overwrite is Overwrite.REPLACE:
            system.replace(self.path_of(staged), self.path_of(name))
        else:
            system.rename_new(self.path_of(staged), self.path_of(name))
        self._made.add(inode)

    def create(self, staged: bytes) -> WrittenFile:
        """See `Folder`."""
        return WrittenFile(self.path_of(staged), self._calls)

    def symlink(self, target: bytes, staged: bytes, *, to_folder: bool) -> None:
        """See `Folder`; Windows wants to know what a link leads to, so what is there already is looked at."""
        text = target.decode("utf-8", "surrogateescape").replace("/", "\\")
        leads_to_folder = to_folder or os.path.isdir(self._path / text)  # noqa: PTH112 - never raises
        self.path_of(staged).symlink_to(text, target_is_directory=leads_to_folder)

    def make_special(self, staged: bytes, kind: int, device: tuple[int, int]) -> None:  # noqa: ARG002
        """Windows has no such files."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def link(self, place: bytes, name: bytes, staged: bytes) -> None:
        """See `Folder`; whoever calls it looks whether it is the same file."""
        original = self._top.path_of(place + name)
        self.path_of(staged).hardlink_to(original)

    def own_place(self) -> WindowsPlace:
        """See `Folder`."""
        return WindowsPlace(self._path, self._calls)

    def place_of(self, name: bytes) -> WindowsPlace:
        """See `Folder`."""
        return WindowsPlace(self.path_of(name), self._calls)

    def sync(self) -> None:
        """Nothing: NTFS logs the attributes of folders."""

    def space(self) -> Space:
        """See `Folder`."""
        found = shutil.disk_usage(self._path)
        return Space(found.total, found.free)


def open_windows_folder(path: bytes, calls: WindowsCalls | None = None) -> WindowsFolder:
    """Open the folder that the user named; links in this path are the user's own and are followed.

    Raises:
        MountfsError: it is not there, not a folder, or not accessible.
    """
    absolute = os.path.realpath(os.fsdecode(path))
    try:
        return WindowsFolder(Path(extended(absolute)), b"", calls or calls_of_this_machine(), fresh=False)
    except OSError as error:
        raise target_error(error, path) from error
