"""Stored files as devices, with a bounded number of them open at the operating system.

A chain has as many files as points, and a process may have few descriptors. A file keeps its descriptor
while it is used and while there is room; it is opened again when needed, and must be the same file then.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from imageformat import system
from imageformat.device import check_range
from imageformat.errors import StorageError
from imageformat.storage.failures import read_error
from imageformat.storage.holes import file_extents

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from pathlib import Path

    from imageformat.extent import Extent

MAX_OPEN = 256
_EXTENTS_AT_ONCE = 256
_NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE})


@dataclass(slots=True)
class Lease:
    """An open descriptor and how many are reading from it."""

    fd: int
    users: int = 1
    dropped: bool = False


class DescriptorPool:
    """Keeps the ``limit`` descriptors that were used last. Any number of threads may call it at once.

    A descriptor in use is never closed, so the limit may be passed by as many as there are readers.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit or _affordable()
        self._leases: OrderedDict[Hashable, Lease] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, owner: Hashable, open_file: Callable[[], int]) -> Lease:
        """Return the descriptor of ``owner``, opened with ``open_file`` if need be; `give` it back.

        When the process has none left, idle ones are closed to make room.
        """
        with self._lock:
            lease = self._leases.get(owner)
            if lease is not None:
                lease.users += 1
                self._leases.move_to_end(owner)
                return lease
            lease = self._leases[owner] = Lease(self._open(open_file))
            self._shrink()
            return lease

    def _open(self, open_file: Callable[[], int]) -> int:
        while True:
            try:
                return open_file()
            except OSError as error:
                if error.errno not in _NONE_LEFT or not self._evict():
                    raise

    def give(self, lease: Lease) -> None:
        """End one use of a descriptor."""
        with self._lock:
            lease.users -= 1
            if lease.dropped and not lease.users:
                os.close(lease.fd)
            self._shrink()

    def drop(self, owner: Hashable) -> None:
        """Close the descriptor of ``owner``, once nobody reads from it."""
        with self._lock:
            lease = self._leases.pop(owner, None)
            if lease is not None:
                lease.dropped = True
                if not lease.users:
                    os.close(lease.fd)

    def _shrink(self) -> None:
        while len(self._leases) > self._limit and self._evict():
            pass

    def _evict(self) -> bool:
        """Close the idle descriptor that was used longest ago; False when all are in use."""
        idle = next((owner for owner, lease in self._leases.items() if not lease.users), None)
        if idle is None:
            return False
        os.close(self._leases.pop(idle).fd)
        return True


def _affordable() -> int:
    """Leave most of what the process may open to its other parts."""
    allowed = system.open_file_limit()
    return MAX_OPEN if allowed is None else max(1, min(MAX_OPEN, allowed // 4))


class _Identity(NamedTuple):
    device: int
    inode: int
    size: int
    mtime_ns: int


class LocalFile:
    """A stored file as a read-only device. Any number of threads may call it at once.

    Raises:
        StorageError: also when the file was closed for a while to make room and is no longer the same.
    """

    block_size = 4096

    def __init__(self, path: Path, pool: DescriptorPool) -> None:
        self._path = path
        self._absolute = path.absolute()  # a mount changes its working directory
        self._pool = pool
        self._closed = False
        self._identity: _Identity | None = None
        try:
            pool.give(pool.take(self, self._open_first))
        except OSError as error:
            raise read_error(error, path) from error

    @property
    def size(self) -> int:
        """See `BlockDevice.size`."""
        return self._identity.size if self._identity is not None else 0

    def _open_first(self) -> int:
        fd, self._identity = _open_known(self._absolute)
        return fd

    def _open_again(self) -> int:
        if self._closed:
            raise StorageError(f"{self._path}: is closed")
        try:
            fd, found = _open_known(self._absolute)
        except FileNotFoundError as error:
            raise StorageError(f"{self._path}: was removed while in use; put it back") from error
        if found != self._identity:
            os.close(fd)
            raise StorageError(f"{self._path}: was replaced or changed while in use; start again")
        return fd

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        try:
            lease = self._pool.take(self, self._open_again)
            try:
                return self._read(lease.fd, offset, size)
            finally:
                self._pool.give(lease)
        except OSError as error:
            raise read_error(error, self._path) from error

    def _read(self, fd: int, offset: int, size: int) -> bytes:
        data = system.pread(fd, size, offset)
        while len(data) < size:
            more = system.pread(fd, size - len(data), offset + len(data))
            if not more:
                raise StorageError(f"{self._path}: ends at {offset + len(data)}, it was cut while open")
            data += more
        return data

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`; the holes of the file are ZERO, all else is DATA."""
        check_range(self.size, offset, size)
        end = offset + size
        while offset < end:
            for extent in self._some_extents(offset, end - offset):
                yield extent
                offset = extent.end

    def _some_extents(self, offset: int, size: int) -> list[Extent]:
        """Describe the beginning of a range: no descriptor is held while whoever asked thinks."""
        try:
            lease = self._pool.take(self, self._open_again)
            try:
                if os.fstat(lease.fd).st_size < self.size:
                    raise StorageError(f"{self._path}: was cut while open")
                return list(islice(file_extents(lease.fd, self.size, offset, size), _EXTENTS_AT_ONCE))
            finally:
                self._pool.give(lease)
        except OSError as error:
            raise read_error(error, self._path) from error

    def close(self) -> None:
        """See `BlockDevice.close`."""
        self._closed = True
        self._pool.drop(self)


def _open_known(path: Path) -> tuple[int, _Identity]:
    fd = os.open(path, os.O_RDONLY | system.PRIVATE)
    try:
        stat = os.fstat(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd, _Identity(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
