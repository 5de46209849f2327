r"""The disks and volumes of Windows: ``\\.\PhysicalDrive0``, ``\\.\C:``; sizes, model, serial, locks.

What is asked is one call, DeviceIoControl; what it answers is parsed here as bytes, so that all but the call
itself can be tested anywhere. Layouts: winioctl.h and ntddstor.h, in the documentation of the Windows API
under the names that the functions give.
"""

from __future__ import annotations

import re
import struct
from contextlib import contextmanager, suppress
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
DISK_UPDATE_PROPERTIES = 0x00070140
DISK_IS_WRITABLE = 0x00070024

_LETTER = re.compile(r"[A-Za-z]:\Z")
_DRIVE = re.compile(r"\\\\[.?]\\PhysicalDrive(\d{1,3})\Z", re.IGNORECASE)
_VOLUME = re.compile(
    r"\\\\\?\\(?:Volume\{[0-9A-F-]{36}\}|GLOBALROOT\\Device\\HarddiskVolumeShadowCopy\d+)\Z", re.IGNORECASE
)
_DEVICE_PROPERTY, _ALIGNMENT_PROPERTY, _SEEK_PENALTY_PROPERTY = 0, 6, 7
_LENGTH = struct.Struct("<q")
_DEVICE = struct.Struct("<II4BIIIIII")
_ALIGNMENT = struct.Struct("<7I")
_PENALTY = struct.Struct("<IIB3x")
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

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read whole sectors from a position; any number of threads."""
        ...

    def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write whole sectors to a position and return how many bytes; any number of threads."""
        ...

    def flush(self, handle: int) -> None:
        """Make durable what was written."""
        ...

    def close(self, handle: int) -> None:
        """Close it; a lock on it ends."""
        ...

    def volumes(self) -> list[str]:
        r"""Return the names of all volumes: ``\\?\Volume{...}\``."""
        ...

    def mount_points(self, volume: str) -> list[str]:
        r"""Return where a volume of such a name is mounted: ``C:\``, ``D:\folder\``; nothing is no error."""
        ...

    def volume_of(self, path: str) -> str:
        """Return the name of the volume on which a path lies, or would; empty for a share."""
        ...

    def system_folder(self) -> str:
        """Return the folder of Windows itself."""
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
    rotational: bool = False


class DiskExtent(NamedTuple):
    """A part of a volume: where it lies on which drive, in bytes."""

    disk: int
    offset: int
    length: int


def device_path(text: str) -> str | None:
    r"""Return the path by which Windows opens a drive or volume; None for a path of a file.

    ``C:`` and ``C:\`` are the volume, ``\\.\PhysicalDrive0`` the drive, ``\\?\Volume{...}\`` and
    ``\\?\GLOBALROOT\Device\HarddiskVolumeShadowCopy7`` what they say.
    """
    plain = text.replace("/", "\\").rstrip("\\")
    if _LETTER.match(plain):
        return f"\\\\.\\{plain.upper()}"
    match = _DRIVE.match(plain)
    if match is not None:
        return disk_path(int(match[1]))
    if plain[:4] == "\\\\.\\" and _LETTER.match(plain[4:]):
        return f"\\\\.\\{plain[4:].upper()}"
    return plain if _VOLUME.match(plain) else None


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
    with opened(devices, path, write=False) as handle:
        size = parse_length(_ask(devices, path, handle, GET_LENGTH_INFO, b"", _LENGTH.size))
        alignment = _query(devices, path, handle, _ALIGNMENT_PROPERTY, _ALIGNMENT.size)
        sector, physical = parse_alignment(alignment)
        model, serial, removable = parse_device(_query(devices, path, handle, _DEVICE_PROPERTY, 4096))
        seeks = parse_seek_penalty(_query(devices, path, handle, _SEEK_PENALTY_PROPERTY, _PENALTY.size))
    return WindowsDisk(path, size, sector, physical, model, serial, removable, seeks)


def volume_extents(devices: Devices, path: str) -> list[DiskExtent]:
    r"""Return where a volume (``\\.\C:``) lies on the physical drives.

    Raises:
        NotFoundError, AccessDeniedError, SourceReadError: see `describe_disk`.
    """
    room = 8 + _EXTENT_LIMIT * _EXTENT.size
    with opened(devices, path, write=False) as handle:
        return parse_extents(_ask(devices, path, handle, GET_VOLUME_DISK_EXTENTS, b"", room))


@contextmanager
def locked(devices: Devices, path: str) -> Iterator[int]:
    """Lock and dismount a volume that will be overwritten; give its handle, which holds the lock.

    Raises:
        TargetInUseError: a program has files on it open.
        NotFoundError, AccessDeniedError, SourceReadError: see `describe_disk`.
    """
    with opened(devices, path, write=True) as handle:
        try:
            devices.control(handle, LOCK_VOLUME, b"", 0)
        except OSError as error:
            raise TargetInUseError(f"{path} is in use: close the programs that use it") from error
        try:
            _ask(devices, path, handle, DISMOUNT_VOLUME, b"", 0)
            yield handle
        finally:
            with suppress(OSError):  # closing it lets go as well
                devices.control(handle, UNLOCK_VOLUME, b"", 0)


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


def parse_seek_penalty(answer: bytes) -> bool:
    """Parse DEVICE_SEEK_PENALTY_DESCRIPTOR: whether the disk turns; False where it is silent."""
    return len(answer) >= _PENALTY.size - 3 and bool(answer[8])


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
        if error_code(error) in _NOT_READY | _DENIED:
            raise failure(path, error) from error
        return b""


def _ask(devices: Devices, path: str, handle: int, code: int, request: bytes, room: int) -> bytes:
    try:
        return devices.control(handle, code, request, room)
    except OSError as error:
        raise failure(path, error) from error


@contextmanager
def opened(devices: Devices, path: str, *, write: bool) -> Iterator[int]:
    """Open a drive or volume, give its handle, close it; raises as `describe_disk`."""
    try:
        handle = devices.open(path, write=write)
    except OSError as error:
        raise failure(path, error) from error
    try:
        yield handle
    finally:
        devices.close(handle)


def failure(path: str, error: OSError) -> NotFoundError | AccessDeniedError | SourceReadError:
    """Say in our words why a drive or volume cannot be opened or asked."""
    code = error_code(error)
    if code in _NOT_FOUND:
        return NotFoundError(f"{path} does not exist; 'mountfs disks' lists the drives")
    if code in _DENIED:
        return AccessDeniedError(f"{path} may not be opened by this user; run this as administrator")
    if code in _NOT_READY:
        return SourceReadError(f"{path} cannot be opened: no medium is inserted")
    return SourceReadError(f"{path} cannot be asked: {error.strerror or f'error {code}'}")


def error_code(error: OSError) -> int:
    """Return Windows' own number of an error."""
    return int(getattr(error, "winerror", None) or error.errno or 0)
