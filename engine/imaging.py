"""Reading a source once, and handing to the writer of an image what differs from its parent.

N workers (reading, zero test, hash, comparison with the parent, compression), one writer in order.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, runtime_checkable

from engine.changes.knowledge import NOTHING_INHERITED, BlockRanges, without
from engine.pipeline import default_threads, ordered_map
from engine.plan import block_runs
from engine.rescue import BadBlock, Rescuer, damaged_block
from imageformat.codec import DEFAULT_LEVEL, MIN_DELTA_LENGTH, digest, zero_digest
from imageformat.device import BlockDevice
from imageformat.extent import ExtentKind
from imageformat.formats.native.foreignbase import BaseBlocks, Reference
from imageformat.formats.native.older import ParentBlocks
from imageformat.formats.native.structs import State
from imageformat.formats.native.unfinished import StoredFrame
from imageformat.formats.native.writer import EncodedBlock, NativeWriter, encode_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from engine.plan import Run
    from engine.resume import Kept
    from imageformat.extent import Extent
    from imageformat.formats.native.index import Geometry
    from imageformat.layer import ImageType

DEFAULT_BLOCK_SIZE = 64 << 10
_FILLS = {
    ExtentKind.ZERO: State.ZERO,
    ExtentKind.UNUSED: State.UNUSED,
    ExtentKind.EXCLUDED: State.EXCLUDED,
}
_JOB_BYTES = 1 << 20
"""What one worker is given at a time: a disk answers few large questions faster than many small ones."""


class Source(BlockDevice, Protocol):
    """What a backup reads from."""

    @property
    def sector_size(self) -> int:
        """Logical sector size in bytes."""
        ...


@runtime_checkable
class Lender(Protocol):
    """A source that need not copy what it has read."""

    def lend(self, offset: int, size: int) -> memoryview:
        """Return what `pread` does; it is overwritten when the same thread reads the next time."""
        ...


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """How to image."""

    type: ImageType | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    """Of a new chain; an image on a parent has its parent's."""
    level: int = DEFAULT_LEVEL
    differences: bool = True
    """Store a changed block as what differs from an older version of it, where that is smaller."""
    threads: int = 0
    """0: as many as pay."""
    any_source: bool = False
    """Continue a set although its last image is of another source."""
    rescue: bool = False
    """Go on past any number of bad sectors; else past `engine.rescue.MAX_BAD_BYTES`."""
    resume: bool = True
    """Go on with what an interrupted backup of the same source left; else it is thrown away."""


class BackupProgress(NamedTuple):
    """How far a backup is, in bytes of the disk and of the image."""

    done: int
    total: int
    stored: int


Examined: TypeAlias = EncodedBlock | StoredFrame | Reference | BadBlock | int
"""A block that differs from the parent's: encoded, stored, in a base, BAD, or its number for zeros."""


class _Done(NamedTuple):
    run: Run
    length: int
    changed: tuple[Examined, ...]
    """Ascending."""


def copy_blocks(
    source: Source,
    extents: Iterable[Extent],
    writer: NativeWriter,
    parent: ParentBlocks | BaseBlocks | None,
    options: BackupOptions,
    report: Callable[[BackupProgress], None],
    stored: Callable[[], int],
    rescuer: Rescuer,
    kept: Kept | None = None,
    inherited: BlockRanges = NOTHING_INHERITED,
) -> int:
    """Read the source once and hand what differs from ``parent`` to the writer; return how many blocks.

    ``extents`` cover the source; ZERO, UNUSED and EXCLUDED ones are not read, and ``inherited`` blocks
    neither. ``kept`` is what is stored already.
    """
    # A worker waits for the medium while it reads: one more than there are cores keeps these busy.
    threads = options.threads or default_threads() + 1
    geometry = writer.geometry
    longest = max(1, _JOB_BYTES // geometry.block_size)
    worker = BlockWorker(source, rescuer, writer.image_id, geometry, parent, options)
    runs = without(block_runs(extents, source.size, geometry.block_size, longest), inherited)
    if kept is not None:
        runs = kept.lead(runs)
    changed = done = 0
    with contextlib.closing(ordered_map(worker, runs, threads=threads)) as results:
        for result in results:
            if result.run.kind in _FILLS:
                changed += writer.fill(result.run.first, result.run.blocks, _FILLS[result.run.kind])
            changed += sum(_put(writer, block) for block in result.changed)
            if kept is not None:
                kept.settle(result.run, result.changed)
            done = min(source.size, (result.run.first + result.run.blocks) * geometry.block_size)
            report(BackupProgress(done, source.size, stored()))
    return changed


def _put(writer: NativeWriter, block: Examined) -> bool:
    """Hand one block to the writer; tell whether it differs from the parent's."""
    if isinstance(block, EncodedBlock):
        writer.write(block)
    elif isinstance(block, StoredFrame):
        writer.keep(block)
    elif isinstance(block, Reference):
        writer.refer(*block)
        return False
    elif isinstance(block, BadBlock):
        writer.fill(block.block, 1, State.BAD)
    else:
        writer.fill(block, 1, State.ZERO)
    return True


class BlockWorker:
    """What a worker thread does with a run of blocks. Thread-safe.

    It reads them too: copying what the kernel has cached costs as much as comparing it, and one thread that
    read for all of them would keep them waiting.
    """

    def __init__(
        self,
        source: BlockDevice,
        rescuer: Rescuer,
        image_id: bytes,
        geometry: Geometry,
        parent: ParentBlocks | BaseBlocks | None,
        options: BackupOptions,
    ) -> None:
        self._size = source.size
        self._rescuer = rescuer
        self._image_id = image_id
        self._geometry = geometry
        self._parent = parent if isinstance(parent, ParentBlocks) else None
        self._base = parent if isinstance(parent, BaseBlocks) else None
        self._level = options.level
        self._shortest = MIN_DELTA_LENGTH if options.differences else sys.maxsize

    def __call__(self, run: Run) -> _Done:
        """Return what of a run differs from the parent."""
        if run.kind in _FILLS:
            return _Done(run, 0, ())
        size = self._geometry.block_size
        offset = run.first * size
        raw, bad = self._rescuer.read(offset, min(run.blocks * size, self._size - offset))
        stored = {(frame.block, frame.digest): frame for frame in run.stored}
        changed = []
        for block in range(run.first, run.first + run.blocks):
            at = (block - run.first) * size
            here = [(gap.offset - offset - at, gap.length) for gap in bad if gap.meets(offset + at, size)]
            differing = self._examine(block, raw[at : at + size], here, stored)
            if differing is not None:
                changed.append(differing)
        return _Done(run, len(raw), tuple(changed))

    def _examine(
        self,
        block: int,
        raw: memoryview,
        bad: Sequence[tuple[int, int]],
        stored: Mapping[tuple[int, bytes], StoredFrame],
    ) -> Examined | None:
        """Return a changed block; None when unchanged."""
        known = self._parent.record(block, len(raw)) if self._parent is not None else None
        if bad:
            return damaged_block(self._image_id, block, raw, bad, known, stored, self._level)
        raw_digest = digest(raw)
        if raw_digest == zero_digest(len(raw)):
            return None if known is not None and known.state == State.ZERO else block
        if self._base is not None and (same := self._base.same(block, raw_digest, len(raw))) is not None:
            return same
        is_data = known is not None and known.state == State.DATA
        if known is not None and is_data and known.digest == raw_digest:
            return None
        if (there := stored.get((block, raw_digest))) is not None:
            return there
        older = None
        if self._parent is not None and known is not None and is_data and len(raw) >= self._shortest:
            older = self._parent.older(block, len(raw), known)
        return encode_block(self._image_id, block, raw, raw_digest, self._level, older)
