"""What this operating system does in its own way, asked in one place: descriptors, durability, locks.

Linux and Windows differ in how a file is read at a position, locked, renamed without replacing, and made
durable. Everything else is written against these few names.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import threading
from pathlib import Path

from imageformat.windowspath import extended_if_long

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl
    import resource

_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_MOVEFILE_REPLACE_EXISTING, _MOVEFILE_WRITE_THROUGH = 1, 8
_FSCTL_SET_SPARSE = 0x000900C4
_WINDOWS_DESCRIPTORS = 512
"""What the C library of Windows allows a process ("_setmaxstdio" in its documentation)."""

if sys.platform == "win32":
    PRIVATE = os.O_BINARY | os.O_NOINHERIT
    """For every `os.open`: bytes as they are, and not for programs that are started."""
    NO_FOLLOW = 0
    """For `os.open`: refuse a symbolic link in the last place, where that can be asked for."""
    CAN_FORK = False
    CAN_RENAME_OPEN_FILES = False
    _cursors = threading.Lock()

    def pread(fd: int, size: int, offset: int) -> bytes:
        """Read at a position; short at the end of the file. Any number of threads."""
        with _cursors:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, size)

    def preadv(fd: int, memory: memoryview, offset: int) -> int:
        """Read at a position into memory and return how much."""
        data = pread(fd, len(memory), offset)
        memory[: len(data)] = data
        return len(data)

    def pwrite(fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write at a position and return how much. Any number of threads."""
        with _cursors:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, data)

    def sync_data(fd: int) -> None:
        """Make what was written durable."""
        os.fsync(fd)

    def sync_folder(path: Path) -> None:
        """Nothing: NTFS logs its names, and `rename_new` waits for that."""

    def drop_cache(fd: int, offset: int, length: int) -> None:
        """Nothing: Windows offers no such advice."""

    def expect_sequential(fd: int) -> None:
        """Nothing: see `drop_cache`."""

    def lock(fd: int) -> None:
        """Lock an open file for this process; it ends with the descriptor.

        Raises:
            BlockingIOError: somebody else has it.
        """
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EDEADLK}:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
            raise

    def rename_new(source: Path, target: Path) -> None:
        """Rename without ever replacing, and return when that is durable.

        Raises:
            FileExistsError: something has the name.
        """
        _move(source, target, _MOVEFILE_WRITE_THROUGH)

    def replace(source: Path, target: Path) -> None:
        """Rename over a file that may stand there, in one step, and return when that is durable."""
        _move(source, target, _MOVEFILE_REPLACE_EXISTING | _MOVEFILE_WRITE_THROUGH)

    def _move(source: Path, target: Path, flags: int) -> None:
        move = ctypes.WinDLL("kernel32", use_last_error=True).MoveFileExW
        move.argtypes, move.restype = (ctypes.c_wchar_p, ctypes.c_wchar_p, ctypes.c_uint32), ctypes.c_int
        if not move(str(long_path(source)), str(long_path(target)), flags):
            raise ctypes.WinError(ctypes.get_last_error())

    def long_path(path: Path) -> Path:
        r"""Return a path that may be long in the form that Windows takes at any length: ``\\?\C:\...``."""
        absolute = os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps ".."
        long = extended_if_long(absolute)
        return path if long == absolute else Path(long)

    def keep_mode(fd: int, mode: int) -> None:
        """Nothing: a file takes the access list of its folder."""

    def make_sparse(fd: int) -> None:
        """Let what is never written of an open file take no space; where that is not offered, it does."""
        control = ctypes.WinDLL("kernel32", use_last_error=True).DeviceIoControl
        handle = ctypes.c_void_p(msvcrt.get_osfhandle(fd))
        control(handle, _FSCTL_SET_SPARSE, None, 0, None, 0, ctypes.byref(ctypes.c_uint32()), None)

    def open_file_limit() -> int | None:
        """How many files this process may have open; None without a limit."""
        return _WINDOWS_DESCRIPTORS

    def raise_open_file_limit() -> None:
        """Allow as many as this user may have."""

    def device_number(_status: os.stat_result) -> str:
        """Return the number of a device as the kernel writes it; Windows has none."""
        return ""

    def memory_size() -> int:
        """Return the memory of this machine in bytes."""
        kib = ctypes.c_uint64()
        ctypes.WinDLL("kernel32").GetPhysicallyInstalledSystemMemory(ctypes.byref(kib))
        return kib.value << 10 or sys.maxsize  # it told nothing: no reason to refuse

else:
    PRIVATE = os.O_CLOEXEC
    """For every `os.open`: bytes as they are, and not for programs that are started."""
    NO_FOLLOW = os.O_NOFOLLOW
    """For `os.open`: refuse a symbolic link in the last place, where that can be asked for."""
    CAN_FORK = True
    CAN_RENAME_OPEN_FILES = True

    def pread(fd: int, size: int, offset: int) -> bytes:
        """Read at a position; short at the end of the file. Any number of threads."""
        return os.pread(fd, size, offset)

    def preadv(fd: int, memory: memoryview, offset: int) -> int:
        """Read at a position into memory and return how much."""
        return os.preadv(fd, [memory], offset)

    def pwrite(fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write at a position and return how much. Any number of threads."""
        return os.pwrite(fd, data, offset)

    def sync_data(fd: int) -> None:
        """Make what was written durable."""
        os.fdatasync(fd)

    def sync_folder(path: Path) -> None:
        """Make the names in a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def drop_cache(fd: int, offset: int, length: int) -> None:
        """Start writing back a range, and let the page cache forget it; length 0: to the end."""
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def expect_sequential(fd: int) -> None:
        """Say that a file will be read from its beginning to its end."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def lock(fd: int) -> None:
        """Lock an open file for this process; it ends with the descriptor.

        Raises:
            BlockingIOError: somebody else has it.
        """
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def rename_new(source: Path, target: Path) -> None:
        """Rename without ever replacing: the kernel's own rule where it has one.

        Raises:
            FileExistsError: something has the name.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        renameat2 = getattr(libc, "renameat2", None)
        if renameat2 is not None:
            paths = os.fsencode(source), os.fsencode(target)
            if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_NOREPLACE) == 0:
                return
            code = ctypes.get_errno()
            if code not in {errno.ENOSYS, errno.EINVAL}:
                raise OSError(code, os.strerror(code), str(target))
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "exists already", str(target))
        source.rename(target)

    def replace(source: Path, target: Path) -> None:
        """Rename over a file that may stand there, in one step; `sync_folder` makes that durable."""
        source.rename(target)

    def long_path(path: Path) -> Path:
        """Return the path; here one may be as long as the system takes it."""
        return path

    def keep_mode(fd: int, mode: int) -> None:
        """Give an open file the permission bits of the one that it replaces."""
        os.fchmod(fd, mode)

    def make_sparse(fd: int) -> None:
        """Nothing: what is never written of a file takes no space."""

    def open_file_limit() -> int | None:
        """How many files this process may have open; None without a limit."""
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return None if allowed == resource.RLIM_INFINITY else allowed

    def raise_open_file_limit() -> None:
        """Allow as many as this user may have."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError):
            if soft < hard:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def memory_size() -> int:
        """Return the memory of this machine in bytes."""
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def device_number(status: os.stat_result) -> str:
        """Return the number of a device as the kernel writes it: ``major:minor``."""
        return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
