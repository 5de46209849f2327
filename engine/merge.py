"""Taking points out of a set, wherever they stand: what stands on them takes up what they held.

docs/decisions/0009-merge.md says why every descendant is written anew, and how a crash at any moment loses
no point: new files do not count before all are proven, and old ones do not count from then on.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID, uuid4

from engine.plan import NATIVE_SUFFIX
from engine.rewriting import new_name, rewrite
from engine.verify import verify
from imageformat.errors import (
    MountfsError,
    NotFoundError,
    UnsupportedFeatureError,
    UsageError,
    VerificationError,
)
from imageformat.repository import Repository
from imageformat.retired import NEW_JOURNAL, OLD_JOURNAL, encode_journal, read_journal
from imageformat.selection import problem_error

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from imageformat.repository import ImageSet, Point
    from imageformat.storage import Storage


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Which points go, and which are written anew because they stand on one that goes."""

    gone: tuple[Point, ...]
    rewritten: tuple[Point, ...]
    """Parents before children."""


def plan_removal(image_set: ImageSet, keys: Collection[str]) -> MergePlan:
    """Plan to take points out of a set. Pure.

    Raises:
        UsageError: nothing would be left, or a key is none of the set.
        UnsupportedFeatureError: a point that must be written anew is of another format.
        ImageError, ChainError: one that must be written anew, or what it stands on, is damaged.
    """
    by_key = {point.key: point for point in image_set.points}
    if not keys or not set(keys) <= by_key.keys():
        raise UsageError(f"set {image_set.name}: no such point")
    gone = tuple(point for point in image_set.points if point.key in keys)
    if len(gone) == len(by_key):
        raise UsageError(f"set {image_set.name}: no point would be left; remove its folder instead")
    above: set[str] = set(keys)
    rewritten = []
    for point in sorted(image_set.points, key=_depth):
        if point.parent_key in above and point.key not in above:
            above.add(point.key)
            rewritten.append(_writable(point))
    return MergePlan(gone, tuple(rewritten))


def points_between(image_set: ImageSet, first: Point, last: Point) -> tuple[Point, ...]:
    """Return the points from ``first`` up to the parent of ``last``, which takes them up.

    Raises:
        UsageError: the last does not stand on the first.
    """
    by_key = {point.key: point for point in image_set.points}
    line = []
    key = last.parent_key
    while key in by_key:
        line.append(by_key[key])
        if key == first.key:
            return tuple(reversed(line))
        key = by_key[key].parent_key
    raise UsageError(f"point {last.number} does not stand on point {first.number}; name the older one first")


def _depth(point: Point) -> int:
    return point.info.depth if point.info else 0


def _writable(point: Point) -> Point:
    if not point.file_name.endswith(NATIVE_SUFFIX):
        raise UnsupportedFeatureError(f"{point.key}: only images of mountfs can be merged")
    if point.problem is not None:
        raise problem_error(point)
    if point.chain_damaged:
        raise VerificationError(f"{point.key}: it, or what it stands on, is damaged and cannot be merged")
    return point


class _Step(NamedTuple):
    """One point that is written anew."""

    old: Point
    kept: Point | None
    """Its nearest ancestor that stays."""
    key: str
    image_id: UUID


def remove_points(
    repository: Repository,
    set_name: str,
    agreed: MergePlan,
    report: Callable[[Point], None] = lambda _: None,
) -> None:
    """Take points out of a set; ``report`` is told each that was written anew and proven.

    The set is locked meanwhile. When it returns, what is left is durable and verified. When it raises
    before the old files are retired, nothing has changed; after that, what could not be removed does not
    count, and the next call removes it.

    Raises:
        UsageError: the set has changed since the plan was made.
        VerificationError: a new image is not the point that it was; nothing was changed.
        SetBusyError, ImageError, ChainError, StorageError, DestinationError
    """
    storage = repository.storage
    with storage.exclusive(f"{set_name}/"):
        finish_removal(repository, set_name)
        image_set = repository.image_set(set_name)
        plan = plan_removal(image_set, {point.key for point in agreed.gone})
        if _names(plan) != _names(agreed):
            raise UsageError(f"set {set_name} has changed meanwhile; nothing was removed; look again")
        retired = _children_first((*plan.gone, *plan.rewritten))
        if plan.rewritten:
            _write_anew(storage, set_name, plan, report)
            try:
                _publish(storage, image_set.prefix, OLD_JOURNAL, retired)
            except BaseException:
                with contextlib.suppress(MountfsError):
                    finish_removal(repository, set_name)
                raise
            finish_removal(repository, set_name)
        else:
            for key in retired:
                storage.delete(key)
        repository.image_set(set_name)


def _names(plan: MergePlan) -> tuple[list[str], list[str]]:
    return [point.key for point in plan.gone], [point.key for point in plan.rewritten]


def _children_first(points: Iterable[Point]) -> tuple[str, ...]:
    return tuple(point.key for point in sorted(points, key=_depth, reverse=True))


def _write_anew(storage: Storage, set_name: str, plan: MergePlan, report: Callable[[Point], None]) -> None:
    """Write and prove every new file; when anything fails, remove them again."""
    everything = Repository(storage, only_set=set_name, whole=True)
    prefix = f"{set_name}/"
    steps = _steps(everything.image_set(set_name), plan, prefix)
    _publish(storage, prefix, NEW_JOURNAL, [step.key for step in reversed(steps)])
    try:
        _run(everything, set_name, steps, report)
    except BaseException:
        with contextlib.suppress(MountfsError):
            _clear(storage, prefix, NEW_JOURNAL, ())
        raise
    finally:
        everything.release()


def _steps(image_set: ImageSet, plan: MergePlan, prefix: str) -> tuple[_Step, ...]:
    by_key = {point.key: point for point in image_set.points}
    gone = {point.key for point in plan.gone}
    steps = []
    for point in plan.rewritten:
        kept = by_key.get(point.parent_key or "")
        while kept is not None and kept.key in gone:
            kept = by_key.get(kept.parent_key or "")
        image_id = uuid4()
        if point.info is None:
            raise problem_error(point)
        name = new_name(point.info, image_id, on_parent=kept is not None)
        steps.append(_Step(point, kept, f"{prefix}{name}", image_id))
    return tuple(steps)


def _run(
    everything: Repository, set_name: str, steps: Sequence[_Step], report: Callable[[Point], None]
) -> None:
    written: dict[str, str] = {}
    """Old keys, and the keys of what replaces them."""
    for step in steps:
        points = {point.key: point for point in everything.image_set(set_name).points}
        old = everything.chain(step.old)
        old.prove()
        parent = kept = None
        if step.kept is not None:
            parent = everything.chain(points[written.get(step.kept.key, step.kept.key)])
            kept = _depth(step.kept)
        target = everything.storage.create(step.key)
        try:
            rewrite(target, step.image_id, old, kept, parent)
        finally:
            target.abort()
        written[step.old.key] = step.key
    _prove(everything, set_name, steps, report)


def _prove(
    everything: Repository, set_name: str, steps: Sequence[_Step], report: Callable[[Point], None]
) -> None:
    """Verify every new file in full, and that it is the point that it replaces."""
    points = {point.key: point for point in everything.image_set(set_name).points}
    new = [points[step.key] for step in steps]
    for step, outcome in zip(steps, verify(everything, new), strict=True):
        info, old = outcome.point.info, step.old.info
        if outcome.damages or outcome.unread or info is None or old is None or info.root != old.root:
            raise VerificationError(f"{step.key}: the merged image does not verify; nothing was changed")
        report(step.old)


def _publish(storage: Storage, prefix: str, name: str, keys: Iterable[str]) -> None:
    target = storage.create(f"{prefix}{name}")
    try:
        target.append(encode_journal([key.removeprefix(prefix) for key in keys]))
        target.commit()
    finally:
        target.abort()


def finish_removal(repository: Repository, set_name: str) -> None:
    """Remove what a merge that was interrupted left behind; the caller has locked the set.

    Raises:
        CorruptImageError: its journal is damaged.
        DestinationError, DestinationReadOnlyError, AccessDeniedError, StorageError
    """
    storage, prefix = repository.storage, f"{set_name}/"
    listed = {stored.key for stored in storage.objects(prefix)}
    names = [name for name in (OLD_JOURNAL, NEW_JOURNAL) if f"{prefix}{name}" in listed]
    if not names:
        return
    valid, *superseded = names
    needed = _stood_on(storage, set_name, read_journal(storage, prefix, valid))
    for name in superseded:
        storage.delete(f"{prefix}{name}")
    _clear(storage, prefix, valid, needed)


def _stood_on(storage: Storage, set_name: str, named: Collection[str]) -> set[str]:
    """Return the keys that points outside of a journal stand on, whether it names them or not."""
    everything = Repository(storage, only_set=set_name, whole=True)
    by_key = {point.key: point for point in everything.image_set(set_name).points}
    found: set[str] = set()
    for point in by_key.values():
        key = point.parent_key if point.key not in named else None
        while key is not None and key not in found:
            found.add(key)
            key = by_key[key].parent_key
    return found


def _clear(storage: Storage, prefix: str, name: str, needed: Collection[str]) -> None:
    """Remove what a journal names, except what is needed, and then the journal."""
    for key in read_journal(storage, prefix, name):
        if key not in needed:
            with contextlib.suppress(NotFoundError):
                storage.delete(key)
    storage.delete(f"{prefix}{name}")
