"""Verifying images: every stored block read, decoded, hashed and compared; all errors listed.

Each image file is verified once, by the frames it holds itself; a point is proven when its file and the
files of all its ancestors are, and every link between them is.
"""

from __future__ import annotations

import contextlib
import enum
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from engine.parts import Part, PartProgress
from engine.pipeline import default_threads, ordered_map
from imageformat.catalog import Proof
from imageformat.errors import (
    AccessDeniedError,
    CorruptImageError,
    MountfsError,
    NotFoundError,
    ParentMissingError,
    StorageError,
)
from imageformat.layer import BlockRef, Lost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from imageformat.chain import Chain
    from imageformat.layer import ImageLayer, LoadBlock, Piece
    from imageformat.repository import Point, Repository

_STORAGE_ERRORS = (StorageError, AccessDeniedError, NotFoundError)
_BATCH = 16
_CHUNK_BLOCKS = 256
MAX_DAMAGES = 10_000
"""Listed one by one for each file; the rest is counted."""


class Blame(enum.Enum):
    """Where something that is wrong lies."""

    IMAGE = "image"
    """In the bytes of the file itself."""
    CHAIN = "chain"
    """In what the file stands on: an ancestor is missing, replaced or damaged."""
    STORAGE = "storage"
    """Outside of all images: the storage did not give the bytes, so nothing is known of them."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong with an image file, or that kept it from being read."""

    message: str
    error: str
    """Name of the error class."""
    exit_code: int
    disk_offset: int | None = None
    """First byte of the disk that cannot be had; None when the damage is not about a range."""
    length: int = 0
    blame: Blame = Blame.IMAGE
    disk: int = 0
    """Which disk of the image ``disk_offset`` is on."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """The outcome for one image file."""

    point: Point
    blocks: int
    """Frames that were read and proven."""
    stored_bytes: int
    damages: tuple[Damage, ...]
    damaged_count: int
    transient: int
    """Blocks that were wrong at first and right when read again: the medium or the memory is failing."""
    unread: tuple[Damage, ...] = ()
    """What the storage failed to give: no damage, but not proven either."""
    unread_count: int = 0


class VerifyProgress(NamedTuple):
    """How far a verification is, in bytes of image files."""

    point: Point
    done: int
    total: int


class _Batch(NamedTuple):
    """Frames that are proven together: in which file they are, and what they belong to."""

    holder: ImageLayer
    disk: int
    refs: tuple[BlockRef, ...]
    blame: Blame


class _Checked(NamedTuple):
    refs: tuple[BlockRef, ...]
    damages: tuple[Damage, ...]
    transient: int
    elsewhere: bool = False
    """Whether something could not be proven because of another file."""


def points_of_chain(point: Point, points: Iterable[Point]) -> tuple[Point, ...]:
    """Return a point and the points it depends on, oldest first, as far as they are there."""
    by_key = {other.key: other for other in points}
    line = [point]
    while (key := line[-1].parent_key) is not None and key in by_key:
        line.append(by_key[key])
    return tuple(reversed(line))


def verify(
    repository: Repository,
    points: Sequence[Point],
    *,
    threads: int = 0,
    report: Callable[[VerifyProgress], None] = lambda _: None,
) -> Iterator[FileReport]:
    """Verify image files one after the other, yielding a report for each; never stops at an error.

    The outcome is remembered in the catalogue, unless the storage failed.
    """
    total = sum(point.size for point in points)
    done = 0
    proven: set[str] = set()
    for point in points:
        advance = partial(_advance, report, point, done, total)
        outcome = verify_file(repository, point, threads=threads, advance=advance, proven=proven)
        done += point.size
        report(VerifyProgress(point, done, total))
        _remember(repository, outcome)
        yield outcome


def _remember(repository: Repository, outcome: FileReport) -> None:
    """Keep what is now known of the file itself; what it stands on has its own proof.

    With a wrong chain the file's own blocks say nothing of the point, so an older proof is forgotten.
    """
    own = outcome.damaged_count - sum(1 for damage in outcome.damages if damage.blame is Blame.CHAIN)
    if own:
        repository.record_proof(outcome.point, Proof(time.time_ns(), own))
    elif outcome.damages:
        repository.record_proof(outcome.point, None)
    elif not outcome.unread:
        repository.record_proof(outcome.point, Proof(time.time_ns(), 0))


def _advance(
    report: Callable[[VerifyProgress], None], point: Point, before: int, total: int, stored: int
) -> None:
    report(VerifyProgress(point, before + stored, total))


def verify_file(
    repository: Repository,
    point: Point,
    *,
    threads: int = 0,
    advance: Callable[[int], None] = lambda _: None,
    proven: set[str] | None = None,
    part: Part | None = None,
) -> FileReport:
    """Verify one image file: its links, its own index, and every block that it stores, or a part of them.

    Of a part, nothing is told as right when something is wrong with links or index. ``proven`` holds the keys
    of files whose links are proven already; this one's is added when its are.
    """
    found: list[Damage] = []
    if point.problem is not None:
        blame = Blame.IMAGE if point.info is None else Blame.CHAIN
        found.append(_damage(point.problem.to_error(), blame=blame))
    if point.info is None:
        return _refused(point, found, part)
    try:
        layer = repository.fresh_layer(point)
    except MountfsError as error:
        found.append(_damage(error))
        return _refused(point, found, part)
    with contextlib.closing(layer):
        chain = None
        if point.problem is None:
            chain = _proven_chain(repository, point, layer, found, proven if proven is not None else set())
        return _verify_layer(layer, chain, point, found, threads, advance, part)


def _refused(point: Point, found: list[Damage], part: Part | None) -> FileReport:
    if part is not None:
        part.refuse()
    return _report(point, found)


def _proven_chain(
    repository: Repository, point: Point, layer: ImageLayer, found: list[Damage], proven: set[str]
) -> Chain | None:
    """Open the chain and prove the whole line of ancestors; None, and why, when it is not right.

    Of a parent whose line is proven, only the link to it is: it says that the parent's ancestors are this
    file's as well, so that nothing else is left.
    """
    try:
        layer.ancestors()
    except MountfsError as error:
        found.append(_damage(error))
        return None
    try:
        chain = repository.chain(point)
        if point.parent_key in proven:
            chain.layer(chain.depth - 1)
        else:
            chain.prove()
    except MountfsError as error:
        found.append(_damage(error, blame=Blame.CHAIN))
        return None
    proven.add(point.key)
    return chain


def _verify_layer(
    layer: ImageLayer,
    chain: Chain | None,
    point: Point,
    found: list[Damage],
    threads: int,
    advance: Callable[[int], None],
    part: Part | None,
) -> FileReport:
    found.extend(_wrong_pages(layer, chain))
    blocks = stored = transient = 0
    check = partial(_check, _reference_in(chain))
    batches = _batches(layer, _base_of(layer, chain), found)
    progress = PartProgress(part, point.size, found)
    wanted = progress.batches(batches)
    with contextlib.closing(ordered_map(check, wanted, threads=threads or default_threads())) as results:
        for checked in results:
            blocks += len(checked.refs) - len(checked.damages)
            stored += sum(ref.length for ref in checked.refs)
            transient += checked.transient
            found.extend(checked.damages)
            advance(stored)
            if progress.stops_after(len(checked.damages), elsewhere=checked.elsewhere):
                break
        else:
            progress.finish()
    return _report(point, found, blocks, stored, transient)


def _report(
    point: Point, found: list[Damage], blocks: int = 0, stored: int = 0, transient: int = 0
) -> FileReport:
    """Tell what is damaged from what the storage did not give."""
    unique = _unique(found)
    unread = tuple(damage for damage in unique if damage.blame is Blame.STORAGE)
    damages = tuple(damage for damage in unique if damage.blame is not Blame.STORAGE)
    return FileReport(
        point,
        blocks,
        stored,
        damages[:MAX_DAMAGES],
        len(damages),
        transient,
        unread[:MAX_DAMAGES],
        len(unread),
    )


def _wrong_pages(layer: ImageLayer, chain: Chain | None) -> Iterator[Damage]:
    try:
        for message in layer.prove(chain.layer if chain is not None else None):
            yield _damage(CorruptImageError(message))
    except MountfsError as error:
        yield _damage(error, blame=Blame.CHAIN if chain is not None else Blame.IMAGE)


def _unique(damages: list[Damage]) -> tuple[Damage, ...]:
    """Drop repetitions, and what is said again with its place."""
    placed = {damage.message for damage in damages if damage.disk_offset is not None}
    return tuple(
        damage
        for damage in dict.fromkeys(damages)
        if damage.disk_offset is not None or damage.message not in placed
    )


def _base_of(layer: ImageLayer, chain: Chain | None) -> ImageLayer | None:
    """Return the image of another tool that this one stands on directly.

    Only this one says what the blocks that it left there must be, so they are proven with it.
    """
    if chain is None or layer.info.depth != 1:
        return None
    base = chain.layer(0)
    return base if base.info.format != layer.info.format else None


def _batches(layer: ImageLayer, base: ImageLayer | None, found: list[Damage]) -> Iterator[_Batch]:
    """Yield the frames that the layer holds itself, and those that it alone knows of in its base.

    A damaged part of the index is noted and passed.
    """
    own = layer.info.depth
    holders = {own: (layer, Blame.IMAGE)}
    if base is not None:
        holders[0] = base, Blame.CHAIN
    for number in range(len(layer.info.disks)):
        pending: dict[int, list[BlockRef]] = {depth: [] for depth in holders}
        for piece in _pieces(layer, number, found):
            source = piece.source
            if isinstance(source, Lost):
                found.append(_damage(source.error, piece.offset, piece.length, disk=number))
            elif isinstance(source, BlockRef) and source.layer in pending:
                refs = pending[source.layer]
                refs.append(source)
                if len(refs) == _BATCH:
                    holder, blame = holders[source.layer]
                    yield _Batch(holder, number, tuple(refs), blame)
                    refs.clear()
        for depth, refs in pending.items():
            if refs:
                holder, blame = holders[depth]
                yield _Batch(holder, number, tuple(refs), blame)


def _pieces(layer: ImageLayer, number: int, found: list[Damage]) -> Iterator[Piece]:
    """Describe a whole disk, stepping over a part of the index that is refused."""
    disk = layer.info.disks[number]
    step = disk.block_size * _CHUNK_BLOCKS
    offset = 0
    while offset < disk.size:
        try:
            for piece in layer.pieces(number, offset, disk.size - offset):
                yield piece
                offset = piece.offset + piece.length
        except MountfsError as error:
            size = min(step - offset % step, disk.size - offset)
            found.append(_damage(error, offset, size, disk=number))
            offset += size


class _ElsewhereError(Exception):
    """The older block that a difference stands on cannot be had: the damage of another file."""


def _reference_in(chain: Chain | None) -> LoadBlock:
    def load(ref: BlockRef) -> bytes:
        if chain is None:
            raise _ElsewhereError
        try:
            return chain.load_plain(ref)
        except MountfsError as error:
            raise _ElsewhereError from error

    return load


def _check(reference: LoadBlock, batch: _Batch) -> _Checked:
    """Prove a batch of frames; when one is wrong, each is read again alone."""
    try:
        batch.holder.load(batch.refs, reference)
    except (MountfsError, _ElsewhereError):
        return _check_singly(reference, batch)
    return _Checked(batch.refs, (), 0)


def _check_singly(reference: LoadBlock, batch: _Batch) -> _Checked:
    damages, elsewhere = [], False
    block_size = batch.holder.info.disks[batch.disk].block_size
    for ref in batch.refs:
        try:
            batch.holder.load((ref,), reference)
        except _ElsewhereError:
            # The stored bytes of this frame were proven before its reference was asked for.
            elsewhere = True
        except MountfsError as error:
            offset = ref.offset if batch.blame is Blame.CHAIN else ref.block * block_size
            damages.append(_damage(error, offset, ref.raw_length, blame=batch.blame, disk=batch.disk))
    return _Checked(batch.refs, tuple(damages), 0 if damages or elsewhere else 1, elsewhere)


def _damage(
    error: MountfsError,
    offset: int | None = None,
    length: int = 0,
    *,
    blame: Blame = Blame.IMAGE,
    disk: int = 0,
) -> Damage:
    if isinstance(error, _STORAGE_ERRORS):
        blame = Blame.STORAGE
    return Damage(str(error), type(error).__name__, error.exit_code, offset, length, blame, disk)


def worst_exit_code(reports: Iterable[FileReport]) -> int:
    """Return the exit code of a verification: 0, or the gravest error's.

    Damage outweighs a storage that failed, which outweighs a missing parent (it may lie in what could not
    be read), which outweighs an unfinished image.
    """
    codes = {damage.exit_code for report in reports for damage in (*report.damages, *report.unread)}
    order = (
        CorruptImageError.exit_code,
        StorageError.exit_code,
        AccessDeniedError.exit_code,
        ParentMissingError.exit_code,
    )
    return next((code for code in order if code in codes), max(codes, default=0))
