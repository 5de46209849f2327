"""Whether the tables of a qcow2 image agree with each other: no place in the file is used twice."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import MountfsError
from imageformat.formats._runs import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from imageformat.formats._packed import PackedClusters
    from imageformat.formats._runs import Run
    from imageformat.formats.qcow2.clusters import ClusterMap
    from imageformat.formats.qcow2.structs import Header

_MOST_MEMORY = 64 << 20
_MOST_TOLD = 100


class _Places:
    """A bit for each cluster of the file."""

    def __init__(self, clusters: int) -> None:
        self._bits = bytearray(-(-clusters // 8))
        self._clusters = clusters

    def __contains__(self, cluster: int) -> bool:
        return cluster < self._clusters and bool(self._bits[cluster >> 3] >> (cluster & 7) & 1)

    def add(self, cluster: int) -> None:
        """Mark a cluster; one after the end of the file is none."""
        if cluster < self._clusters:
            self._bits[cluster >> 3] |= 1 << (cluster & 7)


def overlaps(
    header: Header, clusters: ClusterMap, packed: PackedClusters, file_size: int, name: str
) -> Iterator[str]:
    """Yield what lies where something else of the active state lies, at most a hundred times.

    The header, the L1 table, the L2 tables and the plain clusters each have their places alone; compressed
    clusters share theirs with each other. Reads all tables; one that cannot be read is left to whoever reads
    the disk. An image of so many clusters that their bits would take more than 64 MiB is not looked at.
    """
    size = header.cluster_size
    count = -(-file_size // size)
    if count > _MOST_MEMORY * 8:
        return
    alone, shared = _Places(count), _Places(count)
    l1_end = header.l1_offset + header.l1_entries * 8
    for cluster in (0, *range(header.l1_offset // size, -(-l1_end // size))):
        alone.add(cluster)
    told = 0
    for used in _used(header, clusters, packed):
        for cluster in used.clusters:
            if told < _MOST_TOLD and (cluster in alone or (not used.packed and cluster in shared)):
                told += 1
                yield f"{name}: {used.what} lies at {cluster * size}, where something else lies"
            (shared if used.packed else alone).add(cluster)


class _Used(NamedTuple):
    """Something, and the clusters of the file that it takes."""

    what: str
    clusters: range
    packed: bool


def _used(header: Header, clusters: ClusterMap, packed: PackedClusters) -> Iterator[_Used]:
    size = header.cluster_size
    for number in range(-(-header.size // clusters.span)):
        start = number * clusters.span
        stop = min(start + clusters.span, header.size)
        with suppress(MountfsError):
            table = clusters.table(number)
            if table:
                yield _Used(f"L2 table {number}", range(table // size, table // size + 1), packed=False)
                yield from _used_by(clusters.runs(start, stop - start), packed, header)


def _used_by(runs: Iterable[Run], packed: PackedClusters, header: Header) -> Iterator[_Used]:
    size = header.cluster_size
    last = -1
    for run in runs:
        what = f"disk offset {run.offset}"
        if run.kind is Kind.STORED and not header.external:
            first, end = run.place // size, -(-(run.place + run.length) // size)
            # Subclusters that are not neighbours are several runs of one cluster.
            again = first == last and run.offset % size > 0
            last = end - 1
            yield _Used(what, range(first + again, end), packed=False)
        elif run.kind is Kind.PACKED:
            begin, stop = packed.place(run)
            yield _Used(what, range(begin // size, -(-stop // size)), packed=True)
