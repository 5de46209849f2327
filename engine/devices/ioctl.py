"""The few Linux calls on block devices and files that Python's ``os`` does not offer.

Where there is no Linux, none of them is offered, and what is optional is left undone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys
from typing import Final

_BLKROGET: Final = 0x125E
_BLKRRPART: Final = 0x125F
_BLKFLSBUF: Final = 0x1261
_BLKSSZGET: Final = 0x1268
_BLKPBSZGET: Final = 0x127B
_BLKZEROOUT: Final = 0x127F
_F_SETSIG: Final = 10
_FICLONE: Final = 0x40049409
_FITHAW: Final = 0xC0045878

_FALLOC_KEEP_SIZE_PUNCH_HOLE: Final = 0x01 | 0x02

_NOT_OFFERED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.ENODEV})

if sys.platform == "win32":

    def _ioctl(_fd: int, _request: int, _argument: int | bytes) -> int | bytes:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    def _fallocate(_fd: int, _mode: int, _offset: int, _length: int) -> int:
        ctypes.set_errno(errno.ENOSYS)
        return -1

    def open_for_writing(_path: str) -> bool:
        """Tell that nobody is known to have a file open for writing."""
        return False

else:
    import fcntl

    _libc = ctypes.CDLL(None, use_errno=True)
    _fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    _fallocate.restype = ctypes.c_int

    def _ioctl(fd: int, request: int, argument: int | bytes) -> int | bytes:
        return fcntl.ioctl(fd, request, argument)

    def open_for_writing(path: str) -> bool:
        """Whether anybody has a regular file open for writing; False as well when that cannot be told.

        Asked by taking a read lease for a moment (fcntl(2), F_SETLEASE): the owner of a file may.
        """
        if not hasattr(fcntl, "F_SETLEASE"):
            return False
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # Somebody who opens it in this very moment makes the kernel send a signal: one that is ignored.
            fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            return error.errno == errno.EAGAIN
        finally:
            os.close(fd)
        return False


def sector_size(fd: int) -> int:
    """Logical sector size of an open block device in bytes."""
    return _read_int(fd, _BLKSSZGET)


def physical_sector_size(fd: int) -> int:
    """Physical sector size of an open block device in bytes."""
    return _read_int(fd, _BLKPBSZGET)


def is_read_only(fd: int) -> bool:
    """Whether the kernel refuses to write to an open block device; opening it for writing may still work."""
    return _read_int(fd, _BLKROGET) != 0


def _read_int(fd: int, request: int) -> int:
    answer = _ioctl(fd, request, bytes(4))
    return int(struct.unpack("I", answer)[0]) if isinstance(answer, bytes) else 0


def device_size(fd: int) -> int:
    """Length of an open block device or regular file in bytes; moves the cursor, which nobody uses."""
    return os.lseek(fd, 0, os.SEEK_END)


def drop_device_cache(fd: int) -> bool:
    """Write back and forget what the kernel caches of a block device; False when that is not allowed."""
    return _offered(fd, _BLKFLSBUF, 0)


def reread_partitions(fd: int) -> bool:
    """Ask the kernel to look at the partition table again; False when it cannot, or is not willing."""
    return _offered(fd, _BLKRRPART, 0)


def _offered(fd: int, request: int, argument: int) -> bool:
    try:
        _ioctl(fd, request, argument)
    except OSError as error:
        if error.errno in _NOT_OFFERED | {errno.EACCES, errno.EPERM, errno.EBUSY}:
            return False
        raise
    return True


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Release the range so that it reads as zeros; False when file system or device does not offer that.

    On a block device the kernel uses only commands that promise zeros; a plain discard promises nothing.
    """
    code = errno.EINTR
    while code == errno.EINTR:
        if _fallocate(fd, _FALLOC_KEEP_SIZE_PUNCH_HOLE, offset, length) == 0:
            return True
        code = ctypes.get_errno()
    if code in _NOT_OFFERED | {errno.EPERM}:
        return False
    raise OSError(code, os.strerror(code))


def share_blocks(target_fd: int, source_fd: int) -> None:
    """Make an empty file hold what another one of the same file system holds, in one step (FICLONE).

    Raises:
        OSError: EOPNOTSUPP, EINVAL or EXDEV where that is not offered.
    """
    _ioctl(target_fd, _FICLONE, source_fd)


def thaw(fd: int) -> bool:
    """Let a frozen file system be written again (FITHAW); False when it was not frozen.

    Raises:
        OSError: the user may not, or it has no such thing.
    """
    try:
        _ioctl(fd, _FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def zero_out(fd: int, offset: int, length: int) -> bool:
    """Let the kernel write zeros to a range of whole sectors; False when the device does not offer that."""
    try:
        _ioctl(fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
    except OSError as error:
        if error.errno in _NOT_OFFERED:
            return False
        raise
    return True
