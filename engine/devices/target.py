"""What a restore writes to: a block device held exclusively, or a file that appears when it is whole."""

from __future__ import annotations

import os
import stat
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.devices import ioctl
from engine.devices.guards import TargetFacts, device_identity, file_identity, target_facts
from engine.devices.partfile import failure, made_meanwhile, open_failure, open_part, part_path
from engine.devices.sysfs import LOCAL, SystemRoots
from engine.devices.windowsdevice import WindowsTarget
from engine.devices.windowskernel import kernel
from imageformat import system
from imageformat.device import WritableDevice, check_range
from imageformat.direct import ALIGNMENT, DirectFile
from imageformat.errors import (
    DestinationError,
    DestinationReadOnlyError,
    MountfsError,
    TargetInUseError,
    TargetTooSmallError,
)
from imageformat.extent import Extent, ExtentKind
from imageformat.storage.holes import file_extents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ZEROS = bytes(1 << 20)
_PUSH = 16 << 20
"""Written back to the medium at a time, while the next is being decoded."""


class Target(WritableDevice, Protocol):
    """A writable device that ends with `commit` or `abort`."""

    path: str
    """The device or the file that will be there after `commit`."""
    sector_size: int

    def commit(self) -> None:
        """Make all of it durable and visible, and close it."""
        ...

    def abort(self) -> None:
        """Close it; a file is removed and what stood there before stays. Harmless after `commit`."""
        ...


def open_target(
    path: str,
    size: int,
    *,
    sector_size: int = 512,
    expected: TargetFacts | None = None,
    in_place: bool = False,
    roots: SystemRoots = LOCAL,
) -> Target:
    """Open what a restore of ``size`` bytes writes to. `check_target` is the caller's, before this.

    A device is held exclusively and keeps its own size and sector size. A file gets exactly ``size``
    bytes, first under the name ``.NAME.part`` in the same folder.

    Args:
        path: Block device, existing file, or file that is to be made.
        size: Bytes that will be written.
        sector_size: What a file counts in.
        expected: The facts that the user agreed to; refused when the path names something else by now.
        in_place: Go on with what stands in the part file, or else with the file itself, which has the
            name of a part file meanwhile.
        roots: Where the kernel describes its devices.

    Raises:
        TargetInUseError, TargetTooSmallError, DestinationReadOnlyError, DestinationFullError,
        AccessDeniedError, NotFoundError, UsageError, DestinationError
    """
    facts = target_facts(path, roots=roots) if expected is None else expected
    if not facts.is_device:
        make = FileTarget.take_over if in_place else FileTarget.create
        return make(facts, size, sector_size=sector_size)
    device = _open_device(facts, roots)
    if device.size < size:
        device.close()
        raise TargetTooSmallError(f"{facts.path} has {device.size} bytes, and the disk in the image {size}")
    return device


def _open_device(facts: TargetFacts, roots: SystemRoots) -> DeviceTarget | WindowsTarget:
    if sys.platform == "win32":
        return WindowsTarget.open(kernel(), facts)
    return DeviceTarget.open(facts, roots=roots)


class _DescriptorDevice:
    """Reading and writing one open descriptor; owns it."""

    def __init__(self, fd: int, path: str, *, size: int, block_size: int, sector_size: int) -> None:
        self._fd = fd
        self._direct = DirectFile(fd, writable=True)
        self.path = path
        self.size = size
        self.block_size = block_size
        self.sector_size = sector_size
        self._dirty_from = size
        self._dirty = 0
        self._dirty_lock = threading.Lock()

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        parts: list[bytes] = []
        end = offset + size
        while offset < end:
            try:
                parts.append(system.pread(self._fd, end - offset, offset))
            except OSError as error:
                raise failure("read back", self.path, offset, error) from error
            if not parts[-1]:
                raise DestinationError(f"{self.path} ends at byte {offset}; it shrank or vanished")
            offset += len(parts[-1])
        return b"".join(parts)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`; all of a target is DATA."""
        check_range(self.size, offset, size)
        return iter((Extent(offset, size, ExtentKind.DATA),) if size else ())

    def pwrite(self, offset: int, data: bytes) -> None:
        """See `WritableDevice.pwrite`.

        Raises:
            DestinationFullError, DestinationReadOnlyError, DestinationError: with the byte.
        """
        check_range(self.size, offset, len(data))
        view = memoryview(data)
        written = self._direct.pwrite(offset, view)
        offset, view = offset + written, view[written:]
        while view:
            try:
                done = system.pwrite(self._fd, view, offset)
            except OSError as error:
                raise failure("write", self.path, offset, error) from error
            if not done:
                raise DestinationError(f"{self.path} takes no more bytes at byte {offset}")
            self._push(offset, offset + done)
            offset, view = offset + done, view[done:]

    def _push(self, start: int, end: int) -> None:
        """Start writing back what was written, so that little is left to wait for in the end."""
        with self._dirty_lock:
            first = self._dirty_from = min(self._dirty_from, start)
            self._dirty += end - start
            if self._dirty < _PUSH:
                return
            self._dirty_from, self._dirty = end, 0
        system.drop_cache(self._fd, first, max(0, end - first))

    def zero(self, offset: int, size: int) -> None:
        """See `WritableDevice.zero`; never by a discard, which promises nothing."""
        check_range(self.size, offset, size)
        unit = self._zero_unit()
        start, end = min(-(-offset // unit) * unit, offset + size), offset + size
        stop = max(start, end // unit * unit)
        self._write_zeros(offset, start)
        if start < stop and not self._zero_aligned(start, stop - start):
            self._write_zeros(start, stop)
        self._write_zeros(stop, end)

    def _zero_unit(self) -> int:
        """What the cheap ways of zeroing are aligned to."""
        return self.sector_size

    def _zero_aligned(self, offset: int, size: int) -> bool:
        ways: tuple[Callable[[int, int, int], bool], ...] = (ioctl.punch_hole, ioctl.zero_out)
        try:
            return any(way(self._fd, offset, size) for way in ways)
        except OSError as error:
            raise failure("write zeros to", self.path, offset, error) from error

    def _write_zeros(self, offset: int, end: int) -> None:
        while offset < end:
            part = _ZEROS[: end - offset]
            self.pwrite(offset, part)
            offset += len(part)

    def flush(self) -> None:
        """See `WritableDevice.flush`; after an error here nothing that was written can be trusted."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise failure("make durable what was written to", self.path, None, error) from error

    def evict(self) -> None:
        """See `Target.evict`."""
        self.flush()
        system.drop_cache(self._fd, 0, 0)

    def close(self) -> None:
        """Release the descriptor; idempotent."""
        self._direct.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class DeviceTarget(_DescriptorDevice):
    """A block device, held exclusively until it is closed: nobody can mount it meanwhile."""

    @classmethod
    def open(cls, facts: TargetFacts, *, roots: SystemRoots = LOCAL) -> DeviceTarget:
        """Open the device that the facts are about.

        Raises:
            TargetInUseError: it is mounted or held, or the path names another device by now.
            DestinationReadOnlyError: it is write-protected.
        """
        try:
            fd = os.open(facts.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            raise open_failure(facts.path, error) from error
        try:
            _check_device(fd, facts, roots)
            return cls(
                fd,
                facts.path,
                size=ioctl.device_size(fd),
                block_size=ioctl.physical_sector_size(fd),
                sector_size=ioctl.sector_size(fd),
            )
        except OSError as error:
            os.close(fd)
            raise open_failure(facts.path, error) from error
        except MountfsError:
            os.close(fd)
            raise

    def evict(self) -> None:
        """See `Target.evict`."""
        super().evict()
        ioctl.drop_device_cache(self._fd)

    def commit(self) -> None:
        """See `Target.commit`; the kernel is asked to read the new partition table."""
        self.evict()
        ioctl.reread_partitions(self._fd)
        self.close()

    def abort(self) -> None:
        """See `Target.abort`; what was written to the device stays."""
        self.close()


class FileTarget(_DescriptorDevice):
    """A sparse file under a temporary name, renamed by `commit`; closing it without that removes it."""

    def __init__(
        self, fd: int, facts: TargetFacts, size: int, *, sector_size: int, keeps_part: bool = False
    ) -> None:
        block_size = getattr(os.fstat(fd), "st_blksize", ALIGNMENT)  # Windows does not tell it
        super().__init__(fd, facts.path, size=size, block_size=block_size, sector_size=sector_size)
        self._facts = facts
        self._part = part_path(facts.path)
        self._written_end = size if keeps_part else 0
        self._published = False
        self._keeps_part = keeps_part

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`; the holes of the file are ZERO, all else is DATA."""
        check_range(self.size, offset, size)
        try:
            return file_extents(self._fd, self.size, offset, size)
        except OSError as error:
            raise failure("read back", self.path, offset, error) from error

    @classmethod
    def create(cls, facts: TargetFacts, size: int, *, sector_size: int) -> FileTarget:
        """Make the temporary file with its final length and no content.

        Raises:
            TargetInUseError: another restore writes to the same file.
        """
        part = part_path(facts.path)
        fd = open_part(part)
        try:
            os.ftruncate(fd, 0)
            system.make_sparse(fd)
            os.ftruncate(fd, size)
        except OSError as error:
            _remove_open(fd, part)
            raise failure("make", str(part), None, error) from error
        return cls(fd, facts, size, sector_size=sector_size)

    @classmethod
    def take_over(cls, facts: TargetFacts, size: int, *, sector_size: int) -> FileTarget:
        """Open the part file that is there, or the file under that name; `abort` does not remove it.

        Raises:
            TargetInUseError: another restore writes to the same file, or it was replaced meanwhile.
        """
        part, taken = part_path(facts.path), facts
        if facts.kind == "file" and not part.exists():
            if file_identity(Path(facts.path).lstat()) != facts.identity:
                raise made_meanwhile(facts.path)
            system.rename_new(Path(facts.path), part)
            taken = replace(facts, kind="new file", identity=())
        fd = open_part(part)
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            os.close(fd)
            raise failure("make", str(part), None, error) from error
        return cls(fd, taken, size, sector_size=sector_size, keeps_part=True)

    def pwrite(self, offset: int, data: bytes) -> None:
        """See `WritableDevice.pwrite`."""
        with self._dirty_lock:
            self._written_end = max(self._written_end, offset + len(data))
        super().pwrite(offset, data)

    def zero(self, offset: int, size: int) -> None:
        """See `WritableDevice.zero`; what was never written is a hole already."""
        check_range(self.size, offset, size)
        written = max(0, min(size, self._written_end - offset))
        if written:
            super().zero(offset, written)

    def _zero_unit(self) -> int:
        return 1

    def commit(self) -> None:
        """See `Target.commit`."""
        self.flush()
        self._check_unchanged()
        try:
            if self._facts.kind == "file":
                system.keep_mode(self._fd, stat.S_IMODE(Path(self.path).stat().st_mode))
            if not system.CAN_RENAME_OPEN_FILES:
                super().close()
            if self._facts.kind == "file":
                system.replace(self._part, Path(self.path))
            else:
                system.rename_new(self._part, Path(self.path))
            system.sync_folder(self._part.parent)
        except FileExistsError as error:
            raise made_meanwhile(self.path) from error
        except OSError as error:
            raise failure("publish", self.path, None, error) from error
        self._published = True
        super().close()

    def abort(self) -> None:
        """See `Target.abort`."""
        if self._keeps_part:
            super().close()
            return
        if self._fd >= 0 and system.CAN_RENAME_OPEN_FILES:
            self._part.unlink(missing_ok=True)
        super().close()
        if not system.CAN_RENAME_OPEN_FILES and not self._published:
            self._part.unlink(missing_ok=True)

    def close(self) -> None:
        """Abort, unless it was committed."""
        self.abort()

    def _check_unchanged(self) -> None:
        try:
            identity = file_identity(Path(self.path).lstat())
        except FileNotFoundError:
            identity = ()
        if identity != self._facts.identity:
            raise made_meanwhile(self.path)


def _remove_open(fd: int, part: Path) -> None:
    """Remove a file and close it, in the order that this system takes; the lock holds as long as it may."""
    if system.CAN_RENAME_OPEN_FILES:
        part.unlink(missing_ok=True)
    os.close(fd)
    if not system.CAN_RENAME_OPEN_FILES:
        part.unlink(missing_ok=True)


def _check_device(fd: int, facts: TargetFacts, roots: SystemRoots) -> None:
    status = os.fstat(fd)
    number = system.device_number(status)
    if not stat.S_ISBLK(status.st_mode) or device_identity(number, roots) != facts.identity:
        raise TargetInUseError(
            f"{facts.path} is not the disk it was a moment ago; look again which one is meant"
        )
    if ioctl.is_read_only(fd):
        raise DestinationReadOnlyError(f"{facts.path} is read-only")
