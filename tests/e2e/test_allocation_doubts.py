"""Whatever is wrong with a volume, none of its space is taken as free, and the reason says what it is."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from e2e.test_allocation_maps import READERS, device_of, make
from imageformat.crc32c import crc32c
from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from mountfs.allocation.disk import read_allocation
from support.disks import MIB, Part, make_gpt_disk
from support.kernel import kernel_mount, loop_device
from support.requirements import require_root, require_tool, run

if TYPE_CHECKING:
    from collections.abc import Callable

MADE = {
    "ext4": (("mke2fs", "-q", "-F", "-t", "ext4"), 16),
    "ext2": (("mke2fs", "-q", "-F", "-t", "ext2"), 16),
    "ntfs": (("mkfs.ntfs", "-q", "-F", "-f"), 8),
    "fat32": (("mkfs.fat", "-F", "32"), 40),
    "fat16": (("mkfs.fat", "-F", "16"), 16),
    "exfat": (("mkfs.exfat",), 8),
    "xfs": (("mkfs.xfs", "-q", "-f", "--unsupported"), 32),
    "btrfs": (("mkfs.btrfs", "-q", "-f", "--mixed"), 32),
    "swap": (("mkswap",), 2),
}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytearray]:
    folder = tmp_path_factory.mktemp("volumes")

    def volume(name: str) -> bytearray:
        command, size = MADE[name]
        if not (folder / name).exists():
            make(folder / name, command, size)
        return bytearray((folder / name).read_bytes())

    return volume


def put(at: int, layout: str, *values: int) -> Callable[[bytearray], None]:
    return lambda raw: struct.pack_into(layout, raw, at, *values)


def flip(at: int, mask: int = 1) -> Callable[[bytearray], None]:
    def change(raw: bytearray) -> None:
        raw[at] ^= mask

    return change


def ext_bitmap(raw: bytearray) -> None:
    """Free a block that is in use: the first."""
    block = 1024 << struct.unpack_from("<I", raw, 1024 + 0x18)[0]
    table = block * (2 if block == 1024 else 1)
    raw[struct.unpack_from("<I", raw, table)[0] * block] ^= 1


def ext_descriptor(raw: bytearray) -> None:
    block = 1024 << struct.unpack_from("<I", raw, 1024 + 0x18)[0]
    raw[block * (2 if block == 1024 else 1) + 0xC] ^= 1


def ntfs_record(raw: bytearray, number: int) -> int:
    return int(struct.unpack_from("<Q", raw, 48)[0]) * 4096 + number * 1024


def ntfs_dirty(raw: bytearray) -> None:
    at = ntfs_record(raw, 3)
    place = raw.index(struct.pack("<I", 0x70), at + 56, at + 1024)
    (value,) = struct.unpack_from("<H", raw, place + 20)
    raw[place + value + 10] |= 1


def ntfs_bitmap(raw: bytearray) -> None:
    """Mark the first cluster, with the boot sector, as free."""
    at = ntfs_record(raw, 6)
    data = raw.index(struct.pack("<I", 0x80), at + 56, at + 1024)
    runs = data + struct.unpack_from("<H", raw, data + 32)[0]
    length, place = raw[runs] & 0xF, raw[runs] >> 4
    cluster = int.from_bytes(raw[runs + 1 + length : runs + 1 + length + place], "little")
    raw[cluster * 4096] &= 0xFE


def ntfs_log(raw: bytearray) -> None:
    """Open the journal: a restart page with a client in use that is not marked clean."""
    at = next(at for at in range(0, len(raw), 4096) if raw[at : at + 4096] == b"\xff" * 4096)
    page = bytearray(4096)
    struct.pack_into("<4sHH", page, 0, b"RSTR", 30, 9)
    struct.pack_into("<IIH", page, 16, 4096, 4096, 48)
    struct.pack_into("<QHHHH", page, 48, 1, 1, 0xFFFF, 0, 0)
    for offset in (0, 4096):
        raw[at + offset : at + offset + 4096] = page


def fat_table(raw: bytearray) -> None:
    (reserved,) = struct.unpack_from("<H", raw, 14)
    raw[reserved * 512 + 400] = 1


def btrfs_super(at: int, layout: str, value: int) -> Callable[[bytearray], None]:
    """Change the only copy of the superblock that a small volume has."""

    def change(raw: bytearray) -> None:
        struct.pack_into(layout, raw, 65536 + at, value)
        struct.pack_into("<I", raw, 65536, crc32c(bytes(raw[65536 + 32 : 65536 + 4096])))

    return change


CASES = [
    ("ext2", put(1024 + 0x3A, "<H", 0), "not cleanly unmounted"),
    ("ext2", put(1024 + 0x3A, "<H", 3), "having errors"),
    ("ext2", put(1024 + 0x0C, "<I", 5), "free blocks, but its superblock says 5"),
    ("ext2", put(1024 + 0x64, "<I", 1 << 20), "features that are not known"),
    ("ext2", put(1024 + 0x20, "<I", 12), "groups make no sense|clusters in a group"),
    ("ext2", ext_bitmap, "free clusters, but claims"),
    ("ext2", ext_descriptor, "free clusters, but claims"),
    ("ext4", put(1024 + 0x3A, "<H", 0), "superblock does not match its checksum"),
    ("ext4", ext_bitmap, "bitmap of block group 0 does not match its checksum"),
    ("ext4", ext_descriptor, "descriptor of block group 0 does not match its checksum"),
    ("ntfs", ntfs_dirty, "not cleanly unmounted"),
    ("ntfs", ntfs_bitmap, "marked as free"),
    ("ntfs", ntfs_log, "journal is not closed"),
    ("ntfs", put(40, "<Q", 1 << 40), "larger than what it lies on"),
    ("fat32", flip(65), "not cleanly unmounted"),
    ("fat32", fat_table, "tables differ"),
    ("fat32", put(32 * 512 + 7, "<B", 0), "not cleanly unmounted"),
    ("fat32", put(512 + 488, "<I", 7), "but says that it has 7"),
    ("fat16", flip(37), "not cleanly unmounted"),
    ("fat16", fat_table, "tables differ"),
    ("exfat", put(106, "<H", 2), "not cleanly unmounted"),
    ("xfs", put(512 + 52, ">I", 3), "checksum"),
    ("xfs", flip(200), "checksum"),
    ("btrfs", btrfs_super(0x78, "<Q", 12345), "its superblock says 12345"),
    ("btrfs", btrfs_super(0x60, "<Q", 1 << 22), "log tree"),
    ("btrfs", btrfs_super(0x88, "<Q", 2), "one of 2 devices"),
    ("swap", lambda raw: raw.__setitem__(slice(4086, 4096), b"S1SUSPEND\0"), "hibernated"),
    ("swap", put(1028, "<I", 1 << 30), "swap header is damaged"),
]


@pytest.mark.parametrize(
    ("name", "damage", "reason"), CASES, ids=[f"{name}: {reason}" for name, _, reason in CASES]
)
def test_a_doubt_makes_all_of_it_used(
    name: str, damage: Callable[[bytearray], None], reason: str, volumes: Callable[[str], bytearray]
) -> None:
    raw = volumes(name)
    (sound,) = read_allocation(MemoryDevice(bytes(raw))).volumes
    assert (sound.type, sound.reason) == (name, "")
    assert sound.free > 0
    damage(raw)
    found = read_allocation(MemoryDevice(bytes(raw)))
    assert found.unused.total == 0
    reader = next(record for record in READERS.values() if name in record.types)
    with pytest.raises(VolumeError, match=reason):
        reader.unused(MemoryDevice(bytes(raw)))


@pytest.mark.parametrize(("name", "driver"), [("xfs", "xfs"), ("ext4", "ext4")])
def test_a_copy_of_a_volume_in_use_is_all_used(name: str, driver: str, tmp_path: Path) -> None:
    require_root()
    source = tmp_path / "volume"
    command, size = MADE[name]
    make(source, command, max(size, 64))
    with loop_device(source) as device, kernel_mount(device, driver, read_only=False) as top:
        (top / "one").write_bytes(b"1" * 50_000)
        run("sync", "-f", top)
        shutil.copy(source, tmp_path / "copy")
    (volume,) = read_allocation(device_of(tmp_path / "copy")).volumes
    assert volume.free == 0
    assert "was not" in volume.reason


def test_a_count_that_is_wrong_in_xfs(tmp_path: Path) -> None:
    require_tool("xfs_db")
    path = tmp_path / "volume"
    make(path, MADE["xfs"][0], 32)
    run("xfs_db", "-x", "-c", "sb 0", "-c", "write fdblocks 77", path)
    with pytest.raises(VolumeError, match="its superblock says 77"):
        READERS["xfs"].unused(device_of(path))
    make(path, MADE["xfs"][0], 32)
    run("xfs_db", "-x", "-c", "agf 0", "-c", "write -d freeblks 5", path)
    with pytest.raises(VolumeError, match=r"allocation group 0 has .* but claims 5"):
        READERS["xfs"].unused(device_of(path))


def test_the_marks_of_two_file_systems(volumes: Callable[[str], bytearray]) -> None:
    raw = volumes("ext4")
    raw[65536 + 64 : 65536 + 72] = b"_BHRfS_M"
    (volume,) = read_allocation(MemoryDevice(bytes(raw))).volumes
    assert volume.free == 0
    assert "more than one file system" in volume.reason


def test_partitions_that_overlap(volumes: Callable[[str], bytearray], tmp_path: Path) -> None:
    (tmp_path / "volume").write_bytes(volumes("ext4"))
    disk = tmp_path / "disk"
    size = (tmp_path / "volume").stat().st_size
    make_gpt_disk(disk, 40 * MIB, [Part(size, content=tmp_path / "volume"), Part(MIB)])
    assert read_allocation(device_of(disk)).unused.total > 0
    with disk.open("r+b") as file:
        file.truncate(8 * MIB)  # the tables at the end are gone, and with them the doubt which ones count
        file.seek(512)
        file.write(bytes(512))
        file.truncate(40 * MIB)
        file.seek(446)
        for first, count in ((2048, size // 512), (20_000, 40_000)):
            file.write(struct.pack("<BBBBBBBBII", 0, 0, 0, 0, 0x83, 0, 0, 0, first, count))
    found = read_allocation(device_of(disk))
    assert found.unused.total == 0
    assert any("overlap" in volume.reason for volume in found.volumes)
