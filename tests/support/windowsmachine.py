# ruff: noqa: N802, ARG002 (the functions are called as Windows calls them)
"""A Windows machine whose drives are files: `Devices` for tests in one process, kernel32 for whole commands.

What each call does is taken from the documentation of the Windows API. The layouts of answers are written a
second time here, from the same documentation, and not taken from the product.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GUID = "\\\\?\\Volume{{00000000-0000-0000-0000-{:012d}}}\\"
LOCK, UNLOCK, DISMOUNT = 0x00090018, 0x0009001C, 0x00090020


def device_descriptor(model: str, serial: str, *, removable: bool = False) -> bytes:
    """STORAGE_DEVICE_DESCRIPTOR: 36 bytes of header, then texts that end with a zero."""
    product, number = model.encode() + b"\0", serial.encode() + b"\0"
    at = 36
    header = struct.pack(
        "<IIBBBBIIIIII", 36, 36 + len(product) + len(number), 0, 0, removable, 1, 0, at, 0,
        at + len(product) if serial else 0, 7, 0,
    )  # fmt: skip
    return header + product + number


@dataclass
class Drive:
    """A physical drive: a file and what it says of itself."""

    file: str
    serial: str = ""
    model: str = "Disk"
    sector: int = 512
    protected: bool = False


@dataclass
class Volume:
    """A volume: where it lies, where it is mounted, and whether a program has a file on it open."""

    extents: list[tuple[int, int, int]]
    points: list[str] = field(default_factory=list)
    busy: bool = False


@dataclass
class WindowsMachine:
    """See `engine.devices.windows.Devices`. Files of the machine lie on the first volume."""

    drives: dict[int, Drive]
    volumes_there: list[Volume]
    log: list[str] = field(default_factory=list)
    handles: dict[int, tuple[str, int]] = field(default_factory=dict)
    locked: set[str] = field(default_factory=set)
    bad: set[int] = field(default_factory=set)
    """Offsets whose sectors cannot be read."""

    def open(self, path: str, *, write: bool) -> int:
        kind, place = self._find(path)
        if kind in self.locked:
            raise error(5)
        fd = os.open(place.file, os.O_RDWR) if isinstance(place, Drive) else os.open(os.devnull, os.O_RDWR)
        self.handles[fd] = (kind, int(write))
        self.log.append(f"open {kind}{' to write' if write else ''}")
        return fd

    def _find(self, path: str) -> tuple[str, Drive | Volume]:
        name = path.lower()
        for number, drive in self.drives.items():
            shadow = f"\\\\?\\globalroot\\device\\harddiskvolumeshadowcopy{number}"
            if name in {f"\\\\.\\physicaldrive{number}", shadow}:
                return f"drive {number}", drive
        for index, volume in enumerate(self.volumes_there):
            letters = [f"\\\\.\\{point[:2].lower()}" for point in volume.points]
            if name in {GUID.format(index).rstrip("\\").lower(), *letters}:
                return f"volume {index}", volume
        raise error(2)

    def place_of(self, handle: int) -> Drive | Volume:
        kind, _ = self.handles[handle]
        index = int(kind.split()[1])
        return self.drives[index] if kind.startswith("drive") else self.volumes_there[index]

    def control(self, handle: int, code: int, request: bytes, room: int) -> bytes:
        place, (kind, _) = self.place_of(handle), self.handles[handle]
        if code == 0x0007405C:
            return struct.pack("<q", self._size(place))
        if code == 0x002D1400:
            if not isinstance(place, Drive):
                raise error(1)
            answers = {
                0: device_descriptor(place.model, place.serial),
                6: struct.pack("<7I", 28, 28, 0, 0, place.sector, 4096, 0),
                7: struct.pack("<IIB", 12, 12, 1) + bytes(3),
            }
            return answers[struct.unpack("<III", request)[0]][:room]
        if code == 0x00560000 and isinstance(place, Volume):
            packed = [struct.pack("<I4xqq", *extent) for extent in place.extents]
            return struct.pack("<I4x", len(packed)) + b"".join(packed)
        if code == 0x00070024 and isinstance(place, Drive) and place.protected:
            raise error(19)
        if code in {LOCK, DISMOUNT, UNLOCK}:
            self._lock(code, kind, place)
        return b""

    def _lock(self, code: int, kind: str, place: Drive | Volume) -> None:
        assert isinstance(place, Volume)
        if code == LOCK and place.busy:
            raise error(5)
        self.log.append(f"{ {LOCK: 'lock', DISMOUNT: 'dismount', UNLOCK: 'unlock'}[code] } {kind}")
        (self.locked.discard if code == UNLOCK else self.locked.add)(kind)

    def _size(self, place: Drive | Volume) -> int:
        if isinstance(place, Drive):
            return os.stat(place.file).st_size  # noqa: PTH116
        return sum(length for _, _, length in place.extents)

    def _at(self, handle: int, offset: int, size: int) -> tuple[int, int]:
        place = self.place_of(handle)
        sector = place.sector if isinstance(place, Drive) else 512
        assert not offset % sector, "a drive is read and written in whole sectors"
        assert not size % sector, "a drive is read and written in whole sectors"
        if isinstance(place, Drive):
            return handle, offset
        disk, start, length = place.extents[0]
        assert offset + size <= length
        return os.open(self.drives[disk].file, os.O_RDWR), start + offset

    def read(self, handle: int, offset: int, size: int) -> bytes:
        if any(offset <= place < offset + size for place in self.bad):
            raise error(23)
        fd, at = self._at(handle, offset, size)
        os.lseek(fd, at, os.SEEK_SET)
        data = os.read(fd, size)
        if fd != handle:
            os.close(fd)
        return data

    def write(self, handle: int, offset: int, data: bytes) -> int:
        assert self.handles[handle][1], "opened to write"
        for index, volume in enumerate(self.volumes_there):
            kind, _ = self.handles[handle]
            mounted = kind == f"drive {volume.extents[0][0]}" and f"volume {index}" not in self.locked
            if mounted and volume.extents[0][1] < offset + len(data) <= volume.extents[0][1] + 1024:
                raise error(5)  # Windows refuses to write below a mounted file system
        fd, at = self._at(handle, offset, len(data))
        os.lseek(fd, at, os.SEEK_SET)
        done = os.write(fd, data)
        if fd != handle:
            os.close(fd)
        return done

    def flush(self, handle: int) -> None:
        if isinstance(self.place_of(handle), Drive):
            os.fsync(handle)

    def close(self, handle: int) -> None:
        self.locked.discard(self.handles.pop(handle)[0])
        os.close(handle)

    def volumes(self) -> list[str]:
        return [GUID.format(index) for index in range(len(self.volumes_there))]

    def mount_points(self, volume: str) -> list[str]:
        return self.volumes_there[self.volumes().index(volume)].points

    def volume_of(self, path: str) -> str:
        return GUID.format(0)

    def system_folder(self) -> str:
        return "C:\\Windows"


def error(code: int) -> OSError:
    """An error as ctypes.WinError makes it."""
    numbers = {2: 2, 5: 13, 183: 17}
    made = OSError(numbers.get(code, 22), f"Windows error {code}")
    made.winerror = code  # type: ignore[attr-defined]
    return made


class Kernel32:
    """The functions of kernel32 and advapi32 that the product calls, with ctypes' own types as arguments.

    Paths that are no drive or volume are real ones. A call that fails answers 0 or -1, and keeps its error.
    """

    def __init__(self, machine: WindowsMachine) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self.last = 0
        self.basic: list[tuple[str, bytes]] = []
        self.security: list[tuple[str, int, bytes]] = []
        self._paths: dict[int, str] = {}
        for name in dir(type(self)):
            if name[0].isupper():
                setattr(self, name, self._guarded(getattr(self, name)))

    def _guarded(self, call: Any) -> Any:
        def function(*arguments: Any) -> Any:
            with self._lock:
                try:
                    return call(*arguments)
                except OSError as failed:
                    self.last = getattr(failed, "winerror", None) or {2: 2, 17: 183, 13: 5, 20: 3}.get(
                        failed.errno or 0, 1
                    )
                    return (
                        ctypes.c_void_p(-1).value
                        if call.__name__ in {"CreateFileW", "FindFirstVolumeW"}
                        else 0
                    )

        return function

    def CreateFileW(self, path: Any, access: int, share: int, *_: Any) -> int:
        try:
            return self._machine.open(path.value, write=bool(access & 0x40000000))
        except OSError:
            if path.value.startswith("\\\\."):
                raise
        if access == 0x1:
            assert share == 0x3, "a held folder can be renamed and removed by nobody"
        fd = os.open(path.value, os.O_RDONLY)
        self._paths[fd] = path.value
        return fd

    def CloseHandle(self, handle: Any) -> int:
        if handle.value in self._paths:
            del self._paths[handle.value]
            os.close(handle.value)
        elif handle.value in self._machine.handles:
            self._machine.close(handle.value)
        return 1

    def DeviceIoControl(
        self, handle: Any, code: int, request: Any, size: int, answer: Any, room: int, done: Any, _: Any
    ) -> int:
        if handle.value not in self._machine.handles:
            return 1  # FSCTL_SET_SPARSE of a file
        said = self._machine.control(handle.value, code, request[:size], room)[:room]
        ctypes.memmove(answer, said, len(said))
        done._obj.value = len(said)
        return 1

    def ReadFile(self, handle: Any, answer: Any, size: int, done: Any, place: Any) -> int:
        said = self._machine.read(handle.value, self._offset(place), size)
        ctypes.memmove(answer, said, len(said))
        done._obj.value = len(said)
        return 1

    def WriteFile(self, handle: Any, data: bytes, size: int, done: Any, place: Any) -> int:
        done._obj.value = self._machine.write(handle.value, self._offset(place), data[:size])
        return 1

    @staticmethod
    def _offset(place: Any) -> int:
        """OVERLAPPED: two words of the size of a pointer, then the halves of the offset."""
        assert ctypes.sizeof(place._obj) == 32, "OVERLAPPED on 64 bits"
        low, high = struct.unpack_from("<II", bytes(place._obj), 16)
        return int(low | high << 32)

    def FlushFileBuffers(self, handle: Any) -> int:
        self._machine.flush(handle.value)
        return 1

    def FindFirstVolumeW(self, name: Any, room: int) -> int:
        self._rest = self._machine.volumes()
        if not self._rest:
            raise error(18)
        assert room > len(self._rest[0])
        name.value = self._rest.pop(0)
        return 4711

    def FindNextVolumeW(self, search: Any, name: Any, room: int) -> int:
        assert search.value == 4711
        if self._rest:
            name.value = self._rest.pop(0)
            return 1
        return 0

    def FindVolumeClose(self, search: Any) -> int:
        return 1

    def GetVolumePathNamesForVolumeNameW(self, volume: Any, names: Any, room: int, needed: Any) -> int:
        text = "".join(f"{point}\0" for point in self._machine.mount_points(volume.value)) + "\0"
        names[: len(text)] = text
        needed._obj.value = len(text)
        return 1

    def GetVolumePathNameW(self, path: Any, top: Any, room: int) -> int:
        top.value = "C:\\"
        return 1

    def GetVolumeNameForVolumeMountPointW(self, point: Any, name: Any, room: int) -> int:
        name.value = self._machine.volume_of(point.value)
        return 1

    def GetWindowsDirectoryW(self, name: Any, room: int) -> int:
        name.value = self._machine.system_folder()
        return 10

    def MoveFileExW(self, source: str, target: str, flags: int) -> int:
        assert flags in {8, 9}, "durable, and replacing only where that is asked for"
        if flags == 8 and os.path.lexists(target):
            raise FileExistsError(17, "there already")
        os.rename(source, target)  # noqa: PTH104
        return 1

    def GetFileInformationByHandleEx(self, handle: Any, kind: int, answer: Any, room: int) -> int:
        assert (kind, room) == (0, 40)
        attributes = 0x10 if Path(self._paths[handle.value]).is_dir() else 0x80
        if Path(self._paths[handle.value]).is_symlink():
            attributes |= 0x400
        ctypes.memmove(answer, struct.pack("<qqqqI4x", 0, 0, 0, 0, attributes), 40)
        return 1

    def SetFileInformationByHandle(self, handle: Any, kind: int, structure: bytes, size: int) -> int:
        assert (kind, size, len(structure)) == (0, 40, 40)
        path = self._paths[handle.value]
        self.basic.append((path, structure))
        _, accessed, written, _, _ = struct.unpack("<qqqqI4x", structure)
        if accessed:
            epoch = 116444736000000000
            os.utime(path, ns=((accessed - epoch) * 100, (written - epoch) * 100), follow_symlinks=False)
        return 1

    def SetFileSecurityW(self, path: Any, parts: int, descriptor: bytes) -> int:
        self.security.append((path.value, parts, descriptor))
        return 1

    def GetCurrentProcess(self) -> int:
        return 2**64 - 1

    def OpenProcessToken(self, process: Any, access: int, token: Any) -> int:
        assert access == 0x20, "TOKEN_ADJUST_PRIVILEGES"
        token._obj.value = 815
        return 1

    def LookupPrivilegeValueW(self, machine: None, name: Any, luid: Any) -> int:
        luid._obj.value = {"SeRestorePrivilege": 18, "SeTakeOwnershipPrivilege": 9}.get(name.value, 8)
        return 1

    def AdjustTokenPrivileges(self, token: Any, disable: int, wanted: bytes, *_: Any) -> int:
        count, low, high, attributes = struct.unpack("<IIiI", wanted)
        assert (token.value, disable, count, high, attributes) == (815, 0, 1, 0, 2)
        assert low in {8, 9, 18}
        return 1
