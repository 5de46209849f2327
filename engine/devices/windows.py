r"""The disks and volumes of Windows: ``\\.\PhysicalDrive0``, ``\\.\C:``; sizes, model, serial, locks.

What is asked is one call, DeviceIoControl; what it answers is parsed here as bytes, so that all but the call
itself can be tested anywhere. Layouts: winioctl.h and ntddstor.h, in the documentation of the Windows API
under the names that the functions give.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from imageformat.errors import AccessDeniedError, NotFoundError, SourceReadError, TargetInUseError

if TYPE_CHECKING:
    from collections.abc import Iterator

DISKS_ASKED = 64
GET_LENGTH_INFO = 0x0007405C
STORAGE_QUERY_PROPERTY = 0x002D1400
GET_VOLUME_DISK_EXTENTS = 0x00560000
LOCK_VOLUME = 0x00090018
UNLOCK_VOLUME = 0x0009001C
DISMOUNT_VOLUME = 0x00090020

_DEVICE_PROPERTY, _ALIGNMENT_PROPERTY = 0, 6
_LENGTH = struct.Struct("<q")
_DEVICE = struct.Struct("<II4BIIIIII")
_ALIGNMENT = struct.Struct("<7I")
_EXTENT = struct.Struct("<I4xqq")
_EXTENT_LIMIT = 4096
_SECTOR_SIZES = frozenset({512, 1024, 2048, 4096, 8192, 16384, 32768, 65536})
_NOT_FOUND, _DENIED, _NOT_READY = frozenset({2, 3, 55}), frozenset({5}), frozenset({21, 1112})
"""ERROR_FILE_NOT_FOUND, ERROR_PATH_NOT_FOUND, ERROR_DEV_NOT_EXIST; ERROR_ACCESS_DENIED; ERROR_NOT_READY,
ERROR_NO_MEDIA_IN_DRIVE."""


class Devices(Protocol):
    """Windows' calls. Each raises OSError with ``winerror`` set."""

    def open(self, path: str, *, write: bool) -> int:
        """Open a device, shared with all others."""
        ...

    def control(self, handle: int, code: int, request: bytes, room: int) -> bytes:
        """Call DeviceIoControl; the answer has at most ``room`` bytes."""
        ...

    def close(self, handle: int) -> None:
        """Close it; a lock on it ends."""
        ...


@dataclass(frozen=True, slots=True)
class WindowsDisk:
    """One physical drive."""

    path: str
    size: int
    sector_size: int
    physical_sector_size: int
    model: str = ""
    serial: str = ""
    removable: bool = False


class DiskExtent(NamedTuple):
    """A part of a volume: where it lies on which drive, in bytes."""

    disk: int
    offset: int
    length: int


def disk_path(number: int) -> str:
    r"""Return the path of a physical drive."""
    return f"\\\\.\\PhysicalDrive{number}"


def list_disks(devices: Devices) -> list[WindowsDisk]:
    """Return the physical drives that this user may ask; numbers may be missing, so all are tried."""
    found = []
    for number in range(DISKS_ASKED):
        try:
            found.append(describe_disk(devices, disk_path(number)))
        except (NotFoundError, AccessDeniedError, SourceReadError):
            continue
    return found


def describe_disk(devices: Devices, path: str) -> WindowsDisk:
    """Ask a drive or volume what it is.

    Raises:
        NotFoundError, AccessDeniedError: as for every path.
        SourceReadError: no medium is inserted, or it answers nonsense.
    """
    with _opened(devices, path, write=False) as handle:
        size = parse_length(_ask(devices, path, handle, GET_LENGTH_INFO, b"", _LENGTH.size))
        alignment = _query(devices, path, handle, _ALIGNMENT_PROPERTY, _ALIGNMENT.size)
        sector, physical = parse_alignment(alignment)
        model, serial, removable = parse_device(_query(devices, path, handle, _DEVICE_PROPERTY, 4096))
    return WindowsDisk(path, size, sector, physical, model, serial, removable)


def volume_extents(devices: Devices, path: str) -> list[DiskExtent]:
    r"""Return where a volume (``\\.\C:``) lies on the physical drives.

    Raises:
        NotFoundError, AccessDeniedError, SourceReadError: see `describe_disk`.
    """
    room = 8 + _EXTENT_LIMIT * _EXTENT.size
    with _opened(devices, path, write=False) as handle:
        return parse_extents(_ask(devices, path, handle, GET_VOLUME_DISK_EXTENTS, b"", room))


@contextmanager
def locked(devices: Devices, path: str) -> Iterator[int]:
    """Lock and dismount a volume that will be overwritten; give its handle, which holds the lock.

    Raises:
        TargetInUseError: a program has files on it open.
        NotFoundError, AccessDeniedError, SourceReadError: see `describe_disk`.
    """
    with _opened(devices, path, write=True) as handle:
        try:
            devices.control(handle, LOCK_VOLUME, b"", 0)
        except OSError as error:
            raise TargetInUseError(f"{path} is in use: close the programs that use it") from error
        try:
            _ask(devices, path, handle, DISMOUNT_VOLUME, b"", 0)
            yield handle
        finally:
            _ask(devices, path, handle, UNLOCK_VOLUME, b"", 0)


def parse_length(answer: bytes) -> int:
    """Parse GET_LENGTH_INFORMATION: the size in bytes."""
    if len(answer) < _LENGTH.size or (size := int(_LENGTH.unpack_from(answer)[0])) <= 0:
        raise SourceReadError("a drive does not say how large it is; is a medium inserted?")
    return size


def parse_alignment(answer: bytes) -> tuple[int, int]:
    """Parse STORAGE_ACCESS_ALIGNMENT_DESCRIPTOR: logical and physical sector size; 512 where it is silent."""
    if len(answer) < _ALIGNMENT.size:
        return 512, 512
    logical, physical = _ALIGNMENT.unpack_from(answer)[4:6]
    if logical not in _SECTOR_SIZES:
        raise SourceReadError(f"a drive says that its sectors have {logical} bytes")
    return logical, physical if physical in _SECTOR_SIZES else logical


def parse_device(answer: bytes) -> tuple[str, str, bool]:
    """Parse STORAGE_DEVICE_DESCRIPTOR: model, serial number, whether the medium can be taken out."""
    if len(answer) < _DEVICE.size:
        return "", "", False
    fields = _DEVICE.unpack_from(answer)
    vendor, product, _, serial = (_text_at(answer, offset) for offset in fields[6:10])
    return " ".join(part for part in (vendor, product) if part), serial, bool(fields[4])


def parse_extents(answer: bytes) -> list[DiskExtent]:
    """Parse VOLUME_DISK_EXTENTS."""
    count = int(struct.unpack_from("<I", answer)[0]) if len(answer) >= 8 else 0
    if not 0 < count <= _EXTENT_LIMIT or 8 + count * _EXTENT.size > len(answer):
        raise SourceReadError("a volume does not say on which drives it lies")
    return [DiskExtent(*_EXTENT.unpack_from(answer, 8 + number * _EXTENT.size)) for number in range(count)]


def _text_at(answer: bytes, offset: int) -> str:
    """Return the text that ends with a zero at an offset; 0 says that there is none."""
    if not _DEVICE.size <= offset < len(answer):
        return ""
    raw = answer[offset:].split(b"\0", 1)[0].strip()
    return "".join(char for char in raw.decode("ascii", "ignore") if char.isprintable())


def _query(devices: Devices, path: str, handle: int, property_id: int, room: int) -> bytes:
    """Ask for a STORAGE_PROPERTY_QUERY; what a driver does not know is an empty answer."""
    try:
        return devices.control(handle, STORAGE_QUERY_PROPERTY, struct.pack("<III", property_id, 0, 0), room)
    except OSError as error:
        if _code(error) in _NOT_READY | _DENIED:
            raise _failure(path, error) from error
        return b""


def _ask(devices: Devices, path: str, handle: int, code: int, request: bytes, room: int) -> bytes:
    try:
        return devices.control(handle, code, request, room)
    except OSError as error:
        raise _failure(path, error) from error


@contextmanager
def _opened(devices: Devices, path: str, *, write: bool) -> Iterator[int]:
    try:
        handle = devices.open(path, write=write)
    except OSError as error:
        raise _failure(path, error) from error
    try:
        yield handle
    finally:
        devices.close(handle)


def _failure(path: str, error: OSError) -> NotFoundError | AccessDeniedError | SourceReadError:
    code = _code(error)
    if code in _NOT_FOUND:
        return NotFoundError(f"{path} does not exist; 'mountfs list --disks' and diskpart list the drives")
    if code in _DENIED:
        return AccessDeniedError(f"{path} may not be opened by this user; run this as administrator")
    if code in _NOT_READY:
        return SourceReadError(f"{path} cannot be opened: no medium is inserted")
    return SourceReadError(f"{path} cannot be asked: {error.strerror or f'error {code}'}")


def _code(error: OSError) -> int:
    return int(getattr(error, "winerror", None) or error.errno or 0)


if sys.platform == "win32":
    _GENERIC_READ, _GENERIC_WRITE, _SHARE_ALL, _OPEN_EXISTING = 0x80000000, 0x40000000, 0x3, 3
    _INVALID_HANDLE = ctypes.c_void_p(-1).value

    class Kernel:
        """`Devices` of this machine."""

        def __init__(self) -> None:
            self._library = ctypes.WinDLL("kernel32", use_last_error=True)
            self._library.CreateFileW.restype = ctypes.c_void_p

        def open(self, path: str, *, write: bool) -> int:
            """See `Devices`."""
            access = _GENERIC_READ | (_GENERIC_WRITE if write else 0)
            handle = self._library.CreateFileW(
                ctypes.c_wchar_p(path), access, _SHARE_ALL, None, _OPEN_EXISTING, 0, None
            )
            if handle is None or handle == _INVALID_HANDLE:
                raise ctypes.WinError(ctypes.get_last_error())
            return int(handle)

        def control(self, handle: int, code: int, request: bytes, room: int) -> bytes:
            """See `Devices`."""
            answer, done = ctypes.create_string_buffer(max(room, 1)), ctypes.c_uint32()
            if not self._library.DeviceIoControl(
                ctypes.c_void_p(handle), code, request, len(request), answer, room, ctypes.byref(done), None
            ):
                raise ctypes.WinError(ctypes.get_last_error())
            return answer.raw[: done.value]

        def close(self, handle: int) -> None:
            """See `Devices`."""
            self._library.CloseHandle(ctypes.c_void_p(handle))
