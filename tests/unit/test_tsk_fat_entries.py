"""Directory entries of FAT and exFAT, made here byte by byte from the specifications."""

from __future__ import annotations

import calendar
import struct

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from mountfs.drivers import fat
from mountfs.drivers._fat_entries import FatEntry, Problem, exfat_entries, fat_entries, timestamp
from mountfs.tree import FileSystemInfo


def checksum(short: bytes) -> int:
    total = 0
    for byte in short:
        total = ((total >> 1) | (total << 7 & 0x80)) + byte & 0xFF
    return total


def long_entries(name: str, short: bytes) -> bytes:
    raw = name.encode("utf-16-le")
    if len(raw) % 26:
        raw = (raw + b"\0\0").ljust(-(-len(raw) // 26) * 26, b"\xff")
    parts = [raw[at : at + 26] for at in range(0, len(raw), 26)]
    entries = []
    for number, part in enumerate(parts, start=1):
        order = number | (0x40 if number == len(parts) else 0)
        entry = (
            bytes([order])
            + part[:10]
            + b"\x0f\0"
            + bytes([checksum(short)])
            + part[10:22]
            + b"\0\0"
            + part[22:]
        )
        entries.append(entry)
    return b"".join(reversed(entries))


def short_entry(
    name: bytes, *, attributes: int = 0x20, case: int = 0, cluster: int = 5, size: int = 7
) -> bytes:
    moment = struct.pack(
        "<BHHHHHHHI", 50, 0x6000, 0x5021, 0x5022, cluster >> 16, 0x6001, 0x5023, cluster & 0xFFFF, size
    )
    return name + bytes([attributes, case]) + moment


def names(raw: bytes) -> list[bytes]:
    return [entry.name for entry in fat_entries(raw) if isinstance(entry, FatEntry)]


@pytest.mark.parametrize("name", ["a", "thirteen char", "fourteen chars", "ü😀 длинное", "x" * 255, "…"])
def test_long_names(name: str) -> None:
    short = b"SHORT~1 TXT"
    assert names(long_entries(name, short) + short_entry(short)) == [name.encode()]


def test_a_long_name_that_belongs_to_another_entry_is_left_out() -> None:
    short = b"SHORT   TXT"
    stale = long_entries("a stale long name here", b"OTHER   TXT")
    assert names(stale + short_entry(short)) == [b"SHORT.TXT"]
    whole = long_entries("a long name of two parts", short)
    assert names(whole[32:] + short_entry(short)) == [b"SHORT.TXT"]
    assert names(whole + b"\xe5" + bytes(31) + short_entry(short)) == [b"SHORT.TXT"]
    assert names(whole + short_entry(b"LABEL      ", attributes=8) + short_entry(short)) == [b"SHORT.TXT"]


@pytest.mark.parametrize(
    ("stored", "case", "shown"),
    [
        (b"NAME    EXT", 0x00, b"NAME.EXT"),
        (b"NAME    EXT", 0x08, b"name.EXT"),
        (b"NAME    EXT", 0x10, b"NAME.ext"),
        (b"NAME    EXT", 0x18, b"name.ext"),
        (b"NAME       ", 0x00, b"NAME"),
        (b"A B     C  ", 0x00, b"A B.C"),
        (b"\x05AME       ", 0x00, "\u03c3AME".encode()),
        (b"\x81BER       ", 0x00, "üBER".encode()),
    ],
)
def test_short_names(stored: bytes, case: int, shown: bytes) -> None:
    assert names(short_entry(stored, case=case)) == [shown]


def test_what_is_not_shown() -> None:
    raw = (
        short_entry(b".          ", attributes=0x10)
        + short_entry(b"..         ", attributes=0x10)
        + short_entry(b"\xe5ELETED TXT")
        + short_entry(b"LABEL      ", attributes=8)
        + short_entry(b"KEPT       ")
        + bytes(32)
        + short_entry(b"AFTER      ")
    )
    assert names(raw) == [b"KEPT"]
    assert isinstance(next(iter(fat_entries(short_entry(b"           ")))), Problem)


def test_values_of_an_entry() -> None:
    (found,) = fat_entries(short_entry(b"NAME       ", attributes=0x21, cluster=0x12345, size=99))
    assert isinstance(found, FatEntry)
    day = calendar.timegm((2020, 1, 1, 12, 0, 0)) * 10**9
    assert found.birth_ns == day + 500_000_000
    assert found.atime_ns == calendar.timegm((2020, 1, 2, 0, 0, 0)) * 10**9
    assert found.mtime_ns == calendar.timegm((2020, 1, 3, 12, 0, 2)) * 10**9
    assert (found.cluster, found.size, found.is_read_only, found.is_directory) == (0x12345, 99, True, False)


@pytest.mark.parametrize(
    ("date", "time"), [(0, 0), (0x0001, 0), (0x01A1, 0), (0x5021, 0xC000), (0x5021, 0x07E0)]
)
def test_moments_that_do_not_exist(date: int, time: int) -> None:
    assert timestamp(date, time) == 0


def exfat_set(
    name: str,
    *,
    size: int = 10_000,
    valid: int | None = None,
    cluster: int = 5,
    flags: int = 3,
    zone: int = 0x80,
) -> bytes:
    raw = name.encode("utf-16-le")
    parts = [raw[at : at + 30].ljust(30, b"\0") for at in range(0, len(raw), 30)]
    file = struct.pack("<BBHHHIII", 0x85, 1 + len(parts), 0, 0x20, 0, 0x5021_6000, 0x5023_6001, 0x5022_0000)
    file += bytes([50, 150, zone, zone, zone]) + bytes(7)
    length = len(raw) // 2
    valid = size if valid is None else valid
    stream = struct.pack("<BBBBHHQIIQ", 0xC0, flags, 0, length, 0, 0, valid, 0, cluster, size)
    whole = bytearray(file + stream + b"".join(b"\xc1\0" + part for part in parts))
    total = 0
    for index, byte in enumerate(whole):
        if index not in {2, 3}:
            total = ((total << 15 | total >> 1) & 0xFFFF) + byte & 0xFFFF
    whole[2:4] = total.to_bytes(2, "little")
    return bytes(whole)


def test_exfat_sets() -> None:
    raw = (
        bytes([0x83])
        + bytes(31)
        + exfat_set("ü😀" * 40, zone=0x80 | 0x7C)
        + exfat_set("second", zone=0x80 | 8)
    )
    first, second = exfat_entries(raw + bytes(32) + exfat_set("after the end"))
    assert isinstance(first, FatEntry)
    assert isinstance(second, FatEntry)
    assert first.name == ("ü😀" * 40).encode()
    day = calendar.timegm((2020, 1, 1, 12, 0, 0)) * 10**9
    assert first.birth_ns == day + 500_000_000 + 3600 * 10**9
    assert second.birth_ns == day + 500_000_000 - 2 * 3600 * 10**9
    assert second.mtime_ns == calendar.timegm((2020, 1, 3, 10, 0, 3)) * 10**9 + 500_000_000


def test_a_damaged_exfat_set_is_told_and_the_next_one_found() -> None:
    damaged = bytearray(exfat_set("damaged"))
    damaged[60] ^= 1
    problem, entry = exfat_entries(bytes(damaged) + exfat_set("sound"))
    assert isinstance(problem, Problem)
    assert isinstance(entry, FatEntry)
    assert entry.name == b"sound"


def exfat_image(*, valid: int, flags: int, links: dict[int, int]) -> bytes:
    """A volume of 64 clusters of 4 KiB: table at 4 KiB, clusters from 8 KiB, root in cluster 4."""
    boot = bytearray(512)
    boot[:11] = b"\xeb\x76\x90EXFAT   "
    struct.pack_into("<IIIII", boot, 80, 8, 8, 16, 64, 4)
    struct.pack_into("<HBBB", boot, 106, 0, 9, 3, 1)
    content = bytearray(boot).ljust(8192, b"\0")
    for cluster, following in {4: 0xFFFF_FFFF, **links}.items():
        struct.pack_into("<I", content, 4096 + cluster * 4, following)
    for cluster in range(2, 66):
        content += bytes([cluster]) * 4096
    entries = exfat_set("file", size=10_000, valid=valid, cluster=10, flags=flags)
    content[8192 + 2 * 4096 : 8192 + 3 * 4096] = entries.ljust(4096, b"\0")
    return bytes(content)


@pytest.mark.parametrize(
    ("flags", "links", "clusters"),
    [(3, {}, (10, 11, 12)), (1, {10: 20, 20: 15, 15: 0xFFFF_FFFF}, (10, 20, 15))],
)
@pytest.mark.parametrize("valid", [10_000, 5000, 0])
def test_exfat_content(flags: int, links: dict[int, int], clusters: tuple[int, ...], valid: int) -> None:
    image = exfat_image(valid=valid, flags=flags, links=links)
    tree = fat.PLUGIN.open(MemoryDevice(image), FileSystemInfo("exfat"))
    node = tree.child(tree.root(), b"file")
    assert node is not None
    whole = b"".join(bytes([cluster]) * 4096 for cluster in clusters)[:valid]
    assert tree.read(node, 0, 20_000) == whole.ljust(10_000, b"\0")


@pytest.mark.parametrize("links", [{}, {10: 0xFFFF_FFFF}, {10: 11, 11: 1000}, {10: 11, 11: 10}])
def test_damaged_exfat_chains(links: dict[int, int]) -> None:
    image = exfat_image(valid=10_000, flags=1, links=links)
    tree = fat.PLUGIN.open(MemoryDevice(image), FileSystemInfo("exfat"))
    node = tree.child(tree.root(), b"file")
    assert node is not None
    with pytest.raises(VolumeError):
        tree.read(node, 0, 1)
