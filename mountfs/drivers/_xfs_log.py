"""The journal of an XFS: where it ends, its records, and the transactions that they hold.

A record begins with a header that says where the oldest record lies that is still needed (its tail). The
first word of every sector is the number of the round in which it was written, so that the end can be found;
what stood there lies in the header. What a record holds is a stream of operations of several transactions.

Source: "XFS Algorithms & Data Structures", section Journaling Log.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imageformat.crc32c import crc32c
from imageformat.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SECTOR = 512
_MAGIC = 0xFEED_BABE
_MAGIC_BYTES = _MAGIC.to_bytes(4, "big")
_HEADER = struct.Struct(">IIIIQQIII")
"""Magic, round, version, length, own place, tail, checksum, previous block, number of operations."""
_CHECKSUM_AT = 32
_WORDS_AT, _WORDS = 44, 64
"""The words that the numbers of rounds replaced: in the header, and from byte 4 on in each of its further
sectors."""
_HEADER_SIZES = (328, 324)
"""How much of the header the checksum covers, on machines of 64 and of 32 bits."""
_LITTLE_ENDIAN = 1
_LONGEST_RECORD = 256 * 1024
_RECORDS_IN_FLIGHT = 8
_IN_FLIGHT = _RECORDS_IN_FLIGHT * (_LONGEST_RECORD // SECTOR + 8)
"""Records, and their sectors, that may be written at once, in any order, when the machine stops."""
_LOOK_BACK = _LONGEST_RECORD // SECTOR + 64
_OPERATION = struct.Struct(">IIBBH")
_START, _COMMIT, _CONTINUES, _CONTINUED, _END, _UNMOUNT = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20
_TRANSACTION_MAGIC = 0x5452_414E
_TRANSACTION_HEADER = 16
_MAX_REGIONS = 4096
_LONGEST_REGION = 1 << 20
_MAX_PENDING = 256 << 20
"""Bytes of transactions that are not yet complete."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record: its sectors, and what its header says."""

    block: int
    cycle: int
    header_sectors: int
    length: int
    place: int
    """Round and block, as metadata has it: a later record has a greater one."""
    tail: int
    operations: int

    @property
    def sectors(self) -> int:
        """How many it takes."""
        return self.header_sectors + -(-self.length // SECTOR)


@dataclass(frozen=True, slots=True)
class Transaction:
    """A committed transaction: items, each of a format and the regions that it describes."""

    place: int
    items: Sequence[Sequence[bytes]]


@dataclass(slots=True)
class _Pending:
    place: int
    head: bytes = b""
    items: list[list[bytes]] = field(default_factory=list)
    missing: int = 0
    """Regions that the last item still lacks."""
    size: int = 0


class Log:
    """A journal of ``sectors`` sectors; ``read(offset, size)`` reads it, wherever it lies."""

    def __init__(self, read: Callable[[int, int], bytes], sectors: int, uuid: bytes) -> None:
        self._read = read
        self._sectors = sectors
        self._uuid = uuid

    def is_clean(self) -> bool:
        """Tell from a few sectors whether it was closed; False also when that is not sure."""
        head = self._rough_head()
        if head is None:
            return True
        last = self._last_record(head, _LOOK_BACK)
        return last is not None and self._closes(last)

    def needed(self) -> list[Record]:
        """Return the records to be replayed, oldest first; none when the journal was closed.

        Raises:
            VolumeError: it is damaged.
        """
        head = None if self.is_clean() else self._rough_head()
        if head is None:
            return []
        head = self._first_gap(head)
        for _ in range(_RECORDS_IN_FLIGHT + 1):
            last = self._last_record(head, self._sectors)
            if last is None:
                return []
            if not self._is_whole(last):
                head = last.block
                continue
            if self._closes(last):
                return []
            records, torn = self._walk(last)
            if torn is None:
                return records
            head = torn
        raise VolumeError("the journal is damaged: its end is not found")

    def transactions(self, records: Sequence[Record]) -> Iterator[Transaction]:
        """Yield the committed transactions of records, in their order.

        Raises:
            VolumeError: they are damaged.
        """
        open_ones: dict[int, _Pending] = {}
        for record in records:
            yield from self._operations(record, open_ones)

    def _sector(self, block: int) -> bytes:
        return self._read(block * SECTOR, SECTOR)

    def _around(self, block: int, count: int) -> bytes:
        """Read sectors from ``block`` on; behind the last comes the first."""
        block %= self._sectors
        first = min(count, self._sectors - block)
        raw = self._read(block * SECTOR, first * SECTOR)
        return raw + self._read(0, (count - first) * SECTOR) if count > first else raw

    def _cycle(self, block: int) -> int:
        return _cycle(self._sector(block))

    def _rough_head(self) -> int | None:
        """Find the first sector of the round before this, by halving; None when nothing was ever written."""
        first, last = self._cycle(0), self._cycle(self._sectors - 1)
        if first == 0:
            return None
        if first == last:
            return self._sectors
        low, high = 0, self._sectors - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._cycle(middle) == first else (low, middle)
        return high

    def _first_gap(self, head: int) -> int:
        """Find an older sector among those that may have been written out of order."""
        count = min(_IN_FLIGHT, self._sectors - 1)
        raw = self._around(head - count, count)
        wrapped = count - head
        newest = self._cycle((head - 1) % self._sectors)
        for number in range(count):
            expected = newest - 1 if number < wrapped else newest
            if _cycle(raw[number * SECTOR : number * SECTOR + 8]) < expected:
                return (head - count + number) % self._sectors
        return head

    def _last_record(self, head: int, most: int) -> Record | None:
        """Find the last record that begins before ``head``, within ``most`` sectors."""
        step = 64
        for back in range(0, min(most, self._sectors), step):
            count = min(step, self._sectors - back)
            raw = self._around(head - back - count, count)
            for number in range(count - 1, -1, -1):
                if raw.startswith(_MAGIC_BYTES, number * SECTOR):
                    block = (head - back - count + number) % self._sectors
                    record = self._header(block, raw[number * SECTOR : (number + 1) * SECTOR])
                    if record is not None:
                        return record
        return None

    def _header(self, block: int, raw: bytes) -> Record | None:
        _, cycle, version, length, place, tail, _, _, operations = _HEADER.unpack_from(raw)
        (kind, uuid, size) = struct.unpack_from(">I16sI", raw, 300)
        if not raw.startswith(_MAGIC_BYTES) or place != cycle << 32 | block or version not in {1, 2}:
            return None
        if not 0 < length <= _LONGEST_RECORD:
            return None
        if kind != _LITTLE_ENDIAN or uuid != self._uuid:
            raise VolumeError("the journal was written by another machine, or for another volume")
        sectors = -(-size // (_WORDS * SECTOR)) if version == 2 and _LONGEST_RECORD >= size > 0 else 1
        return Record(block, cycle, sectors, length, place, tail, operations)

    def _closes(self, record: Record) -> bool:
        """Whether a record says that the volume was unmounted."""
        if record.operations != 1 or record.length < _OPERATION.size:
            return False
        raw = self._around(record.block + record.header_sectors, 1)
        return bool(raw[9] & _UNMOUNT)

    def _is_whole(self, record: Record) -> bool:
        """Whether all sectors of a record are there, and are what was written."""
        raw = self._around(record.block, record.sectors)
        for number in range(1, record.sectors):
            wrapped = record.block + number >= self._sectors
            if _cycle(raw[number * SECTOR : number * SECTOR + 8]) != record.cycle + wrapped:
                return False
        (stored,) = struct.unpack_from("<I", raw, _CHECKSUM_AT)
        return stored == 0 or any(_checksum(raw, record, size) == stored for size in _HEADER_SIZES)

    def _walk(self, last: Record) -> tuple[list[Record], int | None]:
        """Collect the records from the tail to ``last``, and where the first that is torn begins."""
        found: list[Record] = []
        block, left = last.tail & 0xFFFF_FFFF, self._sectors
        if block >= self._sectors:
            raise VolumeError("the journal is damaged: it begins behind its end")
        while left > 0:
            record = last if block == last.block else self._header(block, self._sector(block))
            if record is None or not self._is_whole(record):
                if not self._may_be_torn(block, last):
                    raise VolumeError(f"the journal is damaged at sector {block}")
                return found, block
            if found and record.place <= found[-1].place:
                raise VolumeError(f"the journal is damaged: out of order at sector {block}")
            found.append(record)
            if record is last:
                return found, None
            left -= record.sectors
            block = (block + record.sectors) % self._sectors
        raise VolumeError("the journal is damaged: its records do not lead to its end")

    def _may_be_torn(self, block: int, last: Record) -> bool:
        """Whether so few records begin from ``block`` on that the machine may have stopped while it wrote."""
        distance = (last.block - block) % self._sectors
        if distance > _IN_FLIGHT:
            return False
        raw = self._around(block, distance + 1)
        begun = sum(raw.startswith(_MAGIC_BYTES, at) for at in range(0, len(raw), SECTOR))
        return begun <= _RECORDS_IN_FLIGHT

    def _operations(self, record: Record, open_ones: dict[int, _Pending]) -> Iterator[Transaction]:
        raw = self._data(record)
        at = 0
        for _ in range(record.operations):
            if at + _OPERATION.size > len(raw):
                raise VolumeError("the journal is damaged: an operation does not fit")
            identity, length, _, flags, _ = _OPERATION.unpack_from(raw, at)
            at += _OPERATION.size
            data = raw[at : at + length]
            at += length
            if len(data) != length:
                raise VolumeError("the journal is damaged: an operation does not fit")
            if flags & _COMMIT and identity in open_ones:
                yield _committed(open_ones.pop(identity))
            else:
                _take(open_ones, identity, flags, data, record.place)
        if sum(pending.size for pending in open_ones.values()) > _MAX_PENDING:
            raise VolumeError(f"the journal has more than {_MAX_PENDING} bytes of open transactions")

    def _data(self, record: Record) -> bytes:
        """Return the operations, with the words put back that the numbers of rounds replaced."""
        raw = self._around(record.block, record.sectors)
        data = bytearray(raw[record.header_sectors * SECTOR :])
        for number in range(len(data) // SECTOR):
            header, word = divmod(number, _WORDS)
            if header >= record.header_sectors:
                raise VolumeError("the journal is damaged: a record is longer than its header")
            at = _WORDS_AT + word * 4 if header == 0 else header * SECTOR + 4 + word * 4
            data[number * SECTOR : number * SECTOR + 4] = raw[at : at + 4]
        return bytes(data[: record.length])


def _cycle(raw: bytes) -> int:
    """In which round a sector was written."""
    first, second = struct.unpack_from(">II", raw)
    return int(second if first == _MAGIC else first)


def _checksum(raw: bytes, record: Record, header_size: int) -> int:
    """Of the header, the words in its further sectors, and the data as it lies there."""
    head = raw[:_CHECKSUM_AT] + bytes(4) + raw[_CHECKSUM_AT + 4 : header_size]
    used = min(record.header_sectors, -(-record.length // (_WORDS * SECTOR)))
    words = [raw[number * SECTOR : number * SECTOR + 4 + 4 * _WORDS] for number in range(1, used)]
    start = record.header_sectors * SECTOR
    return crc32c(b"".join((head, *words, raw[start : start + record.length])))


def _take(open_ones: dict[int, _Pending], identity: int, flags: int, data: bytes, place: int) -> None:
    """Give an operation to its transaction; one that began before the tail is not needed."""
    pending = open_ones.get(identity)
    if pending is None:
        if flags & _START:
            open_ones[identity] = _Pending(place)
    elif flags & _START:
        raise VolumeError("the journal is damaged: a transaction begins twice")
    elif flags & _UNMOUNT:
        del open_ones[identity]
    elif flags & _CONTINUED:
        _go_on(pending, data)
    elif data:
        _add(pending, data)


def _add(pending: _Pending, data: bytes) -> None:
    """Take the next region; the first of all is the header of the transaction."""
    if len(pending.head) < _TRANSACTION_HEADER:
        if pending.head or len(data) > _TRANSACTION_HEADER:
            raise VolumeError("the journal is damaged: a transaction without a header")
        pending.head = data
        return
    if pending.missing == 0:
        (count,) = struct.unpack_from("<H", data.ljust(4, b"\0"), 2)
        if not 0 < count <= _MAX_REGIONS:
            raise VolumeError(f"the journal is damaged: an item of {count} regions")
        pending.missing = count
        pending.items.append([])
    pending.items[-1].append(data)
    pending.missing -= 1
    pending.size += len(data)


def _go_on(pending: _Pending, data: bytes) -> None:
    """Take the rest of a region that the record before could not hold."""
    if len(pending.head) < _TRANSACTION_HEADER:
        pending.head += data
    elif not pending.items:
        raise VolumeError("the journal is damaged: a region goes on that never began")
    else:
        pending.items[-1][-1] += data
        pending.size += len(data)
        if len(pending.items[-1][-1]) > _LONGEST_REGION:
            raise VolumeError("the journal is damaged: a region is too long")


def _committed(pending: _Pending) -> Transaction:
    if pending.missing:
        raise VolumeError("the journal is damaged: a transaction is not complete")
    if pending.head and struct.unpack_from("<I", pending.head.ljust(4, b"\0"))[0] != _TRANSACTION_MAGIC:
        raise VolumeError("the journal is damaged: a transaction without a header")
    return Transaction(pending.place, pending.items)
