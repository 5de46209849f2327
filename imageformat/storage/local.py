"""Images in a local folder: the durability protocol of one object.

Written under ``.NAME.part``, fsynced, read back after dropping the page cache, renamed without
replacing, folder fsynced: only then does `commit` return. An fsync error means the file is lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING

from imageformat import system
from imageformat.direct import ALIGNMENT, DirectFile
from imageformat.errors import DestinationError, SetBusyError
from imageformat.storage import ObjectInfo, StorageScheme
from imageformat.storage.descriptors import DescriptorPool, LocalFile
from imageformat.storage.failures import read_error, write_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageformat.device import BlockDevice

__all__ = ["PLUGIN", "LocalFile", "LocalObjectWriter", "LocalStorage", "read_error", "write_error"]

_BUFFER = 1 << 20
_SYNC_EVERY = 512 << 20
_PUSH_EVERY = 16 << 20
"""Written back to the medium at a time, while the next is being made."""
_CACHE_NAME = ".catalog.json"
_LOCK_NAME = ".lock"
_NOTHING_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""A name that leads nowhere: a dangling link, links in a ring, or one removed a moment ago."""


class LocalObjectWriter:
    """See `ObjectWriter`. After any failure it only aborts: what an fsync lost does not come back."""

    def __init__(self, final: Path, pool: DescriptorPool) -> None:
        self._final = final
        self._part = final.with_name(f".{final.name}.part")
        self._pool = pool
        self._buffer = bytearray()
        self._flushed = 0
        self._synced = 0
        self._pushed = 0
        try:
            self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL | system.PRIVATE, 0o666)
        except FileExistsError as error:
            raise DestinationError(f"{self._part}: another writer's unfinished file stands there") from error
        except OSError as error:
            raise write_error(error, final.parent) from error
        self._direct = DirectFile(self._fd, writable=True)
        self._open = True
        self._usable = True

    @property
    def position(self) -> int:
        """See `ObjectWriter.position`."""
        return self._flushed + len(self._buffer)

    def append(self, data: bytes) -> None:
        """See `ObjectWriter.append`."""
        self._refuse_after_failure()
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            with self._attempt():
                self._flush()

    def _refuse_after_failure(self) -> None:
        if not self._usable:
            raise DestinationError(
                f"{self._final}: nothing can be added after a failure or the end; start again"
            )

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """Do something that spoils the writer unless it succeeds."""
        self._refuse_after_failure()
        self._usable = False
        try:
            yield
        except OSError as error:
            raise write_error(error, self._final.parent) from error
        self._usable = True

    def _flush(self, *, all_of_it: bool = False) -> None:
        """Write the buffer; past the page cache as long as only a tail must then stay in it."""
        view = memoryview(self._buffer)
        done = self._direct.pwrite(self._flushed, view)
        try:
            while done < len(view) and (all_of_it or not done or len(view) - done >= ALIGNMENT):
                with view[done:] as rest:  # released also where an error keeps it: the buffer shrinks below
                    done += system.pwrite(self._fd, rest, self._flushed + done)
                self._push(self._flushed + done)
        finally:
            view.release()
            self._flushed += done
            del self._buffer[:done]
        if self._flushed - self._synced >= _SYNC_EVERY:
            system.sync_data(self._fd)
            self._synced = self._flushed

    def _push(self, end: int) -> None:
        """Start writing back what the page cache holds."""
        if end - self._pushed >= _PUSH_EVERY:
            system.drop_cache(self._fd, self._pushed, end - self._pushed)
            self._pushed = end

    def commit(self, check: Callable[[BlockDevice], None] | None = None) -> None:
        """See `ObjectWriter.commit`."""
        with self._attempt():
            self._flush(all_of_it=True)
            os.fsync(self._fd)
            system.drop_cache(self._fd, 0, 0)
            if check is not None:
                with contextlib.closing(LocalFile(self._part, self._pool)) as device:
                    check(device)
            self._identity = os.fstat(self._fd)
            if not system.CAN_RENAME_OPEN_FILES:
                self._release()
            self._publish()
        self._close()

    def _publish(self) -> None:
        try:
            system.rename_new(self._part, self._final)
            system.sync_folder(self._final.parent)
        except FileExistsError as error:
            raise DestinationError(f"{self._final}: exists already, and is never replaced") from error
        except BaseException as error:
            if not self._taken_back():
                raise DestinationError(
                    f"{self._final}: may not outlast a power cut ({error}), nor be taken back; delete it"
                ) from error
            raise

    def _taken_back(self) -> bool:
        """Hide what was published but is not certain to last; False when it stays visible.

        It is ours only if it is the very file that we wrote: an interrupt may come at any point.
        """
        try:
            if not os.path.samestat(self._identity, self._final.lstat()):
                return True
            self._final.rename(self._part)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        with contextlib.suppress(OSError):
            system.sync_folder(self._final.parent)
        return True

    def abort(self) -> None:
        """See `ObjectWriter.abort`; what cannot be removed is hidden, and the next writer removes it."""
        if self._open:
            self._close()
            with contextlib.suppress(OSError):
                self._part.unlink(missing_ok=True)

    def _close(self) -> None:
        self._open = self._usable = False
        self._release()

    def _release(self) -> None:
        self._direct.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # everything that counts was fsynced, or is given up
                os.close(fd)


class LocalStorage:
    """See `Storage`; keys are paths below one folder."""

    def __init__(self, root: Path, *, max_open: int | None = None) -> None:
        self._root = system.long_path(root)
        self._pool = DescriptorPool(max_open)

    @property
    def url(self) -> str:
        """See `Storage.url`."""
        return str(self._root)

    def folders(self) -> Iterator[str]:
        """See `Storage.folders`; hidden folders do not count, nor do links that lead nowhere."""
        for entry in self._scan(self._root):
            stat = _stat(entry)
            if stat is not None and S_ISDIR(stat.st_mode):
                yield entry.name

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage.objects`; hidden files are not objects, nor are links that lead nowhere."""
        for entry in self._scan(self._root / prefix):
            stat = _stat(entry)
            if stat is not None and S_ISREG(stat.st_mode):
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
        return LocalFile(self._root / key, self._pool)

    def holds(self, key: str, prefix: str) -> bool:
        """See `Storage.holds`."""
        try:
            place = (self._root / key).resolve(strict=True)
            top = (self._root / prefix).resolve(strict=True)
            return place.is_relative_to(top) and S_ISREG(place.stat().st_mode)
        except (OSError, RuntimeError, ValueError):
            return False

    def real_place(self, key: str) -> tuple[LocalStorage, str]:
        """See `Storage.real_place`."""
        path = self._root / key
        try:
            if path.is_symlink():
                place = path.resolve(strict=True)
                return LocalStorage(place.parent), place.name
        except (OSError, RuntimeError):
            pass  # whoever opens it is told why
        return self, key

    def modified_ns(self, key: str) -> int:
        """See `Storage.modified_ns`."""
        try:
            return (self._root / key).stat().st_mtime_ns
        except OSError:
            return 0

    def create(self, key: str) -> LocalObjectWriter:
        """See `Storage.create`."""
        final = self._root / key
        self._make_folder(final.parent)
        return LocalObjectWriter(final, self._pool)

    def _make_folder(self, folder: Path) -> None:
        try:
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for path in missing:
                system.sync_folder(path.parent)
        except OSError as error:
            raise write_error(error, folder) from error

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        path = self._root / key
        try:
            path.unlink()
            system.sync_folder(path.parent)
        except FileNotFoundError as error:
            raise read_error(error, path) from error
        except OSError as error:
            raise write_error(error, path) from error

    @contextlib.contextmanager
    def exclusive(self, prefix: str) -> Iterator[None]:
        """See `Storage.exclusive`."""
        folder = self._root / prefix
        self._make_folder(folder)
        try:
            fd = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | system.PRIVATE, 0o666)
        except OSError as error:
            raise write_error(error, folder) from error
        try:
            try:
                system.lock(fd)
            except BlockingIOError as error:
                raise SetBusyError(
                    f"{folder}: another mountfs is writing here; wait for it to finish"
                ) from error
            except OSError as error:
                raise DestinationError(
                    f"{folder}: cannot be locked: {error.strerror or error}; keep images where files can be"
                ) from error
            self._remove_partials(folder)
            yield
        finally:
            os.close(fd)

    def _remove_partials(self, folder: Path) -> None:
        try:
            for path in folder.glob(".*.part"):
                if not path.is_dir():
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
        path = self._root / prefix / _CACHE_NAME
        part = path.with_name(f"{_CACHE_NAME}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            if path.with_name(_LOCK_NAME).exists():
                part.write_bytes(data)
                part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is held: who opened a file closes it."""


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Look at what an entry leads to; None when that is nothing."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return None
        raise read_error(error, Path(entry.path)) from error


def _open_local(url: str) -> LocalStorage:
    return LocalStorage(Path(url.removeprefix("file://")))


PLUGIN = StorageScheme("local", lambda url: "://" not in url or url.startswith("file://"), _open_local)
