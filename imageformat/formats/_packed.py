"""Compressed clusters: those that lie close together in the file are read together."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, IncompleteImageError
from imageformat.formats._runs import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from imageformat.cache import BlockCache
    from imageformat.device import BlockDevice
    from imageformat.formats._runs import Run

_RUN = 4 << 20
"""So many bytes of the file are read at once at most, unless one cluster has more."""


class PackedClusters:
    """The compressed clusters of an image. Any number of threads may call it at once.

    ``locate`` turns the place of a run into where its cluster begins and ends in the file; ``decode`` returns
    exactly ``cluster_size`` bytes, or raises `CorruptImageError` without a place. The disk is read in blocks
    of ``block_size``.
    """

    def __init__(
        self,
        device: BlockDevice,
        cache: BlockCache,
        name: str,
        cluster_size: int,
        locate: Callable[[int], tuple[int, int]],
        decode: Callable[[bytes], bytes],
        block_size: int = BLOCK_SIZE,
    ) -> None:
        self._device = device
        self._cache = cache
        self._name = name
        self._locate = locate
        self._decode = decode
        self._large = cluster_size > block_size
        self._owner = object()
        """Tells this image's clusters from those of others in the cache."""

    def unpack(self, runs: Sequence[Run]) -> Iterator[bytes]:
        """Read and decode neighbouring clusters.

        Raises:
            CorruptImageError, IncompleteImageError: one cannot be decoded, or lies after the end of the file.
        """
        if self._large:
            for run in runs:
                yield self._part(run, self._whole(run))
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
                yield self._part(run, self._decoded(run, stored[first - begin : last - begin]))
            start = stop

    def _whole(self, run: Run) -> bytes:
        """Return a cluster that is larger than a block: its other blocks are asked for next."""
        return self._cache.get((self._owner, run.place), partial(self._load, run))

    def _load(self, run: Run) -> bytes:
        begin, end = self.place(run)
        return self._decoded(run, self._device.pread(begin, end - begin))

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
        begin, end = self._locate(run.place)
        if begin >= self._device.size:
            raise IncompleteImageError(
                f"{self._name}: disk offset {run.offset}: is kept at {begin}, after the end of the file"
            )
        return begin, min(end, self._device.size)

    def _decoded(self, run: Run, stored: bytes) -> bytes:
        try:
            return self._decode(stored)
        except CorruptImageError as error:
            raise CorruptImageError(f"{self._name}: disk offset {run.offset}: {error}") from error
