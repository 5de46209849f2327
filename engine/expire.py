"""Carrying a retention plan out: points go one by one, children before parents.

There is no journal, because none is needed: each deletion is atomic and durable, and the order keeps all
that is left whole after each of them. What was interrupted is finished by planning again.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from engine.merge import finish_removal
from engine.plan import NATIVE_SUFFIX
from engine.policy import PointFacts
from imageformat.errors import SetBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from engine.retention import RetentionPlan
    from imageformat.repository import Point, Repository


def facts_of(points: Iterable[Point]) -> tuple[PointFacts, ...]:
    """Return what retention must know of points."""
    by_key = {point.key: point for point in points}
    native: dict[str, bool] = {}
    for point in sorted(by_key.values(), key=lambda known: known.info.depth if known.info else 0):
        above = native.get(point.parent_key, False) if point.parent_key else _is_full(point)
        native[point.key] = above and _is_native(point)
    return tuple(
        PointFacts(
            key=point.key,
            set_name=point.set_name,
            number=point.number,
            created_ns=point.info.created_ns if point.info else 0,
            size=point.size,
            parent=point.parent_key,
            readable=point.info is not None,
            sound=_is_sound(point),
            verified=point.chain_verified,
            foldable=native[point.key] and _is_sound(point),
            foreign=not _is_native(point),
        )
        for point in by_key.values()
    )


def _is_native(point: Point) -> bool:
    return point.file_name.endswith(NATIVE_SUFFIX)


def _is_full(point: Point) -> bool:
    return point.info is not None and point.info.depth == 0


def _is_sound(point: Point) -> bool:
    return point.problem is None and not point.chain_damaged


def expire(
    repository: Repository,
    set_names: Collection[str],
    agreed: RetentionPlan,
    plan: Callable[[tuple[PointFacts, ...]], RetentionPlan],
    report: Callable[[PointFacts], None] = lambda _: None,
) -> None:
    """Delete what was agreed to go, if ``plan`` still says just that; ``report`` is told each that is gone.

    Sets that lose points are locked meanwhile; what an interrupted merge left there is cleared up. Before
    the first deletion every chain that is to stay is opened and proven. What is to be merged is left alone:
    see `engine.merge.remove_points`.

    Raises:
        SetBusyError: another writes there, or what was agreed is no longer what the plan says.
        ImageError, ChainError: a chain that is to stay does not open; nothing was deleted.
        DestinationError, DestinationReadOnlyError, AccessDeniedError: deleting failed; all that is left is
            whole.
    """
    with ExitStack() as locks:
        for name in sorted({point.set_name for point in (*agreed.deletions, *agreed.merges)}):
            locks.enter_context(repository.storage.exclusive(f"{name}/"))
            finish_removal(repository, name)
        points = {point.key: point for name in set_names for point in repository.image_set(name).points}
        current = plan(facts_of(points.values()))
        if current.refusals or (current.deletions, current.merges) != (agreed.deletions, agreed.merges):
            raise SetBusyError(
                "the points are not those of the plan any more; nothing was deleted; run it again"
            )
        _prove(repository, points, {point.key for point in current.deletions})
        for gone in current.deletions:
            repository.storage.delete(gone.key)
            report(gone)
        for name in set_names:
            repository.image_set(name)


def _prove(repository: Repository, points: Mapping[str, Point], gone: Collection[str]) -> None:
    """Open every chain that stays: the points that nothing else stands on, with all their ancestors."""
    left = [point for key, point in points.items() if key not in gone]
    stood_on = {point.parent_key for point in left}
    for point in left:
        if point.key not in stood_on and point.problem is None:
            repository.chain(point).prove()
