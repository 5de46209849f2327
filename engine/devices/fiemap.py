"""Where the bytes of a file lie in its file system, and files that share them: FIEMAP and FICLONE of Linux.

Sources: "Fiemap Ioctl" (Documentation/filesystems/fiemap.rst of Linux); ioctl_ficlone(2);
ioctl_xfs_fsgetxattr(2).
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FS_IOC_FIEMAP: Final = 0xC020660B
_FICLONE: Final = 0x40049409
_FS_IOC_FSGETXATTR: Final = 0x801C581F
_XFLAG_REALTIME: Final = 1
_HEADER: Final = struct.Struct("=QQIIII")
"""Start, length, flags, extents mapped, room for extents, reserved."""
_EXTENT: Final = struct.Struct("=QQQ16xI12x")
"""Logical and physical offset, length, flags."""
_SYNC: Final = 1
_LAST: Final = 0x0001
_SHARED: Final = 0x2000
_AT_ONCE: Final = 512

if sys.platform == "win32":

    def _ioctl(_fd: int, _request: int, _argument: int | bytearray) -> int:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

else:
    import fcntl

    def _ioctl(fd: int, request: int, argument: int | bytearray) -> int:
        return fcntl.ioctl(fd, request, argument)


class Mapped(NamedTuple):
    """``length`` bytes at ``offset`` of a file lie at ``physical`` in its file system."""

    offset: int
    length: int
    physical: int


def mapped(fd: int) -> Iterator[Mapped]:
    """Yield where the bytes of a file lie, ascending, after what is pending was written.

    Left out is what is in doubt: not allocated, delayed, unwritten, encoded (compressed), inline, or of a
    kind that is not known.

    Raises:
        OSError: the file system does not tell.
    """
    start = 0
    while True:
        request = bytearray(_HEADER.size + _AT_ONCE * _EXTENT.size)
        _HEADER.pack_into(request, 0, start, (1 << 64) - 1 - start, _SYNC, 0, _AT_ONCE, 0)
        _ioctl(fd, _FS_IOC_FIEMAP, request)
        count = _HEADER.unpack_from(request)[3]
        for number in range(min(count, _AT_ONCE)):
            at = _HEADER.size + number * _EXTENT.size
            offset, physical, length, flags = _EXTENT.unpack_from(request, at)
            start = max(start, offset + length)
            if not flags & ~(_LAST | _SHARED) and physical:
                yield Mapped(offset, length, physical)
            if flags & _LAST:
                return
        if not count:
            return


def same_place(one: Iterable[Mapped], other: Iterable[Mapped], size: int) -> Iterator[tuple[int, int]]:
    """Yield ``(offset, end)`` of what lies in the same place in two maps; ascending, below ``size``. Pure."""
    left, right = iter(one), iter(other)
    a, b = next(left, None), next(right, None)
    while a is not None and b is not None:
        offset, end = max(a.offset, b.offset), min(a.offset + a.length, b.offset + b.length, size)
        if offset < end and a.physical - a.offset == b.physical - b.offset:
            yield offset, end
        if a.offset + a.length <= b.offset + b.length:
            a = next(left, None)
        else:
            b = next(right, None)


def clone(source: int, target: int) -> None:
    """Make an empty open file share all bytes of another one, as they are now.

    Raises:
        OSError: the file system cannot.
    """
    _ioctl(target, _FICLONE, source)


def is_realtime(fd: int) -> bool:
    """Whether a file lies on the real-time device of an XFS, which counts its places by itself."""
    attributes = bytearray(28)
    try:
        _ioctl(fd, _FS_IOC_FSGETXATTR, attributes)
    except OSError:
        return False
    return bool(int.from_bytes(attributes[:4], sys.byteorder) & _XFLAG_REALTIME)
