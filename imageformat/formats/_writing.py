"""What writers of virtual disks share: which units of a disk hold data, and their bytes in order.

Such a writer computes all tables before the first byte of data, from the disk's extents alone, so that the
file is written from front to back and can be published like any other object.
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, NamedTuple

from imageformat.extent import NOT_STORED
from imageformat.layer import WrittenImage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageformat.device import BlockDevice
    from imageformat.storage import ObjectWriter, Storage

STEP = 1 << 20
"""Read and written at a time."""


class Units(NamedTuple):
    """Neighbouring units of which each holds data."""

    first: int
    length: int


def write_object(storage: Storage, key: str, write: Callable[[ObjectWriter], None]) -> WrittenImage:
    """Create an image that is one object, let ``write`` append it from front to back, and publish it.

    Raises:
        DestinationError: also when a file of that name is there; nothing is replaced.
        MountfsError: what ``write`` raises; nothing is left then.
    """
    target = storage.create(key)
    try:
        write(target)
        size = target.position
        target.commit()
        return WrittenImage(size)
    finally:
        target.abort()


def units_with_data(device: BlockDevice, unit: int) -> Iterator[Units]:
    """Yield the runs of units that hold anything but zeros and free space, ascending."""
    first = end = 0
    for extent in device.extents(0, device.size):
        if extent.kind in NOT_STORED:
            continue
        start, stop = extent.offset // unit, -(-extent.end // unit)
        if start > end or not end:
            if end > first:
                yield Units(first, end - first)
            first = start
        end = max(end, stop)
    if end > first:
        yield Units(first, end - first)


def unit_bytes(
    device: BlockDevice, unit: int, runs: Iterator[Units], report: Callable[[int], None]
) -> Iterator[bytes]:
    """Yield the bytes of runs of units, the last unit of the disk filled up with zeros.

    ``report`` is told the place on the disk that was reached.

    Raises:
        ImageError, StorageError: the disk cannot be read.
    """
    for run in runs:
        offset, end = run.first * unit, (run.first + run.length) * unit
        while offset < end:
            size = min(STEP, end - offset)
            there = max(0, min(size, device.size - offset))
            yield device.pread(offset, there) + bytes(size - there)
            offset += size
            report(min(offset, device.size))


def table_bytes(entries: array[int], order: str) -> bytes:
    """Return a table of 8-byte entries in ``order``: "little" or "big"."""
    if order == sys.byteorder:
        return entries.tobytes()
    swapped = array("Q", entries)
    swapped.byteswap()
    return swapped.tobytes()


def padding(position: int, unit: int) -> bytes:
    """Return the zeros from a position to the next multiple of ``unit``."""
    return bytes(-position % unit)
