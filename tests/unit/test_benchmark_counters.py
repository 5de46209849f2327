"""What speed rests on and no machine changes: reads, frames, index pages, upcalls. And benchmarks run.

All of it is counted from outside, below the product (a storage that counts) or above it (a device that
counts behind a mount). A bound that is exceeded means that something reads more than it did.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import groups, report
from engine.backup import BackupOptions, backup
from imageformat.device import MemoryDevice
from imageformat.formats.native.reader import scan_frames
from imageformat.formats.native.structs import FRAME_HEADER_SIZE, FrameKind
from imageformat.layer import ImageType
from imageformat.repository import Repository
from imageformat.storage.memory import MemoryStorage
from imageformat.view import ImageView
from support.requirements import REPOSITORY, require_fuse, require_tool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

KIB = 1024
MIB = 1024 * KIB
BLOCK = 64 * KIB
DISK = 16 * MIB
POINTS = 100

# --- counting below the product -----------------------------------------------------------------------------


class CountingDevice:
    """An image file that notes every read."""

    def __init__(self, device: BlockDevice, reads: list[tuple[str, int, int]], key: str) -> None:
        self._device, self._reads, self._key = device, reads, key
        self.size, self.block_size = device.size, device.block_size

    def pread(self, offset: int, size: int) -> bytes:
        self._reads.append((self._key, offset, size))
        return self._device.pread(offset, size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


class CountingStorage:
    """A storage whose files are `CountingDevice`s."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self.reads: list[tuple[str, int, int]] = []
        self.frames: dict[str, list[tuple[int, int, int]]] = {}

    def open(self, key: str) -> CountingDevice:
        return CountingDevice(self._storage.open(key), self.reads, key)

    def close(self) -> None:
        """What is stored is used again."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def know(self, key: str, image_id: bytes) -> None:
        """Find out from the file alone where its frames lie."""
        with contextlib.closing(self._storage.open(key)) as device:
            self.frames[key] = [
                (offset, offset + FRAME_HEADER_SIZE + header.payload_length, header.kind)
                for offset, header in scan_frames(device, image_id)
            ]


@dataclass
class Counted:
    """What one action cost."""

    preads: int = 0
    size: int = 0
    kinds: dict[int, int] = field(default_factory=dict)
    """Frames that were read, and so at most decoded, by kind; one that was read twice counts twice."""

    @property
    def blocks(self) -> int:
        return self.kinds.get(FrameKind.BLOCK, 0)

    @property
    def pages(self) -> int:
        return self.kinds.get(FrameKind.PAGE, 0)


@contextlib.contextmanager
def counting(storage: CountingStorage) -> Iterator[Counted]:
    """Count what is read inside."""
    storage.reads.clear()
    counted = Counted()
    yield counted
    counted.preads = len(storage.reads)
    for key, offset, size in storage.reads:
        counted.size += size
        for start, end, kind in storage.frames[key]:
            if start < offset + size and offset < end:
                counted.kinds[kind] = counted.kinds.get(kind, 0) + 1


class Source(MemoryDevice):
    """A disk in memory."""

    sector_size = 512


def _disk() -> bytearray:
    """Every block differs from every other and compresses to about a half."""
    chance = random.Random(1)
    pages = (chance.randbytes(2 * KIB) + bytes([page % 251]) * 2 * KIB for page in range(DISK // 4096))
    return bytearray(b"".join(pages))


@dataclass
class Made:
    """A chain, a single full of what its last point shows, and that disk."""

    chain: MemoryStorage
    full: MemoryStorage
    disk: bytes
    touched: int
    """Offset of a block that is stored as a difference in the last point."""


@pytest.fixture(scope="module")
def made() -> Made:
    disk, chance = _disk(), random.Random(2)
    chain, full = MemoryStorage(), MemoryStorage()
    offset = 0
    for number in range(POINTS):
        if number:
            offset = chance.randrange(DISK // 4096) * 4096
            disk[offset : offset + 64] = chance.randbytes(64)
        _back_up(chain, bytes(disk), ImageType.INCREMENTAL if number else ImageType.FULL)
    _back_up(full, bytes(disk), ImageType.FULL)
    return Made(chain, full, bytes(disk), offset)


def _back_up(storage: MemoryStorage, disk: bytes, kind: ImageType) -> None:
    with contextlib.closing(Repository(CountingStorage(storage))) as repository:
        options = BackupOptions(type=kind, block_size=BLOCK, threads=1)
        backup(Source(disk), repository, "set", options, origin={"source": "/dev/fake"})


@contextlib.contextmanager
def opened(stored: MemoryStorage) -> Iterator[tuple[ImageView, CountingStorage]]:
    """The newest point, cold."""
    storage = CountingStorage(stored)
    with contextlib.closing(Repository(storage)) as repository:
        image_set = repository.image_set("set")
        for point in image_set.points:
            assert point.info is not None
            storage.know(point.key, point.info.id.bytes)
        newest = image_set.latest()
        assert newest is not None
        storage.reads.clear()
        yield ImageView(repository.chain(newest), repository.cache), storage


def _cost_of_one_read(stored: MemoryStorage, offset: int, *, warm_at: int | None = None) -> Counted:
    with opened(stored) as (view, storage):
        if warm_at is not None:
            view.pread(warm_at, 4096)
        with counting(storage) as counted:
            view.pread(offset, 4096)
    return counted


# --- the bounds ---------------------------------------------------------------------------------------------


def test_a_cold_read_takes_one_frame_and_the_pages_above_it(made: Made) -> None:
    first = _cost_of_one_read(made.full, 5 * BLOCK)
    assert first.blocks == 1
    assert first.pages <= 3
    assert first.preads <= 4


def test_with_its_page_known_a_cold_read_takes_one_read_of_one_frame(made: Made) -> None:
    next_ = _cost_of_one_read(made.full, 6 * BLOCK, warm_at=3 * BLOCK)
    assert (next_.preads, next_.blocks, next_.pages) == (1, 1, 0)
    assert next_.size <= BLOCK * 3 // 4, "not more than the frame"


def test_a_block_that_was_read_is_not_read_again(made: Made) -> None:
    assert _cost_of_one_read(made.chain, 6 * BLOCK + 4096, warm_at=6 * BLOCK).preads == 0


def test_a_difference_takes_two_frames_at_the_end_of_any_chain(made: Made) -> None:
    counted = _cost_of_one_read(made.chain, made.touched)
    assert counted.blocks <= 2
    assert counted.pages <= 3


def test_a_chain_of_a_hundred_reads_no_more_pages_than_a_single_full(made: Made) -> None:
    """Of a whole reading: pages are shared between the images, so their number is that of the disk."""
    pages = {}
    for name, stored in (("chain", made.chain), ("full", made.full)):
        with opened(stored) as (view, storage), counting(storage) as counted:
            content = b"".join(view.pread(offset, MIB) for offset in range(0, DISK, MIB))
        assert content == made.disk
        pages[name] = counted.pages
    assert pages["chain"] <= pages["full"] + 1


def test_a_chain_of_a_hundred_opens_as_many_files_as_a_read_needs(made: Made) -> None:
    with opened(made.chain) as (view, storage):
        view.pread(made.touched, 4096)
        assert len({key for key, _, _ in storage.reads}) <= 3, "the point, the reference, the page's holder"


def test_reading_it_all_reads_every_stored_byte_once(made: Made) -> None:
    with opened(made.full) as (view, storage), counting(storage) as counted:
        for offset in range(0, DISK, 128 * KIB):
            view.pread(offset, 128 * KIB)
    stored = sum(end - start for frames in storage.frames.values() for start, end, _ in frames)
    assert counted.size <= stored
    assert counted.blocks == DISK // BLOCK
    assert counted.preads <= DISK // (128 * KIB) + 8, "neighbours are read together"


# --- upcalls ------------------------------------------------------------------------------------------------

_SERVE = """
import sys
from pathlib import Path
from imageformat.device import MemoryDevice
from mountfs.adapters import MountOptions, fuse
from mountfs.flattree import FlatTree

class Counting(MemoryDevice):
    calls = 0
    def pread(self, offset, size):
        self.calls += 1
        return super().pread(offset, size)

device = Counting(bytes(range(256)) * 4096 * 8, block_size=65536)
tree = FlatTree({b"disk.img": device}, time_ns=0)
fuse.mount(tree, MountOptions(Path(sys.argv[1]), "x"), lambda: print("ready", flush=True))
print(device.calls, flush=True)
"""


@pytest.mark.fuse
def test_a_sequential_reader_takes_few_upcalls_and_none_the_second_time(tmp_path: Path) -> None:
    """The kernel asks for 128 KiB at most unless root says otherwise: eight upcalls a mebibyte."""
    command = [sys.executable, "-c", _SERVE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(2):
            with (tmp_path / "disk.img").open("rb", buffering=0) as file:
                while file.read(MIB):
                    pass
        size = (tmp_path / "disk.img").stat().st_size
        subprocess.run(["fusermount3", "-u", tmp_path], check=True)
        out, _ = process.communicate(timeout=20)
    assert int(out) <= size // MIB * 8 + 8


# --- every benchmark runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.mark.xdist_group("benchmarks")
@pytest.mark.parametrize("name", groups.NAMES)
def test_it_runs_at_a_small_size(name: str, work: Path) -> None:
    """Peers that this machine lacks are left out by the benchmark itself."""
    require_tool("mke2fs", "debugfs", "mkntfs", "sfdisk")
    if name in {"disk", "trees", "chain", "start", "memory"}:
        require_fuse()
    results = work / "results"
    options = ["--quick", "--size", "48MiB", "--rounds", "1", "--work", str(work), "--results", str(results)]
    # Measuring the coverage of every process would take longer than all that they do.
    untraced = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, *options],
        cwd=REPOSITORY,
        env={**untraced, "XDG_STATE_HOME": str(work / "state")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads((results / f"{name}-48MiB.json").read_text())
    assert result["targets"]
    assert all(len(values) == 1 for cases in result["samples"].values() for values in cases.values())
    left = [path.name for path in work.iterdir() if re.fullmatch(rf"{name}-\d+", path.name)]
    assert left == [], "what it made is gone"


@pytest.mark.xdist_group("benchmarks")
def test_the_report_stands_between_its_markers(work: Path) -> None:
    document = work / "performance.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(work / "results", document)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text
