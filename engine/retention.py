"""Deciding which points go. Pure: facts, policy and time in, a frozen plan with a reason for each point out.

A policy only ever says what is kept. Whatever a kept point stands on is kept with it, or folded into it when
it can be. The last point, the last verified one and the pinned ones always stay. Where the facts do not add
up (clocks, files that cannot be read) or too much would go, the plan refuses instead of deleting.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from engine.policy import DAY_NS, SECOND_NS, rules

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from engine.policy import PointFacts, Policy

SKEW_NS = 600 * SECOND_NS
"""How far clocks may differ without anything being wrong."""
LONGEST_PAUSE_NS = 400 * DAY_NS
"""Without a new point for longer than this, the clock is rather wrong than the pause right."""
EARLIEST_NS = 946_684_800 * SECOND_NS
"""The year 2000: before it, no clock that was set took a picture."""


class Action(enum.Enum):
    """What becomes of a point."""

    KEEP = "keep"
    NEEDED = "needed"
    """Kept only because kept points stand on it."""
    MERGE = "merge"
    """Goes as a point; what it holds is folded into those that stand on it."""
    DELETE = "delete"


class Trouble(enum.Enum):
    """Why a plan refuses, until it is told to go on despite it."""

    CLOCK = "clock"
    UNREADABLE = "unreadable"
    MASS = "mass"


class Refusal(NamedTuple):
    """One reason to delete nothing."""

    trouble: Trouble
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one point, and why."""

    point: PointFacts
    action: Action
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What retention would do, in full; carrying it out adds no decision."""

    verdicts: tuple[Verdict, ...]
    """In the order of the facts."""
    deletions: tuple[PointFacts, ...]
    """Children before parents: after each single deletion all that is left is whole."""
    merges: tuple[PointFacts, ...]
    refusals: tuple[Refusal, ...]
    """While there is one, nothing may be deleted."""
    warnings: tuple[str, ...]

    @property
    def freed(self) -> int:
        """Bytes of the files that are deleted; what merging frees is not known before."""
        return sum(point.size for point in self.deletions)


def _age(point: PointFacts) -> tuple[int, int, str]:
    return point.created_ns, point.number, point.key


def _rank(point: PointFacts) -> tuple[int, int, str]:
    return point.number, point.created_ns, point.key


@dataclass(slots=True)
class _Reasons:
    """Why points stay: by key, in the order found."""

    of: dict[str, list[str]] = field(default_factory=dict)
    safe: set[str] = field(default_factory=set)
    """Keys that neither a rule nor a lack of space may take."""

    def add(self, point: PointFacts, reason: str, *, safe: bool = False) -> None:
        known = self.of.setdefault(point.key, [])
        if reason not in known:
            known.append(reason)
        if safe:
            self.safe.add(point.key)


def plan_retention(
    facts: Sequence[PointFacts],
    policy: Policy,
    now_ns: int,
    *,
    free: int | None = None,
    despite: Collection[Trouble] = (),
) -> RetentionPlan:
    """Decide what becomes of each point of a repository.

    Rules, protection and refusals are per set; the floor of free space is common to all. ``free`` is what the
    storage has free now, in bytes; None when that is not known, and then no floor applies. ``despite`` names
    troubles that are accepted: they become warnings. The same facts, policy and time give the same plan, and
    what a plan leaves, planned again with the space that it freed, loses nothing more.
    """
    by_key = {point.key: point for point in facts}
    reasons = _Reasons()
    for own in _by_set(facts).values():
        _protect(own, policy, reasons)
        _apply_rules(own, policy, now_ns, reasons)
    crowded_out = _make_room(facts, policy, free, reasons)
    left = _closure(reasons.of, by_key)
    verdicts = _verdicts(facts, left, reasons, crowded_out, policy)
    gone = [verdict.point for verdict in verdicts if verdict.action is Action.DELETE]
    found = [*_clock_trouble(facts, now_ns), *_unreadable(facts), *_mass(verdicts, policy)]
    deletions = _children_first(gone, by_key)
    warnings = [refusal.message for refusal in found if refusal.trouble in despite]
    freed = sum(point.size for point in deletions)
    if free is not None and free + freed < policy.free_floor:
        warnings.append("there is less free space than asked for, and no more that may be deleted")
    return RetentionPlan(
        verdicts,
        deletions,
        tuple(verdict.point for verdict in verdicts if verdict.action is Action.MERGE),
        tuple(refusal for refusal in found if refusal.trouble not in despite)
        if gone or _merges(verdicts)
        else (),
        tuple(warnings),
    )


def _merges(verdicts: Iterable[Verdict]) -> bool:
    return any(verdict.action is Action.MERGE for verdict in verdicts)


def _by_set(facts: Iterable[PointFacts]) -> Mapping[str, list[PointFacts]]:
    found: dict[str, list[PointFacts]] = {}
    for point in facts:
        found.setdefault(point.set_name, []).append(point)
    return found


def _protect(own: Sequence[PointFacts], policy: Policy, reasons: _Reasons) -> None:
    """Find what always stays: pinned, not to be judged, and the last ones, by time and by number."""
    for point in own:
        if point.key in policy.pinned:
            reasons.add(point, "pinned", safe=True)
        if point.foreign:
            reasons.add(point, "an image of another tool", safe=True)
        elif not point.readable:
            reasons.add(point, "cannot be read", safe=True)
    judged = [point for point in own if point.judged]
    sound = [point for point in judged if point.sound]
    verified = [point for point in sound if point.verified]
    for group, what in (
        (sound, "the last point"),
        (judged, "the last point"),
        (verified, "the last verified"),
    ):
        for order in (_age, _rank) if group else ():
            reasons.add(max(group, key=order), what, safe=True)


def _apply_rules(own: Sequence[PointFacts], policy: Policy, now_ns: int, reasons: _Reasons) -> None:
    """Find what the rules keep.

    They run over the sound points and once more over all, so that a damaged point neither takes the place of
    a sound one nor goes sooner than it would have gone.
    """
    judged = sorted((point for point in own if point.judged), key=_age, reverse=True)
    for group in ([point for point in judged if point.sound], judged):
        for rule in rules(policy):
            periods: set[tuple[int, ...]] = set()
            for point in group:
                period = rule.period_of(point)
                if period not in periods and len(periods) < rule.periods:
                    periods.add(period)
                    reasons.add(point, rule.name)
        for point in group if policy.within_ns else ():
            if point.created_ns >= now_ns - policy.within_ns:
                reasons.add(point, "young")


def _make_room(
    facts: Sequence[PointFacts], policy: Policy, free: int | None, reasons: _Reasons
) -> Collection[str]:
    """Give up the oldest points that nothing stands on until enough is free; return their keys."""
    by_key = {point.key: point for point in facts}
    crowded_out: set[str] = set()
    while free is not None:
        left = _closure(reasons.of, by_key)
        freed = sum(point.size for point in facts if point.key not in left)
        if free + freed >= policy.free_floor:
            break
        stood_on = {by_key[key].parent for key in left}
        leaves = [by_key[key] for key in left if key not in stood_on and key not in reasons.safe]
        if not leaves:
            break
        oldest = min(leaves, key=_age).key
        del reasons.of[oldest]
        crowded_out.add(oldest)
    return crowded_out


def _closure(kept: Iterable[str], by_key: Mapping[str, PointFacts]) -> set[str]:
    """Return these points and all that they stand on."""
    left: set[str] = set()
    for start in kept:
        key: str | None = start
        while key is not None and key in by_key and key not in left:
            left.add(key)
            key = by_key[key].parent
    return left


def _verdicts(
    facts: Sequence[PointFacts],
    left: Collection[str],
    reasons: _Reasons,
    crowded_out: Collection[str],
    policy: Policy,
) -> tuple[Verdict, ...]:
    children: dict[str, list[PointFacts]] = {}
    for point in facts:
        if point.parent is not None and point.key in left:
            children.setdefault(point.parent, []).append(point)
    stiff = _closure(
        (point.key for point in facts if point.key in left and not point.foldable), _index(facts)
    )
    found = []
    for point in facts:
        if point.key in reasons.of:
            found.append(Verdict(point, Action.KEEP, tuple(reasons.of[point.key])))
        elif point.key not in left:
            why = "more free space is needed" if point.key in crowded_out else "no rule keeps it"
            found.append(Verdict(point, Action.DELETE, (why,)))
        else:
            action = Action.MERGE if policy.fold and point.key not in stiff else Action.NEEDED
            found.append(Verdict(point, action, (_standing_on(children[point.key]),)))
    return tuple(found)


def _index(facts: Iterable[PointFacts]) -> Mapping[str, PointFacts]:
    return {point.key: point for point in facts}


def _standing_on(children: Sequence[PointFacts]) -> str:
    numbers = sorted({child.number for child in children})
    if len(numbers) == 1:
        return f"point {numbers[0]} stands on it"
    shown = ", ".join(map(str, numbers[:3]))
    return f"points {shown}{' ...' if len(numbers) > 3 else ''} stand on it"


def _children_first(gone: Sequence[PointFacts], by_key: Mapping[str, PointFacts]) -> tuple[PointFacts, ...]:
    """Order deletions so that each takes a point that nothing stands on any more."""
    waiting = {point.key: point for point in gone}
    standing = Counter(point.parent for point in gone if point.parent in waiting)
    ready = sorted((point for point in gone if not standing[point.key]), key=_age, reverse=True)
    ordered = []
    while ready:
        point = ready.pop()
        ordered.append(waiting.pop(point.key))
        if point.parent in waiting:
            standing[point.parent] -= 1
            if not standing[point.parent]:
                ready.append(by_key[point.parent])
    return tuple(ordered)


def _clock_trouble(facts: Sequence[PointFacts], now_ns: int) -> Iterable[Refusal]:
    for name, own in _by_set(facts).items():
        judged = sorted((point for point in own if point.judged), key=_rank)
        if not judged:
            continue
        newest = max(judged, key=_age)
        ahead, pause = newest.created_ns - now_ns, now_ns - newest.created_ns
        if ahead > SKEW_NS:
            yield _clock(name, f"point {newest.number} is {_days(ahead)} ahead of the clock")
        if pause > LONGEST_PAUSE_NS:
            yield _clock(name, f"by the clock, the newest point ({newest.number}) is {_days(pause)} old")
        before = next((point for point in judged if point.created_ns < EARLIEST_NS), None)
        if before is not None:
            yield _clock(name, f"point {before.number} was made by a clock that was not set")
        latest = judged[0]
        for point in judged[1:]:
            if point.created_ns < latest.created_ns - SKEW_NS and point.number > latest.number:
                back = _days(latest.created_ns - point.created_ns)
                yield _clock(name, f"point {point.number} is {back} older than point {latest.number}")
                break
            latest = max(latest, point, key=lambda known: known.created_ns)


def _clock(set_name: str, message: str) -> Refusal:
    return Refusal(Trouble.CLOCK, f"set {set_name}: {message}; a clock is wrong, or was")


def _days(span_ns: int) -> str:
    if span_ns < DAY_NS:
        return f"{span_ns // (60 * SECOND_NS)} min"
    return f"{span_ns // DAY_NS} days"


def _unreadable(facts: Sequence[PointFacts]) -> Iterable[Refusal]:
    for name, own in _by_set(facts).items():
        unread = [point for point in own if not point.readable and not point.foreign]
        if unread:
            more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
            yield Refusal(
                Trouble.UNREADABLE,
                f"set {name}: {unread[0].key}{more} cannot be read, so what it stands on is not known",
            )


def _mass(verdicts: Sequence[Verdict], policy: Policy) -> Iterable[Refusal]:
    sizes = Counter(verdict.point.set_name for verdict in verdicts)
    going = Counter(v.point.set_name for v in verdicts if v.action in {Action.DELETE, Action.MERGE})
    for name, count in going.items():
        if count > sizes[name] * policy.largest_share:
            yield Refusal(
                Trouble.MASS,
                f"set {name}: {count} of {sizes[name]} points would go, more than {policy.largest_share:.0%}",
            )
