"""The calls of Windows that set what `os` cannot set; see `WindowsCalls`. Nothing of it exists elsewhere.

Sources: fileapi.h, winbase.h and securitybaseapi.h in the documentation of the Windows API.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mountfs.copyout.windowsattributes import WindowsCalls

BASIC = struct.Struct("<qqqqI4x")
"""FILE_BASIC_INFO: creation, access, write and change time, attributes."""
PRIVILEGES = ("SeRestorePrivilege", "SeTakeOwnershipPrivilege", "SeSecurityPrivilege")
"""What sets a foreign owner, and lets an access list be set that keeps us out."""

_LIST_FOLDER, _WRITE_ATTRIBUTES, _SHARE_ALL, _SHARE_BUT_DELETE, _OPEN_EXISTING = 0x1, 0x100, 0x7, 0x3, 3
_BACKUP_SEMANTICS, _OPEN_REPARSE_POINT = 0x02000000, 0x00200000
_FILE_BASIC_INFO = 0
_NORMAL, _FOLDER, _REPARSE_POINT = 0x80, 0x10, 0x400
_ADJUST_PRIVILEGES, _ENABLED = 0x20, 0x2
_TOKEN_PRIVILEGES = struct.Struct("<IQI")
"""One LUID_AND_ATTRIBUTES behind the count; LUID has two halves of 32 bits, and no padding."""

if sys.platform == "win32":
    _INVALID_HANDLE = ctypes.c_void_p(-1).value

    class Kernel:
        """`WindowsCalls` of this machine."""

        def __init__(self) -> None:
            self._kernel = ctypes.WinDLL("kernel32", use_last_error=True)
            self._kernel.CreateFileW.restype = ctypes.c_void_p
            self._kernel.GetCurrentProcess.restype = ctypes.c_void_p
            self._security = ctypes.WinDLL("advapi32", use_last_error=True)
            for name in PRIVILEGES:
                self._enable(name)

        def _enable(self, name: str) -> None:
            """Enable a privilege for this process; where the user does not have it, nothing happens."""
            token, luid = ctypes.c_void_p(), ctypes.c_uint64()
            process = ctypes.c_void_p(self._kernel.GetCurrentProcess())
            if not self._security.OpenProcessToken(process, _ADJUST_PRIVILEGES, ctypes.byref(token)):
                return
            try:
                if self._security.LookupPrivilegeValueW(None, ctypes.c_wchar_p(name), ctypes.byref(luid)):
                    wanted = _TOKEN_PRIVILEGES.pack(1, luid.value, _ENABLED)
                    self._security.AdjustTokenPrivileges(token, 0, wanted, 0, None, None)
            finally:
                self._kernel.CloseHandle(token)

        def _open(self, path: str, access: int, share: int) -> int:
            flags = _BACKUP_SEMANTICS | _OPEN_REPARSE_POINT
            handle = self._kernel.CreateFileW(
                ctypes.c_wchar_p(path), access, share, None, _OPEN_EXISTING, flags, None
            )
            if handle is None or handle == _INVALID_HANDLE:
                raise ctypes.WinError(ctypes.get_last_error())
            return int(handle)

        def set_basic_info(self, path: str, structure: bytes) -> None:
            """See `WindowsCalls`."""
            handle = self._open(path, _WRITE_ATTRIBUTES, _SHARE_ALL)
            try:
                if not self._kernel.SetFileInformationByHandle(
                    ctypes.c_void_p(handle), _FILE_BASIC_INFO, structure, len(structure)
                ):
                    raise ctypes.WinError(ctypes.get_last_error())
            finally:
                self.release(handle)

        def set_security(self, path: str, parts: int, descriptor: bytes) -> None:
            """See `WindowsCalls`."""
            if not self._security.SetFileSecurityW(ctypes.c_wchar_p(path), parts, descriptor):
                raise ctypes.WinError(ctypes.get_last_error())

        def write_stream(self, path: str, data: bytes) -> None:
            """See `WindowsCalls`."""
            with open(path, "wb") as file:  # noqa: PTH123 (pathlib would take the colon apart)
                file.write(data)

        def clear_attributes(self, path: str) -> None:
            """See `WindowsCalls`."""
            self.set_basic_info(path, BASIC.pack(0, 0, 0, 0, _NORMAL))

        def hold_folder(self, path: str) -> int:
            """See `WindowsCalls`."""
            handle = self._open(path, _LIST_FOLDER, _SHARE_BUT_DELETE)
            answer = ctypes.create_string_buffer(BASIC.size)
            if not self._kernel.GetFileInformationByHandleEx(
                ctypes.c_void_p(handle), _FILE_BASIC_INFO, answer, BASIC.size
            ):
                error = ctypes.WinError(ctypes.get_last_error())
                self.release(handle)
                raise error
            attributes = int(BASIC.unpack(answer.raw)[4])
            if attributes & _REPARSE_POINT or not attributes & _FOLDER:
                self.release(handle)
                code = errno.ELOOP if attributes & _REPARSE_POINT else errno.ENOTDIR
                raise OSError(code, os.strerror(code))
            return handle

        def release(self, handle: int) -> None:
            """See `WindowsCalls`."""
            self._kernel.CloseHandle(ctypes.c_void_p(handle))


@functools.cache
def calls_of_this_machine() -> WindowsCalls:
    """Return the calls of the running Windows, with the privileges that this user has for them.

    Raises:
        OSError: there is no Windows.
    """
    if sys.platform == "win32":
        return Kernel()
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
