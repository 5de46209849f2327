"""Free ranges in packed arrays: a fragmented volume has millions of them."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from imageformat.extent import Extent, ExtentKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_RANGES = 4_000_000
"""64 MB; a volume with more is imaged whole."""
_CLEAR = re.compile("0+")


class FreeMap:
    """Ranges in bytes, ascending and apart. Iterates as extents of one kind, any number of times."""

    def __init__(self, kind: ExtentKind = ExtentKind.UNUSED) -> None:
        self._kind = kind
        self._starts = array("Q")
        self._ends = array("Q")
        self.total = 0
        """Bytes in them."""

    def __iter__(self) -> Iterator[Extent]:
        for start, end in zip(self._starts, self._ends, strict=True):
            yield Extent(start, end - start, self._kind)

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, length: int) -> None:
        """Append a range that lies behind all others; a neighbour is joined.

        Raises:
            VolumeError: it does not, or there are more than `MAX_RANGES`.
        """
        if length <= 0:
            return
        last = self._ends[-1] if self._ends else 0
        if start < last:
            raise VolumeError(f"its free space is recorded twice at byte {start}")
        self.total += length
        if self._ends and start == last:
            self._ends[-1] += length
            return
        if len(self._starts) >= MAX_RANGES:
            raise VolumeError(f"its free space lies in more than {MAX_RANGES} pieces")
        self._starts.append(start)
        self._ends.append(start + length)

    def meets(self, start: int, length: int) -> bool:
        """Tell whether a byte of the range is free."""
        index = bisect_right(self._starts, start + length - 1) - 1
        return length > 0 and index >= 0 and self._ends[index] > start

    def without(self, taken: Iterable[tuple[int, int]]) -> FreeMap:
        """Return what is left of it without ranges (start, length) in any order; they may overlap."""
        left = FreeMap()
        ranges = iter(sorted(taken))
        start, length = next(ranges, (1 << 64, 0))
        for free in self:
            position = free.offset
            while position < free.end:
                if start + length <= position:
                    start, length = next(ranges, (1 << 64, 0))
                    continue
                left.add(position, min(start, free.end) - position)
                position = min(max(position, start + length), free.end) if start < free.end else free.end
        return left


def clear_runs(bitmap: bytes, count: int) -> Iterator[tuple[int, int]]:
    """Yield runs of clear bits among the first ``count`` as (first, length), from bit 0 of byte 0 on."""
    bits = f"{int.from_bytes(bitmap, 'little'):0{8 * len(bitmap)}b}"[::-1][:count]
    for run in _CLEAR.finditer(bits):
        yield run.start(), run.end() - run.start()
