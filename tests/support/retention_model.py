"""The second, brute-force implementation of retention: what must be kept, by definition and not by method.

It shares nothing with the product but its facts and its policy: every rule is stated as "a point is kept if
...", every closure is the smallest set that fits, and calendar days are cut by their text. It is slow.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from engine.policy import PointFacts, Policy

SECOND = 1_000_000_000


def local(point: PointFacts, policy: Policy) -> datetime:
    return datetime.fromtimestamp(point.created_ns // SECOND, UTC).astimezone(policy.zone)


def buckets(point: PointFacts, policy: Policy) -> dict[str, tuple[int, str]]:
    """What each counted rule calls the period of a point, and how many periods it keeps."""
    moment = local(point, policy)
    return {
        "last": (policy.last, f"{point.created_ns} {point.number}"),
        "hourly": (policy.hourly, moment.strftime("%Y-%m-%d %H %z")),
        "daily": (policy.daily, moment.strftime("%Y-%m-%d")),
        "weekly": (policy.weekly, moment.strftime("%G week %V")),
        "monthly": (policy.monthly, moment.strftime("%Y-%m")),
        "yearly": (policy.yearly, moment.strftime("%Y")),
    }


def counts(point: PointFacts) -> bool:
    return point.readable and not point.foreign


def is_younger(one: PointFacts, other: PointFacts) -> bool:
    return (one.created_ns, one.number, one.key) > (other.created_ns, other.number, other.key)


def has_higher_number(one: PointFacts, other: PointFacts) -> bool:
    return (one.number, one.created_ns, one.key) > (other.number, other.created_ns, other.key)


def kept_by_a_rule(point: PointFacts, group: Sequence[PointFacts], policy: Policy, now_ns: int) -> bool:
    """Whether, of these points alone, this is the youngest of one of the youngest periods, or is young."""
    if policy.within_ns and point.created_ns >= now_ns - policy.within_ns:
        return True
    for rule, (count, mine) in buckets(point, policy).items():
        younger = [other for other in group if is_younger(other, point)]
        theirs = {buckets(other, policy)[rule][1] for other in younger}
        if mine not in theirs and len(theirs) < count:
            return True
    return False


def must_stay(point: PointFacts, among: Sequence[PointFacts], policy: Policy) -> bool:
    """Whether no rule and no lack of space may ever take a point."""
    if point.key in policy.pinned or not point.readable or point.foreign:
        return True
    for group in (
        [other for other in among if counts(other)],
        [other for other in among if counts(other) and other.sound],
        [other for other in among if counts(other) and other.sound and other.verified],
    ):
        if point in group:
            if all(not is_younger(other, point) for other in group):
                return True
            if all(other is point or has_higher_number(point, other) for other in group):
                return True
    return False


def with_parents(kept: Collection[str], points: Sequence[PointFacts]) -> set[str]:
    """The smallest set with these points that holds the parent of each of its points."""
    known = {point.key for point in points}
    closed = set(kept)
    while True:
        more = {p.parent for p in points if p.key in closed and p.parent in known and p.parent is not None}
        if more <= closed:
            return closed
        closed |= more


def remaining(points: Sequence[PointFacts], policy: Policy, now_ns: int, free: int | None = None) -> set[str]:
    """The keys of what retention leaves."""
    wanted = set()
    for name in {point.set_name for point in points}:
        own = [point for point in points if point.set_name == name]
        for group in (
            [point for point in own if counts(point)],
            [point for point in own if counts(point) and point.sound],
        ):
            wanted |= {p.key for p in group if kept_by_a_rule(p, group, policy, now_ns)}
        wanted |= {point.key for point in own if must_stay(point, own, policy)}
    left = with_parents(wanted, points)
    while free is not None and free + sum(p.size for p in points if p.key not in left) < policy.free_floor:
        leaves = [
            point
            for point in points
            if point.key in left
            and not any(other.parent == point.key for other in points if other.key in left)
            and not must_stay(point, [p for p in points if p.set_name == point.set_name], policy)
        ]
        if not leaves:
            break
        wanted.remove(next(p.key for p in leaves if all(p is q or is_younger(q, p) for q in leaves)))
        left = with_parents(wanted, points)
    return left
