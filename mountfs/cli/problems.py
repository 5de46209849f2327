"""What is wrong with the images of a set, told once: by its cause, with the points that suffer from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imageformat.selection import problem_error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from imageformat.repository import Point


class Cause(NamedTuple):
    """A point that is to blame, and those that are broken because of it alone."""

    point: Point
    dependents: list[Point]


def problem_lines(points: Sequence[Point], chosen: Collection[str]) -> Iterator[str]:
    """Yield one line for each thing that is wrong with the ``chosen`` ones (keys) of the points of a set."""
    for cause in causes(points):
        concerned = [point for point in cause.dependents if point.key in chosen]
        if concerned or cause.point.key in chosen:
            yield "; ".join(filter(None, (str(problem_error(cause.point)), dependents_text(concerned))))


def causes(points: Sequence[Point]) -> list[Cause]:
    """Return who is to blame for what is broken among the points of a set.

    A point takes its problem over from its parent word by word; the first that has it is to blame, and of a
    cycle, in which all are, the one that comes first.
    """
    broken = [point for point in points if point.problem is not None]
    by_id = {point.info.id: point for point in broken if point.info is not None}
    found: dict[tuple[str, str, str], Cause] = {}
    for point in broken:
        parent = by_id.get(point.info.parent_id) if point.info and point.info.parent_id else None
        if parent is None or _same(parent) != _same(point):
            found[_same(point)] = Cause(point, [])
    for point in broken:
        cause = found.setdefault(_same(point), Cause(point, []))
        if cause.point is not point:
            cause.dependents.append(point)
    return sorted(found.values(), key=lambda cause: points.index(cause.point))


def _same(point: Point) -> tuple[str, str, str]:
    problem = point.problem
    return point.set_name, problem.error if problem else "", problem.message if problem else ""


def dependents_text(points: Sequence[Point]) -> str:
    """Say which points depend on one that is broken: ``points 3-500 depend on it``; empty for none."""
    if not points:
        return ""
    numbers = number_ranges([point.number for point in points])
    return f"point {numbers} depends on it" if len(points) == 1 else f"points {numbers} depend on it"


def number_ranges(numbers: Sequence[int]) -> str:
    """Write numbers as ranges: ``2, 4-9``."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
