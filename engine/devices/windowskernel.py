"""The calls of this Windows on drives and volumes; see `windows.Devices`. Nothing of it exists elsewhere.

Sources: fileapi.h, ioapiset.h and winioctl.h in the documentation of the Windows API.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.devices.windows import Devices

_GENERIC_READ, _GENERIC_WRITE, _SHARE_ALL, _OPEN_EXISTING = 0x80000000, 0x40000000, 0x3, 3
_NAME_ROOM = 32768
_GUID_ROOM = 64
"""A volume's name has 49 characters: ``\\\\?\\Volume{8-4-4-4-12}\\``."""

if sys.platform == "win32":
    _INVALID_HANDLE = ctypes.c_void_p(-1).value

    class _Overlapped(ctypes.Structure):
        """OVERLAPPED: where to read or write; the cursor of the handle does not matter."""

        _fields_ = (
            ("internal", ctypes.c_void_p),
            ("internal_high", ctypes.c_void_p),
            ("offset", ctypes.c_uint32),
            ("offset_high", ctypes.c_uint32),
            ("event", ctypes.c_void_p),
        )

    class Kernel:
        """`Devices` of this machine."""

        def __init__(self) -> None:
            self._library = ctypes.WinDLL("kernel32", use_last_error=True)
            self._library.CreateFileW.restype = ctypes.c_void_p
            self._library.FindFirstVolumeW.restype = ctypes.c_void_p

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

        def read(self, handle: int, offset: int, size: int) -> bytes:
            """See `Devices`."""
            answer, done = ctypes.create_string_buffer(size), ctypes.c_uint32()
            place = _Overlapped(offset=offset & 0xFFFFFFFF, offset_high=offset >> 32)
            if not self._library.ReadFile(
                ctypes.c_void_p(handle), answer, size, ctypes.byref(done), ctypes.byref(place)
            ):
                raise ctypes.WinError(ctypes.get_last_error())
            return answer.raw[: done.value]

        def write(self, handle: int, offset: int, data: bytes) -> int:
            """See `Devices`."""
            done = ctypes.c_uint32()
            place = _Overlapped(offset=offset & 0xFFFFFFFF, offset_high=offset >> 32)
            if not self._library.WriteFile(
                ctypes.c_void_p(handle), data, len(data), ctypes.byref(done), ctypes.byref(place)
            ):
                raise ctypes.WinError(ctypes.get_last_error())
            return done.value

        def flush(self, handle: int) -> None:
            """See `Devices`."""
            if not self._library.FlushFileBuffers(ctypes.c_void_p(handle)):
                raise ctypes.WinError(ctypes.get_last_error())

        def close(self, handle: int) -> None:
            """See `Devices`."""
            self._library.CloseHandle(ctypes.c_void_p(handle))

        def volumes(self) -> list[str]:
            """See `Devices`."""
            name = ctypes.create_unicode_buffer(_GUID_ROOM)
            search = self._library.FindFirstVolumeW(name, _GUID_ROOM)
            if search is None or search == _INVALID_HANDLE:
                raise ctypes.WinError(ctypes.get_last_error())
            found = [name.value]
            while self._library.FindNextVolumeW(ctypes.c_void_p(search), name, _GUID_ROOM):
                found.append(name.value)
            self._library.FindVolumeClose(ctypes.c_void_p(search))
            return found

        def mount_points(self, volume: str) -> list[str]:
            """See `Devices`."""
            names, needed = ctypes.create_unicode_buffer(_NAME_ROOM), ctypes.c_uint32()
            if not self._library.GetVolumePathNamesForVolumeNameW(
                ctypes.c_wchar_p(volume), names, _NAME_ROOM, ctypes.byref(needed)
            ):
                return []
            listed = "".join(names[: min(needed.value, _NAME_ROOM)])
            return [part for part in listed.split("\0") if part]

        def volume_of(self, path: str) -> str:
            """See `Devices`."""
            top, name = ctypes.create_unicode_buffer(_NAME_ROOM), ctypes.create_unicode_buffer(_GUID_ROOM)
            if not self._library.GetVolumePathNameW(ctypes.c_wchar_p(path), top, _NAME_ROOM):
                return ""
            if not self._library.GetVolumeNameForVolumeMountPointW(top, name, _GUID_ROOM):
                return ""
            return name.value

        def system_folder(self) -> str:
            """See `Devices`."""
            name = ctypes.create_unicode_buffer(_NAME_ROOM)
            self._library.GetWindowsDirectoryW(name, _NAME_ROOM)
            return name.value


@functools.cache
def kernel() -> Devices:
    """Return the calls of the running Windows.

    Raises:
        OSError: there is no Windows.
    """
    if sys.platform == "win32":
        return Kernel()
    raise OSError("no Windows")
