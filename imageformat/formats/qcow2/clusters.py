"""Where the clusters of a qcow2 disk lie: L1 and L2 tables, read in pieces and kept packed.

Source: "docs/interop/qcow2" of QEMU, sections Cluster mapping and Extended L2 Entries.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, IncompleteImageError, MountfsError
from imageformat.formats._runs import Kind, Run, joined
from imageformat.formats._tables import PIECE, Tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.cache import BlockCache
    from imageformat.device import BlockDevice
    from imageformat.formats.qcow2.structs import Header

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
        self._file_size = device.size
        self._tables = Tables(device, cache, name, 8, "big")
        self._header = header
        self._name = name
        self._cluster = header.cluster_size
        self.span = header.entries_per_table * header.cluster_size
        self._entry_size = 16 if header.extended else 8

    def runs(self, offset: int, size: int) -> Iterator[Run]:
        """Describe a range: ascending, contiguous, neighbours of one kind joined where they can be.

        Raises:
            CorruptImageError: a table has an entry that makes no sense.
            IncompleteImageError: a table lies after the end of the file.
        """
        if 0 < size <= self._cluster - offset % self._cluster and not self._header.extended:
            return iter((self._one(offset, size),))
        return joined(self._parts(offset, offset + size))

    def _parts(self, offset: int, end: int) -> Iterator[Run]:
        while offset < end:
            number = offset // self.span
            stop = min(end, (number + 1) * self.span)
            table = self.table(number)
            if table:
                yield from self._described(table, offset, stop)
            else:
                yield Run(Kind.ABSENT, offset, stop - offset, 0)
            offset = stop

    def _one(self, offset: int, size: int) -> Run:
        """Describe a range inside one cluster: what almost every read of a block asks for."""
        table = self.table(offset // self.span)
        if not table:
            return Run(Kind.ABSENT, offset, size, 0)
        entries = self._header.entries_per_table
        entry = self._tables.entry(table, entries, offset // self._cluster % entries)
        return self._run(entry, offset, size)

    def table(self, number: int) -> int:
        """Return where the L2 table with that number is, which describes `span` bytes; 0 when there is none.

        Raises:
            CorruptImageError, IncompleteImageError: the entry makes no sense, or leads out of the file.
        """
        entry = self._tables.entry(self._header.l1_offset, self._header.l1_entries, number)
        table = entry & _OFFSET
        if entry & _L1_RESERVED or table % self._cluster:
            raise CorruptImageError(f"{self._name}: entry {number} of the L1 table is {entry:#x}")
        if table and table + self._cluster > self._file_size:
            raise IncompleteImageError(
                f"{self._name}: L2 table {number} at {table} lies after the end of the file"
            )
        return table

    def begins_packed(self) -> bool:
        """Tell whether the first cluster that is there is compressed: mostly all are, or none.

        Looks at one piece of a table each. False for an image whose tables are damaged there.
        """
        first = min(PIECE // 8, self._header.l1_entries, -(-self._header.size // self.span))
        with suppress(MountfsError):
            number = next((number for number in range(first) if self.table(number)), None)
            if number is not None:
                start, size = number * self.span, PIECE // self._entry_size * self._cluster
                for run in self.runs(start, min(size, self._header.size - start)):
                    if run.kind in {Kind.STORED, Kind.PACKED}:
                        return run.kind is Kind.PACKED
        return False

    def _described(self, table: int, offset: int, stop: int) -> Iterator[Run]:
        """Describe a range of one L2 table."""
        piece_size = min(PIECE, self._cluster)
        per_piece = piece_size // self._entry_size
        parts = self._subclusters if self._header.extended else self._clusters
        while offset < stop:
            number = offset // self._cluster % self._header.entries_per_table
            start = number // per_piece
            covered = min(stop, (offset // self._cluster + per_piece - number % per_piece) * self._cluster)
            piece = self._tables.piece(table + start * piece_size, piece_size)
            yield from parts(piece, number % per_piece, offset, covered)
            offset = covered

    def _clusters(self, piece: bytes, first: int, offset: int, stop: int) -> Iterator[Run]:
        cluster = self._cluster
        count = -(-stop // cluster) - offset // cluster
        for entry in struct.unpack_from(f">{count}Q", piece, first * 8):
            skip = offset % cluster
            length = min(cluster - skip, stop - offset)
            yield self._run(entry, offset, length)
            offset += length

    def _run(self, entry: int, offset: int, length: int) -> Run:
        """Describe a range inside one cluster by its entry."""
        if entry == 0:
            return Run(Kind.ABSENT, offset, length, 0)
        if entry & _COMPRESSED:
            return Run(Kind.PACKED, offset, length, self._packed(entry, offset))
        place = self._place(entry, offset)
        if entry & _READS_ZERO:
            if self._header.version == 2:
                raise self._senseless(entry, offset)
            return Run(Kind.ZERO, offset, length, 0)
        if place is None:
            return Run(Kind.ABSENT, offset, length, 0)
        return Run(Kind.STORED, offset, length, place + offset % self._cluster)

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
        if self._header.external and (place or entry & _COPIED):
            if place != offset - offset % self._cluster:
                raise self._senseless(entry, offset)
            return place
        if place:
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
