"""The disk, partition or file that is imaged.

Reads what is there or says exactly where it could not; a source that shrinks, fails or vanishes is an
error at that byte, never zeros.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from engine.devices import ioctl, sysfs
from engine.devices.facts import SourceIdentity
from engine.devices.naming import named_path
from engine.devices.sysfs import LOCAL, SystemRoots
from engine.devices.windows import device_path
from engine.devices.windowsdevice import WindowsSource
from engine.devices.windowskernel import kernel
from imageformat import system
from imageformat.device import BlockDevice, check_range
from imageformat.direct import AlignedMemory, DirectFile
from imageformat.errors import (
    AccessDeniedError,
    BadSectorError,
    MountfsError,
    NotFoundError,
    SourceReadError,
)
from imageformat.extent import Extent, ExtentKind
from imageformat.storage.holes import file_extents

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEFAULT_SECTOR_SIZE", "SourceDevice", "SourceIdentity", "open_source"]

DEFAULT_SECTOR_SIZE = 512

_GONE = frozenset(
    {errno.ENXIO, errno.ENODEV, getattr(errno, "ENOMEDIUM", errno.ENODEV), errno.ESTALE, errno.ENOTCONN}
)
_BAD = frozenset(
    {errno.EIO, errno.EILSEQ, getattr(errno, "ENODATA", errno.EIO), getattr(errno, "EREMOTEIO", errno.EIO)}
)
"""What the kernel says of sectors that a medium cannot read: of all, damaged, protected, of the target."""


class SourceDevice(BlockDevice, Protocol):
    """What is imaged: a `BlockDevice` that knows what it is. Any number of threads may read it."""

    @property
    def identity(self) -> SourceIdentity:
        """What it is."""
        ...

    @property
    def sector_size(self) -> int:
        """Logical sector size in bytes."""
        ...


class OpenSource:
    """A `SourceDevice` over an open block device or regular file. Owns the descriptor."""

    def __init__(self, fd: int, identity: SourceIdentity, *, sector_size: int, block_size: int) -> None:
        self._fd = fd
        self._direct = DirectFile(fd)
        self._memory = AlignedMemory()
        self.identity = identity
        self.size = identity.size
        self.sector_size = sector_size
        self.block_size = block_size

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`.

        Raises:
            SourceReadError: with the first byte that could not be read.
        """
        with self.lend(offset, size) as lent:
            return bytes(lent)

    def lend(self, offset: int, size: int) -> memoryview:
        """See `engine.imaging.Lender.lend`."""
        check_range(self.size, offset, size)
        memory = self._memory.of(size)
        if self._direct.read_into(memory, offset, size):
            return memory[:size]
        done = 0
        while done < size:
            done += self._read_once(memory[done:size], offset + done)
        return memory[:size]

    @property
    def smallest_read(self) -> int:
        """See `engine.rescue.SectorReader.smallest_read`."""
        return self.sector_size if self.identity.kind == "file" else max(self.sector_size, self.block_size)

    def read_sectors(self, offset: int, size: int) -> bytes:
        """See `engine.rescue.SectorReader.read_sectors`.

        Raises:
            BadSectorError, SourceReadError
        """
        check_range(self.size, offset, size)
        try:
            data = self._direct.read_sectors(offset, size)
        except OSError as error:
            raise self._read_error(offset, error) from error
        return self.pread(offset, size) if data is None else data

    def _read_once(self, memory: memoryview, offset: int) -> int:
        try:
            got = system.preadv(self._fd, memory, offset)
        except OSError as error:
            raise self._read_error(offset, error) from error
        if not got:
            raise self._shrunk(offset)
        return got

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`; the holes of a file are ZERO, all else is DATA."""
        check_range(self.size, offset, size)
        if self.identity.kind != "file":
            return iter((Extent(offset, size, ExtentKind.DATA),) if size else ())
        return self._file_extents(offset, size)

    def _file_extents(self, offset: int, size: int) -> Iterator[Extent]:
        try:
            for extent in file_extents(self._fd, self.size, offset, size):
                # What lies behind the end of a file that was cut short looks like a hole, and is lost data.
                if os.fstat(self._fd).st_size < self.size:
                    raise self._shrunk(os.fstat(self._fd).st_size)
                yield extent
        except OSError as error:
            raise self._read_error(offset, error) from error

    def close(self) -> None:
        """See `BlockDevice.close`."""
        self._direct.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # Of a file on a mount that died, closing fails as well; it is closed all the same.
            with contextlib.suppress(OSError):
                os.close(fd)

    def _read_error(self, offset: int, error: OSError) -> SourceReadError:
        where = f"{self.identity.path} at byte {offset} (sector {offset // self.sector_size})"
        if error.errno in _GONE:
            return SourceReadError(f"{where}: the device is gone ({error.strerror}); was it unplugged?")
        kind = BadSectorError if error.errno in _BAD else SourceReadError
        return kind(f"cannot read {where}: {error.strerror}; the medium may be failing")

    def _shrunk(self, offset: int) -> SourceReadError:
        return SourceReadError(
            f"{self.identity.path} ends at byte {offset} but had {self.size} bytes when it was opened: "
            "it shrank or vanished while being read; start again"
        )


def open_source(
    path: str, *, sector_size: int = DEFAULT_SECTOR_SIZE, roots: SystemRoots = LOCAL
) -> SourceDevice:
    """Open a block device or regular file for imaging, read-only; the caller closes it.

    Args:
        path: Device, link to a device (``/dev/disk/by-id/...``), image file, or ``serial=...`` and what
            else `naming` knows.
        sector_size: What a regular file counts in; a device tells its own.
        roots: Where the kernel describes its devices.

    Raises:
        NotFoundError: nothing is there.
        AmbiguousNameError: several disks are of that name.
        AccessDeniedError: the user may not read it.
        SourceReadError: it is no disk and no file, or has no medium.
    """
    path = named_path(path, roots)
    if sys.platform == "win32" and (device := device_path(path)) is not None:
        return WindowsSource.open(kernel(), device)
    real = os.path.realpath(path)
    try:
        place = system.long_path(Path(real))
        status = place.stat()
        if not (stat.S_ISBLK(status.st_mode) or stat.S_ISREG(status.st_mode)):
            raise SourceReadError(
                f"{path} is {_kind_of(status.st_mode)}: name a disk, a partition or a disk image file"
            )
        fd = os.open(place, os.O_RDONLY | system.PRIVATE)
    except OSError as error:
        raise _open_error(path, error) from error
    try:
        return _describe(fd, path, real, sector_size, roots)
    except BaseException:
        os.close(fd)
        raise


def _describe(fd: int, path: str, real: str, sector_size: int, roots: SystemRoots) -> OpenSource:
    try:
        status = os.fstat(fd)
        size = ioctl.device_size(fd)
        if stat.S_ISREG(status.st_mode):
            system.expect_sequential(fd)
            identity = SourceIdentity(real, "file", size)
            block_size = max(getattr(status, "st_blksize", 0), 512)  # Windows does not tell it
            return OpenSource(fd, identity, sector_size=sector_size, block_size=block_size)
        if not size:
            raise SourceReadError(
                f"{path} holds no bytes: no medium is inserted, or nothing is attached to it"
            )
        _forget_cached(fd)
        system.expect_sequential(fd)
        return OpenSource(
            fd,
            _device_identity(real, size, system.device_number(status), roots),
            sector_size=ioctl.sector_size(fd),
            block_size=ioctl.physical_sector_size(fd),
        )
    except OSError as error:
        raise SourceReadError(f"cannot read the properties of {path}: {error.strerror}") from error


def _forget_cached(fd: int) -> None:
    """Make the kernel read a device afresh.

    What it caches of a disk is not what it caches of the partitions and volumes on it: as long as one of
    them is in use, it would answer with what an earlier backup read, whatever was written since.
    """
    if not ioctl.drop_device_cache(fd):
        system.drop_cache(fd, 0, 0)


def _device_identity(real: str, size: int, number: str, roots: SystemRoots) -> SourceIdentity:
    folder = sysfs.block_folder(number, roots)
    if folder is None:
        return SourceIdentity(real, "disk", size)
    found = sysfs.hardware(folder, roots)
    kind: Literal["disk", "partition"] = "partition" if sysfs.is_partition(folder) else "disk"
    return SourceIdentity(real, kind, size, model=found.model, serial=found.serial, wwn=found.wwn)


def _open_error(path: str, error: OSError) -> MountfsError:
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return NotFoundError(f"{path} does not exist; 'mountfs disks' lists those of this machine")
    if error.errno in {errno.EACCES, errno.EPERM}:
        advice = "run this as root" if Path("/dev") in Path(path).parents else "check who may read it"
        return AccessDeniedError(f"{path} may not be read by this user; {advice}")
    if error.errno in _GONE:
        return SourceReadError(f"{path} cannot be opened: no medium is inserted, or the device is gone")
    return SourceReadError(f"{path} cannot be opened: {error.strerror}")


def _kind_of(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISCHR(mode):
        return "a character device"
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket"
