"""A disk of 16 TiB, nearly all of it holes: nothing may take time or memory that grows with the disk.

Work is counted in calls of functions, which are the same on every machine; seconds are not.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from engine.backup import BackupOptions, backup
from engine.devices.source import open_source
from engine.devices.target import FileTarget, open_target
from engine.restore import restore
from engine.verify import verify
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage
from imageformat.view import ImageView
from support.content import make_tree, noise, tree_digests
from support.disks import MIB, Part, make_ext4, make_gpt_disk
from support.entries import differences, read_entries
from support.kernel import kernel_mount, loop_device
from support.product import mounted, mountfs
from support.requirements import require_tool, unavailable

TIB = 1 << 40
SMALL = 16 * MIB
PLACES = (5 * TIB, 8 * TIB + 12_345, 11 * TIB - 1)
"""Where something lies in the huge partition, across borders of blocks."""
MOST_CALLS = 1_500_000
"""Half a million are made; a step per block would be 268 million, a step per page of its index ten."""
MOST_MEMORY = 512 << 20


@contextmanager
def bounded_work() -> Iterator[None]:
    """End in an error what calls more functions in this thread than it may."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"
        if calls > MOST_CALLS:
            sys.setprofile(None)
            raise AssertionError(f"more than {MOST_CALLS} calls: the work grows with the disk")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)


@dataclass(frozen=True)
class Huge:
    """The disk as it is at point 2, and its repository; point 1 was without the last of `PLACES`."""

    disk: Path
    repository: Path
    files: dict[str, str]
    """Digests of what both small volumes hold."""


def largest(path: Path) -> int:
    """16 TiB, or the one cluster less that ext4 can hold."""
    for size in (16 * TIB, 16 * TIB - 4096):
        try:
            with path.open("wb") as file:
                file.truncate(size)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
        else:
            return size
    return unavailable("needs a file system that holds files of 16 TiB")


def write_at(disk: Path, place: int) -> None:
    with disk.open("r+b") as file:
        file.seek(place)
        file.write(noise(place % 1000, 50_000))


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Huge:
    require_tool("mke2fs")
    folder = tmp_path_factory.mktemp("huge")
    disk, repository = folder / "disk.img", folder / "repository"
    size = largest(disk)
    (folder / "files").mkdir()
    files = make_tree(folder / "files")
    volume = make_ext4(folder / "volume", SMALL, "Small", folder / "files")
    between = (size - 2 * SMALL - 4 * MIB) // MIB * MIB
    parts = [Part(SMALL, content=volume), Part(between, name="huge"), Part(SMALL, content=volume)]
    make_gpt_disk(disk, size, parts)
    for place in PLACES[:2]:
        write_at(disk, place)
    first = mountfs("backup", disk, repository, measured=True)
    write_at(disk, PLACES[2])
    second = mountfs("backup", disk, repository, "--verify", "file", measured=True)
    assert max(first.peak, second.peak) < MOST_MEMORY
    return Huge(disk, repository, files)


def data_of(path: Path) -> dict[int, bytes]:
    """What a sparse file holds: its pieces that are not zeros, by their place."""
    found, step, position = {}, 4096, 0
    with path.open("rb", buffering=0) as file:
        while True:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA) // step * step
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return found
                raise
            end = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            for at in range(position, end, step):
                piece = os.pread(file.fileno(), step, at)
                if piece.strip(b"\0"):
                    found[at] = piece
            position = end


def repository_of(huge: Huge) -> Repository:
    return Repository(LocalStorage(huge.repository))


def test_the_data_lies_where_it_should(huge: Huge) -> None:
    places = data_of(huge.disk)
    assert max(places) > 16 * TIB - MIB
    assert {place // 4096 * 4096 for place in PLACES} < places.keys()


def test_nothing_needs_memory_as_the_disk_has(huge: Huge) -> None:
    place = f"{huge.repository}/disk"
    for command in (("info", place), ("ls", f"{place}:3/etc"), ("list", place), ("verify", place)):
        assert mountfs(*command, measured=True).peak < MOST_MEMORY, command
    assert mountfs("cat", f"{place}:3/etc/motd").out == b"welcome back\n"


def test_the_first_point_is_small_and_the_second_smaller(huge: Huge) -> None:
    (found,) = mountfs("list", "--json", huge.repository).facts["sets"]
    first, second = (point["stored_size"] for point in found["points"])
    assert second < 256 << 10 < first < 64 * MIB


def test_the_work_of_a_backup_does_not_grow(huge: Huge, tmp_path: Path) -> None:
    for name, into in (("full", tmp_path / "repository"), ("inc", huge.repository)):
        with (
            bounded_work(),
            closing(Repository(LocalStorage(into))) as repository,
            closing(open_source(str(huge.disk))) as source,
        ):
            result = backup(
                source, repository, "disk", BackupOptions(any_source=True), origin={"source": "x"}
            )
        assert result.info.type.value == name
    Path(huge.repository, result.key).unlink()


def test_the_work_of_a_verification_does_not_grow(huge: Huge) -> None:
    with bounded_work(), closing(repository_of(huge)) as repository:
        reports = list(verify(repository, repository.image_set("disk").points))
    assert [report.damages for report in reports] == [(), ()]
    assert [report.blocks > 0 for report in reports] == [True, True]


def restored(huge: Huge, target: Path, *, check: bool) -> Path:
    with closing(repository_of(huge)) as repository:
        point = repository.image_set("disk").points[1]
        view = ImageView(repository.chain(point), repository.cache)
        opened = open_target(str(target), view.size)
        try:
            restore(view, opened, check=check)
            opened.commit()
        finally:
            opened.abort()
    return target


def test_the_work_of_a_restore_does_not_grow(huge: Huge, tmp_path: Path) -> None:
    with bounded_work():
        target = restored(huge, tmp_path / "restored.img", check=False)
    assert target.stat().st_size == huge.disk.stat().st_size
    assert target.stat().st_blocks * 512 < 64 * MIB
    same = data_of(target) == data_of(huge.disk)
    assert same


def test_a_checked_restore_does_not_read_the_holes(
    huge: Huge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, pread = 0, FileTarget.pread

    def counted(self: FileTarget, offset: int, size: int) -> bytes:
        nonlocal asked
        asked += size
        assert asked < 4 * SMALL, "it reads what it need not"
        return pread(self, offset, size)

    monkeypatch.setattr(FileTarget, "pread", counted)
    restored(huge, tmp_path / "restored.img", check=True)


def test_a_small_partition_behind_the_holes_is_restored_alone(huge: Huge, tmp_path: Path) -> None:
    peak = mountfs("restore", f"{huge.repository}/disk@1:3", tmp_path / "part.img", measured=True).peak
    same = (tmp_path / "part.img").read_bytes() == (huge.disk.parent / "volume").read_bytes()
    assert same
    assert peak < MOST_MEMORY


@pytest.mark.fuse
def test_the_mount_is_read_at_both_ends(huge: Huge) -> None:
    with mounted(huge.repository) as shown:
        point = shown / "disk" / "latest"
        for number in (1, 3):
            (volume,) = point.glob(f"{number}-ext4*")
            assert tree_digests(volume) == huge.files
        same = data_of(point / "disk.img") == data_of(huge.disk)
        assert same
        (first,) = (shown / "disk").glob("0001-*")
        missing = data_of(huge.disk).keys() - data_of(first / "disk.img").keys()
        assert missing == set(range(PLACES[2] // 4096 * 4096, PLACES[2] + 50_000, 4096))


@pytest.mark.root
@pytest.mark.fuse
def test_the_kernel_mounts_the_partition_behind_the_holes(huge: Huge) -> None:
    found = []
    with mounted(huge.repository) as shown:
        for disk in (huge.disk, shown / "disk" / "latest" / "disk.img"):
            with (
                loop_device(disk, partscan=True, read_only=True) as device,
                kernel_mount(f"{device}p3", "ext4") as top,
            ):
                found.append(read_entries(top))
    assert differences(*found) == []
    assert len(found[0]) > 40
