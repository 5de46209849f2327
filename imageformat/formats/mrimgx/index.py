"""The block index of a partition, at any size: proven once as a stream, read in pages, never taken apart.

A volume of 120 GB has an index of 59 MB. It stays in its file. Opening it reads it once, holds it against
its MD5 and keeps, for each page of 2048 entries, a checksum and whether anything is in it.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from bisect import bisect_left
from collections import Counter
from itertools import chain, compress
from operator import le
from typing import TYPE_CHECKING, NamedTuple

from imageformat.codec import check64
from imageformat.device import MemoryDevice
from imageformat.errors import CorruptImageError, IncompleteImageError, UnsupportedFeatureError
from imageformat.formats.mrimgx.structs import DELTA_ENTRY_SIZE, ENTRY_SIZE, unpack_count, unpack_entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from imageformat.cache import BlockCache
    from imageformat.device import BlockDevice
    from imageformat.formats.mrimgx.member import Member, Stored
    from imageformat.formats.mrimgx.structs import Entry

PAGE = 2048
"""Entries in one page."""
_BATCH = 16
"""Pages read at once while an index is proven: 1 MB."""
_COUNT_SIZE = 4
_CHECK_SIZE = 8
_MAX_RESERVED = 1 << 14
"""Entries of the reserved area: 64 GiB of it."""
_MAX_SORTED = 64 << 20
"""Bytes of a delta index that is not in order, which is sorted in memory."""
_NUMBER = struct.Struct(f"<{ENTRY_SIZE}xI")
_TO_ONE = bytes([0]) + bytes([1]) * 255


def presence(entries: bytes, stride: int = ENTRY_SIZE) -> bytes:
    """Return one byte for each entry: 1 when its block is stored."""
    length = int.from_bytes(entries[24::stride], "little")
    for column in (25, 26, 27):
        length |= int.from_bytes(entries[column::stride], "little")
    return length.to_bytes(len(entries) // stride, "little").translate(_TO_ONE)


def file_numbers(entries: bytes, stride: int = ENTRY_SIZE) -> Counter[int]:
    """Return which files the stored blocks of the entries lie in, and how many of them."""
    pairs = zip(entries[28::stride], entries[29::stride], strict=True)
    found = Counter(compress(pairs, presence(entries, stride)))
    return Counter({low | high << 8: count for (low, high), count in found.items()})


def runs_of(marks: bytes | bytearray, first: int = 0) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of ones."""
    start = marks.find(1)
    while start >= 0:
        end = marks.find(0, start)
        end = len(marks) if end < 0 else end
        yield first + start, first + end
        start = marks.find(1, end)


class EntryTable:
    """A table of entries in a file, proven when it was opened. Any number of threads may call it at once."""

    def __init__(
        self, device: BlockDevice, offset: int, count: int, stride: int, cache: BlockCache, name: str
    ) -> None:
        self._device = device
        self._offset = offset
        self._stride = stride
        self._cache = cache
        self._name = name
        self.count = count
        self.pages = -(-count // PAGE)
        self.occupied = bytearray(self.pages)
        """1 for a page in which there is anything."""
        self._checks = bytearray()

    def scan(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """Read the whole table once; yield its bytes, and those of their pages in which there is anything."""
        size = PAGE * self._stride
        total = self.count * self._stride
        zeros = bytes(size)
        for start in range(0, total, _BATCH * size):
            batch = self._device.pread(self._offset + start, min(_BATCH * size, total - start))
            pages = [batch[at : at + size] for at in range(0, len(batch), size)]
            used = []
            for number, page in enumerate(pages, start // size):
                if page == zeros[: len(page)]:
                    self._checks += bytes(_CHECK_SIZE)
                else:
                    self.occupied[number] = 1
                    self._checks += check64(page)
                    used.append(page)
            yield batch, used

    def page(self, number: int) -> bytes:
        """Return the entries of a page, which are what they were when the table was proven.

        Raises:
            CorruptImageError: the file has changed, or is read wrongly now.
        """
        length = min(PAGE, self.count - number * PAGE) * self._stride
        if not self.occupied[number]:
            return bytes(length)
        return self._cache.get((self, number), lambda: self._read(number, length))

    def entry(self, number: int) -> bytes:
        """Return the bytes of one entry."""
        page, at = divmod(number, PAGE)
        return self.page(page)[at * self._stride : (at + 1) * self._stride]

    def block(self, number: int) -> int:
        """Return the block that an entry of a delta index replaces."""
        return int(_NUMBER.unpack(self.entry(number))[0])

    def blocks(self, page: int) -> Iterator[int]:
        """Yield the blocks that the entries of a page of a delta index replace."""
        for (block,) in _NUMBER.iter_unpack(self.page(page)):
            yield block

    def _read(self, number: int, length: int) -> bytes:
        offset = self._offset + number * PAGE * self._stride
        page = self._device.pread(offset, length)
        if check64(page) != self._checks[number * _CHECK_SIZE : (number + 1) * _CHECK_SIZE]:
            raise CorruptImageError(f"{self._name}: offset {offset}: its index changed while it was open")
        return page


class Delta:
    """The entries by which one file changes the index of those before it, in order of their blocks."""

    def __init__(self, table: EntryTable) -> None:
        self._table = table
        self._firsts = [table.block(page * PAGE) for page in range(table.pages)]
        self.end = table.block(table.count - 1) + 1 if table.count else 0
        """One more than the last block it speaks of."""

    def between(self, low: int, high: int) -> Iterator[tuple[int, bytes]]:
        """Yield block and entry of what it says of blocks from ``low`` up to ``high``."""
        table = self._table
        page = bisect_left(self._firsts, low)
        nearest = max(0, page - 1) * PAGE, min(page * PAGE, table.count)
        start = bisect_left(range(table.count), low, *nearest, key=table.block)
        for number in range(start, table.count):
            block = table.block(number)
            if block >= high:
                return
            yield block, table.entry(number)[:ENTRY_SIZE]

    def touched_pages(self) -> Iterator[int]:
        """Yield the pages of the complete index in which it changes anything; some more than once."""
        for page in range(self._table.pages):
            yield from {block // PAGE for block in self._table.blocks(page)}


class BlockMap:
    """Where every block of a partition lies: a complete index, and the changes to it, oldest first.

    Any number of threads may call it at once. Nothing is merged before it is asked for.
    """

    def __init__(
        self, base: EntryTable, deltas: Sequence[Delta], cache: BlockCache, numbers: frozenset[int]
    ) -> None:
        self.numbers = numbers
        """Files that any of them names; more than `file_numbers` when changes replaced entries."""
        self._base = base
        self._deltas = tuple(deltas)
        self._cache = cache
        self.count = max([base.count, *(delta.end for delta in deltas)])
        self.occupied = base.occupied + bytes(-(-self.count // PAGE) - base.pages)
        """1 for a page in which a block may be stored."""
        self._changed = bytearray(len(self.occupied))
        for page in chain.from_iterable(delta.touched_pages() for delta in deltas):
            self._changed[page] = self.occupied[page] = 1

    def page(self, number: int) -> bytes:
        """Return the complete entries of a page."""
        if self._changed[number]:
            return self._cache.get((self, number), lambda: self._merged(number))
        return self._old(number)

    def _old(self, number: int) -> bytes:
        length = min(PAGE, self.count - number * PAGE) * ENTRY_SIZE
        known = self._base.page(number) if number < self._base.pages else b""
        return known if len(known) == length else known.ljust(length, b"\0")

    def _merged(self, number: int) -> bytes:
        first = number * PAGE
        entries = bytearray(self._old(number))
        for delta in self._deltas:
            for block, entry in delta.between(first, first + PAGE):
                at = (block - first) * ENTRY_SIZE
                entries[at : at + ENTRY_SIZE] = entry
        return bytes(entries)

    def entries(self, first: int, end: int) -> Iterator[Entry]:
        """Yield the entries of blocks from ``first`` up to ``end``."""
        for number, low, high in _pages(first, end):
            page = self.page(number)
            for block in range(low, high):
                yield unpack_entry(page, block * ENTRY_SIZE)

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield start and end of the runs of stored blocks from ``first`` up to ``end``; two may touch."""
        number = self.occupied.find(1, first // PAGE)
        while 0 <= number * PAGE < end:
            start = number * PAGE
            low, high = max(first, start), min(end, start + PAGE, self.count)
            wanted = self.page(number)[(low - start) * ENTRY_SIZE : (high - start) * ENTRY_SIZE]
            yield from runs_of(presence(wanted), low)
            number = self.occupied.find(1, number + 1)

    def next_used(self, block: int) -> int:
        """Return a block from ``block`` on before which none is stored; `count` when none is at all."""
        page = self.occupied.find(1, block // PAGE)
        return max(block, page * PAGE) if page >= 0 else self.count

    def file_numbers(self) -> set[int]:
        """Return which files the stored blocks lie in: a look at every page."""
        used = (number for number, is_used in enumerate(self.occupied) if is_used)
        return set(chain.from_iterable(file_numbers(self.page(number)) for number in used))


def _pages(first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield page, first and end block inside of it for a range of blocks."""
    for number in range(first // PAGE, -(-end // PAGE)):
        start = number * PAGE
        yield number, max(first, start) - start, min(end, start + PAGE) - start


class Index(NamedTuple):
    """What the ``$INDEX`` of one file holds."""

    reserved: bytes
    """Entries of the reserved area, packed."""
    table: EntryTable | None
    """Of a complete index."""
    delta: Delta | None
    numbers: Counter[int]
    """Files in which its blocks lie, and how many."""


def open_index(member: Member, stored: Stored, limit: int, cache: BlockCache) -> Index:
    """Prove an index as a whole and open it.

    ``limit`` is how many blocks the partition can have.

    Raises:
        CorruptImageError: it is damaged, or contradicts itself.
        IncompleteImageError: it is that of a side file, which holds no blocks.
    """
    device, position, length = member.device, stored.position, stored.header.length
    is_delta = member.document.header.delta_index
    stride = DELTA_ENTRY_SIZE if is_delta else ENTRY_SIZE
    where = f"{member.name}: offset {position}"
    if length == _COUNT_SIZE:
        raise IncompleteImageError(f"{where}: its index is empty: a side file, not an image")
    head = device.pread(position, min(length, _COUNT_SIZE)).ljust(_COUNT_SIZE, b"\0")
    reserved = unpack_count(head)
    head_size = 2 * _COUNT_SIZE + ENTRY_SIZE * reserved
    if reserved > _MAX_RESERVED or head_size > length:
        raise CorruptImageError(f"{where}: its index of {length} bytes cannot list {reserved} segments")
    head = device.pread(position, head_size)
    count = unpack_count(head, head_size - _COUNT_SIZE)
    if head_size + count * stride != length:
        raise CorruptImageError(f"{where}: its index of {length} bytes cannot have {count} entries")
    checksum = hashlib.md5(head, usedforsecurity=False)
    entries = head[_COUNT_SIZE : head_size - _COUNT_SIZE]
    table = EntryTable(device, position + head_size, count, stride, cache, member.name)
    numbers: Counter[int] = Counter()
    for batch, pages in table.scan():
        checksum.update(batch)
        for page in pages:
            numbers += file_numbers(page, stride)
    if checksum.digest() != stored.header.md5:
        raise CorruptImageError(f"{where}: its index is damaged (MD5 differs)")
    delta = Delta(_ordered(table, limit, cache, where)) if is_delta else None
    return Index(entries, None if is_delta else table, delta, numbers)


def _ordered(table: EntryTable, limit: int, cache: BlockCache, where: str) -> EntryTable:
    """Return a table of changes in order of their blocks; those of one block stay as they were."""
    blocks = array("I", chain.from_iterable(table.blocks(page) for page in range(table.pages)))
    if blocks and max(blocks) >= limit:
        raise CorruptImageError(f"{where}: its index changes block {max(blocks)} of {limit}")
    order = sorted(range(len(blocks)), key=blocks.__getitem__) if not _is_ordered(blocks) else None
    if order is None:
        return table
    if len(blocks) * DELTA_ENTRY_SIZE > _MAX_SORTED:
        raise UnsupportedFeatureError(f"{where}: an index of {len(blocks)} changes out of order")
    packed = b"".join(table.entry(number) for number in order)
    ordered = EntryTable(MemoryDevice(packed), 0, len(order), DELTA_ENTRY_SIZE, cache, where)
    for _ in ordered.scan():
        pass
    return ordered


def _is_ordered(blocks: array[int]) -> bool:
    return all(map(le, blocks, blocks[1:]))
