"""Random allocation over chains of images: what is used is exact, what is free reads as zeros.

The oracle holds a disk and a set of free bytes, and knows nothing of runs, extents or records.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backup import BackupOptions, backup
from engine.plan import block_runs
from engine.restore import restore
from engine.verify import verify
from golden.chains import MemorySource, mixed_disk, read_point
from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from imageformat.extent import Extent, ExtentKind, overlay
from imageformat.layer import ImageType
from imageformat.repository import Repository
from imageformat.storage.memory import MemoryStorage
from imageformat.view import ImageView
from mountfs.allocation._freemap import FreeMap, clear_runs

BLOCK = 4096
STEP = 512
"""Free space is told in such pieces."""


class MemoryTarget(MemoryDevice):
    """A target full of old bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(b"\xee" * size)
        self.content = bytearray(b"\xee" * size)

    def pwrite(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, size: int) -> None:
        self.content[offset : offset + size] = bytes(size)

    def flush(self) -> None:
        pass

    evict = flush


flags = st.lists(st.integers(0, 12), min_size=0, max_size=12)
"""Lengths of runs, in pieces, that are free and used in turn."""


def free_pieces(lengths: list[int], pieces: int) -> list[bool]:
    """Say of each piece whether it is free."""
    found = [turn % 2 == 0 for turn, length in enumerate(lengths) for _ in range(length)]
    return (found + [False] * pieces)[:pieces]


def extents_of(free: list[bool], size: int) -> list[Extent]:
    """The free bytes as extents, runs of them joined."""
    found, at = [], 0
    for is_free, group in groupby(free):
        length = len(list(group)) * STEP
        if is_free:
            found.append(Extent(at, min(length, size - at), ExtentKind.UNUSED))
        at += length
    return found


def blocks_all_free(free: list[bool], size: int) -> list[bool]:
    per_block = BLOCK // STEP
    return [all(free[at : at + per_block]) for at in range(0, -(-size // STEP), per_block)]


@dataclass(frozen=True)
class Step:
    """A disk, and how it is imaged."""

    disk: bytes = field(repr=False)
    free: list[bool]
    holes: bool
    kind: ImageType


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    blocks, tail = draw(st.integers(1, 9)), draw(st.sampled_from((0, 512, 1000)))
    size = blocks * BLOCK + tail
    steps, kinds = [], st.sampled_from((ImageType.INCREMENTAL, ImageType.DIFFERENTIAL, ImageType.FULL))
    chance = random.Random(draw(st.integers(0, 1 << 32)))
    disk = bytes(mixed_disk(chance, blocks, tail))
    for number in range(draw(st.integers(1, 4))):
        changed = bytearray(disk)
        for _ in range(draw(st.integers(0, 3))):
            at = chance.randrange(size)
            length = min(size - at, chance.randrange(1, 2 * BLOCK))
            changed[at : at + length] = chance.choice((bytes(length), chance.randbytes(length)))
        disk = bytes(changed)
        kind = draw(kinds) if number else ImageType.FULL
        steps.append(Step(disk, free_pieces(draw(flags), -(-size // STEP)), draw(st.booleans()), kind))
    return steps


@given(histories())
def test_every_point_is_its_disk_with_zeros_where_it_was_free(steps: list[Step]) -> None:
    with contextlib.closing(Repository(MemoryStorage())) as repository:
        for step in steps:
            add(repository, step)
        points = sorted(repository.image_set("s").points, key=lambda point: point.number)
        assert all(not report.damages for report in verify(repository, points))
        for step, point in zip(steps, points, strict=True):
            view = ImageView(repository.chain(point), repository.cache)
            shown = read_point(repository, point)
            target = MemoryTarget(len(step.disk))
            restore(view, target, threads=1)
            assert bytes(target.content) == shown
            states = [view.extents(at, 1) for at in range(0, len(step.disk), BLOCK)]
            check(step, shown, [next(found).kind for found in states])


def add(repository: Repository, step: Step) -> None:
    backup(
        MemorySource(step.disk, holes=step.holes),
        repository,
        "s",
        BackupOptions(type=step.kind, block_size=BLOCK, threads=1),
        origin={"source": "x"},
        unused=extents_of(step.free, len(step.disk)),
    )


def check(step: Step, shown: bytes, states: list[ExtentKind]) -> None:
    """Hold what a point shows against the disk that it was made of, block by block."""
    size = len(step.disk)
    assert len(shown) == size
    for block, is_free in enumerate(blocks_all_free(step.free, size)):
        here = slice(block * BLOCK, min(size, (block + 1) * BLOCK))
        kept = step.disk[here]
        if not is_free:
            assert states[block] is not ExtentKind.UNUSED
        if is_free and not step.holes:
            assert states[block] is ExtentKind.UNUSED
        if not any(kept) or is_free:
            assert shown[here] == bytes(len(kept))
        elif not step.holes:
            assert shown[here] == kept
        for at in range(here.start, here.stop, STEP):
            assert step.free[at // STEP] or shown[at : at + STEP] == step.disk[at : at + STEP]


kinds = st.sampled_from((ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.UNUSED, ExtentKind.EXCLUDED))


@given(st.lists(st.tuples(st.integers(1, 30), kinds), min_size=1, max_size=30), st.integers(1, 5))
def test_runs_are_what_the_bytes_of_each_block_are(
    pieces: list[tuple[int, ExtentKind]], longest: int
) -> None:
    cells = [kind for length, kind in pieces for _ in range(length)]
    extents, at = [], 0
    for length, kind in pieces:
        extents.append(Extent(at, length, kind))
        at += length
    runs = list(block_runs(extents, len(cells), 8, longest))
    told = [run.kind for run in runs for _ in range(run.blocks)]
    assert [run.first for run in runs] == [sum(other.blocks for other in runs[:n]) for n in range(len(runs))]
    assert all(run.blocks <= longest for run in runs if run.kind is ExtentKind.DATA)
    for block, kind in enumerate(told):
        found = set(cells[block * 8 : block * 8 + 8])
        if ExtentKind.DATA in found or {ExtentKind.ZERO, ExtentKind.EXCLUDED} <= found:
            assert kind is ExtentKind.DATA
        elif ExtentKind.EXCLUDED in found:
            assert kind is ExtentKind.EXCLUDED
        else:
            assert kind is (ExtentKind.UNUSED if found == {ExtentKind.UNUSED} else ExtentKind.ZERO)
    assert len(told) == -(-len(cells) // 8)


@given(st.lists(st.tuples(st.integers(1, 9), kinds), max_size=20), st.lists(st.integers(0, 9), max_size=20))
def test_an_overlay_only_turns_data_into_unused(
    pieces: list[tuple[int, ExtentKind]], lengths: list[int]
) -> None:
    cells = [kind for length, kind in pieces for _ in range(length)]
    extents, at = [], 0
    for length, kind in pieces:
        extents.append(Extent(at, length, kind))
        at += length
    free = [turn % 2 == 0 for turn, length in enumerate(lengths) for _ in range(length)]
    unused = [Extent(at, 1, ExtentKind.UNUSED) for at, is_free in enumerate(free) if is_free]
    told: list[ExtentKind] = []
    for extent in overlay(extents, unused):
        assert extent.offset == len(told)
        told += [extent.kind] * extent.length
    padded = free + [False] * len(cells)
    assert told == [
        ExtentKind.UNUSED if kind is ExtentKind.DATA and padded[at] else kind for at, kind in enumerate(cells)
    ]


@given(st.binary(max_size=40), st.integers(0, 330))
def test_clear_bits_are_counted_from_the_lowest(bitmap: bytes, count: int) -> None:
    count = min(count, 8 * len(bitmap))
    found = {at for first, length in clear_runs(bitmap, count) for at in range(first, first + length)}
    assert found == {bit for bit in range(count) if not bitmap[bit // 8] >> bit % 8 & 1}


@given(
    st.lists(st.integers(0, 6), max_size=12),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=8),
)
def test_a_map_of_free_space_is_a_set_of_bytes(lengths: list[int], taken: list[tuple[int, int]]) -> None:
    free, wanted, at = FreeMap(), set[int](), 0
    for turn, length in enumerate(lengths):
        if turn % 2:
            free.add(at, length)
            wanted |= set(range(at, at + length))
        at += length
    assert {byte for extent in free for byte in range(extent.offset, extent.end)} == wanted
    assert free.total == len(wanted)
    for start, length in taken:
        assert free.meets(start, length) == bool(wanted & set(range(start, start + length)))
    left = free.without(taken)
    gone = {byte for start, length in taken for byte in range(start, start + length)}
    assert {byte for extent in left for byte in range(extent.offset, extent.end)} == wanted - gone
    assert left.total == len(wanted - gone)


def test_free_space_that_is_told_twice_is_refused() -> None:
    free = FreeMap()
    free.add(10, 10)
    with pytest.raises(VolumeError, match="twice"):
        free.add(19, 1)
