"""Compressed files of EROFS: from the map of logical clusters to what each physical one decodes to.

Every logical cluster (a block of the file) either begins a physical cluster, at a byte of its own, or
belongs to the one before. The map is read in one pass into packed arrays. Source: the kernel's
documentation of the EROFS on-disk format, "Compressed data".
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import UnsupportedVolumeError, VolumeError
from imageformat.extent import Extent, ExtentKind
from mountfs.drivers._content import MAX_RUNS, read_at
from mountfs.drivers._decoders import require_lz4, unlz4
from mountfs.drivers._erofs_layout import COMPRESSED_FULL, ZERO_PADDING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from mountfs.drivers._erofs_layout import Inode, Superblock
    from mountfs.drivers._packed import PlainBlocks

_PLAIN, _HEAD, _INNER, _HEAD_2 = range(4)
_COMPACT_2 = 0x01
_BIG = 0x06
_INLINE = 0x08
_REFUSED = 0x30
"""Interlaced data, and fragments."""
_HAS_COUNT = 1 << 11
"""In an inner cluster that follows a head: the rest is the number of blocks of the physical cluster."""
_MAX_PLAIN = 16 << 20
"""Linux allows 12 MiB."""
_MAX_STORED = 1 << 20
_ALGORITHMS = {0: "LZ4", 1: "LZMA", 2: "deflate", 3: "zstd"}


class _Map(NamedTuple):
    """The header before the map."""

    advice: int
    log: int
    inline_size: int
    start: int
    """Place of the first entry."""


class _Cluster(NamedTuple):
    kind: int
    offset: int
    """Of a head: its first byte in the logical cluster."""
    blocks: int
    """Of an inner one: those of its physical cluster; 0: it does not say."""
    block: int
    """Of a head."""


class CompressedContent:
    """A `Content` of physical clusters, each decoded alone when it is asked for."""

    weight: int

    def __init__(self, device: BlockDevice, superblock: Superblock, inode: Inode, cache: PlainBlocks) -> None:
        self._device = device
        self._cache = cache
        self.size = inode.size
        self._starts = array("Q")
        self._kinds = array("B")
        self._places = array("Q")
        self._lengths = array("Q")
        self._read_map(superblock, inode)
        self.weight = 1 + 2 * len(self._starts)

    def read(self, offset: int, size: int) -> bytes:
        """See `Content.read`."""
        parts: list[bytes] = []
        end = offset + size
        index = bisect_right(self._starts, offset) - 1
        while offset < end:
            start, stop = self._starts[index], self._end(index)
            parts.append(self._plain(index)[offset - start : min(end, stop) - start])
            offset = stop
            index += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self) -> Iterator[Extent]:
        """See `Content.extents`."""
        if self.size:
            yield Extent(0, self.size, ExtentKind.DATA)

    def placements(self) -> Iterator[tuple[int, int]]:
        """See `Content.placements`."""
        return zip(self._places, self._lengths, strict=True)

    def _end(self, index: int) -> int:
        return self._starts[index + 1] if index + 1 < len(self._starts) else self.size

    def _plain(self, index: int) -> bytes:
        place, expected = self._places[index], self._end(index) - self._starts[index]
        plain = self._cache.get_or_make(place, lambda: self._decode(index, expected))
        if len(plain) != expected:
            raise VolumeError(f"the cluster at byte {place} has {len(plain)} bytes instead of {expected}")
        return plain

    def _decode(self, index: int, expected: int) -> bytes:
        place, length = self._places[index], self._lengths[index]
        if expected > _MAX_PLAIN or length > _MAX_STORED:
            raise VolumeError(f"the cluster at byte {place} claims {expected} bytes in {length}")
        if self._kinds[index] == _PLAIN:
            return read_at(self._device, place, min(expected, length), "a cluster")
        # What is shorter than its blocks stands at their end.
        return unlz4(read_at(self._device, place, length, "a cluster").lstrip(b"\0"), expected)

    def _read_map(self, superblock: Superblock, inode: Inode) -> None:
        if inode.size == 0:
            return
        header = _header(self._device, superblock, inode)
        size, count = 1 << header.log, -(-inode.size >> header.log)
        if count > MAX_RUNS:
            raise VolumeError(f"a file of {inode.size} bytes has {count} clusters")
        if inode.layout == COMPRESSED_FULL:
            clusters, end = _full(self._device, header, count)
        else:
            clusters, end = _compact(self._device, header, count)
        for number, cluster in enumerate(clusters):
            self._add(cluster, number * size, superblock.block_size)
        if not self._starts or self._starts[0]:
            raise VolumeError(f"the map of inode {inode.number} is damaged: it does not begin with a head")
        if header.inline_size:
            self._places[-1], self._lengths[-1] = end, header.inline_size

    def _add(self, cluster: _Cluster, offset: int, block_size: int) -> None:
        """Take the logical cluster at ``offset`` of the file; those of a damaged map may lie anywhere."""
        if cluster.kind == _INNER:
            if cluster.blocks and self._lengths:
                self._lengths[-1] = cluster.blocks * block_size
            return
        start = offset + cluster.offset
        if start >= self.size:
            return
        if self._starts and start <= self._starts[-1]:
            raise VolumeError(f"the map of a file is damaged at byte {offset}")
        self._starts.append(start)
        self._kinds.append(cluster.kind)
        self._places.append(cluster.block * block_size)
        self._lengths.append(block_size)


def _header(device: BlockDevice, superblock: Superblock, inode: Inode) -> _Map:
    place = -(-inode.tail // 8) * 8
    inline, advice, algorithms, clusters = struct.unpack("<2xHHBB", read_at(device, place, 8, "a map"))
    log = superblock.block_size.bit_length() - 1
    algorithm = algorithms & 15
    if advice & _REFUSED or clusters & 0x80:
        raise UnsupportedVolumeError("EROFS with fragments or interlaced data is not supported")
    if algorithm or algorithms >> 4:
        name = _ALGORITHMS.get(algorithm or algorithms >> 4, "an unknown algorithm")
        raise UnsupportedVolumeError(f"an EROFS file compressed by {name} is not supported; LZ4 is")
    if not superblock.features & ZERO_PADDING:
        raise UnsupportedVolumeError("LZ4 in the form of Linux 4.19 to 5.3 is not supported")
    require_lz4()
    legacy = 8 if inode.layout == COMPRESSED_FULL else 0
    return _Map(advice, log + (clusters & 7), inline if advice & _INLINE else 0, place + 8 + legacy)


def _full(device: BlockDevice, header: _Map, count: int) -> tuple[list[_Cluster], int]:
    raw = read_at(device, header.start, 8 * count, "a map")
    found = []
    for advice, offset, value in struct.iter_unpack("<HHI", raw):
        kind = advice & 3
        back = value & 0xFFFF
        blocks = back & ~_HAS_COUNT if back & _HAS_COUNT and header.advice & _BIG else 0
        found.append(_Cluster(kind, offset, blocks if kind == _INNER else 0, value))
    return found, header.start + 8 * count


def _compact(device: BlockDevice, header: _Map, count: int) -> tuple[list[_Cluster], int]:
    """Read packs of 2 clusters in 8 bytes, and in the middle of 16 in 32, aligned to their size."""
    first = min((32 - header.start % 32) // 4 % 8, count)
    dense = (count - first) // 16 * 16 if header.advice & _COMPACT_2 else 0
    if header.log > 14 or (dense and header.log > 12):
        raise VolumeError(f"a map is damaged: clusters of 2^{header.log} bytes")
    found: list[_Cluster] = []
    at = header.start
    for number, width, size in ((first, 2, 8), (dense, 16, 32), (count - first - dense, 2, 8)):
        packs = -(-number // width)
        raw = read_at(device, at, packs * size, "a map")
        for start in range(0, len(raw), size):
            found += _pack(raw[start : start + size], width, header)
        del found[count:]
        at += packs * size
    return found, at


def _pack(raw: bytes, width: int, header: _Map) -> Iterator[_Cluster]:
    """Unpack one pack; the blocks of its heads follow each other from the one that it ends with."""
    bits = (len(raw) - 4) * 8 // width
    packed = int.from_bytes(raw[:-4], "little")
    block = int.from_bytes(raw[-4:], "little")
    big = header.advice & _BIG
    low_bits = max(header.log, 12)
    taken = 0 if big else 1
    values = [packed >> bits * index for index in range(width)]
    for index, value in enumerate(values):
        low, kind = value & (1 << low_bits) - 1, value >> low_bits & 3
        if kind == _INNER:
            blocks = low & ~_HAS_COUNT if big and low & _HAS_COUNT else 0
            if blocks:
                taken += blocks - (1 if index else 0)
            yield _Cluster(kind, 0, blocks, 0)
        else:
            yield _Cluster(kind, low, 0, block + taken)
            taken += 1
