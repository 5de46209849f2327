"""Where the clusters of a qcow2 disk lie: L1 and L2 tables, read in pieces and kept packed.

Source: "docs/interop/qcow2" of QEMU, sections Cluster mapping and Extended L2 Entries.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, IncompleteImageError
from imageformat.formats._runs import Kind, Run, joined

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.cache import BlockCache
    from imageformat.device import BlockDevice
    from imageformat.formats.qcow2.structs import Header

_PIECE = 16 << 10
"""Bytes of a table that are read at once: for clusters of 64 KiB they describe 128 MiB."""

_COPIED = 1 << 63
_COMPRESSED = 1 << 62
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_READS_ZERO = 1
_L1_RESERVED = 0x7F00_0000_0000_01FF
_L2_RESERVED = 0x3F00_0000_0000_01FE
_SUBCLUSTERS = 32
_ALL = (1 << _SUBCLUSTERS) - 1


class ClusterMap:
    """The active mapping of an image. Any number of threads may call it at once."""

    def __init__(self, device: BlockDevice, header: Header, cache: BlockCache, name: str) -> None:
        self._device = device
        self._header = header
        self._cache = cache
        self._name = name
        self._cluster = header.cluster_size
        self._span = header.entries_per_table * header.cluster_size
        self._entry_size = 16 if header.extended else 8
        self.owner = object()
        """Tells this image's pieces of tables from those of others in the cache."""

    def runs(self, offset: int, size: int) -> Iterator[Run]:
        """Describe a range: ascending, contiguous, neighbours of one kind joined where they can be.

        Raises:
            CorruptImageError: a table has an entry that makes no sense.
            IncompleteImageError: a table lies after the end of the file.
        """
        return joined(self._parts(offset, offset + size))

    def _parts(self, offset: int, end: int) -> Iterator[Run]:
        while offset < end:
            number = offset // self._span
            stop = min(end, (number + 1) * self._span)
            table = self._table(number)
            if table:
                yield from self._described(table, offset, stop)
            else:
                yield Run(Kind.ABSENT, offset, stop - offset, 0)
            offset = stop

    def _table(self, number: int) -> int:
        """Return where the L2 table with that number is; 0 when there is none."""
        start = number * 8 // _PIECE * _PIECE
        piece = self._piece(self._header.l1_offset + start, min(_PIECE, self._header.l1_entries * 8 - start))
        (entry,) = struct.unpack_from(">Q", piece, number * 8 - start)
        table: int = entry & _OFFSET
        if entry & _L1_RESERVED or table % self._cluster:
            raise CorruptImageError(f"{self._name}: entry {number} of the L1 table is {entry:#x}")
        if table and table + self._cluster > self._device.size:
            raise IncompleteImageError(
                f"{self._name}: L2 table {number} at {table} lies after the end of the file"
            )
        return table

    def _described(self, table: int, offset: int, stop: int) -> Iterator[Run]:
        """Describe a range of one L2 table."""
        piece_size = min(_PIECE, self._cluster)
        per_piece = piece_size // self._entry_size
        parts = self._subclusters if self._header.extended else self._clusters
        while offset < stop:
            number = offset // self._cluster % self._header.entries_per_table
            start = number // per_piece
            covered = min(stop, (offset // self._cluster + per_piece - number % per_piece) * self._cluster)
            piece = self._piece(table + start * piece_size, piece_size)
            yield from parts(piece, number % per_piece, offset, covered)
            offset = covered

    def _piece(self, offset: int, size: int) -> bytes:
        return self._cache.get((self.owner, offset), partial(self._device.pread, offset, size))

    def _clusters(self, piece: bytes, first: int, offset: int, stop: int) -> Iterator[Run]:
        cluster = self._cluster
        count = -(-stop // cluster) - offset // cluster
        for entry in struct.unpack_from(f">{count}Q", piece, first * 8):
            skip = offset % cluster
            length = min(cluster - skip, stop - offset)
            if entry == 0:
                yield Run(Kind.ABSENT, offset, length, 0)
            elif entry & _COMPRESSED:
                yield Run(Kind.PACKED, offset, length, self._packed(entry, offset))
            elif entry & _READS_ZERO and self._header.version > 2:
                self._place(entry, offset)
                yield Run(Kind.ZERO, offset, length, 0)
            elif (place := self._place(entry, offset)) is None:
                yield Run(Kind.ABSENT, offset, length, 0)
            else:
                yield Run(Kind.STORED, offset, length, place + skip)
            offset += length

    def _subclusters(self, piece: bytes, first: int, offset: int, stop: int) -> Iterator[Run]:
        cluster = self._cluster
        count = -(-stop // cluster) - offset // cluster
        words = struct.unpack_from(f">{2 * count}Q", piece, first * 16)
        for entry, bitmap in zip(words[::2], words[1::2], strict=True):
            end = min(stop, (offset // cluster + 1) * cluster)
            if entry & _COMPRESSED:
                yield Run(Kind.PACKED, offset, end - offset, self._packed(entry, offset))
            else:
                if entry & _READS_ZERO:
                    raise self._senseless(entry, offset)
                yield from self._bits(bitmap, self._place(entry, offset), offset, end)
            offset = end

    def _bits(self, bitmap: int, place: int | None, offset: int, end: int) -> Iterator[Run]:
        """Describe a range of one cluster by the bits of its subclusters."""
        stored, zero = bitmap & _ALL, bitmap >> _SUBCLUSTERS
        if stored & zero or (stored and place is None):
            raise CorruptImageError(f"{self._name}: disk offset {offset}: subclusters {bitmap:#018x}")
        unit = self._cluster // _SUBCLUSTERS
        while offset < end:
            skip = offset % self._cluster
            bit = 1 << skip // unit
            stop = min(end, offset - offset % unit + unit)
            if stored & bit and place is not None:
                yield Run(Kind.STORED, offset, stop - offset, place + skip)
            else:
                yield Run(Kind.ZERO if zero & bit else Kind.ABSENT, offset, stop - offset, 0)
            offset = stop

    def _place(self, entry: int, offset: int) -> int | None:
        """Return where a plain cluster is; None for one that is not allocated."""
        place: int = entry & _OFFSET
        if entry & _L2_RESERVED or place % self._cluster:
            raise self._senseless(entry, offset)
        if place or (entry & _COPIED and self._header.external):
            return place
        if entry & _COPIED and not entry & _READS_ZERO:
            raise self._senseless(entry, offset)
        return None

    def _packed(self, entry: int, offset: int) -> int:
        """Return the descriptor of a compressed cluster."""
        if self._header.external:
            raise self._senseless(entry, offset)
        return entry & (_COMPRESSED - 1)

    def _senseless(self, entry: int, offset: int) -> CorruptImageError:
        return CorruptImageError(f"{self._name}: disk offset {offset}: its L2 entry is {entry:#x}")
