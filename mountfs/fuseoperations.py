"""`PosixView` as the operations object that mfusepy's own ``FUSE`` class takes.

`fusesession` binds libfuse 3 without that class. The FUSE layer of WinFsp has version 2 of the interface, and
mfusepy knows the differences; it is the way to mount on Windows where winfspy cannot be had.
"""

from __future__ import annotations

import stat
import threading
from typing import TYPE_CHECKING, TypeVar

from mountfs.upcalls import FailureLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mountfs.posixview import Attributes, PosixView

_Answer = TypeVar("_Answer")

_BLOCK_SIZE = 4096
_NAME_MAX = 255


class PosixOperations:
    """See mfusepy's ``Operations``. Paths are text with bytes that are not UTF-8 escaped as PEP 383 says.

    Args:
        view: what is shown.
        ready: called once when the file system is asked for the first time.
        total: size of the file system in bytes.
    """

    use_ns = True
    flag_nullpath_ok = False
    flag_nopath = False

    def __init__(self, view: PosixView, ready: Callable[[], None], *, total: int = 0) -> None:
        self._view = view
        self._ready = ready
        self._total = total
        self._failures = FailureLog()

    def init(self, _path: str) -> None:
        """Tell that the mount is there; not from this thread, for which the system waits."""
        threading.Thread(target=self._ready, name="mountfs-ready", daemon=True).start()

    def destroy(self, _path: str) -> None:
        """Nothing is held."""

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        """Answer ``stat``."""
        del fh
        return self._told("getattr", lambda: _facts(self._view.attributes(_encoded(path))))

    def readlink(self, path: str) -> str:
        """Answer ``readlink``."""
        return self._told(
            "readlink", lambda: self._view.readlink(_encoded(path)).decode("utf-8", "surrogateescape")
        )

    def open(self, path: str, flags: int) -> int:
        """Open a file for reading."""
        return self._told("open", lambda: self._view.open(_encoded(path), flags))

    def read(self, _path: str, size: int, offset: int, fh: int) -> bytes:
        """Read from an open file."""
        return self._told("read", lambda: self._view.read(fh, offset, size))

    def release(self, _path: str, fh: int) -> int:
        """Close a file."""
        self._view.release(fh)
        return 0

    def opendir(self, path: str) -> int:
        """Open a folder."""
        return self._told("opendir", lambda: self._view.open_folder(_encoded(path)))

    def readdir_with_offset(
        self, _path: str, offset: int, fh: int
    ) -> Iterator[tuple[str, dict[str, int], int]]:
        """List an open folder from a position on."""
        entries = iter(self._view.listing(fh, offset))
        while (entry := self._told("readdir", lambda: next(entries, None))) is not None:
            position, name, attributes = entry
            yield name.decode("utf-8", "surrogateescape"), _facts(attributes), position

    def releasedir(self, _path: str, fh: int) -> int:
        """Close a folder."""
        self._view.release_folder(fh)
        return 0

    def statfs(self, _path: str) -> dict[str, int]:
        """Answer how large it is; nothing is free."""
        blocks = self._total // _BLOCK_SIZE
        return {"f_bsize": _BLOCK_SIZE, "f_frsize": _BLOCK_SIZE, "f_blocks": blocks, "f_namemax": _NAME_MAX}

    def _told(self, what: str, ask: Callable[[], _Answer]) -> _Answer:
        """Turn every failure into an errno."""
        try:
            return ask()
        except Exception as error:
            number = self._failures.errno_of(error, what)
            raise OSError(number, what) from error


def _encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _facts(attributes: Attributes) -> dict[str, int]:
    return {
        "st_mode": attributes.mode,
        "st_ino": attributes.inode,
        "st_nlink": attributes.links,
        "st_uid": attributes.uid,
        "st_gid": attributes.gid,
        "st_size": attributes.size,
        "st_blksize": _BLOCK_SIZE,
        "st_blocks": (attributes.size + 511) // 512 if stat.S_ISREG(attributes.mode) else 0,
        "st_atime": attributes.atime_ns,
        "st_mtime": attributes.mtime_ns,
        "st_ctime": attributes.ctime_ns,
    }
