"""Things in the target whose attributes can be set, as POSIX names them: by descriptor, or by name."""

from __future__ import annotations

import os
import stat
from typing import Protocol


class Place(Protocol):
    """Something in the target whose attributes can be set."""

    posix: bool
    """Whether it has an owner and permission bits at all."""
    time_unit_ns: int
    """What its times are counted in."""

    def status(self) -> os.stat_result:
        """Read them."""
        ...

    def set_owner(self, uid: int, gid: int) -> None:
        """Set user and group; -1 leaves one as it is."""
        ...

    def set_mode(self, mode: int) -> None:
        """Set the permission bits."""
        ...

    def set_times(self, times: tuple[int, int]) -> None:
        """Set access and modification time."""
        ...

    def set_attribute(self, name: bytes, value: bytes) -> None:
        """Set one extended attribute."""
        ...


class OpenPlace:
    """A file or folder that is open."""

    posix = True
    time_unit_ns = 1

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def status(self) -> os.stat_result:
        """See `Place`."""
        return os.fstat(self._fd)

    def set_owner(self, uid: int, gid: int) -> None:
        """See `Place`."""
        os.fchown(self._fd, uid, gid)

    def set_mode(self, mode: int) -> None:
        """See `Place`."""
        os.fchmod(self._fd, mode)

    def set_times(self, times: tuple[int, int]) -> None:
        """See `Place`."""
        os.utime(self._fd, ns=times)

    def set_attribute(self, name: bytes, value: bytes) -> None:
        """See `Place`."""
        os.setxattr(self._fd, name, value)


class NamedPlace:
    """A link or special file, which cannot be opened: one name in an open folder, never followed."""

    posix = True
    time_unit_ns = 1

    def __init__(self, folder_fd: int, name: bytes) -> None:
        self._folder_fd = folder_fd
        self._name = name

    def status(self) -> os.stat_result:
        """See `Place`."""
        return os.stat(self._name, dir_fd=self._folder_fd, follow_symlinks=False)

    def set_owner(self, uid: int, gid: int) -> None:
        """See `Place`."""
        os.chown(self._name, uid, gid, dir_fd=self._folder_fd, follow_symlinks=False)

    def set_mode(self, mode: int) -> None:
        """See `Place`."""
        fd = os.open(self._name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder_fd)
        try:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                os.chmod(f"/proc/self/fd/{fd}", mode)  # noqa: PTH101 (the only chmod of an O_PATH handle)
        finally:
            os.close(fd)

    def set_times(self, times: tuple[int, int]) -> None:
        """See `Place`."""
        os.utime(self._name, ns=times, dir_fd=self._folder_fd, follow_symlinks=False)

    def set_attribute(self, name: bytes, value: bytes) -> None:
        """See `Place`."""
        path = b"/proc/self/fd/%d/%s" % (self._folder_fd, self._name)
        os.setxattr(path, name, value, follow_symlinks=False)
