r"""Attributes of what was copied to NTFS on Windows: `Place` in the calls of Windows.

Access and write time, creation time and DOS attributes go in one structure, named streams are written as
streams. An access list is set with its owner where the privilege allows, else alone. Modes and owners of
POSIX are not turned into anything. Sources: FILE_BASIC_INFO, SetFileInformationByHandle, SetFileSecurity,
AdjustTokenPrivileges in the documentation of the Windows API; [MS-DTYP] 2.4.7 for the parts of a descriptor.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Protocol

from imageformat.windowspath import extended
from mountfs.copyout.windowscalls import BASIC
from mountfs.ntsecurity import is_sound
from mountfs.windowsnames import to_windows_name
from mountfs.windowsview import to_filetime

if TYPE_CHECKING:
    from pathlib import Path

OWNER, GROUP, DACL = 0x1, 0x2, 0x4

_STREAM = b"user."
_ATTRIBUTES, _BIRTH, _ACL = b"system.ntfs_attrib", b"system.ntfs_crtime", b"system.ntfs_acl"
_SETTABLE = 0x1 | 0x2 | 0x4 | 0x20 | 0x100 | 0x2000
"""Read-only, hidden, system, archive, temporary, not indexed ([MS-FSCC] 2.6)."""
_NORMAL = 0x80


class WindowsCalls(Protocol):
    """What is asked of Windows; each raises OSError."""

    def set_basic_info(self, path: str, structure: bytes) -> None:
        """Set times and attributes of a file or folder, of a link itself: FILE_BASIC_INFO, 40 bytes."""
        ...

    def set_security(self, path: str, parts: int, descriptor: bytes) -> None:
        """Set the named parts of a security descriptor."""
        ...

    def write_stream(self, path: str, data: bytes) -> None:
        """Write a whole named stream: ``path:name``."""
        ...

    def clear_attributes(self, path: str) -> None:
        """Make a file, or a link itself, one that can be removed."""
        ...

    def hold_folder(self, path: str) -> int:
        """Open a folder so that nobody renames or removes it; ELOOP for a link, ENOTDIR for a file."""
        ...

    def release(self, handle: int) -> None:
        """Let go of what `hold_folder` gave."""
        ...


def basic_info(*, created: int = 0, accessed: int = 0, written: int = 0, attributes: int = 0) -> bytes:
    """Return a FILE_BASIC_INFO; times in units of 100 ns since 1601, and 0 leaves a field as it is."""
    return BASIC.pack(created, accessed, written, 0, attributes)


class WindowsPlace:
    """A file or folder by its absolute path. See `Place`.

    An attribute that Windows has no place for is refused with ENOTSUP, so that its loss is reported.
    """

    posix = False
    time_unit_ns = 100

    def __init__(self, path: Path, calls: WindowsCalls) -> None:
        self._path = path
        self._long = extended(str(path))
        self._calls = calls

    def status(self) -> os.stat_result:
        """See `Place`."""
        return self._path.lstat()

    def set_owner(self, uid: int, gid: int) -> None:
        """Nothing: numbers of users mean nothing to Windows, and reading back reports it."""

    def set_mode(self, mode: int) -> None:
        """Nothing: see `set_owner`."""

    def set_times(self, times: tuple[int, int]) -> None:
        """See `Place`; exact to 100 ns."""
        accessed, written = (to_filetime(time_ns) for time_ns in times)
        self._calls.set_basic_info(self._long, basic_info(accessed=accessed, written=written))

    def set_attribute(self, name: bytes, value: bytes) -> None:
        """See `Place`: ``user.NAME`` is a named stream; what only NTFS has goes where NTFS has it."""
        if name.startswith(_STREAM):
            stream = to_windows_name(name.removeprefix(_STREAM))
            self._calls.write_stream(f"{self._long}:{stream}", value)
        elif name == _ATTRIBUTES and len(value) == 4:
            settable = int.from_bytes(value, "little") & _SETTABLE
            self._calls.set_basic_info(self._long, basic_info(attributes=settable or _NORMAL))
        elif name == _BIRTH and len(value) == 8:
            created = min(int.from_bytes(value, "little"), (1 << 63) - 1)
            self._calls.set_basic_info(self._long, basic_info(created=created))
        elif name == _ACL and is_sound(value):
            self._set_security(value)
        else:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def _set_security(self, descriptor: bytes) -> None:
        try:
            self._calls.set_security(self._long, OWNER | GROUP | DACL, descriptor)
        except OSError as error:
            # An owner of one's own choice takes SeRestorePrivilege; the list of one's own files does not.
            self._calls.set_security(self._long, DACL, descriptor)
            raise OSError(errno.EPERM, "the owner is another: run this as administrator") from error
