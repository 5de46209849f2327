"""The log of a VHDX file that was not closed: found, proven, and laid over the file in memory.

Source: [MS-VHDX] section 2.3. The log is a ring of 4 KiB sectors; the active sequence is the newest run of
entries that are all whole. Nothing is written.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from imageformat.device import check_range
from imageformat.errors import CorruptImageError, IncompleteImageError, UnsupportedFeatureError
from imageformat.extent import Extent, ExtentKind
from imageformat.formats.vhdx.structs import MIB, Header, checked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

SECTOR = 4096
MAX_LOG_SIZE = 64 << 20
"""Hyper-V makes logs of 1 MiB, and qemu as well."""
_MAX_WORK = 8
"""Bytes that may be checksummed for each byte of the log: a sound log needs two."""
_MAX_OFFSET = 1 << 63
_ENTRY = struct.Struct("<4sIIIQI4x16sQQ")
_DESCRIPTOR = struct.Struct("<4s4sQQQ")
_DESCRIPTORS_OFFSET = 64


class Entry(NamedTuple):
    """A whole and proven log entry."""

    log: bytes
    start: int
    size: int
    tail: int
    sequence: int
    descriptors: int
    flushed_size: int
    last_size: int
    content: bytes


class _Ring:
    """The log's bytes, and the entries in them."""

    def __init__(self, name: str, content: bytes, log: bytes) -> None:
        self.size = len(content)
        self._name = name
        self._twice = memoryview(content + content)
        self._log = log
        self._left = _MAX_WORK * len(content)

    def entry(self, start: int, *, of_any_log: bool = False) -> Entry | None:
        """Return the entry at ``start`` if there is one, of this log, whole, with a fitting checksum."""
        signature, _, size, tail, sequence, count, log, flushed, last = _ENTRY.unpack_from(self._twice, start)
        if signature != b"loge" or not sequence or not (of_any_log or log == self._log):
            return None
        if not SECTOR <= size <= self.size or size % SECTOR or tail % SECTOR or tail >= self.size:
            return None
        if _DESCRIPTORS_OFFSET + count * _DESCRIPTOR.size > size:
            return None
        self._left -= size
        if self._left < 0:
            raise CorruptImageError(f"{self._name}: the log is a maze of overlapping entries")
        content = bytes(self._twice[start : start + size])
        if not checked(content):
            return None
        return Entry(log, start, size, tail, sequence, count, flushed, last, content)

    def sequence(self, start: int) -> list[Entry]:
        """Return the entries that follow each other from ``start`` on."""
        found: list[Entry] = []
        length = 0
        while length < self.size:
            entry = self.entry((start + length) % self.size)
            if entry is None or (found and entry.sequence != found[-1].sequence + 1):
                break
            if length + entry.size > self.size:
                break
            found.append(entry)
            length += entry.size
        return found

    def is_fresh(self) -> bool:
        """Tell whether nothing was ever logged here but whole entries of earlier logs."""
        at = 0
        while at < self.size:
            entry = self.entry(at, of_any_log=True)
            if entry is not None and entry.log != self._log:
                at += entry.size
            elif any(self._twice[at : at + SECTOR]):
                return False
            else:
                at += SECTOR
        return True


def active_sequence(name: str, content: bytes, log: bytes) -> list[Entry]:
    """Return the entries to be replayed, oldest first. Section 2.3.2.

    There are none when the writer died after it named its log and before it wrote to it.

    Raises:
        CorruptImageError: there are none, and something else than earlier logs is there.
    """
    ring = _Ring(name, content, log)
    best: list[Entry] = []
    start = 0
    while start < ring.size:
        found = ring.sequence(start)
        if not found:
            start += SECTOR
            continue
        starts = [entry.start for entry in found]
        head = found[-1]
        if head.tail in starts and (not best or head.sequence > best[-1].sequence):
            best = found[starts.index(head.tail) :]
        start += sum(entry.size for entry in found)
    if not best and not ring.is_fresh():
        raise CorruptImageError(f"{name}: was not closed, and its log holds no whole sequence to replay")
    return best


class _Write(NamedTuple):
    offset: int
    length: int
    content: bytes | None
    """None: zeros."""

    @property
    def end(self) -> int:
        return self.offset + self.length


def _writes(name: str, entry: Entry) -> Iterator[_Write]:
    """Yield what an entry writes. Sections 2.3.1.2 to 2.3.1.4."""
    descriptors_end = _DESCRIPTORS_OFFSET + entry.descriptors * _DESCRIPTOR.size
    data_at = -(-descriptors_end // SECTOR) * SECTOR
    for at in range(_DESCRIPTORS_OFFSET, descriptors_end, _DESCRIPTOR.size):
        signature, trailing, middle, offset, sequence = _DESCRIPTOR.unpack_from(entry.content, at)
        if sequence != entry.sequence or offset % SECTOR or offset >= _MAX_OFFSET:
            raise CorruptImageError(f"{name}: log entry {entry.sequence} has a damaged descriptor")
        if signature == b"zero":
            if middle % SECTOR or middle >= _MAX_OFFSET:
                raise CorruptImageError(f"{name}: log entry {entry.sequence} writes {middle} zeros")
            if middle:
                yield _Write(offset, middle, None)
        elif signature == b"desc":
            sector = entry.content[data_at : data_at + SECTOR]
            data_at += SECTOR
            halves = sector[4:8] + sector[-4:]
            if (
                len(sector) != SECTOR
                or sector[:4] != b"data"
                or struct.unpack("<II", halves) != (sequence >> 32, sequence & 0xFFFF_FFFF)
            ):
                raise CorruptImageError(f"{name}: log entry {entry.sequence} has a torn sector")
            yield _Write(offset, SECTOR, middle.to_bytes(8, "little") + sector[8:-4] + trailing)
        else:
            raise CorruptImageError(f"{name}: log entry {entry.sequence} has an unknown descriptor")


def _laid_over(writes: Iterator[_Write]) -> list[_Write]:
    """Return what is left of the writes: ascending, none over another; the later one wins."""
    starts: list[int] = []
    found: list[_Write] = []
    for write in writes:
        first = max(0, bisect_right(starts, write.offset) - 1)
        if first < len(found) and found[first].end <= write.offset:
            first += 1
        last = bisect_left(starts, write.end)
        kept = [write]
        if first < last:
            before, after = found[first], found[last - 1]
            if before.offset < write.offset:
                kept.insert(0, _cut(before, before.offset, write.offset))
            if after.end > write.end:
                kept.append(_cut(after, write.end, after.end))
        found[first:last] = kept
        starts[first:last] = [entry.offset for entry in kept]
    return found


def _cut(write: _Write, start: int, end: int) -> _Write:
    content = write.content
    if content is not None:
        content = content[start - write.offset : end - write.offset]
    return _Write(start, end - start, content)


class Replayed:
    """The file as it is once its log is replayed. Closing it closes the file."""

    def __init__(self, device: BlockDevice, writes: list[_Write], size: int) -> None:
        self._device = device
        self._writes = writes
        self._starts = [write.offset for write in writes]
        self.size = size
        self.block_size = device.block_size

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`; where the file was to grow, it reads as zeros."""
        check_range(self.size, offset, size)
        held = max(0, min(size, self._device.size - offset))
        content = self._device.pread(offset, held) if held else b""
        content += bytes(size - held)
        end = offset + size
        at = max(0, bisect_right(self._starts, offset) - 1)
        parts, position = [], offset
        for write in self._writes[at : bisect_left(self._starts, end)]:
            start, stop = max(write.offset, offset), min(write.end, end)
            if start < stop:
                parts.append(content[position - offset : start - offset])
                inner = None if write.content is None else write.content[start - write.offset :]
                parts.append(bytes(stop - start) if inner is None else inner[: stop - start])
                position = stop
        parts.append(content[position - offset :])
        return b"".join(parts)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`; it all counts as DATA."""
        check_range(self.size, offset, size)
        if size:
            yield Extent(offset, size, ExtentKind.DATA)

    def close(self) -> None:
        """See `BlockDevice.close`."""
        self._device.close()


def replayed(name: str, device: BlockDevice, header: Header) -> BlockDevice:
    """Return the file as it is once its log is replayed; the file itself when the log is empty.

    Raises:
        CorruptImageError: the log is damaged.
        IncompleteImageError: the file lacks its log, or what was in it when the log was written.
        UnsupportedFeatureError: the log is larger than `MAX_LOG_SIZE`.
    """
    if not header.log.int:
        return device
    offset, size = header.log_offset, header.log_size
    if offset < MIB or offset % MIB or not size or size % MIB:
        raise CorruptImageError(f"{name}: log at {offset} of {size} bytes makes no sense")
    if size > MAX_LOG_SIZE:
        raise UnsupportedFeatureError(f"{name}: log of {size >> 20} MiB; at most {MAX_LOG_SIZE >> 20}")
    if offset + size > device.size:
        raise IncompleteImageError(f"{name}: was cut short: its log ends at {offset + size}")
    entries = active_sequence(name, device.pread(offset, size), header.log.bytes_le)
    if not entries:
        return device
    if device.size < entries[-1].flushed_size:
        raise IncompleteImageError(
            f"{name}: was cut short: has {device.size} bytes of the {entries[-1].flushed_size} "
            "that were written before its log"
        )
    writes = _laid_over(write for entry in entries for write in _writes(name, entry))
    grown = max(device.size, entries[-1].last_size, writes[-1].end if writes else 0)
    return Replayed(device, writes, grown)
