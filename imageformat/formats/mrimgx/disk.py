"""A disk put together from the parts of an image, each painted over those before it.

First the start of the disk, then boot records, then for each partition its reserved area and its blocks.
A block that is not stored leaves what is below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from imageformat.device import check_range
from imageformat.errors import CorruptImageError
from imageformat.extent import Extent, ExtentKind, coalesce
from imageformat.formats.mrimgx.blocks import Wanted
from imageformat.formats.mrimgx.structs import ENTRY_SIZE, RESERVED_SEGMENT, unpack_entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from imageformat.cache import BlockCache
    from imageformat.formats.mrimgx.blocks import BlockReader
    from imageformat.formats.mrimgx.index import BlockMap

_WINDOW = 1 << 30
"""Extents are worked out for so much of the disk at a time."""


class Paint(Protocol):
    """One part of a disk. Any number of threads may call it at once."""

    @property
    def start(self) -> int:
        """First byte of the disk that may be in it."""
        ...

    @property
    def end(self) -> int:
        """First byte after the last that may be in it."""
        ...

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges between ``start`` and ``end``, which lie in it, that it holds; ascending."""
        ...

    def next(self, start: int) -> int:
        """Return a place from ``start`` on before which it holds nothing."""
        ...

    def read(self, start: int, end: int) -> bytes:
        """Return bytes of a range that it holds."""
        ...


class Bytes:
    """A few bytes from the metadata."""

    def __init__(self, start: int, content: bytes) -> None:
        self.start = start
        self.end = start + len(content)
        self._content = content

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See `Paint.runs`."""
        yield start, end

    def next(self, start: int) -> int:
        """See `Paint.next`."""
        return max(start, self.start)

    def read(self, start: int, end: int) -> bytes:
        """See `Paint.read`."""
        return self._content[start - self.start : end - self.start]


class Reserved:
    """What lies before the first cluster of a FAT volume: segments of 4 MiB."""

    def __init__(
        self, start: int, length: int, entries: bytes, reader: BlockReader, cache: BlockCache
    ) -> None:
        self.start = start
        self.end = start + length
        self._entries = entries
        self._reader = reader
        self._cache = cache
        if -(-length // RESERVED_SEGMENT) * ENTRY_SIZE > len(entries):
            raise CorruptImageError(
                f"{len(entries) // ENTRY_SIZE} segments cannot hold a reserved area of {length} bytes"
            )

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See `Paint.runs`."""
        yield start, end

    def next(self, start: int) -> int:
        """See `Paint.next`."""
        return max(start, self.start)

    def read(self, start: int, end: int) -> bytes:
        """See `Paint.read`."""
        start, end = start - self.start, end - self.start
        first = start // RESERVED_SEGMENT
        segments = range(first, -(-end // RESERVED_SEGMENT))
        data = b"".join(self._segment(number) for number in segments)
        skip = start - first * RESERVED_SEGMENT
        return data[skip : skip + end - start]

    def _segment(self, number: int) -> bytes:
        return self._cache.get((self, number), lambda: self._load(number))

    def _load(self, number: int) -> bytes:
        least = min(RESERVED_SEGMENT, self.end - self.start - number * RESERVED_SEGMENT)
        entry = unpack_entry(self._entries, number * ENTRY_SIZE)
        return self._reader.load((Wanted(entry, number, RESERVED_SEGMENT, least),))[0]


class Blocks:
    """The blocks of a partition; block 0 begins at ``first``, and nothing is shown from ``end`` on."""

    def __init__(
        self,
        first: int,
        end: int,
        block_size: int,
        index: BlockMap,
        reader: BlockReader,
        cache: BlockCache | None,
    ) -> None:
        self.start = first
        self.end = max(first, min(end, first + index.count * block_size))
        self._limit = end
        self._block_size = block_size
        self._index = index
        self._reader = reader
        self._cache = cache
        """Keeps plain blocks; None when whoever reads asks for whole blocks anyway."""

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See `Paint.runs`."""
        first, last = self._blocks(start, end)
        for low, high in self._index.runs(first, last):
            yield (
                max(start, self.start + low * self._block_size),
                min(end, self.start + high * self._block_size),
            )

    def next(self, start: int) -> int:
        """See `Paint.next`."""
        block = max(0, start - self.start) // self._block_size
        return max(start, self.start + self._index.next_used(block) * self._block_size)

    def _blocks(self, start: int, end: int) -> tuple[int, int]:
        return (start - self.start) // self._block_size, -(-(end - self.start) // self._block_size)

    def read(self, start: int, end: int) -> bytes:
        """See `Paint.read`."""
        first, last = self._blocks(start, end)
        if self._cache is None:
            blocks = self._load(range(first, last))
        else:
            keys = [(self, number) for number in range(first, last)]
            blocks = self._cache.get_many(keys, lambda missing: self._load([first + at for at in missing]))
        data = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        skip = start - self.start - first * self._block_size
        return data[skip : skip + end - start] if skip or len(data) != end - start else data

    def _load(self, numbers: Sequence[int]) -> list[bytes]:
        entries = self._index.entries(numbers[0], numbers[-1] + 1)
        asked = frozenset(numbers)
        wanted = [
            Wanted(entry, number, self._block_size, self._least(number))
            for number, entry in enumerate(entries, numbers[0])
            if number in asked
        ]
        # A last block that is stored short ends where its file system does: nothing is stored after it.
        return [block.ljust(self._block_size, b"\0") for block in self._reader.load(wanted)]

    def _least(self, number: int) -> int:
        return 1 if number == self._index.count - 1 else self._block_size


class MacriumDisk:
    """A disk as it was at a point in time. Any number of threads may call it at once."""

    def __init__(
        self, size: int, block_size: int, paints: Sequence[Paint], partitions: Sequence[tuple[int, int]]
    ) -> None:
        self.size = size
        self.block_size = block_size
        self._paints = tuple(reversed(paints))
        """The topmost first."""
        self._partitions = tuple(sorted(partitions))
        """Start and end of each that was imaged: what is not stored there is unused."""

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        parts: list[bytes] = []
        position = offset
        for start, end, paint in self._painted(offset, offset + size):
            parts.extend((bytes(start - position), paint.read(start, end)))
            position = end
        parts.append(bytes(offset + size - position))
        return b"".join(parts)

    def _painted(self, start: int, end: int) -> list[tuple[int, int, Paint]]:
        """Return what shows of each part in a range; ascending, with gaps where nothing is stored."""
        found: list[tuple[int, int, Paint]] = []
        bare = [(start, end)] if start < end else []
        for paint in self._paints:
            if paint.end <= start or paint.start >= end:
                continue
            left: list[tuple[int, int]] = []
            for low, high in bare:
                position = low
                inner = max(low, paint.start), min(high, paint.end)
                for first, last in paint.runs(*inner) if inner[0] < inner[1] else ():
                    if position < first:
                        left.append((position, first))
                    found.append((first, last, paint))
                    position = last
                if position < high:
                    left.append((position, high))
            bare = left
        return _joined(found)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`."""
        check_range(self.size, offset, size)
        return coalesce(self._windows(offset, offset + size))

    def _windows(self, start: int, end: int) -> Iterator[Extent]:
        """Describe a range piece by piece; where nothing is stored for long, in one step."""
        while start < end:
            stored = min(
                (paint.next(start) for paint in self._paints if start < paint.end), default=self.size
            )
            if stored > start:
                yield from self._bare(start, min(stored, end))
            start, stop = stored, min(stored + _WINDOW, end)
            if start < stop:
                yield from self._window(start, stop)
                start = stop

    def _window(self, start: int, end: int) -> Iterator[Extent]:
        position = start
        for first, last, _ in self._painted(start, end):
            yield from self._bare(position, first)
            yield Extent(first, last - first, ExtentKind.DATA)
            position = last
        yield from self._bare(position, end)

    def _bare(self, start: int, end: int) -> Iterator[Extent]:
        """Tell what a range of which nothing is stored is: unused in a partition, else zero."""
        for first, last in self._partitions:
            low, high = max(start, first), min(end, last)
            if low < high:
                if start < low:
                    yield Extent(start, low - start, ExtentKind.ZERO)
                yield Extent(low, high - low, ExtentKind.UNUSED)
                start = high
        if start < end:
            yield Extent(start, end - start, ExtentKind.ZERO)

    def close(self) -> None:
        """Whoever opened the files closes them."""


def _joined(found: list[tuple[int, int, Paint]]) -> list[tuple[int, int, Paint]]:
    """Sort, and join neighbours of one part, so that they are read together."""
    joined: list[tuple[int, int, Paint]] = []
    for start, end, paint in sorted(found, key=lambda piece: piece[0]):
        if joined and joined[-1][1] == start and joined[-1][2] is paint:
            joined[-1] = joined[-1][0], end, paint
        else:
            joined.append((start, end, paint))
    return joined
