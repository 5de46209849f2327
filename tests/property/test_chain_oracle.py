"""Random writes over chains of images equal a bytearray oracle at every point."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.backup import BackupOptions, backup
from engine.verify import verify
from imageformat.chain import Chain
from imageformat.device import MemoryDevice
from imageformat.extent import Extent, ExtentKind
from imageformat.formats.native.reader import resolved_index
from imageformat.layer import BlockRef, Fill, ImageType
from imageformat.repository import Repository
from imageformat.storage.memory import MemoryStorage
from imageformat.view import ImageView, ReadAhead

BLOCK = 4096


class DiskSource(MemoryDevice):
    """A disk in memory that reports some of its zero blocks as holes."""

    def __init__(self, content: bytes, sector_size: int, *, holes: bool) -> None:
        super().__init__(content, block_size=sector_size)
        self.sector_size = sector_size
        self._holes = holes

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        if not self._holes:
            yield from super().extents(offset, size)
            return
        at, end = offset, offset + size
        while at < end:
            step = min(end, (at // 1024 + 1) * 1024) - at
            zero = not any(self.pread(at, step))
            yield Extent(at, step, ExtentKind.ZERO if zero else ExtentKind.DATA)
            at += step


@dataclass(frozen=True)
class Step:
    """One point: changes to the disk, then an image of it."""

    type: ImageType
    resize: int | None
    writes: list[tuple[float, int, int]] = field(default_factory=list)
    parent: int | None = None
    holes: bool = False


writes = st.lists(
    st.tuples(st.floats(0, 1), st.integers(1, 3 * BLOCK), st.integers(0, 3)), min_size=0, max_size=6
)
sizes = st.one_of(
    st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 256 * BLOCK, 256 * BLOCK + 1, 257 * BLOCK]),
    st.integers(0, 600 * BLOCK),
)
steps = st.lists(
    st.builds(
        Step,
        type=st.sampled_from([ImageType.FULL, ImageType.DIFFERENTIAL, ImageType.INCREMENTAL]),
        resize=st.one_of(st.none(), st.none(), sizes),
        writes=writes,
        parent=st.one_of(st.none(), st.none(), st.integers(1, 5)),
        holes=st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


def apply(disk: bytearray, step: Step) -> None:
    if step.resize is not None:
        if step.resize < len(disk):
            del disk[step.resize :]
        else:
            disk.extend(bytes(step.resize - len(disk)))
    for where, length, value in step.writes:
        if not disk:
            continue
        start = min(int(where * len(disk)), len(disk) - 1)
        stop = min(len(disk), start + length)
        pattern = bytes((value * (1 + index % 251)) % 256 for index in range(stop - start))
        disk[start:stop] = pattern


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(
    first=1,
    plan=[
        Step(ImageType.FULL, None, [(0.0, 1, 1)]),
        Step(ImageType.INCREMENTAL, BLOCK + 1, [(0.0, 1, 0)], holes=False),
        Step(ImageType.INCREMENTAL, 1, [(0.0, 1, 3)], holes=True),
        Step(ImageType.DIFFERENTIAL, 257 * BLOCK, [], holes=True),
    ],
    sector=512,
    seed=7,
)
@given(first=sizes, plan=steps, sector=st.sampled_from([512, 4096]), seed=st.integers(0, 99))
def test_every_point_equals_the_oracle(first: int, plan: list[Step], sector: int, seed: int) -> None:
    chance = random.Random(seed)
    repository = Repository(MemoryStorage())
    disk, oracle = bytearray(first), {}
    for number, step in enumerate(plan, start=1):
        apply(disk, step)
        image_set = repository.image_set("set")
        parent = None
        if step.parent is not None and step.parent < number and step.type is not ImageType.FULL:
            parent = image_set.points[step.parent - 1]
        kind = step.type
        if parent is not None and parent.info and parent.info.type is not ImageType.FULL:
            kind = ImageType.INCREMENTAL
        result = backup(
            DiskSource(bytes(disk), sector, holes=step.holes),
            repository,
            "set",
            BackupOptions(type=kind, block_size=BLOCK, threads=2, differences=number % 3 != 0),
            origin={"source": "/dev/fake"},
            parent=parent,
        )
        oracle[result.info.number] = bytes(disk)
    image_set = repository.image_set("set")
    assert [found.damages for found in verify(repository, image_set.points)] == [()] * len(oracle)
    assert [point.info.number for point in image_set.points] == sorted(oracle)
    read_ahead = ReadAhead()
    roots: dict[bytes, bytes] = {}
    for point in image_set.points:
        content = oracle[point.info.number]
        chain = repository.chain(point)
        chain.prove()
        view = ImageView(chain, repository.cache, read_ahead=read_ahead)
        assert view.size == len(content)
        assert view.pread(0, view.size) == content
        for _ in range(5):
            start = chance.randint(0, len(content))
            length = chance.randint(0, min(len(content) - start, 5 * BLOCK))
            assert view.pread(start, length) == content[start : start + length]
        at = 0
        for extent in view.extents(0, view.size):
            assert extent.offset == at
            at = extent.end
            if extent.kind is ExtentKind.ZERO:
                assert not any(content[extent.offset : extent.end])
        assert at == len(content)
        assert roots.setdefault(point.info.root, content) == content, "one root, two contents"
        compare_indexes(chain)
    assert len(set(oracle.values())) == len(roots), "equal disks have equal roots"
    read_ahead.close()


def compare_indexes(chain: Chain) -> None:
    """The two ways through the index, own pages per layer and the resolved tree, agree."""
    index = resolved_index(chain.layer(chain.depth), chain.layer)
    states = {1: "data", 2: Fill.ZERO, 3: Fill.UNUSED, 4: Fill.BAD}
    size = chain.info.disks[0].size
    for offset, _, source, skip in chain.resolve(0, 0, size):
        assert skip == 0
        block = offset // BLOCK
        record = index.leaf(block >> 8)[(block & 255) * 32 :][:32]
        state, layer = record[28], int.from_bytes(record[29:32], "little")
        if isinstance(source, BlockRef):
            assert (states[state], layer, record[:16]) == ("data", source.layer, source.digest)
            assert int.from_bytes(record[16:24], "little") == source.offset
        else:
            assert states[state] is source


@pytest.mark.parametrize("size", [0, 1, BLOCK, 300 * BLOCK + 17])
def test_an_unchanged_disk_stores_nothing(size: int) -> None:
    repository = Repository(MemoryStorage())
    content = bytes(index * 7 % 256 for index in range(size))
    options = BackupOptions(block_size=BLOCK)
    for _ in range(3):
        last = backup(DiskSource(content, 512, holes=False), repository, "s", options, origin={"source": "x"})
    assert last.changed_blocks == 0
    assert last.info.details["data_blocks"] == 0
    assert last.info.stored_size < 8192
    points = repository.image_set("s").points
    assert len({point.info.root for point in points}) == 1
    assert ImageView(repository.chain(points[2]), repository.cache).pread(0, size) == content
