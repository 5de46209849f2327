"""Images in a local folder.

`imageformat.storage.localwriter` writes them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING

from imageformat import system
from imageformat.errors import DestinationError, SetBusyError
from imageformat.storage import ObjectInfo, StorageScheme
from imageformat.storage.descriptors import DescriptorPool, LocalFile
from imageformat.storage.failures import read_error, write_error
from imageformat.storage.localwriter import (
    LocalContinuingWriter,
    LocalObjectWriter,
    LocalResumableWriter,
)
from imageformat.storage.unfinished import is_kept, name_of_copy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

__all__ = ["PLUGIN", "LocalFile", "LocalObjectWriter", "LocalStorage", "read_error", "write_error"]

_UNFINISHED = ".resume.part"
"""Ends the names of part files that are kept when their writer dies."""
_CACHE_NAME = ".catalog.json"
_LOCK_NAME = ".lock"
_NOTHING_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""A name that leads nowhere: a dangling link, links in a ring, or one removed a moment ago."""


class LocalStorage:
    """See `Storage`, `ResumableStorage` and `ContinuingStorage`; keys are paths below one folder."""

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

    def go_on(self, key: str, identity: str) -> LocalContinuingWriter:
        """See `ContinuingStorage.go_on`."""
        final = self._root / key
        self._make_folder(final.parent)
        return LocalContinuingWriter(final, self._pool, final.with_name(name_of_copy(identity)))

    def create_resumable(self, key: str) -> LocalResumableWriter:
        """See `ResumableStorage.create_resumable`."""
        final = self._root / key
        self._make_folder(final.parent)
        return LocalResumableWriter(final, self._pool, self._unfinished(key), new=True)

    def _unfinished(self, key: str) -> Path:
        final = self._root / key
        return final.with_name(f".{final.name}{_UNFINISHED}")

    def unfinished(self, prefix: str) -> list[str]:
        """See `ResumableStorage.unfinished`."""
        folder = self._root / prefix
        try:
            found = sorted(path.name for path in folder.glob(f".*{_UNFINISHED}") if path.is_file())
        except OSError as error:
            raise read_error(error, folder) from error
        return [f"{prefix}{name[1 : -len(_UNFINISHED)]}" for name in found]

    def resume(self, key: str, new_key: str) -> LocalResumableWriter:
        """See `ResumableStorage.resume`."""
        return LocalResumableWriter(self._root / new_key, self._pool, self._unfinished(key), new=False)

    def discard(self, key: str) -> None:
        """See `ResumableStorage.discard`."""
        path = self._unfinished(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(error, path) from error

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
                if path.is_symlink() or not (path.is_dir() or _stays(path)):
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


def _stays(part: Path) -> bool:
    return part.name.endswith(_UNFINISHED) or is_kept(part.name, time.time() - part.stat().st_mtime)


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
