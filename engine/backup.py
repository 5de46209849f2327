"""Imaging a device: full, differential, incremental.

N workers (reading, zero test, hash, comparison with the parent, compression), one writer in order.
Nothing is visible before the image is durable and has been read back.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

import msgspec

from engine.changes.knowledge import (
    NOTHING_KNOWN,
    Knowledge,
    Tracking,
)
from engine.imaging import BackupOptions, BackupProgress, Lender, Source, copy_blocks
from engine.plan import NATIVE_SUFFIX, BackupPlan, image_name, plan_backup
from engine.rescue import MAX_BAD_BYTES, BadRange, Rescuer
from engine.resume import data_left, kept_when_interrupted, start_image
from imageformat.errors import ChainError, ImageError, SourceMismatchError
from imageformat.extent import overlay
from imageformat.formats.native.foreignbase import BaseBlocks, foreign_base, stands_on_foreign
from imageformat.formats.native.older import ParentBlocks
from imageformat.formats.native.reader import (
    NativeLayer,
    has_partial_blocks,
    native_layers,
    resolved_index,
)
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
    PARTIAL_BLOCKS,
    PARTIAL_BLOCKS_NAME,
    ExtensionType,
    Header,
)
from imageformat.formats.native.writer import NO_ANCESTORS, NativeWriter
from imageformat.layer import Ancestor, ImageInfo, ImageType

__all__ = ["BackupOptions", "BackupProgress", "BackupResult", "Source", "backup", "check_source"]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from imageformat.chain import Chain
    from imageformat.extent import Extent
    from imageformat.repository import ImageSet, Point, Repository


@dataclass(frozen=True, slots=True)
class BackupResult:
    """A published image."""

    info: ImageInfo
    set_name: str
    key: str
    changed_blocks: int
    seconds: float
    warning: str = ""
    changes: Knowledge = NOTHING_KNOWN
    """What was inherited without reading it, and how that was tested."""
    bad_bytes: int = 0
    """Of sectors that could not be read; they are BAD in the image."""
    bad: tuple[BadRange, ...] = ()
    """Where they are, as far as remembered one by one."""


class _Written(NamedTuple):
    key: str
    info: ImageInfo
    changed: int
    rescuer: Rescuer


def backup(
    source: Source,
    repository: Repository,
    set_name: str,
    options: BackupOptions,
    *,
    origin: dict[str, object],
    parent: Point | None = None,
    unused: Iterable[Extent] = (),
    tracking: Tracking | None = None,
    excluded: Iterable[Extent] | None = None,
    report: Callable[[BackupProgress], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> BackupResult:
    """Write one image of ``source`` into a set and publish it.

    ``origin`` is recorded in the image: at least ``source``, and ``serial`` when known. ``unused`` says what
    holds nothing and is left out: ascending extents of the source as it is now, iterated more than once if
    need be. ``excluded`` are such extents of files that are left out although they hold something; None:
    there are none, and the source has no EXCLUDED extents of its own. ``tracking`` knows what need not be
    read; without it everything is. The set is locked meanwhile. When it returns, the image is durable and
    was read back; when it raises, nothing of it is left (a killed process leaves one hidden ``.part`` file
    that the next backup removes).

    Raises:
        SetBusyError, SourceError, SourceMismatchError, DestinationError, UsageError
    """
    started = time.monotonic()
    with repository.storage.exclusive(f"{set_name}/"), tracking or Tracking() as changes:
        image_set = repository.image_set(set_name)
        if not options.any_source:
            check_source(image_set, origin)
        plan = plan_backup(image_set, options.type, parent)
        job = _Job(
            *(source, unused, excluded, repository, image_set, options, origin, report, tell, clock_ns()),
            changes,
        )
        try:
            written = _write_image(job, plan, _open_parent(repository, plan))
        except (ImageError, ChainError) as error:
            if plan.parent is None or not plan.parent.file_name.endswith(NATIVE_SUFFIX):
                raise
            reason = f"the chain cannot be continued: {error}"
            plan = BackupPlan(ImageType.FULL, None, plan.number, reason)
            written = _write_image(job, plan, None)
        repository.image_set(set_name)
    return BackupResult(
        written.info,
        set_name,
        written.key,
        written.changed,
        time.monotonic() - started,
        plan.warning,
        changes.knowledge,
        written.rescuer.bad_bytes,
        written.rescuer.all_ranges(),
    )


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
    tell: Callable[[str], None]
    now_ns: int
    tracking: Tracking

    def extents(self) -> Iterator[Extent]:
        """Return what the source holds where, as it is now."""
        held = overlay(self.source.extents(0, self.source.size), self.unused)
        return overlay(held, self.excluded or ())


def _open_parent(repository: Repository, plan: BackupPlan) -> Chain | None:
    """Open the parent and prove its whole chain."""
    if plan.parent is None:
        return None
    chain = repository.chain(plan.parent)
    chain.prove()
    return chain


def _header(job: _Job, plan: BackupPlan, chain: Chain | None, known: Knowledge) -> Header:
    other = next((point.info for point in job.image_set.points if point.info), None)
    described = {"host": socket.gethostname(), **job.origin, **known.origin()}
    features = _features(job, chain)
    parent = chain.info if chain else None
    block_size = _block_size(job, chain)
    return Header(
        image_id=uuid4(),
        set_id=other.set_id if other else uuid4(),
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


def _block_size(job: _Job, chain: Chain | None) -> int:
    if chain is not None and foreign_base(chain.layer(chain.depth)) is None:
        return chain.info.disks[0].block_size
    return max(job.options.block_size, job.source.sector_size)


def _features(job: _Job, chain: Chain | None) -> dict[int, tuple[int, bytes]]:
    """Return what a reader must know to read the new image: feature bits, and their names."""
    found = {}
    if chain is not None and job.options.differences:
        found[DELTA_FRAMES] = DELTA_FRAMES_NAME
    if chain is not None and stands_on_foreign(chain.layer):
        found[FOREIGN_BASE] = FOREIGN_BASE_NAME
    if job.excluded is not None or _excludes(chain):
        found[EXCLUDED_FILES] = EXCLUDED_FILES_NAME
    if chain is not None and has_partial_blocks(chain.layer(chain.depth)):
        found[PARTIAL_BLOCKS] = PARTIAL_BLOCKS_NAME
    return found


def _excludes(chain: Chain | None) -> bool:
    """Tell whether records that an image on this chain inherits may be EXCLUDED."""
    tip = None if chain is None else chain.layer(chain.depth)
    return isinstance(tip, NativeLayer) and bool(tip.header.incompatible & EXCLUDED_FILES)


def _write_image(job: _Job, plan: BackupPlan, chain: Chain | None) -> _Written:
    parent: ParentBlocks | BaseBlocks | None = None
    ancestors = NO_ANCESTORS
    if chain is not None:
        ancestors = chain.ancestors().followed_by(Ancestor(chain.info.id, chain.info.root))
        parent = _parent_blocks(chain, _block_size(job, chain))
    own_blocks = parent if isinstance(parent, ParentBlocks) else None
    known = job.tracking.ask(job.source, job.extents, own_blocks, chain.info if chain else None)
    header = _header(job, plan, chain, known)
    storage, prefix = job.repository.storage, job.image_set.prefix
    name = partial(image_name, plan.number, plan.type, header.created_ns)
    target, header, kept = start_image(
        storage, prefix, header, name, resume=job.options.resume, tell=job.tell
    )
    read = job.source.lend if isinstance(job.source, Lender) else job.source.pread
    rescuer = Rescuer(job.source, read, None if job.options.rescue else MAX_BAD_BYTES)
    last = BackupProgress(0, job.source.size, 0)

    def report(progress: BackupProgress) -> None:
        nonlocal last
        last = progress
        job.report(progress)

    with kept_when_interrupted(target, job.tell, lambda: data_left(job.extents(), last.done, last.stored)):
        index = parent.index if isinstance(parent, ParentBlocks) else None
        writer = NativeWriter(target, header, index, ancestors)
        changed = copy_blocks(
            *(job.source, job.extents(), writer, parent, job.options, report, lambda: target.position),
            *(rescuer, kept, known.inherited),
        )
        return _Written(f"{prefix}{name(header.image_id)}", writer.commit(), changed, rescuer)


def _parent_blocks(chain: Chain, block_size: int) -> ParentBlocks | BaseBlocks:
    base = foreign_base(chain.layer(chain.depth))
    if base is not None:
        return BaseBlocks(base, block_size)
    return ParentBlocks(resolved_index(chain.layer(chain.depth), chain.layer), native_layers(chain.layer))
