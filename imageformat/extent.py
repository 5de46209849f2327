"""Extents and pure interval algebra.

An extent says what a byte range of a device is. The kinds are never conflated: free space is not
zeros, and an unreadable sector is neither.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class ExtentKind(enum.Enum):
    """What a byte range holds."""

    DATA = "data"
    """Must be read."""
    ZERO = "zero"
    """Reads as zeros."""
    UNUSED = "unused"
    """Free in the file system, not stored; reads as zeros."""
    BAD = "bad"
    """Was unreadable at the source; reading it is an error."""
    EXCLUDED = "excluded"
    """Content of files that were left out on purpose, not stored; reading it is an error."""


NOT_STORED = frozenset({ExtentKind.ZERO, ExtentKind.UNUSED, ExtentKind.EXCLUDED})
"""What whoever writes a disk anew has no bytes for, and makes zeros of."""


class Extent(NamedTuple):
    """``length`` bytes at ``offset`` of one kind."""

    offset: int
    length: int
    kind: ExtentKind

    @property
    def end(self) -> int:
        """First byte after the extent."""
        return self.offset + self.length


def clip(extents: Iterable[Extent], offset: int, size: int) -> Iterator[Extent]:
    """Cut ascending extents to the range ``[offset, offset + size)``."""
    end = offset + size
    for extent in extents:
        start, stop = max(extent.offset, offset), min(extent.end, end)
        if start < stop:
            yield Extent(start, stop - start, extent.kind)


def shift(extents: Iterable[Extent], distance: int) -> Iterator[Extent]:
    """Move every extent by ``distance`` bytes."""
    for extent in extents:
        yield Extent(extent.offset + distance, extent.length, extent.kind)


def coalesce(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours of the same kind; the input is ascending and contiguous."""
    pending: Extent | None = None
    for extent in extents:
        if not extent.length:
            continue
        if pending is not None and pending.kind is extent.kind and pending.end == extent.offset:
            pending = Extent(pending.offset, pending.length + extent.length, pending.kind)
            continue
        if pending is not None:
            yield pending
        pending = extent
    if pending is not None:
        yield pending


def overlay(extents: Iterable[Extent], known_better: Iterable[Extent]) -> Iterator[Extent]:
    """Say of the DATA in ``extents`` what ``known_better`` says of it: that it is UNUSED, or EXCLUDED.

    What is known to be zeros, or bad, stays that.

    Both are ascending and do not overlap themselves; the result covers what ``extents`` covers.
    """
    better = iter(known_better)
    known = next(better, None)
    for extent in extents:
        position = extent.offset
        while extent.kind is ExtentKind.DATA and position < extent.end:
            while known is not None and known.end <= position:
                known = next(better, None)
            if known is None or known.offset >= extent.end:
                break
            start, stop = max(known.offset, position), min(known.end, extent.end)
            if position < start:
                yield Extent(position, start - position, ExtentKind.DATA)
            yield Extent(start, stop - start, known.kind)
            position = stop
        if position < extent.end:
            yield Extent(position, extent.end - position, extent.kind)
