"""The loop that writes targets, against a bytearray: whatever stood there, and wherever it was killed.

The target of these tests has a cache that a power cut loses in part, and a limit of operations after which it
is dead. The oracle knows neither units nor records: a list of cells says of each byte what it has to be.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.differing
import engine.writing
from engine.writerecord import Earlier, RecordFacts, WriteRecord
from engine.writing import MARK, NOTHING, Known, Tally, WriteOptions, write
from imageformat.device import MemoryDevice
from imageformat.errors import VerificationError
from imageformat.extent import Extent, ExtentKind, clip

UNIT, BLOCK, HEAD, TAIL = 256, 32, 100, 40
D = ExtentKind.DATA
KINDS = st.sampled_from([D, D, D, ExtentKind.ZERO, ExtentKind.UNUSED, ExtentKind.UNUSED, ExtentKind.BAD])


@pytest.fixture(autouse=True, scope="module")
def small() -> object:
    """Everything a thousand times smaller, so that a few kilobytes have many units."""
    with (
        mock.patch.multiple(engine.differing, UNIT=UNIT, BLOCK=BLOCK, ZEROS=bytes(UNIT)),
        mock.patch.multiple(engine.writing, UNIT=UNIT, HEAD=HEAD, TAIL=TAIL, ZEROS=bytes(UNIT)),
    ):
        yield


class KilledError(Exception):
    """What a process that is killed does not live to see."""


class Disk(MemoryDevice):
    """A target that counts, forgets what was not flushed, and dies on demand."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.content, self.durable = bytearray(content), bytearray(content)
        self.left = 1 << 60
        self.deaf = range(0)
        self.changed = 0

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KilledError

    def pread(self, offset: int, size: int) -> bytes:
        return bytes(self.content[offset : offset + size])

    def pwrite(self, offset: int, data: bytes) -> None:
        self._step()
        self.changed += len(data)
        if not set(range(offset, offset + len(data))) & set(self.deaf):
            self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, size: int) -> None:
        self.pwrite(offset, bytes(size))

    def flush(self) -> None:
        self._step()
        self.durable = bytearray(self.content)

    evict = flush

    def cut_power(self, chance: random.Random) -> None:
        """Of what was not flushed, some blocks are there and some are not."""
        for at in range(0, len(self.content), 16):
            if self.content[at : at + 16] != self.durable[at : at + 16] and chance.random() < 0.5:
                self.content[at : at + 16] = self.durable[at : at + 16]
        self.durable = bytearray(self.content)
        self.left = 1 << 60


class Source(MemoryDevice):
    """Bytes that are described by extents; what is free must not be read."""

    def __init__(self, content: bytes, extents: list[Extent]) -> None:
        super().__init__(content)
        self.all = extents

    def extents(self, offset: int, size: int) -> object:
        return clip(self.all, offset, size)

    def pread(self, offset: int, size: int) -> bytes:
        kinds = {extent.kind for extent in clip(self.all, offset, size)}
        assert kinds == {ExtentKind.DATA}, "only data is read"
        return super().pread(offset, size)


@dataclass(frozen=True)
class Case:
    source: Source
    before: bytes
    chance: random.Random

    def wanted(self, found: bytes, *, leave: bool) -> None:
        """Every byte is the source's; what is free may be as it was, or zeros at the ends."""
        for extent in self.source.all:
            here = slice(extent.offset, extent.end)
            if extent.kind is ExtentKind.DATA:
                assert found[here] == self.source.pread(extent.offset, extent.length)
            elif extent.kind is not ExtentKind.UNUSED or not leave:
                assert found[here] == bytes(extent.length)
            else:
                pairs = zip(found[here], self.before[here], strict=True)
                assert all(now in (0, then) for now, then in pairs)
        assert found[self.source.size :] == self.before[self.source.size :], "nothing behind it is touched"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    runs = draw(st.lists(st.tuples(st.integers(1, 700), KINDS), min_size=1, max_size=14))
    chance = random.Random(draw(st.integers(0, 1 << 32)))
    extents, at, content = [], 0, b""
    for length, kind in runs:
        extents.append(Extent(at, length, kind))
        data = kind is ExtentKind.DATA and chance.random() < 0.9
        content += chance.randbytes(length) if data else bytes(length)
        at += length
    before = bytearray(content + chance.randbytes(chance.choice((0, 7, 300))))
    for _ in range(draw(st.integers(0, 6))):
        start = chance.randrange(len(before))
        before[start : start + 50] = chance.randbytes(len(before[start : start + 50]))
    if draw(st.booleans()):
        before = bytearray(chance.randbytes(len(before)))
    return Case(Source(content, extents), bytes(before), chance)


def run(
    case: Case, disk: Disk, record: Path | None, *, delta: bool, resume: bool = False, vouched: bool = False
) -> Tally:
    options = WriteOptions(delta=delta, leave_unused=delta, check=True, threads=1, checkpoint=500)
    known = NOTHING
    if record is not None and (resume or vouched):
        known = Known(Earlier(record).units, vouched=vouched, chance=case.chance)
    kept = WriteRecord(record, RecordFacts("s", "t", case.source.size)) if record is not None else None
    try:
        tally = write(case.source, disk, options, record=kept, known=known)
        if kept is not None:
            kept.finish("stamp")
        return tally
    finally:
        if kept is not None:
            kept.close()


@given(cases(), st.booleans())
def test_a_target_becomes_the_source_and_a_second_delta_writes_nothing(case: Case, delta: bool) -> None:
    disk = Disk(case.before)
    run(case, disk, None, delta=delta)
    case.wanted(bytes(disk.durable), leave=delta)
    disk.changed = 0
    again = run(case, disk, None, delta=True)
    bad = sum(extent.length for extent in case.source.all if extent.kind is ExtentKind.BAD)
    assert again.bad_bytes == bad
    assert disk.changed == 0 == again.written + again.zeroed


@given(cases(), st.integers(0, 60), st.integers(0, 40), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=70)
def test_a_killed_run_is_known_and_the_next_one_finishes_it(
    case: Case, first: int, second: int, delta: bool, power: bool, meddle: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "record")
        disk = Disk(case.before)
        for resume, steps in ((False, first), (True, second)):
            untouched = bytes(disk.content)
            disk.left = steps
            try:
                run(case, disk, record, delta=delta, resume=resume)
            except KilledError:
                assert disk.content == untouched or Earlier(record).interrupted
                if power and record.exists():
                    disk.cut_power(case.chance)
                    torn = record.read_bytes()
                    begun = 16 + int.from_bytes(torn[8:12], "little")
                    record.write_bytes(torn[: max(begun, len(torn) - case.chance.randrange(50))])
                disk.left = 1 << 60
                changed = (
                    disk.content[HEAD : case.source.size - TAIL] != untouched[HEAD : case.source.size - TAIL]
                )
                marked = disk.content.startswith(MARK[: min(HEAD, case.source.size)])
                assert marked or not changed or whole(case, disk), "half written, it says so"
                if meddle:
                    at = case.chance.randrange(len(disk.content))
                    disk.content[at : at + 9] = case.before[at : at + 9]
            else:
                break
        disk.left = 1 << 60
        run(case, disk, record, delta=delta, resume=True)
        case.wanted(bytes(disk.durable), leave=delta)
        assert not Earlier(record).interrupted


def whole(case: Case, disk: Disk) -> bool:
    """Whether everything but the start is there: the start is written last."""
    for extent in case.source.all:
        if extent.kind is ExtentKind.DATA:
            start = max(extent.offset, HEAD)
            wanted = case.source._content[start : extent.end]
            if disk.content[start : extent.end] != wanted and start < extent.end:
                return False
    return True


@given(cases(), cases())
@settings(max_examples=40)
def test_a_vouched_target_is_not_read_again_but_for_a_sample(case: Case, other: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "record")
        disk = Disk(case.before)
        run(case, disk, record, delta=True)
        with mock.patch.object(engine.writing, "SAMPLED", 1 << 40):
            same = run(case, disk, record, delta=True, vouched=True)
        assert same.written == same.zeroed == 0
        assert same.compared <= HEAD + TAIL
        if other.source.size == case.source.size:
            changed = Case(other.source, bytes(disk.content), case.chance)
            run(changed, disk, record, delta=True, vouched=True)
            changed.wanted(bytes(disk.durable), leave=True)


def test_one_miss_of_the_sample_means_comparing_everything() -> None:
    content = random.Random(1).randbytes(UNIT * 200)
    case = Case(Source(content, [Extent(0, len(content), ExtentKind.DATA)]), content, random.Random(3))
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "record")
        disk = Disk(content)
        run(case, disk, record, delta=True)
        for at in range(1, 150):
            disk.content[at * UNIT + 7] ^= 1
        tally = run(case, disk, record, delta=True, vouched=True)
        assert tally.stale
        assert disk.durable == content
        honest = run(case, disk, record, delta=True, vouched=True)
        assert not honest.stale
        assert honest.compared < len(content) // 4
        disk.content[UNIT + 3] ^= 1
        watched = Known(Earlier(record).units, vouched=True, watched=(UNIT + 100,))
        tally = write(case.source, disk, WriteOptions(delta=True, leave_unused=True), known=watched)
        assert tally.stale
        assert disk.content == content


@pytest.mark.parametrize("at", [0, 2000, 4990])
def test_a_target_that_forgets_is_found_out(at: int) -> None:
    content = random.Random(1).randbytes(5000)
    case = Case(Source(content, [Extent(0, 5000, ExtentKind.DATA)]), bytes(5000), random.Random(3))
    disk = Disk(case.before)
    disk.deaf = range(at, at + 1)
    with pytest.raises(VerificationError, match="gives back other bytes at offset"):
        run(case, disk, None, delta=False)
