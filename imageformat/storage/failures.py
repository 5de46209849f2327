"""What the operating system refuses, said in our words."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from imageformat.errors import (
    AccessDeniedError,
    DestinationError,
    DestinationFullError,
    DestinationReadOnlyError,
    MountfsError,
    NotFoundError,
    StorageError,
)

if TYPE_CHECKING:
    from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM})


def read_error(error: OSError, path: Path) -> MountfsError:
    """Translate a failure to read an image file."""
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{path}: no such file or folder")
    if error.errno in _DENIED:
        return AccessDeniedError(f"{path}: permission denied; run as the owner of the images or as root")
    return StorageError(f"{path}: cannot be read: {error.strerror or error}")


def write_error(error: OSError, path: Path) -> MountfsError:
    """Translate a failure to write below a repository."""
    if error.errno in _FULL:
        return DestinationFullError(f"{path}: no space left; free some and run the same command again")
    if error.errno == errno.EROFS:
        return DestinationReadOnlyError(f"{path}: the file system is read-only")
    if error.errno in _DENIED:
        return AccessDeniedError(f"{path}: permission denied; nothing was written")
    if isinstance(error, NotADirectoryError | FileExistsError):
        return DestinationError(f"{path}: a file stands where a folder is needed")
    return DestinationError(f"{path}: cannot be written: {error.strerror or error}")
