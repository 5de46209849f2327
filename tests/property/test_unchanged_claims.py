"""Any claim of what did not change, true or not, against a disk in memory: the image is right, or says so.

True claims of any shape give the exact disk, also where blocks were free in the parent. Of a lie the
samples find what they should: the counts are held against the formula.
"""

from __future__ import annotations

import random
from contextlib import closing
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backup import BackupOptions, BackupResult, backup
from engine.changes.knowledge import Tracking
from engine.sampling import Sampling, detection, positions
from imageformat.extent import Extent, ExtentKind
from imageformat.repository import Repository
from imageformat.storage.memory import MemoryStorage
from imageformat.view import ImageView
from support.content import noise
from support.counting import Counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.changes import Mark

BLOCK = 4096


class Disk:
    """A source in memory."""

    block_size = sector_size = 512

    def __init__(self, content: bytearray) -> None:
        self.content = content
        self.size = len(content)

    def pread(self, offset: int, size: int) -> bytes:
        return bytes(self.content[offset : offset + size])

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        yield Extent(offset, size, ExtentKind.DATA)

    def close(self) -> None:
        """Nothing to close."""


class Claims:
    """A tracker that says what it is told."""

    name = "claims"

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self.ranges = ranges
        self.settled: list[bool] = []

    def begin(self) -> Mark:
        return {"tracker": self.name}

    def unchanged(self, mark: Mark) -> Iterator[tuple[int, int]]:
        assert mark == {"tracker": self.name}
        yield from self.ranges

    def settle(self, *, published: bool) -> None:
        self.settled.append(published)


def image(
    repository: Repository, disk: Disk | Counted, claims: Claims, free: list[Extent], samples: int = 1
) -> BackupResult:
    result = backup(
        disk,
        repository,
        "disk",
        BackupOptions(block_size=BLOCK, threads=1),
        origin={"source": "disk"},
        unused=free,
        tracking=Tracking(claims, Sampling(samples, seed=1)),
    )
    assert claims.settled == [True]
    return result


def content_of(repository: Repository) -> bytes:
    view = ImageView(repository.chain(repository.image_set("disk").points[-1]), repository.cache)
    return view.pread(0, view.size)


def free_ranges(chance: random.Random, size: int) -> list[Extent]:
    bounds = sorted(chance.sample(range(size), min(2 * chance.randrange(4), size // 2 * 2)))
    return [
        Extent(at, end - at, ExtentKind.UNUSED) for at, end in zip(bounds[::2], bounds[1::2], strict=True)
    ]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32), size=st.integers(1, 40 * BLOCK))
def test_true_claims_of_any_shape_give_the_disk(seed: int, size: int) -> None:
    chance = random.Random(seed)
    disk = Disk(bytearray(noise(seed, size)))
    with closing(Repository(MemoryStorage())) as repository:
        image(repository, disk, Claims([]), free_ranges(chance, size))
        for _ in range(3):
            changed = bytearray(size)
            for _ in range(chance.randrange(4)):
                at = chance.randrange(size)
                new = chance.choice([noise(chance.randrange(1 << 30), 5000), bytes(9000)])[: size - at]
                disk.content[at : at + len(new)] = new
                changed[at : at + len(new)] = b"\1" * len(new)
            ranges, position = [], 0
            while (start := changed.find(0, position)) >= 0:
                position = changed.find(1, start)
                position = size if position < 0 else position
                ranges.append((start, position))
            free = free_ranges(chance, size)
            result = image(repository, disk, Claims(ranges), free)
            assert not result.changes.reason
            found, expected = bytearray(content_of(repository)), bytearray(disk.content)
            for extent in free:
                # Free space may be left out or not, block by block; what is in use may not.
                found[extent.offset : extent.end] = expected[extent.offset : extent.end] = bytes(
                    extent.length
                )
            assert found == expected


def test_only_changed_blocks_and_samples_are_read() -> None:
    disk = Disk(bytearray(noise(1, 1000 * BLOCK)))
    with closing(Repository(MemoryStorage())) as repository:
        image(repository, disk, Claims([]), [])
        disk.content[10 * BLOCK + 5] ^= 1
        counted = Counted(disk)
        ranges = [(0, 10 * BLOCK + 5), (10 * BLOCK + 6, disk.size)]
        result = image(repository, counted, Claims(ranges), [], samples=20)
        assert counted.read == 21 * BLOCK
        assert result.changes.inherited.blocks == 999
        assert result.changed_blocks == 1
        assert content_of(repository) == disk.content


def test_claims_that_cannot_be_are_not_used() -> None:
    disk = Disk(bytearray(noise(1, 9 * BLOCK)))
    with closing(Repository(MemoryStorage())) as repository:
        image(repository, disk, Claims([]), [])
        for ranges in ([(0, disk.size + 1)], [(BLOCK, 0)], [(0, 3 * BLOCK), (BLOCK, 5 * BLOCK)]):
            result = image(repository, disk, Claims(ranges), [])
            assert result.changes.reason == "it describes another disk than this one"
            assert not result.changes.inherited.blocks
        disk.content += bytes(BLOCK)
        grown = Disk(disk.content)
        result = image(repository, grown, Claims([(0, 9 * BLOCK)]), [])
        assert result.changes.reason == "the source has another size now"
        assert content_of(repository) == disk.content


def test_lies_are_found_as_often_as_the_formula_says() -> None:
    runs, blocks, wrong, samples = 2000, 1000, 5, 300
    expected = detection(wrong, blocks, samples)
    found = sum(
        any(
            block < wrong
            for block in positions([(0, 400), (400, 1000)], Sampling(samples, seed).choose(blocks))
        )
        for seed in range(runs)
    )
    assert abs(found / runs - expected) < 0.04  # four standard deviations
    assert detection(0, blocks, samples) == 0
    assert detection(1, 10, 10) == 1


def test_one_miss_reads_everything() -> None:
    disk = Disk(bytearray(noise(1, 100 * BLOCK)))
    with closing(Repository(MemoryStorage())) as repository:
        image(repository, disk, Claims([]), [])
        disk.content[: 20 * BLOCK] = noise(2, 20 * BLOCK)
        result = image(repository, disk, Claims([(0, disk.size)]), [], samples=30)
        assert result.changes.missed
        assert max(result.changes.missed) < 20
        assert content_of(repository) == disk.content
