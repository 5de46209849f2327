"""Boot sectors and cluster chains of FAT12, FAT16, FAT32 and exFAT.

Sources: Microsoft "FAT: General Overview of On-Disk Format" 1.03 and "exFAT file system specification".
The type of a FAT is what its boot sector and number of clusters make it, not its label.
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.drivers._content import RunList, read_at
from mountfs.drivers._tree import SharedCache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

_TABLE_CHUNK = 65_536
_CACHED_CHUNKS = 64
_MAX_CLUSTER = 32 << 20


@dataclass(frozen=True, slots=True)
class FatLayout:
    """Where things are, in bytes; clusters count from 2."""

    bits: int
    """12, 16 or 32: the width of an entry of the table."""
    is_exfat: bool
    cluster_size: int
    cluster_count: int
    table: int
    table_size: int
    heap: int
    """Of cluster 2."""
    root_cluster: int
    """0: the root directory lies at `root_offset`."""
    root_offset: int = 0
    root_size: int = 0
    copies: tuple[int, ...] = ()
    """Bytes where other tables lie that say the same as the active one."""
    is_dirty: bool = False
    """The boot sector says that the volume is in use, or is to be checked."""
    information: int = 0
    """Byte of the FAT32 sector that counts free clusters; 0: there is none."""
    second_bitmap: bool = False
    """exFAT: the second allocation bitmap is the active one."""
    media: int = 0
    """First byte of a FAT, as the boot sector has it."""

    def position(self, cluster: int) -> int:
        """Byte offset of a cluster on the volume."""
        return self.heap + (cluster - 2) * self.cluster_size

    @property
    def end_mark(self) -> int:
        """Table values from here on end a chain."""
        return (1 << min(self.bits, 28)) - 8 if not self.is_exfat else 0xFFFF_FFF8


def read_layout(device: BlockDevice) -> FatLayout:
    """Read and check the boot sector.

    Raises:
        VolumeError: it is neither FAT nor exFAT, or damaged.
    """
    raw = read_at(device, 0, 512, "the boot sector")
    found = _read_exfat(raw) if raw[3:11] == b"EXFAT   " else _read_fat(raw)
    if not 0 < found.cluster_size <= _MAX_CLUSTER:
        raise VolumeError(f"the boot sector is damaged: clusters of {found.cluster_size} bytes")
    if found.cluster_count <= 0 or found.table + found.table_size > device.size:
        raise VolumeError("the boot sector is damaged: the file allocation table lies outside the volume")
    if found.table_size * 8 // found.bits < found.cluster_count + 2:
        raise VolumeError("the boot sector is damaged: the file allocation table is too small")
    return found


def _read_exfat(raw: bytes) -> FatLayout:
    table, table_length, heap, count, root = struct.unpack_from("<IIIII", raw, 80)
    flags, sector_shift, cluster_shift, tables = struct.unpack_from("<HBBB", raw, 106)
    if not 9 <= sector_shift <= 12 or sector_shift + cluster_shift > 25 or tables not in {1, 2}:
        raise VolumeError("the exFAT boot sector is damaged: bad sector or cluster size")
    active = flags & 1 if tables == 2 else 0
    return FatLayout(
        bits=32,
        is_exfat=True,
        cluster_size=1 << sector_shift + cluster_shift,
        cluster_count=count,
        table=(table + active * table_length) << sector_shift,
        table_size=table_length << sector_shift,
        heap=heap << sector_shift,
        root_cluster=root,
        is_dirty=bool(flags & 0x6),
        second_bitmap=bool(flags & 0x1),
    )


def _read_fat(raw: bytes) -> FatLayout:
    sector, per_cluster, reserved, tables = struct.unpack_from("<HBHB", raw, 11)
    root_entries, total16, media, size16 = struct.unpack_from("<HHBH", raw, 17)
    total32, size32, flags, _, root_cluster, information = struct.unpack_from("<IIHHIH", raw, 32)
    if sector not in {512, 1024, 2048, 4096} or not per_cluster or per_cluster & (per_cluster - 1):
        raise VolumeError("not a FAT file system: bad sector or cluster size in the boot sector")
    if not reserved or not 1 <= tables <= 16:
        raise VolumeError("not a FAT file system: no file allocation table")
    total, size = total16 or total32, size16 or size32
    root_sectors = -(-root_entries * 32 // sector)
    heap = reserved + tables * size + root_sectors
    count = (total - heap) // per_cluster
    is_32 = not size16
    if is_32 and root_cluster < 2:
        raise VolumeError("the FAT32 boot sector is damaged: no root directory")
    mirrored = not (is_32 and flags & 0x80)
    active = 0 if mirrored else flags & 0xF
    if active >= tables:
        raise VolumeError(f"the boot sector is damaged: table {active} of {tables} is the active one")
    return FatLayout(
        bits=32 if is_32 else 12 if count < 4085 else 16,
        is_exfat=False,
        cluster_size=per_cluster * sector,
        cluster_count=min(count, size * sector * 8 // (32 if is_32 else 12) - 2),
        table=(reserved + active * size) * sector,
        table_size=size * sector,
        heap=heap * sector,
        root_cluster=root_cluster if is_32 else 0,
        root_offset=(heap - root_sectors) * sector,
        root_size=root_entries * 32,
        copies=tuple((reserved + n * size) * sector for n in range(1, tables) if mirrored),
        is_dirty=bool(raw[65 if is_32 else 37] & 0x3),
        information=information * sector if is_32 and 0 < information < reserved else 0,
        media=media,
    )


class ClusterChains:
    """Follows chains in the active file allocation table."""

    def __init__(self, device: BlockDevice, layout: FatLayout) -> None:
        self._device = device
        self._layout = layout
        self._chunks: SharedCache[int, array[int]] = SharedCache(_CACHED_CHUNKS, lambda _: 1)

    def runs(self, cluster: int, size: int, *, contiguous: bool) -> RunList:
        """Map the first ``size`` bytes of a chain.

        Raises:
            VolumeError: the chain ends too early, leaves the volume or meets itself.
        """
        layout, runs = self._layout, RunList()
        needed = -(-size // layout.cluster_size)
        if needed > layout.cluster_count:
            raise VolumeError(f"a file of {size} bytes is larger than its volume")
        if contiguous and needed:
            self._check(cluster)
            self._check(cluster + needed - 1)
            runs.add(0, needed * layout.cluster_size, layout.position(cluster))
            return runs
        position = 0
        for link in self._links(cluster, needed):
            runs.add(position, layout.cluster_size, layout.position(link))
            position += layout.cluster_size
        if runs.overlaps_itself():
            raise VolumeError(f"the cluster chain from {cluster} meets itself")
        return runs

    def directory_runs(self, cluster: int, limit: int) -> RunList:
        """Map a whole chain of unknown length, at most ``limit`` bytes."""
        runs, seen = RunList(), set[int]()
        size = self._layout.cluster_size
        while cluster < self._layout.end_mark:
            self._check(cluster)
            if cluster in seen or len(seen) * size >= limit:
                raise VolumeError(f"the directory at cluster {cluster} is damaged: its chain does not end")
            runs.add(len(seen) * size, size, self._layout.position(cluster))
            seen.add(cluster)
            cluster = self._next(cluster)
        return runs

    def _links(self, cluster: int, needed: int) -> Iterator[int]:
        for done in range(needed):
            if cluster >= self._layout.end_mark:
                raise VolumeError(f"a cluster chain ends after {done} of {needed} clusters")
            self._check(cluster)
            yield cluster
            if done + 1 < needed:
                cluster = self._next(cluster)

    def _check(self, cluster: int) -> None:
        if not 2 <= cluster < self._layout.cluster_count + 2:
            raise VolumeError(f"a cluster chain leaves the volume at cluster {cluster}")

    def _next(self, cluster: int) -> int:
        if self._layout.bits == 12:
            return self._chunks.get_or_make(0, self._load_12)[cluster]
        chunk, index = divmod(cluster, _TABLE_CHUNK // (self._layout.bits // 8))
        value = self._chunks.get_or_make(chunk, lambda: self._load(chunk))[index]
        return value & 0x0FFF_FFFF if self._layout.bits == 32 and not self._layout.is_exfat else value

    def _load(self, chunk: int) -> array[int]:
        start = chunk * _TABLE_CHUNK
        size = min(_TABLE_CHUNK, self._layout.table_size - start)
        table = array("I" if self._layout.bits == 32 else "H")
        table.frombytes(read_at(self._device, self._layout.table + start, size, "the allocation table"))
        if sys.byteorder == "big":
            table.byteswap()
        return table

    def _load_12(self) -> array[int]:
        count = self._layout.cluster_count + 2
        raw = read_at(self._device, self._layout.table, (count * 3 + 1) // 2, "the allocation table") + b"\0"
        pairs = (raw[n * 3 // 2] | raw[n * 3 // 2 + 1] << 8 for n in range(count))
        return array("H", (pair >> 4 if n & 1 else pair & 0xFFF for n, pair in enumerate(pairs)))
