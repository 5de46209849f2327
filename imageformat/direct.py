"""Large reads and writes past the kernel's page cache.

Backups and restores touch everything once. Through the page cache that costs a second copy and fresh memory
for it all, and pushes out what others have cached. Past it, what is read comes from the medium, and what is
written is on its way there. Used where a file lies on a block device of this machine, or is one.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
from stat import S_ISBLK

from imageformat import system

ALIGNMENT = 4096
"""Of offset, length and memory; no disk asks for more."""
_MIN_READ = 64 << 10
"""Less than this is asked of the page cache: tables are read in small pieces, near each other."""
_MIN_WRITE = 64 << 10


class AlignedMemory(threading.local):
    """Memory of each thread, used again each time: fresh memory costs as much as copying."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, ALIGNMENT)

    def of(self, size: int) -> memoryview:
        """Return a view of at least ``size`` bytes, a multiple of `ALIGNMENT`."""
        length = -(-size // ALIGNMENT) * ALIGNMENT
        if len(self._memory) < length:
            self._memory = mmap.mmap(-1, length)
        return memoryview(self._memory)[:length]


class DirectFile:
    """A second descriptor of an open file. Any number of threads may call it at once.

    It does what it can and leaves the rest, errors too, to the first descriptor.
    """

    def __init__(self, fd: int, *, writable: bool = False) -> None:
        self._fd = _reopen(fd, os.O_RDWR if writable else os.O_RDONLY)
        self._memory = AlignedMemory()

    def read_into(self, memory: memoryview, offset: int, size: int) -> bool:
        """Fill the first ``size`` bytes of aligned memory; False when that is to be done as usual."""
        if self._fd < 0 or size < _MIN_READ or offset % ALIGNMENT:
            return False
        try:
            return system.preadv(self._fd, memory, offset) >= size
        except OSError:
            return False

    def read_sectors(self, offset: int, size: int) -> bytes | None:
        """Return whole sectors from the medium; None when that cannot be had, and is to be done as usual.

        Raises:
            OSError: the medium cannot read them.
        """
        if self._fd < 0:
            return None
        with self._memory.of(size) as memory:
            try:
                with memory[:size] as exact:
                    got = system.preadv(self._fd, exact, offset)
            except OSError as error:
                if error.errno == errno.EINVAL:  # no multiple of what it reads: the end of an odd file
                    return None
                raise
            return bytes(memory[:size]) if got >= size else None

    def pwrite(self, offset: int, data: memoryview) -> int:
        """Write a front part of ``data`` and return its length; 0: nothing, do it as usual. Never raises."""
        size = len(data) - len(data) % ALIGNMENT
        if self._fd < 0 or size < _MIN_WRITE or offset % ALIGNMENT:
            return 0
        with self._memory.of(size) as memory:
            memory[:] = data[:size]
            try:
                done = system.pwrite(self._fd, memory, offset)
            except OSError:
                return 0
        return done - done % ALIGNMENT

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


if sys.platform == "win32":

    def _reopen(_fd: int, _mode: int) -> int:
        """Windows decides about its cache when a file is opened; -1: there is no second way to it."""
        return -1

else:

    def _reopen(fd: int, mode: int) -> int:
        """Open the very same file once more; -1 where that, or direct access, cannot be."""
        status = os.fstat(fd)
        if not S_ISBLK(status.st_mode) and not os.major(status.st_dev):
            return -1
        try:
            return os.open(f"/proc/self/fd/{fd}", mode | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            return -1
