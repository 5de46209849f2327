"""Bad sectors against a model: a disk as bytes, and the set of its units of 512 bytes that cannot be read.

Every point says exactly which are BAD, gives every other byte, and refuses those; so does the second reader,
and so it stays through incrementals, interruptions, merging and verification.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backup import BackupOptions, BackupResult, backup
from engine.merge import plan_removal, remove_points
from engine.rescue import MAX_BAD_BYTES
from engine.restore import restore
from engine.verify import verify
from golden.chains import BLOCK, SET, MemorySource, change, files_of, mixed_disk, storage_with
from golden.second_reader import Folder, rebuild
from imageformat.device import MemoryDevice
from imageformat.errors import BadSectorError, CorruptImageError, SourceReadError, UnreadableBlockError
from imageformat.extent import ExtentKind
from imageformat.layer import ImageType
from imageformat.repository import Repository
from imageformat.storage import Storage
from imageformat.storage.local import LocalStorage
from imageformat.storage.memory import MemoryStorage
from imageformat.view import ImageView
from support.interrupted import Killed, killed_at

UNIT = 512


class FaultySource(MemorySource):
    """A disk that fails wherever a bad unit is touched, and everywhere after ``gone_after`` reads."""

    def __init__(self, content: bytes, bad: set[int], *, gone_after: int = 1 << 60) -> None:
        super().__init__(content, holes=False)
        self.bad, self.gone_after, self.reads, self.failed = bad, gone_after, 0, 0
        self.smallest_read = UNIT

    def pread(self, offset: int, size: int) -> bytes:
        self.reads += 1
        touched = range(offset // UNIT, -(-(offset + size) // UNIT))
        if self.reads > self.gone_after or not self.bad.isdisjoint(touched):
            self.failed += 1
            raise BadSectorError(f"sector {offset // UNIT}")
        return super().pread(offset, size)

    read_sectors = pread


def add(storage: Storage, source: FaultySource, kind: ImageType, *, rescue: bool = True) -> BackupResult:
    with contextlib.closing(Repository(storage)) as repository:
        return backup(
            source,
            repository,
            SET,
            BackupOptions(type=kind, block_size=BLOCK, threads=1, rescue=rescue),
            origin={"source": "/dev/fake"},
        )


def bad_bytes(disk: bytes, bad: set[int]) -> list[bool]:
    return [at // UNIT in bad for at in range(len(disk))]


def check_view(view: ImageView, disk: bytes, bad: set[int], chance: random.Random) -> None:
    """Extents, whole good ranges, and random reads are what the model says."""
    told = [extent for extent in view.extents(0, view.size) if extent.kind is ExtentKind.BAD]
    found = {unit for extent in told for unit in range(extent.offset // UNIT, -(-extent.end // UNIT))}
    assert found == bad
    ends = {len(disk), *(extent.end for extent in told)} - {len(disk)}
    assert all(place % UNIT == 0 for place in (*ends, *(extent.offset for extent in told)))
    for extent in view.extents(0, view.size):
        if extent.kind is not ExtentKind.BAD:
            assert view.pread(extent.offset, extent.length) == disk[extent.offset : extent.end]
    for _ in range(40):
        start = chance.randrange(len(disk))
        length = min(chance.choice([1, 300, 512, 5000]), len(disk) - start)
        if bad.isdisjoint(range(start // UNIT, -(-(start + length) // UNIT))):
            assert view.pread(start, length) == disk[start : start + length]
        else:
            with pytest.raises(UnreadableBlockError):
                view.pread(start, length)


def check(
    storage: Storage, models: dict[int, tuple[bytes, set[int]]], chance: random.Random
) -> dict[int, bytes]:
    """Every point is its model, for the product and for the second reader; the roots."""
    with contextlib.closing(Repository(storage)) as repository:
        points = repository.image_set(SET).points
        assert [report.damages for report in verify(repository, points, threads=1)] == [()] * len(points)
        roots = {point.info.number: point.info.root for point in points if point.info}
        assert roots.keys() == models.keys()
        for point in points:
            assert point.info
            check_view(
                ImageView(repository.chain(point), repository.cache), *models[point.info.number], chance
            )
    for point in Folder(files_of(storage)).points():
        disk, bad = models[point.image.number]
        units = [unit for block in range(point.image.blocks) for unit in point.units(block)]
        expected = [
            None if unit in bad else disk[unit * UNIT : (unit + 1) * UNIT] for unit in range(len(units))
        ]
        assert units == expected
        assert point.computed_root() == point.image.root == roots[point.image.number]
        point.check_digests()
        assert point.own_counts() == point.image.counts
        assert None not in rebuild([layer for layer in point.layers if layer is not None])
    return roots


BLOCKS, TAIL = 40, 700
UNITS = -(-(BLOCKS * BLOCK + TAIL) // UNIT)
bad_sets = st.lists(st.tuples(st.integers(0, UNITS - 1), st.integers(1, 30)), max_size=5).map(
    lambda ranges: {unit for start, length in ranges for unit in range(start, min(UNITS, start + length))}
)
steps = st.lists(
    st.tuples(
        st.sampled_from(list(ImageType)),
        bad_sets,
        st.lists(st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 8)), max_size=3),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 16), plan=steps, data=st.data())
def test_points_are_what_the_model_says(seed: int, plan: list, data: st.DataObject) -> None:
    chance = random.Random(seed)
    disk, storage, models = bytes(mixed_disk(chance, BLOCKS, tail=TAIL)), MemoryStorage(), {}
    bad: set[int] = set()
    for number, (kind, more, changes, healed) in enumerate(plan, 1):
        bad = more if healed else bad | more
        for block, count in changes:
            disk = change(chance, disk, block, count)
        result = add(storage, FaultySource(disk, bad), kind)
        size = sum(min(UNIT, len(disk) - unit * UNIT) for unit in bad)
        assert result.bad_bytes == size == sum(entry.length for entry in result.bad)
        models[number] = disk, set(bad)
    roots = check(storage, models, chance)
    if len(plan) > 1:
        gone = data.draw(st.integers(1, len(plan)))
        with contextlib.closing(Repository(storage)) as repository:
            image_set = repository.image_set(SET)
            removal = plan_removal(image_set, {p.key for p in image_set.points if p.number == gone})
            remove_points(repository, SET, removal)
        del models[gone]
        assert check(storage, models, chance) == {n: root for n, root in roots.items() if n != gone}


def test_a_few_are_passed_and_more_end_it() -> None:
    disk = bytes(mixed_disk(random.Random(1), 100))
    few = set(range(20, 20 + MAX_BAD_BYTES // UNIT))
    storage = MemoryStorage()
    assert add(storage, FaultySource(disk, few), ImageType.FULL, rescue=False).bad_bytes == MAX_BAD_BYTES
    with pytest.raises(BadSectorError, match=f"first at byte {20 * UNIT}: .*--rescue"):
        add(storage, FaultySource(disk, few | {700}), ImageType.FULL, rescue=False)
    assert add(storage, FaultySource(disk, few | {700}), ImageType.FULL).bad_bytes == MAX_BAD_BYTES + UNIT


def test_a_disk_that_is_gone_is_not_bad() -> None:
    disk = bytes(mixed_disk(random.Random(2), 1000))
    with pytest.raises(SourceReadError, match="was it unplugged"):
        add(MemoryStorage(), FaultySource(disk, set(), gone_after=2), ImageType.FULL)


def test_one_bad_sector_costs_few_reads() -> None:
    """And none of its neighbours is asked for more often than it must be."""
    disk = bytes(mixed_disk(random.Random(3), 1024))
    source = FaultySource(disk, {1000})
    add(MemoryStorage(), source, ImageType.FULL)
    assert source.failed <= 5
    assert source.reads < 60


def test_interrupted_backups_with_bad_sectors_go_on(tmp_path: Path) -> None:
    chance = random.Random(4)
    disk = bytes(mixed_disk(chance, 300))
    bad, storage = {3, 4, 5, 800, *range(1200, 1300)}, LocalStorage(tmp_path)
    for appends in (20, 60, 30):
        with killed_at(appends), pytest.raises(Killed):
            add(storage, FaultySource(disk, bad), ImageType.FULL)
        bad |= {appends * 8}
    add(storage, FaultySource(disk, bad - {800}), ImageType.FULL)
    check(storage, {1: (disk, bad - {800})}, chance)
    assert list((tmp_path / SET).glob(".*.part")) == []


def test_equal_disks_with_equal_bad_sectors_have_equal_roots() -> None:
    disk, bad = bytes(mixed_disk(random.Random(5), 40)), {7, 8, 100}
    storage, other = MemoryStorage(), MemoryStorage()
    full = add(storage, FaultySource(disk, bad), ImageType.FULL)
    again = add(storage, FaultySource(disk, bad), ImageType.INCREMENTAL)
    first = add(other, FaultySource(disk, set()), ImageType.FULL)
    grown = add(other, FaultySource(disk, bad), ImageType.INCREMENTAL)
    assert again.changed_blocks == 0
    assert full.info.root == again.info.root == grown.info.root != first.info.root
    assert grown.changed_blocks == 3


def test_a_restore_writes_zeros_there() -> None:
    disk, bad, storage = bytes(mixed_disk(random.Random(6), 40)), {7, 8, *range(64, 90)}, MemoryStorage()
    add(storage, FaultySource(disk, bad), ImageType.FULL)
    with contextlib.closing(Repository(storage)) as repository:
        (point,) = repository.image_set(SET).points
        target = Target(b"\xee" * len(disk))
        result = restore(ImageView(repository.chain(point), repository.cache), target, threads=1, check=True)
    expected = b"".join(
        bytes(UNIT) if unit in bad else disk[unit * UNIT : (unit + 1) * UNIT]
        for unit in range(len(disk) // UNIT)
    )
    assert bytes(target.content) == expected
    assert result.bad_bytes == len(bad) * UNIT


class Target(MemoryDevice):
    """A disk in memory to be written."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.content = bytearray(content)

    def pread(self, offset: int, size: int) -> bytes:
        return bytes(self.content[offset : offset + size])

    def pwrite(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, size: int) -> None:
        self.pwrite(offset, bytes(size))

    def evict(self) -> None:
        pass

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("at", [10, 64, 65, 80])
def test_a_damaged_map_is_damage_and_never_bytes(at: int) -> None:
    """At its frame's header, its map and its content."""
    disk, storage = bytes(mixed_disk(random.Random(8), 3, tail=100)), MemoryStorage()
    key = add(storage, FaultySource(disk, {2}), ImageType.FULL).key
    content = bytearray(files_of(storage)[key])
    start = content.index(b"MFfr")
    content[start + at] ^= 4
    broken = storage_with({key: bytes(content)})
    with contextlib.closing(Repository(broken)) as repository:
        (point,) = repository.image_set(SET).points
        view = ImageView(repository.chain(point), repository.cache)
        for attempt in (lambda: view.pread(0, 100), lambda: list(view.extents(0, 4096))):
            refused(attempt)
        assert verify_finds(repository) == [0]


def refused(attempt: Callable[[], object]) -> None:
    with pytest.raises(CorruptImageError):
        attempt()


def verify_finds(repository: Repository) -> list[int | None]:
    (report,) = verify(repository, repository.image_set(SET).points, threads=1)
    return [damage.disk_offset for damage in report.damages]
