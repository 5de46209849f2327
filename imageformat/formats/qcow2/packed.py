"""Compressed clusters of qcow2: raw deflate or zstd, followed by whatever fills the sector.

Source: "docs/interop/qcow2" of QEMU, section Cluster mapping.
"""

from __future__ import annotations

import threading
import zlib
from functools import partial
from typing import TYPE_CHECKING

import zstandard

from imageformat.errors import CorruptImageError, IncompleteImageError
from imageformat.formats._runs import BLOCK_SIZE
from imageformat.formats.qcow2.structs import ZSTD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from imageformat.cache import BlockCache
    from imageformat.device import BlockDevice
    from imageformat.formats._runs import Run
    from imageformat.formats.qcow2.structs import Header

_SECTOR = 512
_RUN = 4 << 20
"""Compressed clusters that lie within so many bytes of the file are read together."""


class _ThreadState(threading.local):
    """zstandard's objects must not be shared between threads."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()


_state = _ThreadState()


def unpack_cluster(compression: int, stored: bytes, cluster_size: int) -> bytes:
    """Return exactly ``cluster_size`` bytes; never allocates more. Thread-safe.

    What follows the end of the stream is ignored: how long it is, is only known in sectors.

    Raises:
        CorruptImageError: the bytes are no such stream, or one of another length.
    """
    try:
        plain = _zstd(stored, cluster_size) if compression == ZSTD else _deflate(stored, cluster_size)
    except (zlib.error, zstandard.ZstdError) as error:
        raise CorruptImageError(f"compressed cluster cannot be decoded: {error}") from error
    if len(plain) != cluster_size:
        raise CorruptImageError(f"compressed cluster has {len(plain)} bytes instead of {cluster_size}")
    return plain


def _deflate(stored: bytes, cluster_size: int) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, cluster_size)


def _zstd(stored: bytes, cluster_size: int) -> bytes:
    stated = zstandard.frame_content_size(stored)
    if stated == cluster_size:
        return _state.decompressor.decompress(stored)
    # A frame need not state its length, and a cluster may be made of several.
    with _state.decompressor.stream_reader(stored, read_across_frames=True) as reader:
        parts: list[bytes] = []
        missing = cluster_size
        while missing and (part := reader.read(missing)):
            parts.append(part)
            missing -= len(part)
    return b"".join(parts)


class PackedClusters:
    """The compressed clusters of an image. Any number of threads may call it at once."""

    def __init__(self, device: BlockDevice, header: Header, cache: BlockCache, name: str) -> None:
        self._device = device
        self._header = header
        self._cache = cache
        self._name = name
        self._owner = object()
        """Tells this image's clusters from those of others in the cache."""
        self._shift = 62 - (header.cluster_bits - 8)

    def unpack(self, runs: Sequence[Run]) -> Iterator[bytes]:
        """Read and decode neighbouring clusters, with one read for those that lie close in the file.

        Raises:
            CorruptImageError, IncompleteImageError: one cannot be decoded, or lies after the end of the file.
        """
        if self._header.cluster_size > BLOCK_SIZE:
            for run in runs:
                yield self._part(run, self._large_cluster(run))
            return
        start = 0
        while start < len(runs):
            begin, end = self.place(runs[start])
            stop = start + 1
            while stop < len(runs):
                first, last = self.place(runs[stop])
                if first < begin or last - begin > _RUN or first > end + BLOCK_SIZE:
                    break
                end = max(end, last)
                stop += 1
            stored = self._device.pread(begin, end - begin)
            for run in runs[start:stop]:
                first, last = self.place(run)
                yield self._part(run, self._decode(run, stored[first - begin : last - begin]))
            start = stop

    def _large_cluster(self, run: Run) -> bytes:
        """Return a cluster that is larger than a block: its neighbours are asked for next."""
        return self._cache.get((self._owner, run.place), partial(self._load_cluster, run))

    def _load_cluster(self, run: Run) -> bytes:
        begin, end = self.place(run)
        return self._decode(run, self._device.pread(begin, end - begin))

    def _part(self, run: Run, cluster: bytes) -> bytes:
        if run.length == len(cluster):
            return cluster
        skip = run.offset % len(cluster)
        return cluster[skip : skip + run.length]

    def place(self, run: Run) -> tuple[int, int]:
        """Return where a compressed cluster begins and ends; the file may end inside its last sector.

        Raises:
            IncompleteImageError: it begins after the end of the file.
        """
        begin = run.place & ((1 << self._shift) - 1)
        end = begin - begin % _SECTOR + ((run.place >> self._shift) + 1) * _SECTOR
        if begin >= self._device.size:
            raise IncompleteImageError(
                f"{self._name}: disk offset {run.offset}: is kept at {begin}, after the end of the file"
            )
        return begin, min(end, self._device.size)

    def _decode(self, run: Run, stored: bytes) -> bytes:
        try:
            return unpack_cluster(self._header.compression, stored, self._header.cluster_size)
        except CorruptImageError as error:
            raise CorruptImageError(f"{self._name}: disk offset {run.offset}: {error}") from error
