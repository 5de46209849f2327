"""Verifying images: every stored block read, decoded, hashed and compared; all errors listed.

Each image file is verified once, by the frames it holds itself; a point is proven when its file and the
files of all its ancestors are, and every link between them is.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from engine.pipeline import default_threads, ordered_map
from imageformat.catalog import Proof
from imageformat.errors import CorruptImageError, MountfsError, ParentMissingError
from imageformat.layer import BlockRef, Lost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from imageformat.chain import Chain
    from imageformat.layer import ImageLayer, LoadBlock
    from imageformat.repository import Point, Repository

_BATCH = 16
MAX_DAMAGES = 10_000
"""Listed one by one for each file; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong with an image file."""

    message: str
    error: str
    """Name of the error class."""
    exit_code: int
    disk_offset: int | None = None
    """First byte of the disk that cannot be had; None when the damage is not about a range."""
    length: int = 0


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


class VerifyProgress(NamedTuple):
    """How far a verification is, in bytes of image files."""

    point: Point
    done: int
    total: int


class _Checked(NamedTuple):
    refs: tuple[BlockRef, ...]
    damages: tuple[Damage, ...]
    transient: int


def points_of_chain(point: Point, points: Iterable[Point]) -> tuple[Point, ...]:
    """Return a point and the points it depends on, oldest first, as far as they are there."""
    by_id = {other.info.id: other for other in points if other.info is not None}
    line: list[Point] = []
    current: Point | None = point
    while current is not None and current not in line:
        line.append(current)
        parent = current.info.parent_id if current.info is not None else None
        current = by_id.get(parent) if parent is not None else None
    return tuple(reversed(line))


def verify(
    repository: Repository,
    points: Sequence[Point],
    *,
    threads: int = 0,
    report: Callable[[VerifyProgress], None] = lambda _: None,
) -> Iterator[FileReport]:
    """Verify image files one after the other, yielding a report for each; never stops at an error.

    The outcome is remembered in the catalogue.
    """
    total = sum(point.size for point in points)
    done = 0
    for point in points:
        advance = partial(_advance, report, point, done, total)
        outcome = verify_file(repository, point, threads=threads, advance=advance)
        done += point.size
        report(VerifyProgress(point, done, total))
        if point.info is not None:
            repository.record_proof(point, Proof(time.time_ns(), outcome.damaged_count))
        yield outcome


def _advance(
    report: Callable[[VerifyProgress], None], point: Point, before: int, total: int, stored: int
) -> None:
    report(VerifyProgress(point, before + stored, total))


def verify_file(
    repository: Repository, point: Point, *, threads: int = 0, advance: Callable[[int], None] = lambda _: None
) -> FileReport:
    """Verify one image file: its links, its own index, and every block that it stores."""
    damages: list[Damage] = []
    if point.problem is not None:
        damages.append(_damage(point.problem.to_error()))
    if point.info is None:
        return FileReport(point, 0, 0, tuple(damages), len(damages), 0)
    chain: Chain | None = None
    try:
        if point.problem is None:
            chain = repository.chain(point)
            chain.prove()
        layer = repository.fresh_layer(point)
    except MountfsError as error:
        damages.append(_damage(error))
        return FileReport(point, 0, 0, tuple(damages), len(damages), 0)
    with contextlib.closing(layer):
        damages.extend(
            _damage(CorruptImageError(message)) for message in layer.prove(chain.layer if chain else None)
        )
        return _verify_layer(layer, chain, damages, threads, advance, point)


def _verify_layer(
    layer: ImageLayer,
    chain: Chain | None,
    damages: list[Damage],
    threads: int,
    advance: Callable[[int], None],
    point: Point,
) -> FileReport:
    check = partial(_check, layer, _reference_in(chain))
    blocks = stored = transient = 0
    batches = _batches(layer, damages)
    with contextlib.closing(ordered_map(check, batches, threads=threads or default_threads())) as results:
        for checked in results:
            blocks += len(checked.refs) - len(checked.damages)
            stored += sum(ref.length for ref in checked.refs)
            transient += checked.transient
            damages.extend(checked.damages)
            advance(stored)
    unique = _unique(damages)
    return FileReport(point, blocks, stored, unique[:MAX_DAMAGES], len(unique), transient)


def _unique(damages: list[Damage]) -> tuple[Damage, ...]:
    """Drop repetitions, and what is said again with its place."""
    placed = {damage.message for damage in damages if damage.disk_offset is not None}
    return tuple(
        damage
        for damage in dict.fromkeys(damages)
        if damage.disk_offset is not None or damage.message not in placed
    )


def _batches(layer: ImageLayer, damages: list[Damage]) -> Iterator[tuple[BlockRef, ...]]:
    """Yield the frames that the layer holds itself; a damaged part of the index is noted and passed."""
    own = layer.info.depth
    for number, disk in enumerate(layer.info.disks):
        pending: list[BlockRef] = []
        for piece in layer.pieces(number, 0, disk.size):
            source = piece.source
            if isinstance(source, Lost):
                damages.append(_damage(CorruptImageError(source.message), piece.offset, piece.length))
            elif isinstance(source, BlockRef) and source.layer == own:
                pending.append(source)
                if len(pending) == _BATCH:
                    yield tuple(pending)
                    pending.clear()
        if pending:
            yield tuple(pending)


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


def _check(layer: ImageLayer, reference: LoadBlock, refs: tuple[BlockRef, ...]) -> _Checked:
    """Prove a batch of frames; when one is wrong, each is read again alone."""
    try:
        layer.load(refs, reference)
    except (MountfsError, _ElsewhereError):
        return _check_singly(layer, reference, refs)
    return _Checked(refs, (), 0)


def _check_singly(layer: ImageLayer, reference: LoadBlock, refs: tuple[BlockRef, ...]) -> _Checked:
    damages, elsewhere = [], False
    block_size = layer.info.disks[0].block_size
    for ref in refs:
        try:
            layer.load((ref,), reference)
        except _ElsewhereError:
            # The stored bytes of this frame were proven before its reference was asked for.
            elsewhere = True
        except MountfsError as error:
            damages.append(_damage(error, ref.block * block_size, ref.raw_length))
    return _Checked(refs, tuple(damages), 0 if damages or elsewhere else 1)


def _damage(error: MountfsError, offset: int | None = None, length: int = 0) -> Damage:
    return Damage(str(error), type(error).__name__, error.exit_code, offset, length)


def worst_exit_code(reports: Iterable[FileReport]) -> int:
    """Return the exit code of a verification: 0, or the gravest error's.

    Damage outweighs a missing parent, which outweighs an unfinished image.
    """
    codes = {damage.exit_code for report in reports for damage in report.damages}
    order = (CorruptImageError.exit_code, ParentMissingError.exit_code)
    return next((code for code in order if code in codes), max(codes, default=0))
