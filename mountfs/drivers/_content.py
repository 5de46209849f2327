"""What a file holds, as runs of its volume: the one read path that all drivers share.

A file is a list of runs; what no run covers is a hole and reads as zeros. Runs lie in packed arrays, so
that a file of a million fragments costs megabytes, not gigabytes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple, Protocol

from imageformat.errors import VolumeError
from imageformat.extent import Extent, ExtentKind, coalesce

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

MAX_RUNS = 8_000_000
"""More fragments than this in one file is damage: 192 MB of packed runs."""

MAX_FILE_SIZE = 2**63 - 1


class Run(NamedTuple):
    """``length`` bytes of a file at ``offset``, stored at ``source`` of the volume."""

    offset: int
    length: int
    source: int


def read_at(device: BlockDevice, offset: int, size: int, what: str) -> bytes:
    """Read metadata of a volume; what lies outside of it is damage, not a caller's mistake.

    Raises:
        VolumeError: the range is not inside the device.
        MountfsError: the device failed.
    """
    if offset < 0 or size < 0 or offset + size > device.size:
        raise VolumeError(f"{what} lies outside the volume ({offset}+{size} of {device.size} bytes)")
    return device.pread(offset, size)


class RunList:
    """Runs of one file, ascending and not overlapping; neighbours are joined when they are added."""

    def __init__(self) -> None:
        self._offsets = array("Q")
        self._lengths = array("Q")
        self._sources = array("Q")

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Run]:
        return map(Run, self._offsets, self._lengths, self._sources)

    @property
    def end(self) -> int:
        """First byte of the file after the last run."""
        return self._offsets[-1] + self._lengths[-1] if self._offsets else 0

    def add(self, offset: int, length: int, source: int) -> None:
        """Append a run.

        Raises:
            VolumeError: it does not follow the one before, its numbers make no sense, or there are
                more than `MAX_RUNS`.
        """
        if length <= 0:
            return
        if offset < self.end or source < 0 or offset + length > 2**63 or source + length > 2**63:
            raise VolumeError(f"the map of a file is damaged at byte {offset}")
        if self._offsets and offset == self.end and source == self._sources[-1] + self._lengths[-1]:
            self._lengths[-1] += length
            return
        if len(self._offsets) >= MAX_RUNS:
            raise VolumeError(f"the map of a file has more than {MAX_RUNS} fragments")
        self._offsets.append(offset)
        self._lengths.append(length)
        self._sources.append(source)

    def overlaps_itself(self) -> bool:
        """Tell whether two runs share bytes of the volume: a loop, or a cross-linked chain."""
        ends = 0
        for source, length in sorted(zip(self._sources, self._lengths, strict=True)):
            if source < ends:
                return True
            ends = source + length
        return False

    def source_of(self, offset: int) -> int:
        """Return where byte ``offset`` of the file is stored; -1 in a hole."""
        return next((run.source for run in self.between(offset, 1)), -1)

    def between(self, offset: int, size: int) -> Iterator[Run]:
        """Yield the runs inside ``[offset, offset + size)``, cut to it."""
        end = offset + size
        index = max(0, bisect_right(self._offsets, offset) - 1)
        while index < len(self._offsets) and self._offsets[index] < end:
            start = max(offset, self._offsets[index])
            stop = min(end, self._offsets[index] + self._lengths[index])
            if start < stop:
                yield Run(start, stop - start, self._sources[index] + start - self._offsets[index])
            index += 1


class Content(Protocol):
    """The bytes of one file or stream. Any number of threads may call it at once."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    @property
    def weight(self) -> int:
        """What it costs to keep, in run-sized units."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes; the caller keeps inside the content."""
        ...

    def extents(self) -> Iterator[Extent]:
        """DATA and ZERO, covering the size."""
        ...

    def placements(self) -> Iterator[tuple[int, int]]:
        """Where it lies on the volume, as (offset, length), as far as it is known."""
        ...


class RunContent:
    """Bytes that lie on the volume as they are; read straight from the device, no lock."""

    def __init__(self, device: BlockDevice, runs: RunList, size: int) -> None:
        if not 0 <= size <= MAX_FILE_SIZE:
            raise VolumeError(f"a file claims {size} bytes")
        self._device = device
        self._runs = runs
        self.size = size

    @property
    def weight(self) -> int:
        """See `Content.weight`."""
        return len(self._runs) + 1

    def read(self, offset: int, size: int) -> bytes:
        """See `Content.read`; one device read for each run."""
        parts: list[bytes] = []
        position, end = offset, offset + size
        for run in self._runs.between(offset, size):
            if run.offset > position:
                parts.append(bytes(run.offset - position))
            parts.append(read_at(self._device, run.source, run.length, "the content of a file"))
            position = run.offset + run.length
        if position < end:
            parts.append(bytes(end - position))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self) -> Iterator[Extent]:
        """See `Content.extents`."""
        return coalesce(self._extents())

    def _extents(self) -> Iterator[Extent]:
        position = 0
        for run in self._runs.between(0, self.size):
            yield Extent(position, run.offset - position, ExtentKind.ZERO)
            yield Extent(run.offset, run.length, ExtentKind.DATA)
            position = run.offset + run.length
        yield Extent(position, self.size - position, ExtentKind.ZERO)

    def placements(self) -> Iterator[tuple[int, int]]:
        """See `Content.placements`."""
        return ((run.source, run.length) for run in self._runs)


class BytesContent:
    """Bytes that the metadata itself holds: inline and resident data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.weight = 1 + len(data) // 32

    def read(self, offset: int, size: int) -> bytes:
        """See `Content.read`."""
        return self._data[offset : offset + size]

    def extents(self) -> Iterator[Extent]:
        """See `Content.extents`."""
        if self.size:
            yield Extent(0, self.size, ExtentKind.DATA)

    def placements(self) -> Iterator[tuple[int, int]]:
        """See `Content.placements`: it has no place of its own."""
        return iter(())
