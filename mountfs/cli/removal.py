"""Removing points for ``merge``, ``delete`` and ``retention --merge``: showing, asking, doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.merge import plan_removal, remove_points
from imageformat.errors import NotConfirmedError, UsageError
from mountfs.cli.problems import number_ranges
from mountfs.cli.render import counted, format_size

if TYPE_CHECKING:
    from collections.abc import Collection

    from engine.merge import MergePlan
    from imageformat.repository import ImageSet, Point, Repository
    from imageformat.selection import Location
    from mountfs.cli.render import Renderer


def only_set(location: Location) -> ImageSet:
    """Return the one set that was named.

    Raises:
        UsageError: an image file was named, or a repository with several sets.
    """
    sets = location.sets()
    if location.key is not None or len(sets) != 1:
        raise UsageError("name a set and its points, such as /backups/sdb@3")
    return sets[0]


def remove(
    out: Renderer, repository: Repository, image_set: ImageSet, keys: Collection[str], *, yes: bool
) -> None:
    """Ask, and take points out of a set.

    Raises:
        NotConfirmedError: nobody agreed.
    """
    plan = plan_removal(image_set, keys)
    _explain(out, plan)
    if not yes and not out.confirm(f"remove {counted(len(plan.gone), 'point')} of {image_set.name}?"):
        raise NotConfirmedError("nothing was removed; answer yes, or use --yes in scripts")
    carry_out(out, repository, image_set.name, plan)
    out.result(
        {
            "set": image_set.name,
            "removed": [point.number for point in plan.gone],
            "rewritten": [point.number for point in plan.rewritten],
        }
    )
    out.line(f"{image_set.name}: {_numbers(plan.gone)} removed{_taken_up(plan)}")


def carry_out(out: Renderer, repository: Repository, set_name: str, plan: MergePlan) -> None:
    """Take points out of a set, and show how far it is."""
    total = sum(point.size for point in (*plan.gone, *plan.rewritten))
    done = 0
    with out.progress(f"merge in {set_name}", total) as progress:

        def report(point: Point) -> None:
            nonlocal done
            done += point.size
            progress.update(done, f"point {point.number} written and verified")

        remove_points(repository, set_name, plan, report)


def _explain(out: Renderer, plan: MergePlan) -> None:
    if plan.rewritten:
        size = format_size(sum(point.size for point in (*plan.gone, *plan.rewritten)))
        out.note(f"written anew on what stays: {_numbers(plan.rewritten)}; up to {size} are needed meanwhile")


def _taken_up(plan: MergePlan) -> str:
    return f"; {_numbers(plan.rewritten)} written anew and verified" if plan.rewritten else ""


def _numbers(points: Collection[Point]) -> str:
    noun = "point" if len(points) == 1 else "points"
    return f"{noun} {number_ranges([point.number for point in points])}"
