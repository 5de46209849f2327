"""Copying a set into another repository: images as they are, only what is missing there, proven there.

A copy is a repository in its own right, with a retention of its own. What that deleted does not come back: by
default only points younger than the youngest one that both have are copied, with all that they stand on.
Each file is published whole and proven, parents before children, so that a copy that was interrupted is one
that is merely older. The next run goes on inside of the first file that is missing: what was brought of it
stays hidden there, and is not sent again as far as it proves equal to the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from engine.filecopy import copy_file
from engine.merge import finish_removal
from engine.proving import LEDGER_SUFFIX
from imageformat.errors import (
    DestinationError,
    LockedError,
    SourceMismatchError,
)
from imageformat.selection import problem_error

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from uuid import UUID

    from engine.devices.ratelimit import RateLimit
    from imageformat.errors import MountfsError
    from imageformat.repository import ImageSet, Point, Repository
    from imageformat.storage import ObjectInfo


class CopyItem(NamedTuple):
    """One file that is to be copied."""

    key: str
    size: int
    point: Point | None
    """None: a part of an image of another tool, or what lies beside it."""


class Skipped(NamedTuple):
    """A point that cannot be copied, and why."""

    point: Point
    error: MountfsError


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What copying a set means."""

    set_name: str
    items: tuple[CopyItem, ...]
    """In the order in which they are copied."""
    present: tuple[Point, ...]
    """Points that are there already."""
    older: tuple[Point, ...]
    """Points that are missing there and stay away: older than the youngest that both have."""
    skipped: tuple[Skipped, ...]

    @property
    def size(self) -> int:
        """Bytes of all files that are to be copied."""
        return sum(item.size for item in self.items)


def plan_copy(
    source: ImageSet,
    source_files: Sequence[ObjectInfo],
    target: ImageSet,
    target_files: Sequence[ObjectInfo],
    *,
    older: bool = False,
) -> CopyPlan:
    """Plan to copy a set. Pure.

    ``source_files`` and ``target_files`` are all files of both folders; ``older`` also takes missing points
    that are older than the youngest that both have.

    Raises:
        SourceMismatchError: the set of that name at the target is one of another source.
    """
    _check_same_source(source, target)
    there = {_identity(point) for point in target.points if point.problem is None}
    sizes = {entry.key: entry.size for entry in target_files}
    usable, skipped = [], []
    for point in source.points:
        if point.problem is None or point.state == "locked":
            usable.append(point)
        else:
            skipped.append(Skipped(point, problem_error(point)))
    present = [point for point in usable if _is_there(point, there, sizes)]
    held = {point.key for point in present}
    youngest = max((number for number, point in enumerate(usable) if point.key in held), default=-1)
    missing = [point for point in usable if point.key not in held]
    wanted = {point.key for point in missing if older or point.is_foreign or usable.index(point) > youngest}
    wanted = _with_ancestors(usable, wanted) - held
    clashing = {point.key for point in missing if point.key in sizes and point.key in wanted}
    skipped += [Skipped(point, _clash(point)) for point in missing if point.key in clashing]
    ordered = [point for point in _parents_first(usable) if point.key in wanted - clashing]
    return CopyPlan(
        source.name,
        (
            *_companions(source, source_files, sizes),
            *(CopyItem(point.key, point.size, point) for point in ordered),
        ),
        tuple(present),
        tuple(point for point in missing if point.key not in wanted),
        tuple(skipped),
    )


def _check_same_source(source: ImageSet, target: ImageSet) -> None:
    ours, theirs = _set_ids(source), _set_ids(target)
    if ours and theirs and not ours & theirs:
        raise SourceMismatchError(
            f"set {target.name} holds images of another source at the target; rename one of the sets"
        )


def _set_ids(image_set: ImageSet) -> set[UUID]:
    return {point.info.set_id for point in image_set.points if point.info and not point.is_foreign}


def _identity(point: Point) -> tuple[object, ...]:
    return (point.info.id, point.info.root) if point.info is not None else (point.key, point.size)


def _is_there(point: Point, there: Collection[tuple[object, ...]], sizes: Mapping[str, int]) -> bool:
    """Tell whether a point is at the target: ours by what it is, one of another tool by its file."""
    if point.info is None or point.is_foreign:
        return sizes.get(point.key) == point.size
    return _identity(point) in there


def _clash(point: Point) -> MountfsError:
    return DestinationError(f"{point.key}: another file has that name at the target, and is not replaced")


def _parents_of(point: Point, by_key: Mapping[str, Point]) -> list[str]:
    """Return the keys of the files that a point stands on directly, as far as they are of its set."""
    if point.parent_key is not None:
        return [point.parent_key] if point.parent_key in by_key else []
    named = str(point.info.details.get("parent", "")) if point.info is not None else ""
    name = named.replace("\\", "/").rpartition("/")[2]
    key = f"{point.key[: -len(point.file_name)]}{name}"
    return [key] if name and key in by_key and key != point.key else []


def _with_ancestors(points: Sequence[Point], keys: Collection[str]) -> set[str]:
    by_key = {point.key: point for point in points}
    found: set[str] = set()
    pending = list(keys)
    while pending:
        key = pending.pop()
        if key not in found:
            found.add(key)
            pending += _parents_of(by_key[key], by_key)
    return found


def _parents_first(points: Sequence[Point]) -> list[Point]:
    """Order points so that each comes after what it stands on, else as they are: oldest first."""
    by_key = {point.key: point for point in points}
    ordered: dict[str, Point] = {}
    for point in points:
        line = [point.key]
        while (above := [key for key in _parents_of(by_key[line[-1]], by_key) if key not in line]) and (
            above[0] not in ordered
        ):
            line.append(above[0])
        ordered |= {key: by_key[key] for key in reversed(line) if key not in ordered}
    return list(ordered.values())


_OF_THIS_COPY = (".journal", LEDGER_SUFFIX)
"""Files that say something of the very place where they lie."""


def _companions(
    source: ImageSet, files: Sequence[ObjectInfo], there: Mapping[str, int]
) -> Iterator[CopyItem]:
    """Yield the files that belong to images of other tools: all of a folder that has such."""
    if any(point.is_foreign for point in source.points):
        points = {point.key for point in source.points}
        for entry in files:
            if entry.key not in points and not entry.key.endswith(_OF_THIS_COPY) and entry.key not in there:
                yield CopyItem(entry.key, entry.size, None)


def plan_from(source: Repository, target: Repository, set_name: str, *, older: bool = False) -> CopyPlan:
    """Look at both repositories and plan; see `plan_copy`.

    Raises:
        SourceMismatchError, AccessDeniedError, StorageError
    """
    prefix = f"{set_name}/" if set_name else ""
    return plan_copy(
        source.image_set(set_name),
        source.files(prefix),
        target.image_set(set_name),
        target.files(prefix),
        older=older,
    )


def copy_set(
    source: Repository,
    target: Repository,
    set_name: str,
    *,
    older: bool = False,
    verify: bool = True,
    limit: RateLimit | None = None,
    planned: Callable[[CopyPlan], None] = lambda _plan: None,
    report: Callable[[CopyItem, int], None] = lambda _item, _count: None,
    continued: Callable[[CopyItem, int], None] = lambda _item, _count: None,
) -> tuple[CopyPlan, tuple[CopyItem, ...]]:
    """Copy what is missing of a set; what was done, and of it what does not open at the target.

    The set is locked at the target meanwhile. ``planned`` is told the plan before anything is copied, and
    ``report`` how many more bytes were copied or, with ``verify``, read back; ``continued``, how many bytes
    of a file proved to be there from an earlier run. What was copied before an error stays.

    Raises:
        VerificationError: what was written does not read back as it was; it was not published.
        SetBusyError, SourceMismatchError, StorageError, DestinationError, AccessDeniedError
    """
    prefix = f"{set_name}/" if set_name else ""
    with target.storage.exclusive(prefix):
        if set_name:
            finish_removal(target, set_name)
        plan = plan_from(source, target, set_name, older=older)
        planned(plan)
        for item in plan.items:
            copy_file(
                source.storage,
                target.storage,
                item,
                verify=verify,
                limit=limit,
                report=report,
                continued=continued,
            )
        found = {point.key: point for point in target.image_set(set_name).points}
    return plan, tuple(item for item in plan.items if item.point is not None and not _opens(item, found))


def _opens(item: CopyItem, found: Mapping[str, Point]) -> bool:
    point = found.get(item.key)
    if point is None:
        return False
    return point.problem is None or point.problem.error == LockedError.__name__


class CopyAt(NamedTuple):
    """Where a point lies."""

    place: str
    key: str
    size: int
    state: str
    verified_ns: int
    """When its file was last verified there; 0: never."""


@dataclass(frozen=True, slots=True)
class PointCopies:
    """One point, wherever it lies."""

    id: UUID
    root: bytes
    number: int
    created_ns: int
    copies: tuple[CopyAt, ...]


def copy_facts(places: Mapping[str, ImageSet]) -> tuple[PointCopies, ...]:
    """Tell which points of a set lie at which places, oldest first. Pure.

    ``places`` are the set as each place has it. A point is known by its id and its root; a file that cannot
    be read counts nowhere, one that is damaged or lacks its parent counts with that state.
    """
    found: dict[tuple[UUID, bytes], list[CopyAt]] = {}
    points: dict[tuple[UUID, bytes], Point] = {}
    for place, image_set in places.items():
        for point in image_set.points:
            if point.info is not None:
                identity = (point.info.id, point.info.root)
                points.setdefault(identity, point)
                verified = point.proof.verified_ns if point.proof is not None else 0
                found.setdefault(identity, []).append(
                    CopyAt(place, point.key, point.size, point.state, verified)
                )
    facts = [
        PointCopies(identity[0], identity[1], point.number, point.info.created_ns, tuple(found[identity]))
        for identity, point in points.items()
        if point.info is not None
    ]
    return tuple(sorted(facts, key=lambda known: (known.number, known.created_ns, known.id)))
