"""The hidden file that a file is until it is whole, and what can go wrong with a target."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from engine.devices.guards import file_identity
from imageformat import system
from imageformat.errors import (
    AccessDeniedError,
    DestinationError,
    DestinationFullError,
    DestinationReadOnlyError,
    MountfsError,
    NotFoundError,
    TargetInUseError,
)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EROFS})
_DENIED = frozenset({errno.EACCES, errno.EPERM})


def part_path(path: str) -> Path:
    """The temporary name of a file that is being restored."""
    target = Path(path)
    return target.with_name(f".{target.name}.part")


def open_part(part: Path) -> int:
    """Open the temporary file and lock it; one left behind by a crash is taken over.

    It is readable by its owner only, because it holds a whole disk. A link planted under that name is
    refused: its other name would be overwritten. So is a file that its writer renamed or removed before
    we had the lock.
    """
    try:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | system.NO_FOLLOW | system.PRIVATE, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DestinationError(f"{part} is a symbolic link; remove it") from error
        if error.errno in _DENIED:
            raise AccessDeniedError(
                f"{part.parent} may not be written by this user; run this as root, or choose another place"
            ) from error
        raise open_failure(str(part), error) from error
    try:
        _claim(fd, part)
    except OSError as error:
        os.close(fd)
        raise open_failure(str(part), error) from error
    except MountfsError:
        os.close(fd)
        raise
    return fd


def _claim(fd: int, part: Path) -> None:
    try:
        system.lock(fd)
        status = os.fstat(fd)
        ours = file_identity(part.lstat()) == file_identity(status)
    except (BlockingIOError, FileNotFoundError):
        ours = False
    if not ours:
        raise TargetInUseError(f"another restore writes, or just wrote, {part}; look at it, then start again")
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise DestinationError(f"{part} is not a file of this program; remove it")


def made_meanwhile(path: str) -> TargetInUseError:
    """The name of a file that was to be written has another meaning by now."""
    return TargetInUseError(f"{path} was made or replaced by another program meanwhile; nothing was changed")


def open_failure(path: str, error: OSError) -> MountfsError:
    """Say why a target could not be opened."""
    if error.errno == errno.EBUSY:
        return TargetInUseError(f"{path} is mounted or held by another program; release it first")
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return NotFoundError(f"{path} does not exist")
    if error.errno in _DENIED:
        return AccessDeniedError(
            f"{path} may not be written by this user; run this as root, or choose another place"
        )
    return failure("open", path, None, error)


def failure(verb: str, path: str, offset: int | None, error: OSError) -> DestinationError:
    """Say what could not be done to a target, and where."""
    where = path if offset is None else f"{path} at byte {offset}"
    if error.errno in _FULL:
        return DestinationFullError(f"cannot {verb} {where}: no space is left")
    if error.errno in _READ_ONLY:
        return DestinationReadOnlyError(f"cannot {verb} {where}: it is read-only")
    if error.errno == errno.EFBIG:
        return DestinationError(f"cannot {verb} {where}: the file system does not take files of that size")
    return DestinationError(f"cannot {verb} {where}: {error.strerror}")
