"""The one loop that makes a target equal to something readable: restore, clone, and both of them again.

What the start and the end of a disk hold, partition tables and boot sectors, is written last. Before anything
else changes, a mark takes its place: a target that is half written never looks whole, and says what it is.
Units are recorded once they are durable and read back; a run that was killed compares what is recorded, and
writes the rest. Comparing is the rule wherever something may stand already; only a record whose target is
vouched for spares the reading, and a sample of it is compared all the same.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from engine.differing import (
    UNIT,
    ZEROS,
    Read,
    Unit,
    differing_runs,
    digest_of,
    not_zero,
    read_unit,
    units,
)
from engine.pipeline import default_threads, ordered_map
from engine.writerecord import Kept
from imageformat.errors import VerificationError
from imageformat.extent import ExtentKind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from engine.writerecord import WriteRecord
    from imageformat.device import BlockDevice, WritableDevice
    from imageformat.extent import Extent

HEAD = 68 << 10
"""Written last: tables, boot sectors, and every superblock that makes a bare volume one, btrfs' at 64 KiB."""
TAIL = 4096
"""Written just before it: the header of a backup GPT in the last sector."""
MARK = b"mountfs: this was being written and is not whole; run the same restore or clone again\n"
"""What stands at the start of a target that is not whole."""
CHECKPOINT = 256 << 20
SAMPLED = 32
"""One in so many of the units that a record spares is compared all the same."""


class WriteProgress(NamedTuple):
    """How far a run is, in bytes of the disk."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a target is written."""

    delta: bool = False
    """Compare with what stands there, and write only what differs."""
    leave_unused: bool = False
    """Leave free space as it is; else it is made to read as zeros."""
    check: bool = False
    """Read back what was written, from the medium if that can be."""
    threads: int = 0
    checkpoint: int = CHECKPOINT
    """Bytes between two checkpoints."""


@dataclass(frozen=True, slots=True)
class Known:
    """What an earlier run left on the target."""

    units: Callable[[], Iterable[Kept]] = tuple
    vouched: bool = False
    """The target provably is as that run left it; else every unit is compared."""
    watched: tuple[int, ...] = ()
    """Bytes whose units are compared always: where file systems note that they were mounted."""
    chance: random.Random = field(default_factory=random.SystemRandom)


NOTHING = Known()


@dataclass(slots=True)
class Tally:
    """What a run did, in bytes."""

    size: int
    read: int = 0
    """Of the source."""
    compared: int = 0
    """Read of the target, to compare."""
    written: int = 0
    zeroed: int = 0
    """Made to read as zeros, where that was not known."""
    skipped: int = 0
    """Found, or known, to be there already."""
    bad_bytes: int = 0
    """Of sectors that were unreadable at the source: zeros are there now."""
    verified: bool = False
    stale: bool = False
    """The record of the last run turned out wrong, and everything was compared."""
    seconds: float = 0.0


class _StaleError(Exception):
    """The target is not as the record says."""


def write(
    source: BlockDevice,
    target: WritableDevice,
    options: WriteOptions,
    *,
    record: WriteRecord | None = None,
    known: Known = NOTHING,
    report: Callable[[WriteProgress], None] = lambda _: None,
) -> Tally:
    """Make the first ``source.size`` bytes of ``target`` equal to ``source``, and flush. One thread.

    Args:
        source: What is written; it must not change meanwhile.
        target: At least as large.
        options: See there.
        record: Begun here, and extended at each checkpoint. Whoever calls finishes it.
        known: What an earlier run left; without ``delta``, only that is compared, and the rest is written.
        report: Is told how far it is.

    Raises:
        CorruptImageError, SourceReadError: the source cannot give, or prove, a block.
        DestinationError: the target failed.
        VerificationError: the target does not give back what was written.
    """
    started = time.monotonic()
    run = _Run(source, target, options, record, known, report)
    if options.delta or known is not NOTHING:
        target.evict()
    if record is not None:
        record.begin()
    try:
        run.body()
    except _StaleError:
        run.known = Known(known.units, watched=known.watched)
        run.tally.stale, run.tally.skipped, run.tally.bad_bytes = True, 0, 0
        if record is not None:
            record.begin()
        run.body()
    run.ends()
    run.tally.seconds = time.monotonic() - started
    return run.tally


class _Run:
    def __init__(
        self,
        source: BlockDevice,
        target: WritableDevice,
        options: WriteOptions,
        record: WriteRecord | None,
        known: Known,
        report: Callable[[WriteProgress], None],
    ) -> None:
        self.source, self.target, self.options, self.known = source, target, options, known
        self.tally = Tally(source.size, verified=options.check)
        self._record, self._report = record, report
        self._threads = options.threads or default_threads() + 1
        self._head = min(HEAD, source.size)
        self._tail = min(TAIL, source.size - self._head)
        self._lock = threading.Lock()
        self._marked = False
        self._watched = {byte // UNIT for byte in known.watched}

    # -- all but the ends ------------------------------------------------------------------------------

    def body(self) -> None:
        start, end = self._head, self.source.size - self._tail
        if not self.options.delta:
            self._mark()
        pending: list[tuple[Unit, bytes, bool]] = []
        since, done = 0, 0
        with contextlib.closing(self._worked(start, end)) as worked:
            for unit, digest, wrote in worked:
                pending.append((unit, digest, wrote))
                since += unit.size
                done = unit.offset + unit.size
                if since >= self.options.checkpoint:
                    self._checkpoint(pending)
                    pending, since = [], 0
                self._report(WriteProgress(min(done, self.source.size), self.source.size))
        self._checkpoint(pending)

    def _worked(self, start: int, end: int) -> Generator[tuple[Unit, bytes, bool]]:
        jobs = units(self._described(start, max(0, end - start)), leave_unused=self.options.leave_unused)
        return ordered_map(self._work, _with_kept(jobs, self.known.units()), threads=self._threads)

    def _work(self, unit: Unit) -> tuple[Unit, bytes, bool]:
        """Bring one unit to the target. Whether anything was written."""
        data = self._read(unit)
        digest = digest_of(unit, data)
        spared = self.known.vouched and self.options.delta and unit.kept == digest
        if spared and not self._is_sampled(unit):
            self._count(skipped=unit.size)
            return unit, digest, False
        if not (self.options.delta or unit.kept is not None):
            self._put(unit, data)
            return unit, digest, True
        before = list(self._differences(unit, data))
        if spared and before:
            raise _StaleError
        for offset, content, length in before:
            self._write(offset, content, length)
        changed = sum(length for _, _, length in before)
        self._count(skipped=sum(part.length for part in unit.parts) - changed)
        return unit, digest, bool(before)

    def _is_sampled(self, unit: Unit) -> bool:
        return unit.offset // UNIT in self._watched or self.known.chance.randrange(SAMPLED) == 0

    def _read(self, unit: Unit) -> Read:
        data = read_unit(self.source, unit)
        self._count(read=sum(len(content) for content in data if content is not None))
        return data

    def _put(self, unit: Unit, data: Read) -> None:
        """Write all of a unit."""
        for part, content in zip(unit.parts, data, strict=True):
            if content is None:
                self.target.zero(part.offset, part.length)
            else:
                self._write(part.offset, content, part.length)

    def _differences(self, unit: Unit, data: Read) -> Iterator[tuple[int, bytes | None, int]]:
        """Yield (offset, bytes or None for zeros, length) of what is not on the target."""
        for part, content in zip(unit.parts, data, strict=True):
            if content is None:
                for offset, length in not_zero(self.target, part, lambda size: self._count(compared=size)):
                    yield offset, None, length
                continue
            found = self.target.pread(part.offset, part.length)
            self._count(compared=part.length)
            for start, end in differing_runs(part.offset, content, found):
                yield part.offset + start, content[start:end], end - start

    def _write(self, offset: int, content: bytes | None, length: int) -> None:
        self._mark()
        if content is None or content == ZEROS[:length]:
            self.target.zero(offset, length)
            self._count(zeroed=length)
        else:
            self.target.pwrite(offset, content)
            self._count(written=length)

    def _count(
        self,
        *,
        read: int = 0,
        compared: int = 0,
        written: int = 0,
        zeroed: int = 0,
        skipped: int = 0,
    ) -> None:
        with self._lock:
            tally = self.tally
            tally.read += read
            tally.compared += compared
            tally.written += written
            tally.zeroed += zeroed
            tally.skipped += skipped

    # -- durable, proven, recorded ---------------------------------------------------------------------

    def _checkpoint(self, pending: list[tuple[Unit, bytes, bool]]) -> None:
        written = [(unit, digest) for unit, digest, wrote in pending if wrote]
        if written:
            self._settle(written)
        if self._record is not None:
            self._record.add(Kept(unit.offset, unit.size, digest) for unit, digest, _ in pending)

    def _settle(self, written: list[tuple[Unit, bytes]]) -> None:
        if not self.options.check:
            self.target.flush()
            return
        self.target.evict()
        with contextlib.closing(ordered_map(self._prove, written, threads=self._threads)) as proofs:
            for _ in proofs:
                pass

    def _prove(self, job: tuple[Unit, bytes]) -> None:
        unit, digest = job
        data = read_unit(self.target, unit)
        zeros = (part for part, content in zip(unit.parts, data, strict=True) if content is None)
        wrong = [next(not_zero(self.target, part, lambda _: None), None) for part in zeros]
        if any(wrong) or digest_of(unit, data) != digest:
            raise VerificationError(
                f"the target gives back other bytes at offset {unit.offset}: it is failing; do not use it"
            )

    # -- the ends --------------------------------------------------------------------------------------

    def ends(self) -> None:
        """Write the end and then the start, unless they and all else stand there already."""
        size = self.source.size
        tail = self._units_of(size - self._tail, self._tail)
        head = self._units_of(0, self._head)
        read = [(unit, self._read(unit)) for unit in (*tail, *head)]
        if not self._marked and not any(next(self._differences(*pair), None) for pair in read):
            self._count(skipped=sum(part.length for unit, _ in read for part in unit.parts))
            self.target.flush()
            return
        self._mark()
        self.target.flush()
        for unit, data in read[: len(tail)]:
            self._put(unit, data)
        self.target.flush()
        for unit, data in read[len(tail) :]:
            self._put(unit, data)
        self._settle([(unit, digest_of(unit, data)) for unit, data in read])
        self._report(WriteProgress(size, size))

    def _units_of(self, offset: int, length: int) -> list[Unit]:
        if not length:
            return []
        return list(units(self._described(offset, length), leave_unused=False))

    def _described(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what the source says of a range, and count what is bad in it."""
        for extent in self.source.extents(offset, length) if length else ():
            if extent.kind is ExtentKind.BAD:
                self.tally.bad_bytes += extent.length
            yield extent

    def _mark(self) -> None:
        """Before the first write: put the mark where the start was, and take away the end. Durable."""
        with self._lock:
            if self._marked:
                return
            tail = self.source.size - self._tail
            self.target.pwrite(0, MARK[: self._head].ljust(self._head, b"\0"))
            if self._tail:
                self.target.zero(tail, self._tail)
            self.target.flush()
            self.tally.written += self._head
            self.tally.zeroed += self._tail
            self._marked = True


def _with_kept(jobs: Iterable[Unit], kept: Iterable[Kept]) -> Iterator[Unit]:
    """Give each unit the digest that an earlier run recorded of the same range; both are ascending.

    One of which only a part is recorded gets an empty digest: something was written there.
    """
    known = iter(kept)
    at = next(known, None)
    for unit in jobs:
        end = unit.offset + unit.size
        while at is not None and at.offset + at.length <= unit.offset:
            at = next(known, None)
        if at is None or at.offset >= end:
            yield unit
        elif (at.offset, at.length) == (unit.offset, unit.size):
            yield Unit(unit.parts, at.digest)
        else:
            yield Unit(unit.parts, b"")
