"""Files that HFS+ and APFS keep compressed: in an extended attribute, or in blocks in the resource fork.

Sources: Apple's XNU, ``bsd/sys/decmpfs.h`` (header and where the bytes lie), and TN1150 for resource forks.
A block holds 64 KiB; one that would not become smaller is stored behind a byte that says so.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from imageformat.extent import Extent, ExtentKind
from mountfs.drivers._content import BytesContent
from mountfs.drivers._lzfse import lzfse_decode
from mountfs.drivers._lzvn import lzvn_decode
from mountfs.drivers._tree import SharedCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mountfs.drivers._content import Content

_HEADER = 16
_BLOCK = 64 << 10
_MAX_BLOCKS = 1 << 22
_MAX_INLINE = 64 << 20
_CACHED_BLOCKS = 8
_ZLIB_FORK = 4
_NAMES = {5: "kept in the store of generations", 13: "compressed as LZBITMAP", 14: "compressed as LZBITMAP"}


class CompressionHeader(NamedTuple):
    """The start of the attribute ``com.apple.decmpfs``."""

    kind: int
    size: int
    """Of the file."""
    packed: bytes
    """What follows it: the content, for some kinds."""


def parse_header(raw: bytes) -> CompressionHeader:
    """Parse the attribute.

    Raises:
        VolumeError: it is damaged.
    """
    if len(raw) < _HEADER or raw[:4] != b"fpmc":
        raise VolumeError("the header of a compressed file is damaged")
    kind, size = struct.unpack_from("<IQ", raw, 4)
    if size >> 63:
        raise VolumeError(f"the header of a compressed file is damaged: {size} bytes")
    return CompressionHeader(kind, size, raw[_HEADER:])


def open_compressed(header: CompressionHeader, open_fork: Callable[[], Content]) -> Content:
    """Open the content of a compressed file; ``open_fork`` opens its resource fork.

    Raises:
        VolumeError: it is damaged, or compressed in a way that is not known here.
    """
    inline, in_fork = _INLINE.get(header.kind), _IN_FORK.get(header.kind)
    if inline is not None:
        if header.size > _MAX_INLINE:
            raise VolumeError(f"a compressed file is damaged: {header.size} bytes in an attribute")
        return BytesContent(inline(header.packed, header.size))
    if in_fork is None:
        what = _NAMES.get(header.kind, f"compressed in a way that is not known (type {header.kind})")
        raise VolumeError(f"the content is {what}; this is not supported")
    fork = open_fork()
    read_places = _zlib_places if header.kind == _ZLIB_FORK else _places
    return CompressedContent(fork, header.size, read_places(fork, -(-header.size // _BLOCK)), in_fork)


class CompressedContent:
    """Content in compressed blocks; each is decoded when it is read."""

    def __init__(
        self, fork: Content, size: int, places: list[tuple[int, int]], decode: Callable[[bytes, int], bytes]
    ) -> None:
        self._fork = fork
        self._places = places
        self._decode = decode
        self._blocks: SharedCache[int, bytes] = SharedCache(_CACHED_BLOCKS, lambda _: 1)
        self.size = size
        self.weight = len(places) + _CACHED_BLOCKS * _BLOCK // 32

    def read(self, offset: int, size: int) -> bytes:
        """See `Content.read`."""
        first, last = offset // _BLOCK, (offset + max(size, 1) - 1) // _BLOCK
        whole = b"".join(self._block(index) for index in range(first, last + 1)) if size else b""
        return whole[offset - first * _BLOCK :][:size]

    def _block(self, index: int) -> bytes:
        def make() -> bytes:
            offset, length = self._places[index]
            if length > 2 * _BLOCK or offset + length > self._fork.size:
                raise VolumeError(f"a compressed file is damaged: block {index} of {length} bytes")
            packed = self._fork.read(offset, length)
            return self._decode(packed, min(_BLOCK, self.size - index * _BLOCK))

        return self._blocks.get_or_make(index, make)

    def extents(self) -> Iterator[Extent]:
        """See `Content.extents`: all of it is DATA."""
        if self.size:
            yield Extent(0, self.size, ExtentKind.DATA)

    def placements(self) -> Iterator[tuple[int, int]]:
        """See `Content.placements`: those of the fork."""
        return self._fork.placements()


def _table(fork: Content, offset: int, size: int) -> bytes:
    if size > 8 * _MAX_BLOCKS or offset + size > fork.size:
        raise VolumeError("a compressed file is damaged: its table of blocks does not fit into its fork")
    return fork.read(offset, size)


def _zlib_places(fork: Content, count: int) -> list[tuple[int, int]]:
    """Read the table in the only resource of a fork: count, then place and length of each block."""
    (start,) = struct.unpack(">I", _table(fork, 0, 4))
    start += 4
    (found,) = struct.unpack("<I", _table(fork, start, 4))
    if found != count:
        raise VolumeError("a compressed file is damaged: it has another number of blocks")
    places = struct.iter_unpack("<II", _table(fork, start + 4, 8 * count))
    return [(start + offset, length) for offset, length in places]


def _places(fork: Content, count: int) -> list[tuple[int, int]]:
    """Read the table that begins a fork without resources: where each block starts, and the last one ends."""
    raw = _table(fork, 0, 4 * (count + 1)) if count else bytes(4)
    starts = [start for (start,) in struct.iter_unpack("<I", raw)]
    if count and (starts[0] != len(raw) or starts != sorted(starts)):
        raise VolumeError("a compressed file is damaged: it has another number of blocks")
    return [(start, end - start) for start, end in itertools.pairwise(starts)]


def _plain(packed: bytes, size: int) -> bytes:
    if len(packed) != size:
        raise VolumeError("a compressed file is damaged: it has another size")
    return packed


def _marked(packed: bytes, size: int) -> bytes:
    """Return a block that was not compressed, from behind its mark."""
    return _plain(packed[1:], size)


def _inflate(packed: bytes, size: int) -> bytes:
    if packed[:1] and packed[0] & 0xF == 0xF:
        return _marked(packed, size)
    try:
        raw = zlib.decompressobj().decompress(packed, size + 1)
    except zlib.error as error:
        raise VolumeError(f"a compressed file is damaged: {error}") from error
    if len(raw) != size:
        raise VolumeError("a compressed file is damaged: it has another size")
    return raw


def _lzvn(packed: bytes, size: int) -> bytes:
    if packed[:1] == b"\x06":
        return _marked(packed, size)
    out = bytearray()
    lzvn_decode(packed, out, size)
    return bytes(out)


def _lzfse(packed: bytes, size: int) -> bytes:
    return lzfse_decode(packed, size) if packed.startswith(b"bvx") else _marked(packed, size)


_INLINE = {1: _plain, 3: _inflate, 7: _lzvn, 9: _marked, 11: _lzfse}
_IN_FORK = {_ZLIB_FORK: _inflate, 8: _lzvn, 10: _marked, 12: _lzfse}
