"""A source that counts what is read of it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.backup import Source
    from imageformat.extent import Extent


class Counted:
    """Passes reads on to ``source`` and counts their bytes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()
        self.size = source.size
        self.block_size = source.block_size
        self.sector_size = source.sector_size
        self.read = 0

    def pread(self, offset: int, size: int) -> bytes:
        with self._lock:
            self.read += size
        return self._source.pread(offset, size)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        return self._source.extents(offset, size)

    def close(self) -> None:
        """The owner of the source closes it."""
