"""What is to be written, cut into units, and which bytes of a unit differ from what stands there; pure.

A unit is what one worker reads, compares and writes, what a record keeps one digest of, and what is read back
at a time. Units lie on a grid of the target, so that the next run cuts the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from imageformat.extent import Extent, ExtentKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from imageformat.device import BlockDevice

UNIT = 2 << 20
"""Large enough for a disk, small enough that a few are in memory for each worker: less is slower to write."""
BLOCK = 4096
"""The smallest difference that is written by itself: what disks and file systems write."""
ZEROS = bytes(UNIT)
_ZEROED = frozenset({ExtentKind.ZERO, ExtentKind.BAD})


@dataclass(frozen=True, slots=True)
class Unit:
    """Bytes of the target inside one cell of the grid, or a longer run that reads as zeros."""

    parts: tuple[Extent, ...]
    """Ascending, DATA or ZERO; what is left out stays as it is on the target."""
    kept: bytes | None = None
    """Its digest in an earlier run."""

    @property
    def offset(self) -> int:
        """The first byte."""
        return self.parts[0].offset

    @property
    def size(self) -> int:
        """Bytes from the first to the last."""
        return self.parts[-1].end - self.parts[0].offset


def units(extents: Iterable[Extent], *, leave_unused: bool) -> Iterator[Unit]:
    """Cut ascending extents at the grid.

    What is not DATA is written as zeros, and whole cells of that stay together. So is BAD: of it nothing is
    known, and what the target held there would be worse. With ``leave_unused``, what the source left out is
    no part of any unit.
    """
    cell, parts = -1, list[Extent]()
    for extent in _as_written(extents, leave_unused=leave_unused):
        for part in _at_the_grid(extent):
            if part.offset // UNIT != cell or part.length > UNIT:
                if parts:
                    yield Unit(tuple(parts))
                cell, parts = part.offset // UNIT, []
            parts.append(part)
            if part.length > UNIT:
                yield Unit((part,))
                cell, parts = -1, []
    if parts:
        yield Unit(tuple(parts))


def _as_written(extents: Iterable[Extent], *, leave_unused: bool) -> Iterator[Extent]:
    for extent in extents:
        if extent.kind is ExtentKind.DATA:
            yield extent
        elif extent.kind in _ZEROED or not leave_unused:
            yield Extent(extent.offset, extent.length, ExtentKind.ZERO)


def _at_the_grid(extent: Extent) -> Iterator[Extent]:
    """Cut DATA at every line of the grid; of zeros the whole cells stay together."""
    offset = extent.offset
    while offset < extent.end:
        stop = min(extent.end, offset - offset % UNIT + UNIT)
        if extent.kind is ExtentKind.ZERO and offset % UNIT == 0:
            stop = max(stop, extent.end - extent.end % UNIT)
        yield Extent(offset, stop - offset, extent.kind)
        offset = stop


Read = list[bytes | None]
"""The bytes of each part of a unit; None for zeros, which need no reading."""


def read_unit(device: BlockDevice, unit: Unit) -> Read:
    """Read the DATA of a unit."""
    return [
        device.pread(part.offset, part.length) if part.kind is ExtentKind.DATA else None
        for part in unit.parts
    ]


def digest_of(unit: Unit, data: Read) -> bytes:
    """Return 16 bytes that stand for the places and kinds of the parts of a unit, and for their bytes."""
    state = xxhash.xxh3_128()
    for part, content in zip(unit.parts, data, strict=True):
        state.update(b"%d %d %s\n" % (part.offset, part.length, part.kind.value.encode()))
        state.update(content or b"")
    return state.digest()


def differing_runs(offset: int, wanted: bytes, found: bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, end) inside ``wanted`` of what differs, in whole blocks of the target's grid."""
    if wanted == found:
        return
    size, start, open_from = len(wanted), 0, -1
    wanted_view, found_view = memoryview(wanted), memoryview(found)
    while start < size:
        end = min(size, start + BLOCK - (offset + start) % BLOCK)
        differs = wanted_view[start:end] != found_view[start:end]
        if differs and open_from < 0:
            open_from = start
        elif not differs and open_from >= 0:
            yield open_from, start
            open_from = -1
        start = end
    if open_from >= 0:
        yield open_from, size


def not_zero(device: BlockDevice, part: Extent, read: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the blocks of a range that do not read as zeros; holes are not read.

    Args:
        device: Where the range lies.
        part: The range.
        read: Is told how many bytes were read.
    """
    for extent in device.extents(part.offset, part.length):
        if extent.kind is ExtentKind.ZERO:
            continue
        for start in range(extent.offset, extent.end, UNIT):
            length = min(UNIT, extent.end - start)
            found = device.pread(start, length)
            read(length)
            for first, last in differing_runs(start, ZEROS[:length], found):
                yield start + first, last - first
