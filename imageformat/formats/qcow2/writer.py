"""Writing a disk as an uncompressed qcow2 image of version 3. Source: QEMU docs/interop/qcow2.txt."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.formats._writing import padding, table_bytes, unit_bytes, units_with_data, write_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageformat.device import BlockDevice
    from imageformat.layer import DiskSource, WrittenImage
    from imageformat.storage import ObjectWriter, Storage

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_PER_TABLE = _CLUSTER // 8
_PER_REFCOUNT_BLOCK = _CLUSTER // 2
_ONLY_USER = 1 << 63
"""The cluster is used once and may be written in place."""
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where everything goes, in clusters. The header is cluster 0."""

    size: int
    refcount_table: int
    refcount_blocks: int
    l1: int
    l1_entries: int
    l2: int
    data: int
    total: int


def write_qcow2(disk: DiskSource, storage: Storage, key: str, report: Callable[[int], None]) -> WrittenImage:
    """See `ImageFormat.write`. Free space and zeros take no room; the format knows no size of sectors."""
    return write_object(storage, key, lambda target: _append(disk.device, target, report))


def _append(device: BlockDevice, target: ObjectWriter, report: Callable[[int], None]) -> None:
    """Append the image; all tables are computed beforehand."""
    layout = _plan(device)
    target.append(_header(layout) + padding(_HEADER.size, _CLUSTER))
    _append_table(target, _refcount_table(layout))
    _append_refcounts(target, layout)
    _append_table(target, _l1_table(device, layout))
    for table in _l2_tables(device, layout):
        _append_table(target, table)
    for piece in unit_bytes(device, _CLUSTER, units_with_data(device, _CLUSTER), report):
        target.append(piece)


def _plan(device: BlockDevice) -> _Layout:
    clusters = -(-device.size // _CLUSTER)
    l1_entries = max(1, -(-clusters // _PER_TABLE))
    data = sum(run.length for run in units_with_data(device, _CLUSTER))
    l1_clusters = -(-l1_entries // _PER_TABLE)
    tables = sum(1 for _ in _used_tables(device))
    blocks = table = 1
    while True:
        total = 1 + table + blocks + l1_clusters + tables + data
        needed = -(-total // _PER_REFCOUNT_BLOCK)
        if needed <= blocks and -(-blocks // _PER_TABLE) <= table:
            break
        blocks = max(blocks, needed)
        table = -(-blocks // _PER_TABLE)
    l1 = 1 + table + blocks
    return _Layout(
        device.size, 1, 1 + table, l1, l1_entries, l1 + l1_clusters, l1 + l1_clusters + tables, total
    )


def _header(layout: _Layout) -> bytes:
    return _HEADER.pack(
        b"QFI\xfb",
        3,
        0,
        0,
        _CLUSTER_BITS,
        layout.size,
        0,
        layout.l1_entries,
        layout.l1 * _CLUSTER,
        layout.refcount_table * _CLUSTER,
        layout.refcount_blocks - layout.refcount_table,
        0,
        0,
        0,
        0,
        0,
        4,
        _HEADER.size,
    )


def _refcount_table(layout: _Layout) -> array[int]:
    return array("Q", (block * _CLUSTER for block in range(layout.refcount_blocks, layout.l1)))


def _append_refcounts(target: ObjectWriter, layout: _Layout) -> None:
    used = b"\0\1" * _PER_REFCOUNT_BLOCK
    for first in range(0, (layout.l1 - layout.refcount_blocks) * _PER_REFCOUNT_BLOCK, _PER_REFCOUNT_BLOCK):
        inside = max(0, min(_PER_REFCOUNT_BLOCK, layout.total - first))
        target.append(used[: 2 * inside] + bytes(_CLUSTER - 2 * inside))


def _used_tables(device: BlockDevice) -> Iterator[int]:
    """Yield the numbers of the L2 tables that name any cluster, ascending."""
    last = -1
    for run in units_with_data(device, _CLUSTER):
        for table in range(
            max(last + 1, run.first // _PER_TABLE), (run.first + run.length - 1) // _PER_TABLE + 1
        ):
            yield table
            last = table


def _l1_table(device: BlockDevice, layout: _Layout) -> array[int]:
    entries = array("Q", bytes(8 * layout.l1_entries))
    for position, table in enumerate(_used_tables(device)):
        entries[table] = (layout.l2 + position) * _CLUSTER | _ONLY_USER
    return entries


def _l2_tables(device: BlockDevice, layout: _Layout) -> Iterator[array[int]]:
    """Yield the tables that name any cluster, one at a time."""
    number, entries = -1, array("Q")
    cluster = layout.data
    for run in units_with_data(device, _CLUSTER):
        first, end = run.first, run.first + run.length
        while first < end:
            if first // _PER_TABLE != number:
                if number >= 0:
                    yield entries
                number, entries = first // _PER_TABLE, array("Q", bytes(_CLUSTER))
            stop = min(end, (number + 1) * _PER_TABLE)
            for at in range(first, stop):
                entries[at % _PER_TABLE] = cluster * _CLUSTER | _ONLY_USER
                cluster += 1
            first = stop
    if number >= 0:
        yield entries


def _append_table(target: ObjectWriter, entries: array[int]) -> None:
    """Append a table of big-endian entries, filled up to whole clusters."""
    raw = table_bytes(entries, "big")
    target.append(raw + padding(len(raw), _CLUSTER))
