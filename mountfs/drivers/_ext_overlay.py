"""A volume with the blocks that its journal holds newer copies of: replayed in memory, nothing is copied."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from imageformat.device import check_range
from imageformat.errors import CorruptImageError
from imageformat.extent import Extent, ExtentKind, coalesce
from mountfs.drivers._content import read_at
from mountfs.drivers._ext_checksum import crc32c

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice

JOURNAL_MAGIC = b"\xc0\x3b\x39\x98"


class Copy(NamedTuple):
    """The newest copy of a block in a journal."""

    source: int
    """Where it lies on the volume, in bytes."""
    transaction: int
    escaped: bool
    """Its first four bytes were cleared, because they look like the journal's own."""
    checksum: int


class Proof(NamedTuple):
    """How copies are proven: by CRC-32C over transaction number and content, from a seed."""

    seed: int
    mask: int
    """Which bits of it are stored; 0: there are no checksums."""


class OverlaidDevice:
    """A `BlockDevice` whose blocks come from the journal where it holds them, and else from the volume.

    A copy whose checksum is wrong is an error when it is read. Closing it leaves the volume open.
    """

    def __init__(
        self, device: BlockDevice, block_size: int, copies: Mapping[int, Copy], proof: Proof
    ) -> None:
        self._device = device
        self._proof = proof
        self.size = device.size
        self.block_size = block_size
        self._blocks = array("Q", sorted(copies))
        found = [copies[block] for block in self._blocks]
        self._sources = array("Q", (copy.source | copy.escaped for copy in found))
        self._proofs = array("Q", (copy.transaction << 32 | copy.checksum for copy in found))

    def _within(self, offset: int, end: int) -> Iterator[int]:
        """Yield the indexes of the copies that touch a range."""
        index = bisect_left(self._blocks, offset // self.block_size)
        while index < len(self._blocks) and self._blocks[index] * self.block_size < end:
            yield index
            index += 1

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        parts: list[bytes] = []
        position, end = offset, offset + size
        for index in self._within(offset, end):
            start = self._blocks[index] * self.block_size
            if start > position:
                parts.append(self._device.pread(position, start - position))
                position = start
            stop = min(end, start + self.block_size)
            parts.append(self._copy(index)[position - start : stop - start])
            position = stop
        if not parts:
            return self._device.pread(offset, size)
        if position < end:
            parts.append(self._device.pread(position, end - position))
        return b"".join(parts)

    def _copy(self, index: int) -> bytes:
        source, proof = self._sources[index], self._proofs[index]
        raw = read_at(self._device, source & ~1, self.block_size, "a block of the journal")
        if self._proof.mask:
            state = crc32c(self._proof.seed, struct.pack(">I", proof >> 32))
            if (crc32c(state, raw) ^ proof) & self._proof.mask:
                raise CorruptImageError(
                    f"block {self._blocks[index]} of the file system has a damaged copy in its journal"
                )
        return JOURNAL_MAGIC + raw[4:] if source & 1 else raw

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`: what the journal holds is DATA."""
        check_range(self.size, offset, size)
        return coalesce(self._extents(offset, size))

    def _extents(self, offset: int, size: int) -> Iterator[Extent]:
        position, end = offset, offset + size
        for index in self._within(offset, end):
            start = max(position, self._blocks[index] * self.block_size)
            if start > position:
                yield from self._device.extents(position, start - position)
            stop = min(end, (self._blocks[index] + 1) * self.block_size)
            yield Extent(start, stop - start, ExtentKind.DATA)
            position = stop
        if position < end:
            yield from self._device.extents(position, end - position)

    def close(self) -> None:
        """The owner of the volume closes it."""
