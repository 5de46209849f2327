"""Swap areas: what was swapped out is of no use to anyone but the system that runs.

The first page describes the area and stays; it also names bad pages. An area that holds the memory of a
hibernated system, or is of the old kind, is all in use.

Source: mkswap(8), and the header ``union swap_header`` of the kernel's documentation of its interfaces.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.allocation import AllocationReader
from mountfs.allocation._freemap import FreeMap
from mountfs.drivers._content import read_at

if TYPE_CHECKING:
    from imageformat.device import BlockDevice

_PAGE_SIZES = (4096, 8192, 16_384, 32_768, 65_536)
_MAGIC = b"SWAPSPACE2"
_HEADER = 1024


def unused(device: BlockDevice) -> FreeMap:
    """Return all pages but the first; see `AllocationReader.unused`."""
    for page in _PAGE_SIZES:
        if page <= device.size and read_at(device, page - 10, 10, "the swap header") == _MAGIC:
            break
    else:
        raise VolumeError("it holds the memory of a hibernated system, or is of an old kind")
    version, last = struct.unpack("<II", read_at(device, _HEADER, 8, "the swap header"))
    if version != 1 or not 0 < last < device.size // page:
        raise VolumeError(f"the swap header is damaged: version {version}, {last} pages")
    free = FreeMap()
    free.add(page, last * page)
    return free


PLUGIN = AllocationReader("swap", frozenset({"swap"}), unused)
