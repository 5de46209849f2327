"""Imaging a device: full, differential, incremental.

N workers (reading, zero test, hash, comparison with the parent, compression), one writer in order.
Nothing is visible before the image is durable and has been read back.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable
from uuid import uuid4

import msgspec

from engine.pipeline import default_threads, ordered_map
from engine.plan import NATIVE_SUFFIX, BackupPlan, block_runs, image_name, plan_backup
from imageformat.codec import DEFAULT_LEVEL, MIN_DELTA_LENGTH, digest, zero_digest
from imageformat.device import BlockDevice
from imageformat.errors import ChainError, ImageError, SourceMismatchError
from imageformat.extent import ExtentKind, overlay
from imageformat.formats.native.foreignbase import BaseBlocks, Reference, foreign_base, stands_on_foreign
from imageformat.formats.native.older import ParentBlocks
from imageformat.formats.native.reader import NativeLayer, native_layers, resolved_index
from imageformat.formats.native.structs import (
    DELTA_FRAMES,
    DELTA_FRAMES_NAME,
    EXCLUDED_FILES,
    EXCLUDED_FILES_NAME,
    FOREIGN_BASE,
    FOREIGN_BASE_NAME,
    NO_ROOT,
    NO_UUID,
    PAGE_BITS,
    ExtensionType,
    Header,
    State,
)
from imageformat.formats.native.writer import NO_ANCESTORS, EncodedBlock, NativeWriter, encode_block
from imageformat.layer import Ancestor, ImageInfo, ImageType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engine.plan import Run
    from imageformat.chain import Chain
    from imageformat.extent import Extent
    from imageformat.formats.native.index import Geometry
    from imageformat.repository import ImageSet, Point, Repository

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


class BackupProgress(NamedTuple):
    """How far a backup is, in bytes of the disk and of the image."""

    done: int
    total: int
    stored: int


@dataclass(frozen=True, slots=True)
class BackupResult:
    """A published image."""

    info: ImageInfo
    set_name: str
    key: str
    changed_blocks: int
    seconds: float
    warning: str = ""


class _Done(NamedTuple):
    run: Run
    length: int
    changed: tuple[EncodedBlock | Reference | int, ...]
    """Encoded blocks, blocks that stay in a base, and the numbers of blocks that became zeros; ascending."""


def backup(
    source: Source,
    repository: Repository,
    set_name: str,
    options: BackupOptions,
    *,
    origin: dict[str, object],
    parent: Point | None = None,
    unused: Iterable[Extent] = (),
    excluded: Iterable[Extent] | None = None,
    report: Callable[[BackupProgress], None] = lambda _: None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> BackupResult:
    """Write one image of ``source`` into a set and publish it.

    ``origin`` is recorded in the image: at least ``source``, and ``serial`` when known. ``unused`` says what
    holds nothing and is left out: ascending extents of the source as it is now, iterated more than once if
    need be. ``excluded`` are such extents of files that are left out although they hold something; None:
    there are none, and the source has no EXCLUDED extents of its own. The set is locked meanwhile. When it
    returns, the image is durable and was read back; when it raises, nothing of it is left (a killed process
    leaves one hidden ``.part`` file that the next backup removes).

    Raises:
        SetBusyError, SourceError, SourceMismatchError, DestinationError, UsageError
    """
    started = time.monotonic()
    with repository.storage.exclusive(f"{set_name}/"):
        image_set = repository.image_set(set_name)
        if not options.any_source:
            check_source(image_set, origin)
        plan = plan_backup(image_set, options.type, parent)
        job = _Job(source, unused, excluded, repository, image_set, options, origin, report, clock_ns())
        try:
            key, info, changed = _write_image(job, plan, _open_parent(repository, plan))
        except (ImageError, ChainError) as error:
            if plan.parent is None or not plan.parent.file_name.endswith(NATIVE_SUFFIX):
                raise
            reason = f"the chain cannot be continued: {error}"
            plan = BackupPlan(ImageType.FULL, None, plan.number, reason)
            key, info, changed = _write_image(job, plan, None)
        repository.image_set(set_name)
    return BackupResult(info, set_name, key, changed, time.monotonic() - started, plan.warning)


def check_source(image_set: ImageSet, origin: dict[str, object]) -> None:
    """Refuse to mix sources: by serial number where both are known, else by path.

    Raises:
        SourceMismatchError
    """
    last = image_set.latest()
    if last is None or last.info is None:
        return
    known = last.info.details if last.file_name.endswith(NATIVE_SUFFIX) else {}
    for fact in ("serial", "source"):
        if known.get(fact) and origin.get(fact):
            if known[fact] != origin[fact]:
                raise SourceMismatchError(
                    f"set {image_set.name} holds images of {fact} {known[fact]}, not {origin[fact]}; "
                    f"give this one its own name with --set, or name the set explicitly to go on with it"
                )
            return


@dataclass(frozen=True, slots=True)
class _Job:
    source: Source
    unused: Iterable[Extent]
    excluded: Iterable[Extent] | None
    repository: Repository
    image_set: ImageSet
    options: BackupOptions
    origin: dict[str, object]
    report: Callable[[BackupProgress], None]
    now_ns: int


def _open_parent(repository: Repository, plan: BackupPlan) -> Chain | None:
    """Open the parent and prove its whole chain."""
    if plan.parent is None:
        return None
    chain = repository.chain(plan.parent)
    chain.prove()
    return chain


def _header(job: _Job, plan: BackupPlan, chain: Chain | None) -> Header:
    known = next((point.info for point in job.image_set.points if point.info), None)
    described = {"host": socket.gethostname(), **job.origin}
    features = _features(job, chain)
    parent = chain.info if chain else None
    block_size = max(job.options.block_size, job.source.sector_size)
    if chain is not None and foreign_base(chain.layer(chain.depth)) is None:
        block_size = chain.info.disks[0].block_size
    return Header(
        image_id=uuid4(),
        set_id=known.set_id if known else uuid4(),
        type=plan.type,
        number=plan.number,
        created_ns=job.now_ns,
        disk_size=job.source.size,
        sector_size=job.source.sector_size,
        block_size=block_size,
        parent_id=parent.id if parent else NO_UUID,
        parent_root=parent.root if parent else NO_ROOT,
        depth=parent.depth + 1 if parent else 0,
        page_bits=PAGE_BITS,
        incompatible=sum(features),
        extensions=(*features.values(), (ExtensionType.ORIGIN, msgspec.json.encode(described))),
    )


def _features(job: _Job, chain: Chain | None) -> dict[int, tuple[int, bytes]]:
    """Return what a reader must know to read the new image: feature bits, and their names."""
    found = {}
    if chain is not None and job.options.differences:
        found[DELTA_FRAMES] = DELTA_FRAMES_NAME
    if chain is not None and stands_on_foreign(chain.layer):
        found[FOREIGN_BASE] = FOREIGN_BASE_NAME
    if job.excluded is not None or _excludes(chain):
        found[EXCLUDED_FILES] = EXCLUDED_FILES_NAME
    return found


def _excludes(chain: Chain | None) -> bool:
    """Tell whether records that an image on this chain inherits may be EXCLUDED."""
    tip = None if chain is None else chain.layer(chain.depth)
    return isinstance(tip, NativeLayer) and bool(tip.header.incompatible & EXCLUDED_FILES)


def _write_image(job: _Job, plan: BackupPlan, chain: Chain | None) -> tuple[str, ImageInfo, int]:
    header = _header(job, plan, chain)
    parent: ParentBlocks | BaseBlocks | None = None
    ancestors = NO_ANCESTORS
    if chain is not None:
        ancestors = chain.ancestors().followed_by(Ancestor(chain.info.id, chain.info.root))
        parent = _parent_blocks(chain, header.block_size)
    name = image_name(plan.number, plan.type, header.created_ns, header.image_id)
    target = job.repository.storage.create(f"{job.image_set.prefix}{name}")
    try:
        index = parent.index if isinstance(parent, ParentBlocks) else None
        writer = NativeWriter(target, header, index, ancestors)
        extents = overlay(overlay(job.source.extents(0, job.source.size), job.unused), job.excluded or ())
        changed = copy_blocks(
            job.source, extents, writer, parent, job.options, job.report, lambda: target.position
        )
        return f"{job.image_set.prefix}{name}", writer.commit(), changed
    finally:
        target.abort()


def _parent_blocks(chain: Chain, block_size: int) -> ParentBlocks | BaseBlocks:
    base = foreign_base(chain.layer(chain.depth))
    if base is not None:
        return BaseBlocks(base, block_size)
    return ParentBlocks(resolved_index(chain.layer(chain.depth), chain.layer), native_layers(chain.layer))


def copy_blocks(
    source: Source,
    extents: Iterable[Extent],
    writer: NativeWriter,
    parent: ParentBlocks | BaseBlocks | None,
    options: BackupOptions,
    report: Callable[[BackupProgress], None],
    stored: Callable[[], int],
) -> int:
    """Read the source once and hand what differs from ``parent`` to the writer; return how many blocks.

    ``extents`` cover the source; ZERO, UNUSED and EXCLUDED ones are not read.
    """
    # A worker waits for the medium while it reads: one more than there are cores keeps these busy.
    threads = options.threads or default_threads() + 1
    geometry = writer.geometry
    longest = max(1, _JOB_BYTES // geometry.block_size)
    worker = BlockWorker(source, writer.image_id, geometry, parent, options)
    runs = block_runs(extents, source.size, geometry.block_size, longest)
    changed = done = 0
    with contextlib.closing(ordered_map(worker, runs, threads=threads)) as results:
        for result in results:
            if result.run.kind in _FILLS:
                changed += writer.fill(result.run.first, result.run.blocks, _FILLS[result.run.kind])
            changed += sum(_put(writer, block) for block in result.changed)
            done = min(source.size, (result.run.first + result.run.blocks) * geometry.block_size)
            report(BackupProgress(done, source.size, stored()))
    return changed


def _put(writer: NativeWriter, block: EncodedBlock | Reference | int) -> bool:
    """Hand one block to the writer; tell whether it differs from the parent's."""
    if isinstance(block, EncodedBlock):
        writer.write(block)
    elif isinstance(block, Reference):
        writer.refer(*block)
        return False
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
        image_id: bytes,
        geometry: Geometry,
        parent: ParentBlocks | BaseBlocks | None,
        options: BackupOptions,
    ) -> None:
        self._size = source.size
        self._read = source.lend if isinstance(source, Lender) else source.pread
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
        raw = memoryview(self._read(offset, min(run.blocks * size, self._size - offset)))
        changed = []
        for block in range(run.first, run.first + run.blocks):
            at = (block - run.first) * size
            differing = self._examine(block, raw[at : at + size])
            if differing is not None:
                changed.append(differing)
        return _Done(run, len(raw), tuple(changed))

    def _examine(self, block: int, raw: memoryview) -> EncodedBlock | Reference | int | None:
        """Return a changed block: encoded, a reference, or its number for zeros; None when unchanged."""
        raw_digest = digest(raw)
        known = self._parent.record(block, len(raw)) if self._parent is not None else None
        if raw_digest == zero_digest(len(raw)):
            return None if known is not None and known.state == State.ZERO else block
        if self._base is not None and (same := self._base.same(block, raw_digest, len(raw))) is not None:
            return same
        older = None
        if self._parent is not None and known is not None and known.state == State.DATA:
            if known.digest == raw_digest:
                return None
            if len(raw) >= self._shortest:
                older = self._parent.older(block, len(raw), known)
        return encode_block(self._image_id, block, raw, raw_digest, self._level, older)
