"""Boot sectors of FAT, exFAT, NTFS and ReFS.

Layouts from Microsoft's FAT and exFAT specifications and the public documentation of NTFS. Labels of
FAT and exFAT stand in the root directory, that of NTFS in the file $Volume, so a few clusters are
followed, each time with a bound.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mountfs.signatures.window import MAX_READ, Signature, is_power_of_two
from mountfs.tree import FileSystemInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.signatures.window import Window

_SECTOR_SIZES = (512, 1024, 2048, 4096)
_FAT12_MAX, _FAT16_MAX, _FAT32_MAX = 0xFF4, 0xFFF4, 0x0FFFFFF6
_MAX_CLUSTERS = 128
_NOT_CLEAN = "dirty: not cleanly unmounted"


@dataclass(frozen=True, slots=True)
class _Fat:
    """The parts of a FAT boot sector that place everything else."""

    kind: str
    sector_size: int
    cluster_size: int
    fat: int
    root: int
    """First byte of the fixed root directory, or of the data area."""
    root_size: int
    """0 on FAT32."""
    root_cluster: int


def _fat_layout(window: Window) -> _Fat | None:
    raw = window.at(0, 512)
    if not raw:
        return None
    sector_size, per_cluster, reserved, fats, root_entries, sectors_16, media, fat_16 = struct.unpack_from(
        "<HBHBHHBH", raw, 11
    )
    sectors_32, fat_32 = struct.unpack_from("<II", raw, 32)
    sectors, fat_sectors = sectors_16 or sectors_32, fat_16 or fat_32
    if (
        sector_size not in _SECTOR_SIZES
        or not is_power_of_two(per_cluster)
        or not (reserved and fats and fat_sectors)
        or (media != 0xF0 and media < 0xF8)
    ):
        return None
    root_sectors = -(-root_entries * 32 // sector_size)
    clusters = (sectors - reserved - fats * fat_sectors - root_sectors) // per_cluster
    limit = _FAT16_MAX if fat_16 else _FAT32_MAX
    if not 0 <= clusters <= limit:
        return None
    kind = "fat32" if not fat_16 else "fat16" if clusters > _FAT12_MAX else "fat12"
    return _Fat(
        kind,
        sector_size,
        per_cluster * sector_size,
        reserved * sector_size,
        (reserved + fats * fat_sectors) * sector_size,
        root_sectors * sector_size,
        struct.unpack_from("<I", raw, 44)[0] if not fat_16 else 0,
    )


def _fat(window: Window) -> FileSystemInfo | None:
    layout = _fat_layout(window)
    if layout is None or not _looks_like_fat(window):
        return None
    extended = 64 if layout.kind == "fat32" else 36
    signature = window.number(extended + 2, "<B")
    uuid = ""
    if signature in {0x28, 0x29}:
        serial = window.number(extended + 3, "<I")
        uuid = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
    dirty = signature in {0x28, 0x29} and window.number(extended + 1, "<B") & 0x01
    return FileSystemInfo(layout.kind, _fat_label(window, layout), uuid, _NOT_CLEAN if dirty else "")


def _looks_like_fat(window: Window) -> bool:
    """Whether more than the parameter block says FAT: its name, or a boot sector's jump and end."""
    names = (window.at(0x36, 8), window.at(0x52, 8))
    if any(name.startswith((b"FAT", b"MSDOS", b"MSWIN")) for name in names):
        return True
    if names[0] in {b"JFS     ", b"HPFS    "}:
        return False
    return window.at(0, 1) in {b"\xeb", b"\xe9"} and window.has(510, b"\x55\xaa")


def _fat_label(window: Window, layout: _Fat) -> str:
    for block in _fat_root(window, layout):
        for start in range(0, len(block) - 31, 32):
            name, attributes = block[start : start + 11], block[start + 11]
            if name[0] == 0:
                return ""
            first_cluster = block[start + 20 : start + 22] + block[start + 26 : start + 28]
            if (
                name[0] == 0xE5
                or attributes & 0x3F == 0x0F
                or attributes & 0x18 != 0x08
                or any(first_cluster)
            ):
                continue
            return _oem_text(b"\xe5" + name[1:] if name[0] == 0x05 else name)
    return ""


def _fat_root(window: Window, layout: _Fat) -> Iterator[bytes]:
    if layout.root_size:
        yield window.at(layout.root, min(layout.root_size, MAX_READ))
        return
    cluster = layout.root_cluster
    for _ in range(_MAX_CLUSTERS):
        if not 2 <= cluster < _FAT32_MAX:
            return
        start = layout.root + (cluster - 2) * layout.cluster_size
        yield window.at(start, min(layout.cluster_size, MAX_READ))
        cluster = window.number(layout.fat + 4 * cluster, "<I") & 0x0FFFFFFF


def _oem_text(raw: bytes) -> str:
    """FAT names are in the code page of the machine that wrote them, which nothing records."""
    raw = raw.split(b"\0", 1)[0]
    try:
        return raw.decode("utf-8").rstrip()
    except UnicodeDecodeError:
        return raw.decode("cp437").rstrip()


def _exfat(window: Window) -> FileSystemInfo | None:
    sector_shift, cluster_shift = window.number(108, "<B"), window.number(109, "<B")
    if not 9 <= sector_shift <= 12 or sector_shift + cluster_shift > 25 or any(window.at(11, 53)):
        return None
    serial = window.number(100, "<I")
    dirty = window.number(106, "<H") & 0x02
    return FileSystemInfo(
        "exfat",
        _exfat_label(window, 1 << sector_shift, 1 << (sector_shift + cluster_shift)),
        f"{serial >> 16:04X}-{serial & 0xFFFF:04X}",
        _NOT_CLEAN if dirty else "",
    )


def _exfat_label(window: Window, sector_size: int, cluster_size: int) -> str:
    fat = window.number(80, "<I") * sector_size
    heap = window.number(88, "<I") * sector_size
    cluster = window.number(96, "<I")
    for _ in range(_MAX_CLUSTERS):
        if not 2 <= cluster < 0xFFFFFFF7:
            return ""
        block = window.at(heap + (cluster - 2) * cluster_size, min(cluster_size, MAX_READ))
        for start in range(0, len(block), 32):
            if block[start] == 0:
                return ""
            if block[start] == 0x83:
                length = min(block[start + 1], 11)
                return block[start + 2 : start + 2 + 2 * length].decode("utf-16-le", "replace")
        cluster = window.number(fat + 4 * cluster, "<I")
    return ""


def _ntfs(window: Window) -> FileSystemInfo | None:
    sector_size, per_cluster = window.number(11, "<H"), window.number(13, "<B")
    if sector_size not in {256, *_SECTOR_SIZES}:
        return None
    if is_power_of_two(per_cluster) and per_cluster <= 128:
        cluster_size = per_cluster * sector_size
    elif 244 <= per_cluster <= 255:
        cluster_size = sector_size << (256 - per_cluster)
    else:
        return None
    serial = window.number(72, "<Q")
    label, dirty = _ntfs_volume(window, cluster_size)
    return FileSystemInfo("ntfs", label, f"{serial:016X}", _NOT_CLEAN if dirty else "")


def _ntfs_volume(window: Window, cluster_size: int) -> tuple[str, bool]:
    """Read name and dirty flag from $Volume, the fourth record of the master file table."""
    per_record = window.number(64, "<b")
    if not -31 <= per_record <= 127:
        return "", False
    record_size = per_record * cluster_size if per_record > 0 else 1 << -per_record
    if not 256 <= record_size <= 65536:
        return "", False
    raw = window.at(window.number(48, "<Q") * cluster_size + 3 * record_size, record_size)
    record = _fixed_up(raw) if raw.startswith(b"FILE") else b""
    label, dirty = "", False
    for kind, value in _resident_attributes(record):
        if kind == 0x60:
            label = value.decode("utf-16-le", "replace")
        elif kind == 0x70 and len(value) >= 12:
            dirty = bool(value[10] & 0x01)
    return label, dirty


def _fixed_up(raw: bytes) -> bytes:
    """Put back the bytes that the update sequence displaced from the end of each 512."""
    start, count = struct.unpack_from("<HH", raw, 4)
    record = bytearray(raw)
    for index in range(1, count):
        place, end = start + 2 * index, 512 * index
        if end > len(raw) or place + 2 > len(raw):
            break
        record[end - 2 : end] = raw[place : place + 2]
    return bytes(record)


def _resident_attributes(record: bytes) -> Iterator[tuple[int, bytes]]:
    if len(record) < 256:
        return
    position = int(struct.unpack_from("<H", record, 20)[0])
    while position + 24 <= len(record):
        kind, length, non_resident = struct.unpack_from("<IIB", record, position)
        if kind == 0xFFFFFFFF or length < 24 or position + length > len(record):
            return
        value_length, value_start = struct.unpack_from("<IH", record, position + 16)
        if not non_resident and value_start + value_length <= length:
            start = position + value_start
            yield kind, record[start : start + value_length]
        position += length


def _refs(_: Window) -> FileSystemInfo | None:
    return FileSystemInfo("refs")


SIGNATURES = (
    Signature(((3, b"NTFS    "),), _ntfs),
    Signature(((3, b"EXFAT   "),), _exfat),
    Signature(((0, b"\0\0\0ReFS\0"),), _refs),
    Signature((), _fat),
)
