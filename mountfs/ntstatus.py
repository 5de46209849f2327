"""Answers of Windows' kernel ([MS-ERREF] 2.3), and what our own errors are in its words."""

from __future__ import annotations

import errno
from enum import IntEnum

from imageformat.errors import AccessDeniedError, LockedError, MountfsError


class NtStatus(IntEnum):
    """The codes that a read-only file system answers with."""

    SUCCESS = 0
    REPARSE = 0x00000104
    BUFFER_OVERFLOW = 0x80000005
    INVALID_PARAMETER = 0xC000000D
    END_OF_FILE = 0xC0000011
    ACCESS_DENIED = 0xC0000022
    BUFFER_TOO_SMALL = 0xC0000023
    OBJECT_NAME_NOT_FOUND = 0xC0000034
    OBJECT_PATH_NOT_FOUND = 0xC000003A
    MEDIA_WRITE_PROTECTED = 0xC00000A2
    FILE_IS_A_DIRECTORY = 0xC00000BA
    NOT_SUPPORTED = 0xC00000BB
    NOT_A_DIRECTORY = 0xC0000103
    IO_DEVICE_ERROR = 0xC0000185
    NOT_A_REPARSE_POINT = 0xC0000275
    REPARSE_POINT_NOT_RESOLVED = 0xC0000280


class StatusError(Exception):
    """Something that Windows asked for and is answered with a status; no failure of the image."""

    def __init__(self, status: NtStatus) -> None:
        super().__init__(status.name)
        self.status = status


_BY_ERRNO = {
    errno.ENOENT: NtStatus.OBJECT_NAME_NOT_FOUND,
    errno.ENOTSUP: NtStatus.NOT_SUPPORTED,
    errno.EROFS: NtStatus.MEDIA_WRITE_PROTECTED,
    errno.EINVAL: NtStatus.INVALID_PARAMETER,
    errno.ENOTDIR: NtStatus.NOT_A_DIRECTORY,
}


def status_of(error: MountfsError) -> NtStatus:
    """Return what Windows is told of a failure; bytes that cannot be proven are a device error."""
    if isinstance(error, (AccessDeniedError, LockedError)):
        return NtStatus.ACCESS_DENIED
    return _BY_ERRNO.get(error.errno, NtStatus.IO_DEVICE_ERROR)
