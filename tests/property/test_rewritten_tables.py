"""Partition tables made for other disks: what the readers find is what was there, byte for byte in place."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clone import ClonedDisk, TargetShape, Wish, plan_clone
from imageformat.device import MemoryDevice
from imageformat.errors import TargetTooSmallError, UnsupportedFeatureError
from imageformat.extent import Extent, ExtentKind
from imageformat.partitions import PartitionTable, read_table
from support.content import noise
from support.disks import LINUX, MIB, Part, make_gpt_disk
from support.requirements import run

KIB = 1024


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gpt") / "disk"
    make_gpt_disk(path, 8 * MIB, [Part(MIB, LINUX, f"p{number}") for number in range(4)])
    content = bytearray(path.read_bytes())
    content[MIB : 5 * MIB] = noise(1, 4 * MIB)
    return bytes(content)


@pytest.fixture(scope="module")
def mbr(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("mbr") / "disk"
    path.write_bytes(bytes(8 * MIB))
    told = b"label: dos\nstart=2048,size=1024,type=83,bootable\nstart=4096,size=12288,type=f\n"
    told += b"".join(b"start=%d,size=1024,type=7\n" % (4096 + 2048 * at + 1024) for at in range(4))
    run("sfdisk", "-q", path, stdin=told)
    content = bytearray(path.read_bytes())
    content[MIB : MIB + 512 * KIB] = noise(1, 512 * KIB)
    return bytes(content)


def cloned(source: MemoryDevice, table: PartitionTable, shape: TargetShape, wish: Wish) -> MemoryDevice:
    disk = ClonedDisk(source, plan_clone(source, table, shape, wish))
    found = list(disk.extents(0, disk.size))
    assert sum(extent.length for extent in found) == disk.size
    content = disk.pread(0, disk.size)
    for extent in found:
        if extent.kind is ExtentKind.UNUSED:
            assert not any(content[extent.offset : extent.end])
    return MemoryDevice(content)


@pytest.mark.parametrize("scheme", ["gpt", "mbr"])
@settings(max_examples=40)
@given(
    size=st.integers(2, 40),
    sector_size=st.sampled_from([512, 4096]),
    chosen=st.one_of(st.none(), st.sets(st.integers(0, 9), min_size=1)),
    same=st.booleans(),
)
def test_what_is_read_of_a_clone_is_what_was_wished(
    scheme: str,
    request: pytest.FixtureRequest,
    size: int,
    sector_size: int,
    chosen: set[int] | None,
    same: bool,
) -> None:
    source = MemoryDevice(request.getfixturevalue(scheme))
    table = read_table(source, 512)
    numbers = [entry.number for entry in table.partitions]
    wanted = frozenset(numbers[index % len(numbers)] for index in chosen) if chosen is not None else None
    kept = [entry for entry in table.partitions if wanted is None or entry.number in wanted]
    shape = TargetShape(size * 256 * KIB, sector_size)
    try:
        disk = cloned(source, table, shape, Wish(wanted, same_ids=same))
    except TargetTooSmallError:
        assert max(entry.offset + entry.size for entry in kept) > shape.size - 12 * 4096
        return
    found = read_table(disk, sector_size)
    assert found.warnings == ()
    assert found.scheme == scheme
    assert (found.disk_id == table.disk_id) is same
    renumbered = [entry.offset for entry in found.partitions]
    assert renumbered == [entry.offset for entry in kept]
    for now, then in zip(found.partitions, kept, strict=True):
        assert (now.size, now.type_id, now.name, now.bootable) == (
            then.size, then.type_id, then.name, then.bootable,
        )  # fmt: skip
        assert scheme == "mbr" or now.number == then.number
        assert scheme == "mbr" or (now.uuid == then.uuid) is same
        assert disk.pread(now.offset, now.size) == source.pread(now.offset, now.size)
    again = TargetShape(shape.size, sector_size, found)
    if not same:
        assert read_table(
            cloned(source, table, again, Wish(wanted)), sector_size
        ).disk_id == found.disk_id or (scheme == "mbr" and wanted is not None), (
            "a clone that is made again stays the same disk"
        )


def test_what_does_not_lie_on_large_sectors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(bytes(4 * MIB))
    run("sfdisk", "-q", path, stdin=b"label: dos\nstart=2049,size=2047,type=83\n")
    source = MemoryDevice(path.read_bytes())
    with pytest.raises(UnsupportedFeatureError, match="partition 1 lies at byte 1049088"):
        plan_clone(source, read_table(source, 512), TargetShape(4 * MIB, 4096), Wish())


def test_hostile_tables_are_one_kind_of_error(mbr: bytes, gpt: bytes) -> None:
    """Each byte of the tables inverted, one after the other: a plan, or the error that says why not."""
    for content, places in (
        (mbr, (*range(440, 512), *range(2 * MIB + 446, 2 * MIB + 512))),
        (gpt, range(512, 1600, 3)),
    ):
        for at in places:
            broken = bytearray(content)
            broken[at] ^= 0xFF
            source = MemoryDevice(bytes(broken))
            table = read_table(source, 512)
            try:
                plan = plan_clone(source, table, TargetShape(16 * MIB, 512), Wish())
            except (UnsupportedFeatureError, TargetTooSmallError):
                continue
            disk = ClonedDisk(source, plan)
            reach = 0
            for extent in disk.extents(0, disk.size):
                assert extent.offset == reach, at
                reach = extent.end
            assert reach == disk.size


def test_free_space_is_left_alone(gpt: bytes) -> None:
    source = MemoryDevice(gpt)
    table = read_table(source, 512)
    free = [Extent(MIB + 4096, 8192, ExtentKind.UNUSED), Extent(7 * MIB, MIB, ExtentKind.UNUSED)]
    disk = ClonedDisk(source, plan_clone(source, table, TargetShape(9 * MIB, 512), Wish()), free)
    assert list(disk.extents(MIB, 20000)) == [
        Extent(MIB, 4096, ExtentKind.DATA),
        Extent(MIB + 4096, 8192, ExtentKind.UNUSED),
        Extent(MIB + 12288, 7712, ExtentKind.DATA),
    ]
    assert uuid.UUID(read_table(MemoryDevice(disk.pread(0, disk.size)), 512).disk_id).version == 4
