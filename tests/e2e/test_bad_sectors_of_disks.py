"""Disks with bad sectors, as the kernel shows them: EIO for single sectors of a file or a loop device."""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import re
from pathlib import Path

import pytest

from engine.rescue import MAX_BAD_BYTES
from support.content import noise
from support.disks import MIB, make_ext4
from support.faultydisk import faulty_disk
from support.kernel import loop_device
from support.product import mounted, mountfs
from support.requirements import run

SECTOR = 512


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """An ext4 with two files, and where the content of the one begins that will suffer."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "files").mkdir()
    (folder / "files" / "victim").write_bytes(noise(1, MIB))
    (folder / "files" / "healthy").write_bytes(noise(2, MIB))
    disk = make_ext4(folder / "disk.img", 8 * MIB, populate_from=folder / "files")
    told = run("debugfs", "-R", "blocks /victim", disk).split()
    return disk, int(told[0]) * int(re.findall(r"Block size: +(\d+)", run("dumpe2fs", "-h", disk))[0])


def failing_sectors(disk: Path) -> list[int]:
    """Sectors of the first 2 MiB that answer EIO; past the page cache, which reads pages of eight."""
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    memory, bad = mmap.mmap(-1, SECTOR), []
    try:
        for sector in range(2 * MIB // SECTOR):
            try:
                os.preadv(fd, [memory], sector * SECTOR)
            except OSError as error:
                assert error.errno == errno.EIO  # noqa: PT017
                bad.append(sector)
    finally:
        os.close(fd)
    return bad


def test_bad_sectors_of_a_file_are_told_and_the_rest_is_there(made: tuple[Path, int], tmp_path: Path) -> None:
    content, victim = made
    lost = [(victim + 10 * SECTOR, SECTOR), (victim + 300 * SECTOR, 3 * SECTOR)]
    repo = tmp_path / "repo"
    with faulty_disk(content, lost) as disk:
        told = mountfs("backup", disk, repo, "--json", code=4)
    assert told.facts["unreadable_bytes"] == 4 * SECTOR
    places = [{"offset": offset, "length": length} for offset, length in sorted(lost)]
    assert told.facts["unreadable"] == places
    warnings = [json.loads(line) for line in told.err.splitlines()]
    assert any(line["type"] == "warning" and "the medium is failing" in line["message"] for line in warnings)

    verified = mountfs("verify", repo, "--json").facts
    known = mountfs("info", f"{repo}/disk", "--json").facts
    for facts in (verified, known):
        assert [(entry["offset"], entry["length"]) for entry in facts["unreadable"]] == sorted(lost)
        names = [[name.split("/")[-1] for name in entry["files"]] for entry in facts["unreadable"]]
        assert names == [["victim"], ["victim"]]
    assert "belongs to" in mountfs("verify", repo).out.decode()

    target = tmp_path / "restored.img"
    restored = mountfs("restore", f"{repo}/disk", target, "--verify", code=4)
    assert "zeros were written there" in restored.err
    expected = bytearray(content.read_bytes())
    for offset, length in lost:
        expected[offset : offset + length] = bytes(length)
    free = free_of(content)
    assert differing(target.read_bytes(), bytes(expected)) <= free


def free_of(disk: Path) -> set[int]:
    """Blocks of 4 KiB that the file system does not use."""
    free: set[int] = set()
    size = int(re.findall(r"Block size: +(\d+)", run("dumpe2fs", "-h", disk))[0])
    lines = "".join(re.findall(r"Free blocks: (.*)", run("dumpe2fs", disk)))
    for first, last in re.findall(r"(\d+)-(\d+)", lines):
        free.update(at // 4096 for at in range(int(first) * size, (int(last) + 1) * size, size))
    return free


def differing(one: bytes, other: bytes) -> set[int]:
    return {at // 4096 for at in range(0, len(one), 4096) if one[at : at + 4096] != other[at : at + 4096]}


def test_exactly_those_sectors_answer_eio_in_a_mount(made: tuple[Path, int], tmp_path: Path) -> None:
    content, _ = made
    chance = random.Random(5)
    bad = sorted(chance.sample(range(2 * MIB // SECTOR), 30))
    with faulty_disk(content, [(sector * SECTOR, SECTOR) for sector in bad]) as disk:
        mountfs("backup", disk, tmp_path / "repo", "--raw", code=4)
    with mounted(f"{tmp_path}/repo/disk@1") as folder:
        (image,) = folder.glob("**/disk.img")
        assert failing_sectors(image) == bad


def test_many_bad_sectors_need_to_be_asked_for(made: tuple[Path, int], tmp_path: Path) -> None:
    """And what was stored by then is gone on with."""
    content, _ = made
    lost = [(5 * MIB, MAX_BAD_BYTES + SECTOR)]
    with faulty_disk(content, lost) as disk:
        refused = mountfs("backup", disk, tmp_path / "repo", "--raw", code=32)
        assert "--rescue" in refused.errors[0]
        told = mountfs("backup", disk, tmp_path / "repo", "--raw", "--rescue", "--json", code=4)
    assert told.facts["unreadable"] == [{"offset": offset, "length": length} for offset, length in lost]


@pytest.mark.root
def test_bad_sectors_of_a_device(made: tuple[Path, int], tmp_path: Path) -> None:
    content, victim = made
    lost = [(victim + 20 * SECTOR, SECTOR), (victim + 100 * SECTOR, 2 * SECTOR)]
    with faulty_disk(content, lost) as file, loop_device(file, read_only=True) as device:
        told = mountfs("backup", device, tmp_path / "repo", "--set", "disk", "--json", code=4)
    assert told.facts["unreadable"] == [{"offset": offset, "length": length} for offset, length in lost]


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_two_hundred_random_ranges_are_recorded_to_the_sector(tmp_path: Path) -> None:
    chance, size = random.Random(18), 128 * MIB
    content = tmp_path / "content"
    content.write_bytes(noise(3, size))
    bad: set[int] = set()
    ranges = []
    for _ in range(200):
        length = SECTOR * int(2 ** chance.uniform(0, 10))
        offset = chance.randrange((size - length) // SECTOR) * SECTOR
        ranges.append((offset, length))
        bad.update(range(offset // SECTOR, (offset + length) // SECTOR))
    with faulty_disk(content, ranges) as disk:
        told = mountfs(
            "backup", disk, tmp_path / "repo", "--rescue", "--raw", "--json", code=4, patience=1200
        )
    assert told.facts["unreadable_bytes"] == len(bad) * SECTOR
    mountfs("verify", tmp_path / "repo")
    target = tmp_path / "restored.img"
    mountfs("restore", f"{tmp_path}/repo/disk", target, code=4)
    expected = bytearray(content.read_bytes())
    for sector in bad:
        expected[sector * SECTOR : (sector + 1) * SECTOR] = bytes(SECTOR)
    assert target.read_bytes() == expected
    found = mountfs("info", f"{tmp_path}/repo/disk", "--json").facts["unreadable"]
    places = ((gap["offset"] // SECTOR, gap["length"] // SECTOR) for gap in found)
    assert {sector for first, count in places for sector in range(first, first + count)} == bad
