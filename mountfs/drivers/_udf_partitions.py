"""Partitions of a UDF logical volume, and where their blocks lie on the medium.

A file names blocks of a partition by its reference. Plain partitions are one range of the medium; in
virtual ones (write-once media) a table moves single blocks, in sparable ones packets that wore out lie
elsewhere, and a metadata partition is the content of a file. Source: OSTA UDF 2.60, 2.2.8 to 2.2.13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from imageformat.errors import VolumeError

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Mapping

    from mountfs.drivers._content import RunList

_UNUSED = 0xFFFF_FFFF


class Partition(Protocol):
    """A range of blocks of ``block_size`` bytes. Any number of threads."""

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (place on the medium, length) for a range of bytes; `VolumeError` outside of it."""
        ...


class PlainPartition:
    """One range of the medium."""

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self._size = size

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """See `Partition.pieces`."""
        if offset + length > self._size:
            raise VolumeError(f"a file lies outside its partition ({offset}+{length} of {self._size} bytes)")
        yield self.start + offset, length


class VirtualPartition:
    """Blocks found through a table, in the plain partition of the same medium."""

    def __init__(self, table: array[int], plain: PlainPartition, block_size: int) -> None:
        self._table = table
        self._plain = plain
        self._block_size = block_size

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """See `Partition.pieces`."""
        while length > 0:
            block, start = divmod(offset, self._block_size)
            if block >= len(self._table) or self._table[block] == _UNUSED:
                raise VolumeError(f"the virtual block {block} is not in the table")
            size = min(length, self._block_size - start)
            yield from self._plain.pieces(self._table[block] * self._block_size + start, size)
            offset += size
            length -= size


class SparablePartition:
    """A plain partition, some packets of which lie elsewhere."""

    def __init__(self, plain: PlainPartition, packet_size: int, spared: Mapping[int, int]) -> None:
        self._plain = plain
        self._packet_size = packet_size
        self._spared = spared
        """Bytes on the medium by bytes in the partition, of whole packets."""

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """See `Partition.pieces`."""
        if not self._spared:
            yield from self._plain.pieces(offset, length)
            return
        while length > 0:
            start = offset % self._packet_size
            size = min(length, self._packet_size - start)
            elsewhere = self._spared.get(offset - start)
            if elsewhere is None:
                yield from self._plain.pieces(offset, size)
            else:
                yield elsewhere + start, size
            offset += size
            length -= size


class MetadataPartition:
    """The content of a file of the plain partition."""

    def __init__(self, runs: RunList) -> None:
        self._runs = runs

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """See `Partition.pieces`."""
        for run in self._runs.between(offset, length):
            if run.offset != offset:
                break
            yield run.source, run.length
            offset += run.length
            length -= run.length
        if length:
            raise VolumeError(f"byte {offset} of the metadata partition is not stored")
