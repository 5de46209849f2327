"""Tables of numbers in a file: read in pieces when asked, and kept as the bytes that they are."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from imageformat.cache import BlockCache
from imageformat.errors import IncompleteImageError

if TYPE_CHECKING:
    from imageformat.device import BlockDevice

PIECE = 16 << 10
"""Bytes of a table that are read at once."""
_OWN_CACHE = 4 << 20


def table_cache(shared: BlockCache) -> BlockCache:
    """Return a cache that keeps something: without one, every block read would read a table anew."""
    return shared if shared.capacity else BlockCache(_OWN_CACHE)


class Tables:
    """The tables of one file, all of entries of one size. Any number of threads may call it at once."""

    def __init__(
        self,
        device: BlockDevice,
        cache: BlockCache,
        name: str,
        entry_size: int,
        byteorder: Literal["little", "big"],
    ) -> None:
        self._device = device
        self._cache = cache
        self._name = name
        self._entry_size = entry_size
        self._byteorder: Literal["little", "big"] = byteorder
        self._owner = object()
        """Tells this file's pieces from those of others in the cache."""

    def piece(self, offset: int, size: int) -> bytes:
        """Return part of a table.

        Raises:
            IncompleteImageError: it lies after the end of the file.
            StorageError
        """
        if offset + size > self._device.size:
            raise IncompleteImageError(f"{self._name}: the table at {offset} lies after the end of the file")
        return self._cache.get((self._owner, offset, size), partial(self._device.pread, offset, size))

    def entry(self, table: int, entries: int, number: int) -> int:
        """Return entry ``number`` of a table of ``entries``, which begins at ``table`` in the file.

        Raises:
            IncompleteImageError: it lies after the end of the file.
            StorageError
        """
        place = number * self._entry_size
        start = place // PIECE * PIECE
        piece = self.piece(table + start, min(PIECE, entries * self._entry_size - start))
        return int.from_bytes(piece[place - start : place - start + self._entry_size], self._byteorder)
