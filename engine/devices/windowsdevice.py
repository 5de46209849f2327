r"""A drive or volume of Windows as what is imaged or written: whole sectors, at positions, by one handle."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from engine.devices import windows, windowsdisks
from engine.devices.facts import SourceIdentity
from imageformat.device import check_range
from imageformat.errors import (
    AccessDeniedError,
    BadSectorError,
    DestinationError,
    DestinationReadOnlyError,
    SourceReadError,
    TargetInUseError,
)
from imageformat.extent import Extent, ExtentKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.devices.facts import TargetFacts
    from engine.devices.windows import Devices

_PIECE = 1 << 20
"""Bytes asked for at once: a multiple of every sector size."""
_ALLOW_EXTENDED_DASD_IO = 0x00090083
_BAD = frozenset({23, 27, 1117})
"""ERROR_CRC, ERROR_SECTOR_NOT_FOUND, ERROR_IO_DEVICE."""
_GONE = frozenset({2, 21, 31, 55, 1112, 1167})
"""ERROR_FILE_NOT_FOUND, NOT_READY, GEN_FAILURE, DEV_NOT_EXIST, NO_MEDIA_IN_DRIVE, DEVICE_NOT_CONNECTED."""
_DENIED, _WRITE_PROTECTED = 5, 19


class _Sectors:
    """Reads any range of an open device by the sectors that it touches; owns what is on its stack."""

    def __init__(
        self, devices: Devices, stack: ExitStack, handle: int, path: str, size: int, sector_size: int
    ) -> None:
        self._devices = devices
        self._stack = stack
        self._handle = handle
        self.path = path
        self.size = size
        self.sector_size = sector_size
        self.block_size = max(sector_size, 4096)

    def _read(self, offset: int, size: int) -> bytes:
        """Read a range; raises OSError, with the byte as its argument."""
        # A shadow copy does not tell how large its sectors are, so what suits all is read.
        start = offset // self.block_size * self.block_size
        end = min(-(-(offset + size) // self.block_size) * self.block_size, self.size)
        parts: list[bytes] = []
        position = start
        while position < end:
            try:
                part = self._devices.read(self._handle, position, min(_PIECE, end - position))
            except OSError as error:
                raise _At(position, error) from error
            if not part:
                raise _At(position, None)
            parts.append(part)
            position += len(part)
        return b"".join(parts)[offset - start : offset - start + size]

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`; all of it is DATA."""
        check_range(self.size, offset, size)
        return iter((Extent(offset, size, ExtentKind.DATA),) if size else ())

    def close(self) -> None:
        """Close it and let go of what was locked; idempotent."""
        self._stack.close()


class _At(Exception):  # noqa: N818 (never leaves this module)
    """Where reading failed, and why; no reason: it ended there."""

    def __init__(self, position: int, error: OSError | None) -> None:
        super().__init__(position)
        self.position = position
        self.error = error


class WindowsSource(_Sectors):
    """A drive, volume or shadow copy that is imaged; see `SourceDevice`. Any number of threads."""

    identity: SourceIdentity

    @classmethod
    def open(cls, devices: Devices, path: str) -> WindowsSource:
        """Open it; the caller closes it.

        Raises:
            NotFoundError, AccessDeniedError, SourceReadError: see `windows.describe_disk`.
        """
        disk = windowsdisks.described(devices, path)
        with ExitStack() as stack:
            handle = stack.enter_context(windows.opened(devices, path, write=False))
            with suppress(OSError):  # the last sectors of a volume; drives do not know it
                devices.control(handle, _ALLOW_EXTENDED_DASD_IO, b"", 0)
            source = cls(devices, stack.pop_all(), handle, path, disk.size, disk.sector_size)
        kind = "disk" if windowsdisks.is_drive(path) else "partition"
        source.identity = SourceIdentity(path, kind, disk.size, disk.model, disk.serial)  # type: ignore[arg-type]
        return source

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`.

        Raises:
            SourceReadError: with the first byte that could not be read.
        """
        check_range(self.size, offset, size)
        try:
            return self._read(offset, size)
        except _At as at:
            raise self._failure(at) from at.error

    def lend(self, offset: int, size: int) -> memoryview:
        """See `engine.imaging.Lender.lend`."""
        return memoryview(self.pread(offset, size))

    def _failure(self, at: _At) -> SourceReadError:
        where = f"{self.path} at byte {at.position} (sector {at.position // self.sector_size})"
        if at.error is None:
            return SourceReadError(f"{where}: it ends there, but had {self.size} bytes when it was opened")
        if windows.error_code(at.error) in _GONE:
            return SourceReadError(f"{where}: the device is gone; was it unplugged?")
        kind = BadSectorError if windows.error_code(at.error) in _BAD else SourceReadError
        return kind(f"cannot read {where}: {at.error.strerror}; the medium may be failing")


class WindowsTarget(_Sectors):
    """A drive or volume that is overwritten; see `Target`. What lies on it is locked until it is closed."""

    @classmethod
    def open(cls, devices: Devices, facts: TargetFacts) -> WindowsTarget:
        """Lock and dismount every volume on it, then open it.

        Raises:
            TargetInUseError: a program has files on it open, or the path names another device by now.
            NotFoundError, AccessDeniedError, SourceReadError: see `windows.describe_disk`.
        """
        disk = windowsdisks.described(devices, facts.path)
        if windowsdisks.identity_of(disk) != facts.identity:
            raise TargetInUseError(
                f"{facts.path} is not the disk it was a moment ago; look again which one is meant"
            )
        with ExitStack() as stack:
            held = [
                stack.enter_context(windows.locked(devices, volume.path))
                for volume in windowsdisks.volumes_on(devices, facts.path)
            ]
            # A locked volume cannot be opened once more, not even by who locked it.
            is_drive = windowsdisks.is_drive(facts.path) or not held
            handle = (
                stack.enter_context(windows.opened(devices, facts.path, write=True)) if is_drive else held[0]
            )
            with suppress(OSError):
                devices.control(handle, _ALLOW_EXTENDED_DASD_IO, b"", 0)
            target = cls(devices, stack.pop_all(), handle, facts.path, disk.size, disk.sector_size)
        target._edges = threading.Lock()
        return target

    _edges: threading.Lock
    """Held while sectors are written of which only a part is new."""

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        try:
            return self._read(offset, size)
        except _At as at:
            raise self._failure("read back", at.position, at.error) from at.error

    def pwrite(self, offset: int, data: bytes) -> None:
        """See `WritableDevice.pwrite`.

        Raises:
            DestinationReadOnlyError, AccessDeniedError, DestinationError: with the byte.
        """
        check_range(self.size, offset, len(data))
        before, after = offset % self.sector_size, -(offset + len(data)) % self.sector_size
        if not data:
            return
        if not before and not after:
            self._write(offset, bytes(data))
            return
        start, end = offset - before, offset + len(data) + after
        with self._edges:
            whole = bytearray(self.pread(start, end - start))
            whole[before : before + len(data)] = data
            self._write(start, bytes(whole))

    def _write(self, offset: int, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            while piece:
                try:
                    done = self._devices.write(self._handle, offset, piece)
                except OSError as error:
                    raise self._failure("write", offset, error) from error
                if not done:
                    raise self._failure("write", offset, None)
                offset, piece = offset + done, piece[done:]

    def zero(self, offset: int, size: int) -> None:
        """See `WritableDevice.zero`: zeros are written."""
        check_range(self.size, offset, size)
        for start in range(offset, offset + size, _PIECE):
            self.pwrite(start, bytes(min(_PIECE, offset + size - start)))

    def flush(self) -> None:
        """See `WritableDevice.flush`."""
        try:
            self._devices.flush(self._handle)
        except OSError as error:
            raise DestinationError(f"cannot make durable what was written to {self.path}: {error}") from error

    def evict(self) -> None:
        """See `Target.evict`; Windows caches nothing of a drive that is written by its sectors."""
        self.flush()

    def commit(self) -> None:
        """See `Target.commit`; Windows is asked to read the new partition table."""
        self.flush()
        with suppress(OSError):
            self._devices.control(self._handle, windows.DISK_UPDATE_PROPERTIES, b"", 0)
        self.close()

    def abort(self) -> None:
        """See `Target.abort`; what was written stays."""
        self.close()

    def _failure(
        self, verb: str, position: int, error: OSError | None
    ) -> DestinationError | AccessDeniedError:
        where = f"cannot {verb} {self.path} at byte {position}"
        code = windows.error_code(error) if error is not None else 0
        if code == _WRITE_PROTECTED:
            return DestinationReadOnlyError(f"{where}: it is write-protected")
        if code == _DENIED:
            return AccessDeniedError(f"{where}: Windows refuses it; a volume there may be in use")
        return DestinationError(f"{where}: {error.strerror if error is not None else 'it takes no more'}")
