"""A source that is read no faster than it may be, so that others can work beside a backup."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from engine.rescue import SectorReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.backup import Source
    from imageformat.extent import Extent


class RateLimit:
    """Lets ``bytes_per_second`` pass at most, over any second or longer. Thread-safe."""

    def __init__(
        self,
        bytes_per_second: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()
        self._lock = threading.Lock()

    def pay(self, size: int) -> None:
        """Wait until what passed before is paid for; ``size`` bytes pass then."""
        with self._lock:
            now = self._clock()
            start = max(self._free_at, now)  # time in which nothing passed is not saved up
            self._free_at = start + size / self._rate
        if start > now:
            self._sleep(start - now)


class RateLimited:
    """Reads ``source`` at ``bytes_per_second`` at most, over any second or longer. Thread-safe.

    Closing it leaves the source open.
    """

    def __init__(
        self,
        source: Source,
        bytes_per_second: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._source = source
        self._limit = RateLimit(bytes_per_second, clock=clock, sleep=sleep)
        self.size = source.size
        self.block_size = source.block_size
        self.sector_size = source.sector_size

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`; waits until what was read before is paid for."""
        self._limit.pay(size)
        return self._source.pread(offset, size)

    @property
    def smallest_read(self) -> int:
        """See `engine.rescue.SectorReader.smallest_read`."""
        return self._source.smallest_read if isinstance(self._source, SectorReader) else self.sector_size

    def read_sectors(self, offset: int, size: int) -> bytes:
        """See `engine.rescue.SectorReader.read_sectors`."""
        self._limit.pay(size)
        if isinstance(self._source, SectorReader):
            return self._source.read_sectors(offset, size)
        return self._source.pread(offset, size)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`."""
        return self._source.extents(offset, size)

    def close(self) -> None:
        """The owner of the source closes it."""
