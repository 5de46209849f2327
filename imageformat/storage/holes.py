"""The holes of a file: ranges that take no space and read as zeros."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

from imageformat.extent import Extent, ExtentKind, coalesce

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_HOLES = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


def file_extents(fd: int, size: int, offset: int, length: int) -> Iterator[Extent]:
    """Describe a range of a file of ``size`` bytes; its holes are ZERO, all else is DATA.

    Raises:
        OSError: the file cannot be asked.
    """
    return coalesce(_parts(fd, size, offset, offset + length))


if sys.platform == "win32":

    def _parts(_fd: int, _size: int, position: int, end: int) -> Iterator[Extent]:
        """All of it is DATA: its C library does not tell the holes of a file."""
        if position < end:
            yield Extent(position, end - position, ExtentKind.DATA)

else:

    def _parts(fd: int, size: int, position: int, end: int) -> Iterator[Extent]:
        while position < end:
            data = min(_seek(fd, size, position, os.SEEK_DATA), end)
            if data > position:
                yield Extent(position, data - position, ExtentKind.ZERO)
            if data < end:
                hole = min(_seek(fd, size, data, os.SEEK_HOLE), end)
                yield Extent(data, hole - data, ExtentKind.DATA)
                data = hole
            position = data

    def _seek(fd: int, size: int, position: int, whence: int) -> int:
        """First data or hole from ``position`` on; the end of the file when there is none."""
        try:
            return os.lseek(fd, position, whence)
        except OSError as error:
            if error.errno in _NO_HOLES:
                return position if whence == os.SEEK_DATA else size
            if error.errno != errno.ENXIO:
                raise
            return size
