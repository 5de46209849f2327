"""Free space of NTFS: the file ``$Bitmap``.

The boot sector's copy lies behind the last cluster and so is never free. Windows keeps part of the truth in
memory while a volume is mounted, and across hibernation and fast start: then ``$LogFile`` is not closed.

Source: the Linux-NTFS project's "NTFS Documentation" ($Boot, $MFT, $Volume, $Bitmap, $LogFile, Data Runs).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.allocation import AllocationReader
from mountfs.allocation._freemap import FreeMap, clear_runs
from mountfs.drivers._content import RunContent, RunList, read_at
from mountfs.drivers._ntfs_records import ATTRIBUTE_LIST, DATA, FileRecord, fixed_up, parse_record
from mountfs.drivers._tree import reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

_MFT, _MIRROR, _LOG, _VOLUME, _BITMAP, _BOOT = 0, 1, 2, 3, 6, 7
_VOLUME_INFORMATION = 0x70
_DIRTY = 0x1 | 0x2 | 0x4 | 0x4000 | 0x8000
"""Dirty, log to be resized, to be upgraded, check is running, changed by chkdsk."""
_MAX_RECORD = 65_536
_CHUNK = 65_536
_LOG_PAGES = (0, 4096)
_NO_CLIENT = 0xFFFF
_LOG_CLEAN = 0x2


@dataclass(frozen=True, slots=True)
class _Boot:
    cluster_size: int
    clusters: int
    table: int
    """Byte of the master file table."""
    record_size: int


def unused(device: BlockDevice) -> FreeMap:
    """Return the clusters that no file has; see `AllocationReader.unused`."""
    with reading("an NTFS structure"):
        boot = _read_boot(device)
        _refuse_dirty(_record(device, boot, _VOLUME))
        bitmap = _content(device, boot, _record(device, boot, _BITMAP))
        _refuse_open_log(_content(device, boot, _record(device, boot, _LOG)))
        if bitmap.size * 8 < boot.clusters:
            raise VolumeError(f"its bitmap has only {bitmap.size} bytes for {boot.clusters} clusters")
        free = FreeMap()
        for at in range(0, -(-boot.clusters // 8), _CHUNK):
            raw = bitmap.read(at, min(_CHUNK, bitmap.size - at))
            for first, count in clear_runs(raw, min(boot.clusters - at * 8, len(raw) * 8)):
                free.add((at * 8 + first) * boot.cluster_size, count * boot.cluster_size)
        for start, length in _known(device, boot):
            if free.meets(start, length):
                raise VolumeError(f"a system file at byte {start} is marked as free")
    return free


def structures(device: BlockDevice) -> list[tuple[int, int]]:
    """Return where the system files lie that every volume has; see `AllocationReader`."""
    with reading("an NTFS structure"):
        return list(_known(device, _read_boot(device)))


def _read_boot(device: BlockDevice) -> _Boot:
    raw = read_at(device, 0, 512, "the boot sector")
    if raw[3:11] != b"NTFS    ":
        raise VolumeError("not an NTFS volume")
    sector, per_cluster = struct.unpack_from("<HB", raw, 11)
    sectors, table = struct.unpack_from("<QQ", raw, 40)
    (per_record,) = struct.unpack_from("<b", raw, 64)
    cluster = sector * per_cluster if per_cluster <= 128 else sector << (256 - per_cluster)
    if (
        sector not in {256, 512, 1024, 2048, 4096}
        or not cluster
        or cluster & (cluster - 1)
        or cluster > 1 << 21
    ):
        raise VolumeError(f"the boot sector is damaged: clusters of {cluster} bytes")
    record = per_record * cluster if per_record > 0 else 1 << min(-per_record, 31)
    if not 512 <= record <= _MAX_RECORD or record & (record - 1):
        raise VolumeError(f"the boot sector is damaged: records of {record} bytes")
    if not 0 < sectors * sector <= device.size or table * cluster >= device.size:
        raise VolumeError("the boot sector is damaged: it is larger than what it lies on")
    return _Boot(cluster, sectors * sector // cluster, table * cluster, record)


def _record(device: BlockDevice, boot: _Boot, number: int) -> FileRecord:
    """Read one of the first records, which lie at the start of the master file table."""
    raw = read_at(device, boot.table + number * boot.record_size, boot.record_size, f"record {number}")
    found = parse_record(raw)
    if not found.in_use:
        raise VolumeError(f"record {number} of the master file table is not in use")
    return found


def _refuse_dirty(volume: FileRecord) -> None:
    state = volume.find(_VOLUME_INFORMATION)
    if state is None or state.value is None:
        raise VolumeError("it does not say whether it was cleanly unmounted")
    if struct.unpack_from("<H", state.value, 10)[0] & _DIRTY:
        raise VolumeError("it was not cleanly unmounted, or is to be checked")


def _content(device: BlockDevice, boot: _Boot, record: FileRecord) -> RunContent:
    """Return the unnamed data of a file whose only record this is."""
    data = record.find(DATA)
    if data is None or data.value is not None or record.find(ATTRIBUTE_LIST) is not None:
        raise VolumeError("the map of a system file is not where it should be")
    if data.initialized < data.size:
        raise VolumeError("a system file was not written to its end")
    runs = RunList()
    position = 0
    for cluster, count in _data_runs(data.mapping):
        if cluster + count > boot.clusters:
            raise VolumeError("a system file lies outside the volume")
        runs.add(position, count * boot.cluster_size, cluster * boot.cluster_size)
        position += count * boot.cluster_size
    if data.size > position:
        raise VolumeError("the map of a system file ends too early")
    return RunContent(device, runs, data.size)


def _data_runs(raw: bytes) -> Iterator[tuple[int, int]]:
    """Yield first cluster and count of each run; a hole is damage, system files have none."""
    at, cluster = 0, 0
    while raw[at]:
        length_size, place_size = raw[at] & 0xF, raw[at] >> 4
        end = at + 1 + length_size + place_size
        if not 0 < length_size <= 8 or not 0 < place_size <= 8 or end > len(raw):
            raise VolumeError("the map of a system file is damaged")
        count = int.from_bytes(raw[at + 1 : at + 1 + length_size], "little")
        cluster += int.from_bytes(raw[at + 1 + length_size : end], "little", signed=True)
        if cluster < 0 or count <= 0:
            raise VolumeError("the map of a system file is damaged")
        yield cluster, count
        at = end


def _refuse_open_log(log: RunContent) -> None:
    """Raise `VolumeError` unless the journal was closed. One of all ones is empty."""
    pages = [log.read(at, 4096) for at in _LOG_PAGES if at + 4096 <= log.size]
    if pages and all(page.count(0xFF) == len(page) for page in pages):
        return
    if not pages or not all(_is_closed(page) for page in pages):
        raise VolumeError("its journal is not closed: it is in use, hibernated or was not cleanly unmounted")


def _is_closed(page: bytes) -> bool:
    restart = fixed_up(page, b"RSTR")
    (start,) = struct.unpack_from("<H", restart, 24)
    in_use, flags = struct.unpack_from("<HH", restart, start + 12)
    return bool(in_use == _NO_CLIENT or flags & _LOG_CLEAN)


def _known(device: BlockDevice, boot: _Boot) -> Iterator[tuple[int, int]]:
    """Yield where system files lie that every volume has."""
    for number in (_MFT, _MIRROR, _LOG, _BITMAP, _BOOT):
        data = _record(device, boot, number).find(DATA)
        if data is None:
            raise VolumeError(f"record {number} of the master file table has no data")
        if data.value is None:
            for cluster, count in _data_runs(data.mapping):
                yield cluster * boot.cluster_size, count * boot.cluster_size


PLUGIN = AllocationReader("ntfs", frozenset({"ntfs"}), unused, structures)
