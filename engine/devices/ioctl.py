"""The few Linux calls on block devices and files that Python's ``os`` does not offer.

Where there is no Linux, none of them is offered, and what is optional is left undone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import Final

_BLKROGET: Final = 0x125E
_BLKRRPART: Final = 0x125F
_BLKFLSBUF: Final = 0x1261
_BLKSSZGET: Final = 0x1268
_BLKPBSZGET: Final = 0x127B
_BLKZEROOUT: Final = 0x127F

_FALLOC_KEEP_SIZE_PUNCH_HOLE: Final = 0x01 | 0x02

_NOT_OFFERED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.ENODEV})

if sys.platform == "win32":

    def _ioctl(_fd: int, _request: int, _argument: int | bytes) -> int | bytes:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    def _fallocate(_fd: int, _mode: int, _offset: int, _length: int) -> int:
        ctypes.set_errno(errno.ENOSYS)
        return -1

else:
    import fcntl

    _libc = ctypes.CDLL(None, use_errno=True)
    _fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    _fallocate.restype = ctypes.c_int

    def _ioctl(fd: int, request: int, argument: int | bytes) -> int | bytes:
        return fcntl.ioctl(fd, request, argument)


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


def zero_out(fd: int, offset: int, length: int) -> bool:
    """Let the kernel write zeros to a range of whole sectors; False when the device does not offer that."""
    try:
        _ioctl(fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
    except OSError as error:
        if error.errno in _NOT_OFFERED:
            return False
        raise
    return True
