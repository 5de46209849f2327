"""The callbacks that libfuse calls for one mount: `PosixView` in the words of ``struct fuse_operations``.

What the kernel may remember: content for ever (an image never changes); names and attributes for an hour;
names of volatile nodes, such as the points of a repository, for a second; listings and absent names never.
When a volatile name stands for something else, the kernel is told ESTALE once: it then forgets all it knew
below that name, asks again, and nobody sees the error.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from mountfs.fusemounting import raise_read_ahead
from mountfs.upcalls import FailureLog

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from pathlib import Path

    from mountfs.posixview import Attributes, PosixView

KEEP_S = 3600.0
KEEP_VOLATILE_S = 1.0

Untyped: TypeAlias = Any
"""What belongs to mfusepy or was handed over by ctypes; neither has types."""

_READDIR_PLUS = 1
_FILL_DIR_PLUS = 2
_BLOCK_SIZE = 4096
_NAME_MAX = 255
_REMEMBERED = 4096
_REFUSED = (
    "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "chmod", "chown", "truncate", "write",
    "setxattr", "removexattr", "create", "utimens", "fallocate", "copy_file_range",
)  # fmt: skip


class FuseSession:
    """One mount: the table of callbacks, and what they share."""

    def __init__(
        self, binding: Untyped, view: PosixView, mountpoint: Path, ready: Callable[[], None]
    ) -> None:
        self._binding = binding
        self._view = view
        self._mountpoint = mountpoint
        self._ready = ready
        self._config: Untyped = None
        self._failures = FailureLog()
        self._seen: OrderedDict[bytes, Hashable] = OrderedDict()
        self._stat_size = ctypes.sizeof(binding.c_stat)

    def run(self, arguments: list[bytes]) -> int:
        """Mount, serve and unmount; return what libfuse's ``fuse_main`` returns."""
        operations = self._binding.fuse_operations()
        prototypes = dict(field[:2] for field in self._binding.fuse_operations._fields_)
        operations.init = prototypes["init"](self._init)
        for name, callback in self._callbacks().items():
            if name in prototypes:
                setattr(operations, name, prototypes[name](self._guarded(callback)))
        argv = (ctypes.c_char_p * len(arguments))(*arguments)
        size = ctypes.sizeof(operations)
        return int(self._binding.fuse_main_real(len(arguments), argv, ctypes.pointer(operations), size, None))

    def _callbacks(self) -> dict[str, Callable[..., int]]:
        served: dict[str, Callable[..., int]] = {
            "getattr": self._getattr,
            "readlink": self._readlink,
            "open": self._open,
            "read": self._read_into(),
            "release": self._release,
            "lseek": self._lseek,
            "opendir": self._opendir,
            "readdir": self._readdir,
            "releasedir": self._releasedir,
            "getxattr": self._getxattr,
            "listxattr": self._listxattr,
            "statfs": self._statfs,
        }
        return served | dict.fromkeys(_REFUSED, _refuse)

    def _guarded(self, callback: Callable[..., int]) -> Callable[..., int]:
        """Turn every failure into an errno."""

        @functools.wraps(callback)
        def call(*arguments: object) -> int:
            try:
                return callback(*arguments)
            except Exception as error:  # noqa: BLE001 - libfuse would take an escaped exception for success
                return -self._failures.errno_of(error, callback.__name__)

        return call

    def _init(self, _connection: object, config: Untyped) -> int:
        settings = config.contents
        settings.use_ino = 1
        settings.kernel_cache = 1
        settings.nullpath_ok = 1
        settings.negative_timeout = 0.0
        settings.entry_timeout = settings.attr_timeout = KEEP_S
        self._config = settings
        threading.Thread(target=self._announce, name="mountfs-ready", daemon=True).start()
        return 0

    def _announce(self) -> None:
        """Call ``ready`` when the kernel answers: it holds this call until the handshake is over."""
        with suppress(OSError):
            os.statvfs(self._mountpoint)
        raise_read_ahead(self._mountpoint)
        self._ready()

    def _keep(self, attributes: Attributes) -> None:
        """Set how long the kernel may remember the answer that libfuse is about to build.

        libfuse copies these two from its configuration, which `init` was handed, after each callback.
        """
        lifetime = KEEP_S if attributes.volatile is None else KEEP_VOLATILE_S
        self._config.entry_timeout = self._config.attr_timeout = lifetime

    def _check_replaced(self, path: bytes, attributes: Attributes) -> None:
        """Raise ESTALE once when a volatile path stands for something else than last time."""
        known = self._seen.get(path, attributes.volatile)
        self._seen[path] = attributes.volatile
        self._seen.move_to_end(path)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        if known != attributes.volatile:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _getattr(self, path: bytes | None, buffer: Untyped, info: Untyped) -> int:
        if path is None:
            attributes = self._view.handle_attributes(info.contents.fh)
        else:
            attributes = self._view.attributes(path)
            if attributes.volatile is not None:
                self._check_replaced(path, attributes)
        self._keep(attributes)
        ctypes.memset(buffer, 0, self._stat_size)
        _fill_stat(buffer.contents, attributes)
        return 0

    def _readlink(self, path: bytes, buffer: Untyped, size: int) -> int:
        target = self._view.readlink(path)
        if len(target) >= size or b"\0" in target:
            return -errno.ENAMETOOLONG
        ctypes.memmove(buffer, target + b"\0", len(target) + 1)
        return 0

    def _open(self, path: bytes, info: Untyped) -> int:
        opened = info.contents
        opened.fh = self._view.open(path, opened.flags)
        opened.keep_cache = 1
        return 0

    def _read_into(self) -> Callable[..., int]:
        """Return the read callback: the hot path, so everything it needs is at hand."""
        read, memmove = self._view.read, ctypes.memmove

        def read_into(_path: object, buffer: Untyped, size: int, offset: int, info: Untyped) -> int:
            data = read(info.contents.fh, offset, size)
            length = len(data)
            memmove(buffer, data, length)
            return length

        return read_into

    def _release(self, _path: object, info: Untyped) -> int:
        self._view.release(info.contents.fh)
        return 0

    def _lseek(self, _path: object, offset: int, whence: int, info: Untyped) -> int:
        return self._view.seek(info.contents.fh, offset, whence)

    def _opendir(self, path: bytes, info: Untyped) -> int:
        info.contents.fh = self._view.open_folder(path)
        return 0

    def _readdir(
        self,
        _path: object,
        buffer: Untyped,
        fill: Untyped,
        offset: int,
        info: Untyped,
        flags: int,
    ) -> int:
        status = self._binding.c_stat()
        how = _FILL_DIR_PLUS if flags & _READDIR_PLUS else 0
        for position, name, attributes in self._view.listing(info.contents.fh, offset):
            _fill_stat(status, attributes)
            if attributes.volatile is not None:
                # A look-up of its own lets the kernel notice that the name stands for something else.
                filled = fill(buffer, name, status, position, 0)
            else:
                self._keep(attributes)
                filled = fill(buffer, name, status, position, how)
            if filled:
                break
        return 0

    def _releasedir(self, _path: object, info: Untyped) -> int:
        self._view.release_folder(info.contents.fh)
        return 0

    def _getxattr(self, path: bytes, name: bytes, buffer: Untyped, size: int) -> int:
        value = self._view.xattrs(path).get(name)
        return -errno.ENODATA if value is None else _give(value, buffer, size)

    def _listxattr(self, path: bytes, buffer: Untyped, size: int) -> int:
        return _give(b"".join(name + b"\0" for name in self._view.xattr_names(path)), buffer, size)

    def _statfs(self, _path: bytes, buffer: Untyped) -> int:
        answer = buffer.contents
        answer.f_bsize = answer.f_frsize = _BLOCK_SIZE
        answer.f_namemax = _NAME_MAX
        return 0


def _refuse(*_arguments: object) -> int:
    return -errno.EROFS


def _give(value: bytes, buffer: Untyped, size: int) -> int:
    """Answer an extended-attribute call: the length when it only asks for that."""
    if size == 0:
        return len(value)
    if len(value) > size:
        return -errno.ERANGE
    ctypes.memmove(buffer, value, len(value))
    return len(value)


def _fill_stat(status: Untyped, attributes: Attributes) -> None:
    status.st_mode = attributes.mode
    status.st_ino = attributes.inode
    status.st_nlink = attributes.links
    status.st_uid = attributes.uid
    status.st_gid = attributes.gid
    status.st_size = attributes.size
    status.st_blksize = _BLOCK_SIZE
    status.st_blocks = (attributes.size + 511) // 512 if stat.S_ISREG(attributes.mode) else 0
    for spec, time_ns in (
        (status.st_atimespec, attributes.atime_ns),
        (status.st_mtimespec, attributes.mtime_ns),
        (status.st_ctimespec, attributes.ctime_ns),
    ):
        spec.tv_sec, spec.tv_nsec = divmod(time_ns, 1_000_000_000)
