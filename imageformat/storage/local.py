"""Images in a local folder: the durability protocol of one object.

Written under ``.NAME.part``, fsynced, read back after dropping the page cache, renamed without
replacing, folder fsynced: only then does `commit` return. An fsync error means the file is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from imageformat.device import check_range
from imageformat.errors import (
    AccessDeniedError,
    DestinationError,
    DestinationFullError,
    DestinationReadOnlyError,
    MountfsError,
    NotFoundError,
    SetBusyError,
    StorageError,
)
from imageformat.extent import Extent, ExtentKind
from imageformat.storage import ObjectInfo, StorageScheme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageformat.device import BlockDevice

_BUFFER = 1 << 20
_SYNC_EVERY = 512 << 20
_CACHE_NAME = ".catalog.json"
_LOCK_NAME = ".lock"
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM})


def read_error(error: OSError, path: Path) -> MountfsError:
    """Translate a failure to read an image file."""
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{path}: no such file or folder")
    if error.errno in _DENIED:
        return AccessDeniedError(f"{path}: permission denied; run as the owner of the images or as root")
    return StorageError(f"{path}: cannot be read: {error.strerror or error}")


def write_error(error: OSError, path: Path) -> MountfsError:
    """Translate a failure to write below a repository."""
    if error.errno in _FULL:
        return DestinationFullError(f"{path}: no space left; free some and run the same command again")
    if error.errno == errno.EROFS:
        return DestinationReadOnlyError(f"{path}: the file system is read-only")
    if error.errno in _DENIED:
        return AccessDeniedError(f"{path}: permission denied; nothing was written")
    if isinstance(error, NotADirectoryError | FileExistsError):
        return DestinationError(f"{path}: a file stands where a folder is needed")
    return DestinationError(f"{path}: cannot be written: {error.strerror or error}")


class LocalFile:
    """A stored file as a read-only device. Any number of threads may call it at once."""

    block_size = 4096

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._fd).st_size
        except OSError as error:
            raise read_error(error, path) from error
        self._closed = False

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        try:
            data = os.pread(self._fd, size, offset)
            while len(data) < size:
                more = os.pread(self._fd, size - len(data), offset + len(data))
                if not more:
                    raise StorageError(f"{self._path}: ends at {offset + len(data)}, it was cut while open")
                data += more
        except OSError as error:
            raise read_error(error, self._path) from error
        return data

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`; a stored file counts as DATA."""
        check_range(self.size, offset, size)
        if size:
            yield Extent(offset, size, ExtentKind.DATA)

    def close(self) -> None:
        """See `BlockDevice.close`."""
        if not self._closed:
            self._closed = True
            os.close(self._fd)


class LocalObjectWriter:
    """See `ObjectWriter`."""

    def __init__(self, final: Path) -> None:
        self._final = final
        self._part = final.with_name(f".{final.name}.part")
        self._buffer = bytearray()
        self._flushed = 0
        self._synced = 0
        try:
            self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise write_error(error, final.parent) from error
        self._open = True

    @property
    def position(self) -> int:
        """See `ObjectWriter.position`."""
        return self._flushed + len(self._buffer)

    def append(self, data: bytes) -> None:
        """See `ObjectWriter.append`."""
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        view = memoryview(self._buffer)
        try:
            while view:
                written = os.write(self._fd, view)
                self._flushed += written
                view = view[written:]
            if self._flushed - self._synced >= _SYNC_EVERY:
                os.fdatasync(self._fd)
                self._synced = self._flushed
        except OSError as error:
            raise write_error(error, self._final.parent) from error
        finally:
            view.release()
        self._buffer.clear()

    def commit(self, check: Callable[[BlockDevice], None] | None = None) -> None:
        """See `ObjectWriter.commit`."""
        self._flush()
        try:
            os.fsync(self._fd)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if check is not None:
                with contextlib.closing(LocalFile(self._part)) as device:
                    check(device)
            _rename_new(self._part, self._final)
            _fsync_folder(self._final.parent)
        except OSError as error:
            raise write_error(error, self._final.parent) from error
        self._close()

    def abort(self) -> None:
        """See `ObjectWriter.abort`."""
        if self._open:
            self._close()
            self._part.unlink(missing_ok=True)

    def _close(self) -> None:
        self._open = False
        os.close(self._fd)


def _rename_new(source: Path, target: Path) -> None:
    """Rename without ever replacing: the kernel's own rule where it has one."""
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is not None:
        paths = os.fsencode(source), os.fsencode(target)
        if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
        if code not in {errno.ENOSYS, errno.EINVAL}:
            raise OSError(code, os.strerror(code), str(target))
    if target.exists():
        raise FileExistsError(errno.EEXIST, "exists already", str(target))
    source.rename(target)


def _fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class LocalStorage:
    """See `Storage`; keys are paths below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        """See `Storage.url`."""
        return str(self._root)

    def folders(self) -> Iterator[str]:
        """See `Storage.folders`; hidden folders do not count."""
        for entry in self._scan(self._root):
            if entry.is_dir():
                yield entry.name

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage.objects`; hidden files are not objects."""
        for entry in self._scan(self._root / prefix):
            try:
                if not entry.is_file():
                    continue
                stat = entry.stat()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise read_error(error, Path(entry.path)) from error
            fingerprint = f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"
            yield ObjectInfo(f"{prefix}{entry.name}", stat.st_size, fingerprint)

    def _scan(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda e: e.name)
        except OSError as error:
            raise read_error(error, folder) from error

    def open(self, key: str) -> BlockDevice:
        """See `Storage.open`."""
        return LocalFile(self._root / key)

    def create(self, key: str) -> LocalObjectWriter:
        """See `Storage.create`."""
        final = self._root / key
        self._make_folder(final.parent)
        return LocalObjectWriter(final)

    def _make_folder(self, folder: Path) -> None:
        try:
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for path in missing:
                _fsync_folder(path.parent)
        except OSError as error:
            raise write_error(error, folder) from error

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        path = self._root / key
        try:
            path.unlink()
            _fsync_folder(path.parent)
        except OSError as error:
            raise write_error(error, path) from error

    @contextlib.contextmanager
    def exclusive(self, prefix: str) -> Iterator[None]:
        """See `Storage.exclusive`."""
        folder = self._root / prefix
        self._make_folder(folder)
        try:
            fd = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise write_error(error, folder) from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SetBusyError(
                    f"{folder}: another mountfs is writing here; wait for it to finish"
                ) from error
            self._remove_partials(folder)
            yield
        finally:
            os.close(fd)

    def _remove_partials(self, folder: Path) -> None:
        try:
            for path in folder.glob(".*.part"):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(error, folder) from error

    def load_cache(self, prefix: str) -> bytes | None:
        """See `Storage.load_cache`."""
        try:
            return (self._root / prefix / _CACHE_NAME).read_bytes()
        except OSError:
            return None

    def save_cache(self, prefix: str, data: bytes) -> None:
        """See `Storage.save_cache`; only in folders that are ours, not beside a lone image file."""
        if not (self._root / prefix / _LOCK_NAME).exists():
            return
        path = self._root / prefix / _CACHE_NAME
        part = path.with_name(f"{_CACHE_NAME}.{os.getpid()}.part")
        try:
            part.write_bytes(data)
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is held."""


def _open_local(url: str) -> LocalStorage:
    return LocalStorage(Path(url.removeprefix("file://")))


PLUGIN = StorageScheme("local", lambda url: "://" not in url or url.startswith("file://"), _open_local)
