"""Any number of stored files may be open, with few descriptors; none is closed while it is read from."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.backup import BackupOptions, backup
from engine.restore import restore
from engine.verify import verify
from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError, StorageError
from imageformat.repository import Repository
from imageformat.storage.descriptors import DescriptorPool, LocalFile
from imageformat.storage.local import LocalStorage
from imageformat.view import ImageView
from support.content import noise
from support.product import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK = 4096
POINTS = 120


class Disk(MemoryDevice):
    sector_size = 512


class Target:
    """A restore's target in memory."""

    block_size = BLOCK

    def __init__(self, size: int) -> None:
        self.size = size
        self.content = bytearray(size)

    def pread(self, offset: int, size: int) -> bytes:
        return bytes(self.content[offset : offset + size])

    def pwrite(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, size: int) -> None:
        self.pwrite(offset, bytes(size))

    def evict(self) -> None: ...

    def flush(self) -> None: ...


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for number in range(10):
        (tmp_path / f"{number}").write_bytes(bytes([number]) * 1000)
    return sorted(tmp_path.iterdir())


def open_descriptors(folder: Path) -> list[str]:
    """Names of the files below a folder that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = entry.readlink()
            if target.parent == folder:
                found.append(target.name)
    return sorted(found)


def test_the_files_used_last_stay_open(files: list[Path], tmp_path: Path) -> None:
    pool = DescriptorPool(3)
    opened = [LocalFile(path, pool) for path in files]
    assert open_descriptors(tmp_path) == ["7", "8", "9"]
    for number in (0, 8, 1, 0):
        assert opened[number].pread(500, 10) == bytes([number]) * 10
    assert open_descriptors(tmp_path) == ["0", "1", "8"]
    for file in opened:
        file.close()
        file.close()
    assert open_descriptors(tmp_path) == []


def test_a_descriptor_is_not_closed_while_it_is_read_from(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = DescriptorPool(1)
    first, second = (LocalFile(path, pool) for path in files[:2])
    reading, go_on = threading.Event(), threading.Event()
    real = os.pread

    def slow(fd: int, size: int, offset: int) -> bytes:
        if threading.current_thread().name.startswith("slow"):
            reading.set()
            assert go_on.wait(60)
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", slow)
    with ThreadPoolExecutor(1, thread_name_prefix="slow") as slow_pool:
        found = slow_pool.submit(first.pread, 0, 4)
        assert reading.wait(60)
        assert second.pread(0, 1) == b"\x01"
        assert open_descriptors(tmp_path)[0] == "0", "in use"
        first.close()
        assert open_descriptors(tmp_path)[0] == "0", "closed when the reader is done"
        go_on.set()
        assert found.result() == bytes(4)
    assert "0" not in open_descriptors(tmp_path)
    second.close()
    assert open_descriptors(tmp_path) == []


def test_many_threads_over_few_descriptors(files: list[Path], tmp_path: Path) -> None:
    pool = DescriptorPool(2)
    opened = [LocalFile(path, pool) for path in files]

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(400):
            number, offset = chance.randrange(10), chance.randrange(900)
            assert opened[number].pread(offset, 100) == bytes([number]) * 100

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(work, range(8)))
    assert len(open_descriptors(tmp_path)) <= 2
    for file in opened:
        file.close()
    assert open_descriptors(tmp_path) == []


def test_room_is_made_when_the_process_has_none_left(files: list[Path], tmp_path: Path) -> None:
    pool = DescriptorPool(100)
    opened = [LocalFile(path, pool) for path in files[:5]]
    refusals = iter([errno.EMFILE, errno.ENFILE, None])

    def scarce() -> int:
        code = next(refusals)
        if code is not None:
            raise OSError(code, os.strerror(code))
        return os.open(files[5], os.O_RDONLY)

    pool.give(pool.take("other", scarce))
    assert open_descriptors(tmp_path) == ["2", "3", "4", "5"]
    pool.drop("other")
    for file in opened:
        file.close()

    def none_left() -> int:
        raise OSError(errno.EMFILE, "none left")

    with pytest.raises(OSError, match="none left"):
        pool.take("other", none_left)


def replaced(path: Path) -> None:
    content = path.read_bytes()
    path.rename(path.with_name("away"))
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        replaced,
        lambda path: path.write_bytes(b"shorter"),
        lambda path: os.truncate(path, 2000),
        lambda path: os.utime(path, ns=(1, 1)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["removed", "replaced", "shorter", "longer", "touched", "a folder"],
)
def test_a_file_that_changed_meanwhile_is_not_read(files: list[Path], change: object) -> None:
    pool = DescriptorPool(1)
    first, second = (LocalFile(path, pool) for path in files[:2])
    change(files[0])  # type: ignore[operator]
    with pytest.raises(StorageError, match="while in use"):
        first.pread(0, 4)
    assert second.pread(0, 4) == b"\x01" * 4
    with contextlib.closing(LocalFile(files[2], pool)) as third:
        assert third.pread(0, 1) == b"\x02"
    first.close()
    second.close()


def test_a_file_that_was_deleted_stays_readable_while_its_descriptor_is_kept(files: list[Path]) -> None:
    with contextlib.closing(LocalFile(files[3], DescriptorPool(4))) as file:
        files[3].unlink()
        assert file.pread(0, 2) == b"\x03\x03"


def test_a_closed_file_is_not_opened_again(files: list[Path], tmp_path: Path) -> None:
    file = LocalFile(files[0], DescriptorPool(1))
    file.close()
    with pytest.raises(MountfsError, match="closed"):
        file.pread(0, 1)
    assert open_descriptors(tmp_path) == []


def test_a_relative_path_survives_a_change_of_folder(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pool = DescriptorPool(1)
    opened = [LocalFile(Path(path.name), pool) for path in files[:2]]
    monkeypatch.chdir("/")
    assert opened[0].pread(0, 1) == b"\x00"
    for file in opened:
        file.close()


def disks(count: int) -> list[bytes]:
    """Every disk has one block that no other has, so that every file is needed to read the last."""
    disk = bytearray(count * BLOCK)
    made = []
    for number in range(count):
        disk[number * BLOCK : (number + 1) * BLOCK] = noise(number, BLOCK)
        made.append(bytes(disk))
    return made


def back_up(place: Path, contents: Sequence[bytes]) -> None:
    for content in contents:
        with contextlib.closing(Repository(LocalStorage(place))) as repository:
            options = BackupOptions(block_size=BLOCK, threads=1)
            backup(Disk(content), repository, "set", options, origin={"source": "x"})


@pytest.fixture(scope="module")
def long_chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    place = tmp_path_factory.mktemp("long")
    made = disks(POINTS)
    back_up(place, made)
    return place, made[-1]


def test_a_chain_with_more_points_than_descriptors(long_chain: tuple[Path, bytes]) -> None:
    place, expected = long_chain
    with contextlib.closing(Repository(LocalStorage(place, max_open=4), capacity=0)) as repository:
        points = repository.image_set("set").points
        view = ImageView(repository.chain(points[-1]), repository.cache)
        target = Target(view.size)
        restore(view, target, threads=4, check=True)
        assert target.content == expected
        for report in verify(repository, points[-3:], threads=2):
            assert report.damages == ()
        assert len(open_descriptors(place / "set")) <= 4


@pytest.mark.parametrize("command", ["list", "verify", "restore", "backup", "cat"])
def test_commands_with_fewer_descriptors_than_points(
    long_chain: tuple[Path, bytes], tmp_path: Path, command: str
) -> None:
    place, expected = long_chain
    source = tmp_path / "disk.img"
    source.write_bytes(expected)
    where = f"{place}/set"
    arguments = {
        "list": [where],
        "verify": [f"{where}@{POINTS}"],
        "restore": [where, str(tmp_path / "out.img")],
        "backup": [str(source), str(tmp_path / "copy"), "--set", "set"],
        "cat": [f"{where}:disk.img"],
    }[command]
    if command == "backup":
        subprocess.run(["cp", "-r", place, tmp_path / "copy"], check=True)
    limited = 'ulimit -n 40; exec "$@"'
    run = subprocess.run(
        ["sh", "-c", limited, "-", sys.executable, "-m", "mountfs", command, *arguments],
        capture_output=True,
        env=environment(),
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    if command == "restore":
        assert (tmp_path / "out.img").read_bytes() == expected
    if command == "cat":
        assert run.stdout == expected
