"""Free space of FAT12, FAT16 and FAT32 (entries of the table that are zero) and of exFAT (its bitmap).

Sources: Microsoft "FAT: General Overview of On-Disk Format" 1.03 and "exFAT file system specification"
(sections 3.1.13 VolumeFlags, 7.1 Allocation Bitmap Directory Entry).
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.allocation import AllocationReader
from mountfs.allocation._freemap import FreeMap, clear_runs
from mountfs.drivers._content import RunContent, read_at
from mountfs.drivers._fat_entries import exfat_bitmaps
from mountfs.drivers._fat_layout import ClusterChains, FatLayout, read_layout
from mountfs.drivers._tree import reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

_CHUNK = 196_608
"""Bytes of a table that are looked at together: whole entries of 12, 16 and 32 bits."""
_FREE = re.compile(rb"\0+")
_CLEAN_16, _CLEAN_32 = 0xC000, 0x0C00_0000
_ENTRY_32 = 0x0FFF_FFFF
_UNKNOWN = 0xFFFF_FFFF
_MAX_ROOT = 1 << 24


def unused(device: BlockDevice) -> FreeMap:
    """Return the clusters that no file has; see `AllocationReader.unused`."""
    with reading("the boot sector"):
        layout = read_layout(device)
    if layout.is_dirty:
        raise VolumeError("it was not cleanly unmounted, or is in use")
    if layout.heap + layout.cluster_count * layout.cluster_size > device.size:
        raise VolumeError("it is larger than what it lies on")
    if layout.heap < layout.table + layout.table_size:
        raise VolumeError("the boot sector is damaged: the table and the clusters overlap")
    with reading("the allocation bitmap" if layout.is_exfat else "the allocation table"):
        return _exfat(device, layout) if layout.is_exfat else _fat(device, layout)


def _fat(device: BlockDevice, layout: FatLayout) -> FreeMap:
    _refuse_dirty(device, layout)
    free, size = FreeMap(), layout.cluster_size
    first = 0
    for entries in _used(device, layout):
        for run in _FREE.finditer(entries, 2 if first == 0 else 0):
            free.add(layout.position(first + run.start()), (run.end() - run.start()) * size)
        first += len(entries)
    if layout.root_cluster and free.meets(layout.position(layout.root_cluster), size):
        raise VolumeError("its root directory is marked as free")
    counted = _counted(device, layout)
    if counted not in {free.total // size, _UNKNOWN}:
        raise VolumeError(f"it has {free.total // size} free clusters, but says that it has {counted}")
    return free


def _refuse_dirty(device: BlockDevice, layout: FatLayout) -> None:
    """Look at the first two entries, which hold the media type and whether all went well."""
    first, second = struct.unpack("<II", read_at(device, layout.table, 8, "the allocation table"))
    if first & 0xFF != layout.media:
        raise VolumeError("its allocation table does not begin as one")
    if layout.bits == 32 and second & _CLEAN_32 != _CLEAN_32:
        raise VolumeError("it was not cleanly unmounted, or had errors")
    if layout.bits == 16 and (first >> 16) & _CLEAN_16 != _CLEAN_16:
        raise VolumeError("it was not cleanly unmounted, or had errors")


def _used(device: BlockDevice, layout: FatLayout) -> Iterator[bytes]:
    """Yield a byte for each entry of the table, zero when it is free; all tables must agree."""
    left = layout.cluster_count + 2
    for at in range(0, layout.table_size, _CHUNK):
        raw = read_at(device, layout.table + at, min(_CHUNK, layout.table_size - at), "the allocation table")
        for copy in layout.copies:
            if read_at(device, copy + at, len(raw), "a copy of the allocation table") != raw:
                raise VolumeError("its allocation tables differ")
        found = _entries(raw, layout.bits)[:left]
        yield found
        left -= len(found)
        if not left:
            return


def _entries(raw: bytes, bits: int) -> bytes:
    """Return a byte for each entry: whether it is in use."""
    if bits == 12:
        whole = len(raw) // 3 * 3
        triples = zip(raw[0:whole:3], raw[1:whole:3], raw[2:whole:3], strict=True)
        return bytes(
            used for low, both, high in triples for used in (bool(low | both & 0xF), bool(both >> 4 | high))
        )
    words = array("I" if bits == 32 else "H")
    words.frombytes(raw[: len(raw) // words.itemsize * words.itemsize])
    if sys.byteorder == "big":
        words.byteswap()
    return bytes(map(bool, map(_ENTRY_32.__and__, words) if bits == 32 else words))


def _counted(device: BlockDevice, layout: FatLayout) -> int:
    """Return the count of free clusters that a FAT32 keeps; `_UNKNOWN` where there is none."""
    if not layout.information:
        return _UNKNOWN
    raw = read_at(device, layout.information, 512, "the FAT32 information sector")
    if raw[:4] != b"RRaA" or raw[484:488] != b"rrAa":
        return _UNKNOWN
    return int(struct.unpack_from("<I", raw, 488)[0])


def _exfat(device: BlockDevice, layout: FatLayout) -> FreeMap:
    chains = ClusterChains(device, layout)
    root = chains.directory_runs(layout.root_cluster, _MAX_ROOT)
    listed = exfat_bitmaps(RunContent(device, root, root.end).read(0, root.end))
    found = [(cluster, size) for second, cluster, size in listed if second == layout.second_bitmap]
    if len(found) != 1 or found[0][1] != -(-layout.cluster_count // 8):
        raise VolumeError("its allocation bitmap is not listed, or has the wrong size")
    runs = chains.runs(*found[0], contiguous=False)
    bitmap = RunContent(device, runs, found[0][1])
    free = FreeMap()
    for at in range(0, bitmap.size, _CHUNK):
        raw = bitmap.read(at, min(_CHUNK, bitmap.size - at))
        for first, count in clear_runs(raw, min(layout.cluster_count - at * 8, len(raw) * 8)):
            free.add(layout.position(at * 8 + first + 2), count * layout.cluster_size)
    if any(free.meets(run.source, run.length) for known in (root, runs) for run in known):
        raise VolumeError("its root directory or its bitmap is marked as free")
    return free


PLUGIN = AllocationReader("fat", frozenset({"fat12", "fat16", "fat32", "exfat"}), unused)
