"""Cloning a disk: the source as it has to stand on another disk, as one more thing that can be read.

Partitions keep their place in bytes. Tables are made for the size and the sectors of the target, the backup
of a GPT lies at its end, and identities are new, so that both disks can be attached at once. How that gets to
the target: `engine.writing`.
"""

from __future__ import annotations

import uuid
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.device import check_range
from imageformat.errors import NotFoundError, UnsupportedFeatureError
from imageformat.extent import Extent, ExtentKind, clip, coalesce, overlay
from imageformat.partitions.gptwriting import GptIds, rewrite_gpt
from imageformat.partitions.mbrwriting import rewrite_mbr

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from imageformat.device import BlockDevice
    from imageformat.partitions import PartitionTable
    from imageformat.partitions.layout import Rewritten

_BOOT_AREA = 16 << 20
"""Boot loaders lie between the table and the first partition, never farther behind."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a clone is to be."""

    numbers: frozenset[int] | None = None
    """The partitions that are taken along; None: all."""
    same_ids: bool = False
    raw: bool = False
    """Byte for byte, table, gaps and free space included."""


@dataclass(frozen=True, slots=True)
class TargetShape:
    """What a target is before the clone."""

    size: int
    sector_size: int
    table: PartitionTable | None = None
    """What it has now: its identities stay where the partitions do."""


@dataclass(frozen=True, slots=True)
class ClonePlan:
    """Where everything comes to lie, in bytes of the target."""

    size: int
    """Bytes of the target that are looked at."""
    needed: int
    """The end of what is written: no target may be smaller."""
    patches: tuple[tuple[int, bytes], ...]
    copied: tuple[tuple[int, int], ...]
    """(start, end) of what is the source's, ascending, apart, and outside of the patches."""
    volumes: tuple[int, ...]
    """Where partitions begin."""


def plan_clone(source: BlockDevice, table: PartitionTable, target: TargetShape, wish: Wish) -> ClonePlan:
    """Decide what goes where; reads only the tables of the source.

    Raises:
        NotFoundError: there is no partition of that number.
        TargetTooSmallError: a partition does not fit; none is cut.
        UnsupportedFeatureError: the table is damaged or of a kind that is not written, or something cannot
            lie on the sectors of the target.
    """
    _check_numbers(table, wish)
    if wish.raw or table.scheme == "none":
        return ClonePlan(source.size, source.size, (), ((0, source.size),), (0,))
    made = _rewritten(source, table, target, wish)
    for offset, size in made.ranges:
        if offset + size > source.size:
            raise UnsupportedFeatureError(
                f"a partition ends at byte {offset + size}, but the source has only {source.size} bytes"
            )
    starts = [entry.offset for entry in table.partitions] + [offset for offset, _ in made.patches if offset]
    head = len(made.patches[0][1])
    gap = (head, min(source.size, _BOOT_AREA, min(starts, default=head)))
    copied = [gap, *((offset, offset + size) for offset, size in made.ranges)]
    needed = max(end for _, end in copied)
    last = made.patches[-1]
    return ClonePlan(
        target.size,
        max(needed, last[0] + len(last[1])) if table.scheme == "mbr" else target.size,
        made.patches,
        tuple(_without(copied, made.patches)),
        tuple(offset for offset, _ in made.ranges),
    )


def _check_numbers(table: PartitionTable, wish: Wish) -> None:
    if wish.numbers is None:
        return
    if wish.raw:
        raise UnsupportedFeatureError("--raw copies the whole disk; leave out --partitions")
    known = {entry.number for entry in table.partitions if not entry.within}
    for number in sorted(wish.numbers - known):
        have = ", ".join(map(str, sorted(known))) or "none"
        raise NotFoundError(f"the source has no partition {number}; it has: {have}")


def _rewritten(source: BlockDevice, table: PartitionTable, target: TargetShape, wish: Wish) -> Rewritten:
    if table.scheme == "gpt":
        return rewrite_gpt(
            source,
            table.sector_size,
            size=target.size,
            target_sector_size=target.sector_size,
            numbers=wish.numbers,
            ids=GptIds() if wish.same_ids else _new_ids(table, target, wish.numbers),
        )
    if table.scheme == "mbr":
        return rewrite_mbr(
            source,
            table.sector_size,
            size=target.size,
            target_sector_size=target.sector_size,
            numbers=wish.numbers,
            signature=None if wish.same_ids else _new_signature(table, target, wish.numbers),
        )
    raise UnsupportedFeatureError(f"a disk with a table of the kind {table.scheme} is cloned only with --raw")


def _new_ids(table: PartitionTable, target: TargetShape, numbers: Collection[int] | None) -> GptIds:
    """Return new identities; those of an earlier clone on the target, if that is what it is."""
    there = target.table
    if there is not None and _is_clone(table, there, numbers):
        return GptIds(
            uuid.UUID(there.disk_id), {entry.number: uuid.UUID(entry.uuid) for entry in there.partitions}
        )
    return GptIds(uuid.uuid4(), {entry.number: uuid.uuid4() for entry in table.partitions})


def _new_signature(table: PartitionTable, target: TargetShape, numbers: Collection[int] | None) -> int:
    there = target.table
    if there is not None and _is_clone(table, there, numbers) and int(there.disk_id, 16):
        return int(there.disk_id, 16)
    return (uuid.uuid4().int & 0xFFFFFFFF) or 1


def _is_clone(table: PartitionTable, there: PartitionTable, numbers: Collection[int] | None) -> bool:
    """Whether a target has the partitions of the source, and identities of its own."""
    wanted = {
        (entry.number, entry.offset, entry.size, entry.type_id)
        for entry in table.partitions
        if numbers is None or entry.number in numbers
    }
    found = {(entry.number, entry.offset, entry.size, entry.type_id) for entry in there.partitions}
    return there.scheme == table.scheme and wanted == found and there.disk_id != table.disk_id


def _without(
    ranges: Iterable[tuple[int, int]], patches: Iterable[tuple[int, bytes]]
) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what the ranges cover and no patch does, ascending."""
    holes = [(offset, offset + len(data)) for offset, data in patches]
    reach = 0
    for start, end in sorted(ranges):
        position = max(start, reach)
        reach = max(reach, end)
        for first, last in holes:
            if first < end and position < last:
                if position < first:
                    yield position, first
                position = max(position, last)
        if position < end:
            yield position, end


class ClonedDisk:
    """The disk that a clone makes of its source; what it leaves alone on the target is UNUSED.

    A `BlockDevice`; the source stays the caller's.
    """

    def __init__(self, source: BlockDevice, plan: ClonePlan, unused: Iterable[Extent] = ()) -> None:
        self._source = source
        self._unused = unused
        self.size = plan.size
        self.block_size = source.block_size
        pieces: list[tuple[int, int, bytes | None]] = [
            (offset, offset + len(data), data) for offset, data in plan.patches
        ]
        self._pieces = sorted((*pieces, *((start, end, None) for start, end in plan.copied)), key=_start)
        self._starts = [start for start, _, _ in self._pieces]

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`; what is left alone reads as zeros."""
        check_range(self.size, offset, size)
        parts, position = [], offset
        for start, end, data in self._inside(offset, size):
            parts.append(bytes(start - position))
            parts.append(data if data is not None else self._source.pread(start, end - start))
            position = end
        parts.append(bytes(offset + size - position))
        return b"".join(parts)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`."""
        check_range(self.size, offset, size)
        return coalesce(self._extents(offset, size))

    def _extents(self, offset: int, size: int) -> Iterator[Extent]:
        position = offset
        for start, end, data in self._inside(offset, size):
            if position < start:
                yield Extent(position, start - position, ExtentKind.UNUSED)
            if data is not None:
                yield Extent(start, end - start, ExtentKind.DATA)
            else:
                found = self._source.extents(start, end - start)
                yield from overlay(found, clip(self._unused, start, end - start))
            position = end
        if position < offset + size:
            yield Extent(position, offset + size - position, ExtentKind.UNUSED)

    def _inside(self, offset: int, size: int) -> Iterator[tuple[int, int, bytes | None]]:
        """Yield (start, end, bytes or None for the source's) of the pieces of a range, cut to it."""
        for index in range(max(0, bisect_right(self._starts, offset) - 1), len(self._pieces)):
            start, end, data = self._pieces[index]
            first, last = max(start, offset), min(end, offset + size)
            if start >= offset + size:
                return
            if first < last:
                yield first, last, data[first - start : last - start] if data is not None else None

    def close(self) -> None:
        """The owner of the source closes it."""


def _start(piece: tuple[int, int, bytes | None]) -> int:
    return piece[0]
