"""Apple partition maps and BSD disklabels: as parted writes and partx lists them, and tables that lie."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageformat.device import MemoryDevice
from imageformat.errors import SourceReadError
from imageformat.partitions import PartitionTable, read_table
from mountfs.disktree import DiskTree
from mountfs.tree import walk
from mountfs.volumes import among
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
DISK = 24 * MIB
FREE = {"Apple_Free"}


def parted(path: Path, label: str, *sizes: int) -> bytes:
    """A disk with partitions of so many MiB, one after another."""
    require_tool("parted", "partx")
    path.write_bytes(b"")
    os.truncate(path, DISK)
    script = ["mklabel", label]
    start = 1
    for size in sizes:
        name = ["part"] if label == "mac" else []
        script += ["mkpart", *name, "ext2", f"{start}MiB", f"{start + size}MiB"]
        start += size
    run("parted", "-s", path, *script)
    return path.read_bytes()


def partx(path: Path) -> list[tuple[int, int, int, str]]:
    listed = run("partx", "--raw", "--noheadings", "--output", "NR,START,SECTORS,TYPE", path)
    rows = [line.split() for line in listed.splitlines()]
    return [(int(row[0]), int(row[1]) * 512, int(row[2]) * 512, row[3]) for row in rows]


@pytest.mark.parametrize("sizes", [(3,), (1, 2, 3), (1,) * 9])
def test_apm_as_parted_wrote_it(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    disk = parted(tmp_path / "disk", "mac", *sizes)
    table = read_table(MemoryDevice(disk))
    expected = [row for row in partx(tmp_path / "disk") if row[3] not in FREE]
    assert [(e.number, e.offset, e.size, e.type_id) for e in table.partitions] == expected
    assert (table.scheme, table.sector_size, table.warnings) == ("apm", 512, ())
    assert len(table.partitions) == len(sizes) + 1
    assert {entry.name for entry in table.partitions[1:]} == {"part"}


@pytest.mark.parametrize("sizes", [(3,), (1, 2, 3)])
def test_bsd_as_parted_wrote_it(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    disk = parted(tmp_path / "disk", "bsd", *sizes)
    table = read_table(MemoryDevice(disk))
    expected = partx(tmp_path / "disk")
    found = [(e.number, e.offset, e.size, f"0x{int(e.type_id, 16):x}") for e in table.partitions]
    assert found == expected
    assert table.scheme == "bsd"
    assert [entry.name for entry in table.partitions] == list("abc"[: len(sizes)])


def apm(
    entries: list[tuple[int, int, str, str]], *, block: int = 512, stated: int | None = None, count: int = 0
) -> bytes:
    """A map as Inside Macintosh has it; entries are start and size in blocks, name and type."""
    disk = bytearray(4 * MIB)
    struct.pack_into(">2sHI", disk, 0, b"ER", stated or block, len(disk) // block)
    rows = [(1, 63, "Apple", "Apple_partition_map"), *entries]
    for index, (start, size, name, kind) in enumerate(rows, 1):
        fields = (b"PM", count or len(rows), start, size, name.encode("mac_roman"), kind.encode())
        struct.pack_into(">2s2xIII32s32s", disk, index * block, *fields)
    return bytes(disk)


def places(table: PartitionTable) -> list[tuple[int, int, int]]:
    return [(entry.number, entry.offset, entry.size) for entry in table.partitions]


@pytest.mark.parametrize("block", [512, 2048, 4096])
def test_blocks_of_other_sizes(block: int) -> None:
    entries = [(64, 100, "Größe", "Apple_HFS"), (164, 10, "", "Apple_Free"), (200, 7, "x", "Odd_Type")]
    disk = apm(entries, block=block)
    table = read_table(MemoryDevice(disk))
    assert (table.scheme, table.sector_size, table.warnings) == ("apm", block, ())
    assert places(table) == [
        (1, block, 63 * block),
        (2, 64 * block, 100 * block),
        (4, 200 * block, 7 * block),
    ]
    assert [entry.name for entry in table.partitions] == ["Apple", "Größe", "x"]
    assert [entry.type_name for entry in table.partitions][1:] == ["Apple HFS/HFS+", "Odd_Type"]


def test_a_map_in_smaller_blocks_than_the_disk_states() -> None:
    disk = apm([(64, 100, "a", "Apple_HFS")], stated=2048)
    table = read_table(MemoryDevice(disk))
    assert (table.sector_size, places(table)[1]) == (512, (2, 64 * 512, 100 * 512))


def test_a_map_on_a_cd_with_a_file_system_of_its_own_is_left_alone() -> None:
    disk = bytearray(apm([(64, 100, "a", "Apple_HFS")]))
    disk[32769:32774] = b"CD001"
    assert read_table(MemoryDevice(bytes(disk))).scheme == "none"


def test_maps_that_lie() -> None:
    far = apm([(1 << 31, 5, "far", "x"), (5000, 1 << 31, "long", "x"), (64, 0, "empty", "x")])
    table = read_table(MemoryDevice(far))
    assert places(table)[1:] == [(3, 5000 * 512, 4 * MIB - 5000 * 512)]
    assert len(table.warnings) == 2
    many = read_table(MemoryDevice(apm([], count=1 << 31)))
    assert len(many.partitions) == 1
    assert any("claims 2147483648 entries" in warning for warning in many.warnings)
    assert len(many.warnings) <= 40
    damaged = bytearray(apm([(64, 1, "a", "x"), (65, 1, "b", "x")]))
    damaged[2 * 512 : 2 * 512 + 2] = b"XX"
    table = read_table(MemoryDevice(bytes(damaged)))
    assert [entry.number for entry in table.partitions] == [1, 3]
    assert "entry 2" in table.warnings[0]
    overlapping = apm([(64, 100, "a", "x"), (100, 5, "b", "x")])
    assert read_table(MemoryDevice(overlapping)).warnings == ("partitions 2 and 3 overlap",)


def disklabel(
    entries: list[tuple[int, int, int]], *, place: int = 512, size: int = 4 * MIB, start: int = 0
) -> bytes:
    """A label as disklabel(5) has it; entries are start and size in sectors, and type."""
    label = bytearray(148 + 16 * len(entries))
    struct.pack_into("<I", label, 0, 0x82564557)
    struct.pack_into("<I", label, 40, 512)
    struct.pack_into("<I", label, 132, 0x82564557)
    struct.pack_into("<H", label, 138, len(entries))
    for index, (first, sectors, kind) in enumerate(entries):
        struct.pack_into("<IIIBBH", label, 148 + 16 * index, sectors, first, 0, kind, 0, 0)
    combined = 0
    for word in struct.unpack(f"<{len(label) // 2}H", label):
        combined ^= word
    struct.pack_into("<H", label, 136, combined)
    disk = bytearray(size)
    disk[start + place : start + place + len(label)] = label
    return bytes(disk)


@pytest.mark.parametrize("place", [512, 64, 0])
def test_a_label_alone_on_a_disk(place: int) -> None:
    entries = [(64, 1000, 7), (1064, 500, 1), (0, 4 * MIB // 512, 7), (0, 0, 7), (2000, 5, 0), (3000, 9, 99)]
    table = read_table(MemoryDevice(disklabel(entries, place=place)))
    assert (table.scheme, table.warnings) == ("bsd", ())
    assert places(table) == [(1, 64 * 512, 1000 * 512), (2, 1064 * 512, 500 * 512), (3, 3000 * 512, 9 * 512)]
    assert [(e.name, e.type_name) for e in table.partitions] == [("a", "4.2BSD"), ("b", "swap"), ("f", "63")]


SLICE = 2048


def sliced(kind: int, entries: list[tuple[int, int, int]]) -> bytes:
    """An MBR with a Linux partition, a slice of 2 MiB at 1 MiB, and a logical partition behind it."""
    disk = bytearray(disklabel(entries, size=8 * MIB, start=SLICE * 512))
    rows = [(kind, SLICE, 4096), (0x83, 8192, 100), (0x0F, 10240, 2048)]
    for index, (number, start, sectors) in enumerate(rows):
        struct.pack_into("<B3xB3xII", disk, 446 + 16 * index, 0, number, start, sectors)
    disk[440:444] = b"\1\2\3\4"
    disk[510:512] = b"\x55\xaa"
    struct.pack_into("<B3xB3xII", disk, 10240 * 512 + 446, 0, 0x83, 64, 100)
    disk[10240 * 512 + 510 : 10240 * 512 + 512] = b"\x55\xaa"
    return bytes(disk)


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        (0xA5, [(64, 100, 7), (164, 50, 1), (0, 4096, 0)]),
        (0xA5, [(SLICE + 64, 100, 7), (SLICE + 164, 50, 1), (SLICE, 4096, 0)]),
        (0xA6, [(SLICE + 64, 100, 7), (SLICE + 164, 50, 1), (0, 16384, 0)]),
        (0xA9, [(SLICE + 64, 100, 7), (SLICE + 164, 50, 1), (SLICE, 4096, 0)]),
    ],
    ids=["FreeBSD relative", "FreeBSD absolute", "OpenBSD", "NetBSD"],
)
def test_slices_are_counted_as_partx_does(
    tmp_path: Path, kind: int, entries: list[tuple[int, int, int]]
) -> None:
    require_tool("partx")
    (tmp_path / "disk").write_bytes(sliced(kind, entries))
    table = read_table(MemoryDevice(sliced(kind, entries)))
    expected = [row[:3] for row in partx(tmp_path / "disk") if row[3] != "0xf"]
    assert sorted(places(table)) == sorted(expected)
    assert [entry.number for entry in table.partitions] == [1, 2, 5, 6, 7]
    assert [(entry.name, entry.within) for entry in table.partitions[3:]] == [("a", 1), ("b", 1)]
    assert table.warnings == ()


def test_a_slice_says_where_its_parts_are() -> None:
    disk = sliced(0xA5, [(64, 100, 7), (164, 50, 1), (0, 4096, 0)])
    tree = DiskTree(MemoryDevice(disk), among())
    assert [volume.name for volume in tree.volumes()] == [b"1-bsd", b"2", b"5", b"6-a", b"7-b"]
    note = walk(tree, b"1/README")
    assert b"partitions 6, 7" in tree.read(note, 0, note.size)
    image = walk(tree, b"6/partition.img")
    assert image.size == 100 * 512


def test_labels_that_lie() -> None:
    outside = read_table(MemoryDevice(sliced(0xA6, [(5, 100, 7), (SLICE, 1 << 31, 7), (SLICE + 1, 5, 7)])))
    assert [entry.name for entry in outside.partitions if entry.within] == ["c"]
    assert sum("does not lie inside partition 1" in warning for warning in outside.warnings) == 2
    wrong = bytearray(disklabel([(64, 100, 7)]))
    wrong[512 + 136] ^= 1
    assert read_table(MemoryDevice(bytes(wrong))).warnings == (
        "the BSD disklabel does not match its checksum",
    )
    for at, value in [(512 + 138, 0), (512 + 138, 23), (512 + 132, 1), (512, 1)]:
        broken = bytearray(disklabel([(64, 100, 7)]))
        struct.pack_into("<H", broken, at, value)
        assert read_table(MemoryDevice(bytes(broken))).scheme == "none"
    for size in (0, 512, 700, 1024):
        read_table(MemoryDevice(disklabel([(64, 100, 7)])[:size]))


class Failing(MemoryDevice):
    """Cannot read behind its first sector."""

    def pread(self, offset: int, size: int) -> bytes:
        if offset + size > 512:
            raise SourceReadError("bad sector")
        return super().pread(offset, size)


def test_unreadable_sectors_are_no_table() -> None:
    assert read_table(Failing(disklabel([(64, 100, 7)]))).scheme == "none"
    assert read_table(Failing(apm([(64, 1, "a", "x")]))).scheme == "none"


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["apm", "bsd", "slice"]),
    st.lists(st.tuples(st.integers(0, 2047), st.binary(min_size=1, max_size=4)), max_size=8),
)
def test_any_damage(kind: str, damage: list[tuple[int, bytes]]) -> None:
    sound = {
        "apm": apm([(64, 100, "a", "Apple_HFS"), (164, 10, "b", "x")]),
        "bsd": disklabel([(64, 1000, 7), (1064, 500, 1)]),
        "slice": sliced(0xA5, [(64, 100, 7), (164, 50, 1), (0, 4096, 0)]),
    }[kind]
    disk = bytearray(sound)
    base = SLICE * 512 if kind == "slice" else 0
    for at, piece in damage:
        disk[base + at : base + at + len(piece)] = piece
    table = read_table(MemoryDevice(bytes(disk)))
    numbers = [entry.number for entry in table.partitions]
    assert numbers == sorted(set(numbers))
    for entry in table.partitions:
        assert entry.size > 0
        assert 0 <= entry.offset <= len(disk) - entry.size
    assert len(table.warnings) <= 40
