"""Files that Windows compressed as a whole (CompactOS): chunks in the stream ``WofCompressedData``.

Sources: [MS-FSCC] 2.1.2 and Microsoft's ``wofapi.h`` (algorithms); the table of chunks is that of WIM
archives ("Windows Imaging File Format", Microsoft).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from imageformat.extent import Extent, ExtentKind
from mountfs.drivers._lzx import lzx_decode
from mountfs.drivers._tree import SharedCache
from mountfs.drivers._xpress import xpress_decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.drivers._content import Content

COMPACT_STREAM = b"WofCompressedData"
_FILE_PROVIDER = 2
_ALGORITHMS = {
    0: (4096, xpress_decode),
    1: (32_768, lzx_decode),
    2: (8192, xpress_decode),
    3: (16_384, xpress_decode),
}
_WIDE = 1 << 32
_CACHED_CHUNKS = 16


def compact_algorithm(reparse: bytes) -> int | None:
    """Return the algorithm that a reparse point of Windows' overlay filter names.

    None when the content lies in an archive elsewhere, or the algorithm is not known here.
    """
    if len(reparse) < 24:
        return None
    _, provider, _, algorithm = struct.unpack_from("<IIII", reparse, 8)
    return algorithm if provider == _FILE_PROVIDER and algorithm in _ALGORITHMS else None


class CompactContent:
    """Content in compressed chunks; each is decoded when it is read."""

    def __init__(self, stream: Content, size: int, algorithm: int) -> None:
        self._stream = stream
        self._chunk_size, self._decode = _ALGORITHMS[algorithm]
        self._count = -(-size // self._chunk_size)
        self._entry = "<Q" if size >= _WIDE else "<I"
        self._data = struct.calcsize(self._entry) * max(0, self._count - 1)
        if self._data > stream.size:
            raise VolumeError("a compressed file is damaged: its table of chunks does not fit")
        self._chunks: SharedCache[int, bytes] = SharedCache(_CACHED_CHUNKS, lambda _: 1)
        self.size = size
        self.weight = _CACHED_CHUNKS * self._chunk_size // 32

    def read(self, offset: int, size: int) -> bytes:
        """See `Content.read`."""
        if not size:
            return b""
        first, last = offset // self._chunk_size, (offset + size - 1) // self._chunk_size
        whole = b"".join(self._chunk(index) for index in range(first, last + 1))
        return whole[offset - first * self._chunk_size :][:size]

    def _chunk(self, index: int) -> bytes:
        def make() -> bytes:
            start, end = self._start(index), self._start(index + 1)
            plain = min(self._chunk_size, self.size - index * self._chunk_size)
            if not start < end <= self._stream.size or end - start > plain:
                raise VolumeError(f"a compressed file is damaged: chunk {index} has no place")
            packed = self._stream.read(start, end - start)
            return packed if len(packed) == plain else self._decode(packed, plain)

        return self._chunks.get_or_make(index, make)

    def _start(self, index: int) -> int:
        """Where a chunk starts in the stream; the first one needs no entry in the table."""
        if index == 0:
            return self._data
        if index == self._count:
            return self._stream.size
        width = struct.calcsize(self._entry)
        (start,) = struct.unpack(self._entry, self._stream.read((index - 1) * width, width))
        return self._data + int(start)

    def extents(self) -> Iterator[Extent]:
        """See `Content.extents`: all of it is DATA."""
        if self.size:
            yield Extent(0, self.size, ExtentKind.DATA)

    def placements(self) -> Iterator[tuple[int, int]]:
        """See `Content.placements`: those of the stream."""
        return self._stream.placements()
