"""Files that are stored in blocks of one plain size, each compressed alone: zisofs, SquashFS.

A block is decoded when it is asked for, and kept in a cache of bounded bytes that all files of a volume
share; its key there is where the block lies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from imageformat.errors import VolumeError
from imageformat.extent import Extent, ExtentKind, coalesce
from mountfs.drivers._content import MAX_FILE_SIZE, MAX_RUNS
from mountfs.drivers._tree import SharedCache

if TYPE_CHECKING:
    from collections.abc import Iterator

_CACHED_BYTES = 16 << 20


class PlainBlocks(SharedCache[int, bytes]):
    """Decoded blocks by their place on the volume."""

    def __init__(self) -> None:
        super().__init__(_CACHED_BYTES, len)


class StoredBlocks(Protocol):
    """The blocks of one file. Any number of threads may call it at once."""

    def place(self, index: int) -> tuple[int, int]:
        """Return offset and length on the volume; length 0: a hole."""
        ...

    def plain(self, index: int) -> bytes:
        """Decode a block that is no hole; raise `VolumeError` when it cannot be."""
        ...


class PackedContent:
    """A `Content` of stored blocks; a block that does not decode to its exact size is an error."""

    def __init__(self, blocks: StoredBlocks, size: int, block_size: int) -> None:
        check_block_count(size, block_size)
        self._blocks = blocks
        self._block_size = block_size
        self.size = size

    @property
    def weight(self) -> int:
        """See `Content.weight`."""
        return 1 + -(-self.size // self._block_size)

    def read(self, offset: int, size: int) -> bytes:
        """See `Content.read`."""
        parts: list[bytes] = []
        end = offset + size
        while offset < end:
            index, start = divmod(offset, self._block_size)
            stop = min(end - index * self._block_size, self._block_size)
            parts.append(self._block(index, start, stop))
            offset = index * self._block_size + stop
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _block(self, index: int, start: int, stop: int) -> bytes:
        if not self._blocks.place(index)[1]:
            return bytes(stop - start)
        plain = self._blocks.plain(index)
        expected = self._length(index)
        if len(plain) != expected:
            raise VolumeError(f"block {index} of a file has {len(plain)} bytes instead of {expected}")
        return plain[start:stop]

    def _length(self, index: int) -> int:
        return min(self._block_size, self.size - index * self._block_size)

    def extents(self) -> Iterator[Extent]:
        """See `Content.extents`."""
        return coalesce(self._extents())

    def _extents(self) -> Iterator[Extent]:
        for index in range(self.weight - 1):
            kind = ExtentKind.DATA if self._blocks.place(index)[1] else ExtentKind.ZERO
            yield Extent(index * self._block_size, self._length(index), kind)

    def placements(self) -> Iterator[tuple[int, int]]:
        """See `Content.placements`."""
        for index in range(self.weight - 1):
            offset, length = self._blocks.place(index)
            if length:
                yield offset, length


def check_block_count(size: int, block_size: int) -> None:
    """Raise `VolumeError` when a file has more blocks than can be held."""
    if not 0 <= size <= MAX_FILE_SIZE or size // block_size > MAX_RUNS:
        raise VolumeError(f"a file claims {size} bytes in blocks of {block_size}")
