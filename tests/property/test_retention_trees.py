"""Retention on random trees, against a brute-force implementation, and what must hold whatever the policy."""

from __future__ import annotations

import os
import random
from datetime import tzinfo
from zoneinfo import ZoneInfo

import pytest

from engine.policy import PointFacts, Policy
from engine.retention import Action, Trouble, plan_retention
from support.retention_model import remaining, with_parents

HOUR = 3600 * 10**9
NOW = 1_800_000_000 * 10**9
CHANGES = (
    1_774_746_000 * 10**9,  # 2026-03-29 01:00 UTC: Berlin loses an hour
    1_792_890_000 * 10**9,  # 2026-10-25 01:00 UTC: Berlin repeats one
    1_775_318_400 * 10**9,  # 2026-04-04 16:00 UTC: an hour after Lord Howe turned back by half an hour
)
ZONES: tuple[tzinfo, ...] = tuple(
    map(ZoneInfo, ("UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia"))
)


def random_trees(chance: random.Random) -> tuple[list[PointFacts], int]:
    """One to three sets of up to a dozen points each, and a time from which to look."""
    now = chance.choice((NOW, *(change + chance.randrange(72) * HOUR for change in CHANGES)))
    points: list[PointFacts] = []
    for name in "abc"[: chance.choice((1, 1, 1, 2, 3))]:
        step = chance.choice((HOUR // 4, HOUR, 7 * HOUR, 24 * HOUR, 40 * 24 * HOUR))
        own: list[PointFacts] = []
        for number in range(1, chance.randrange(1, 13)):
            created = now - chance.randrange(step * 12) if chance.random() < 0.9 else now
            parent = chance.choice(own).key if own and chance.random() < 0.75 else None
            own.append(
                PointFacts(
                    f"{name}/{number}",
                    name,
                    number if chance.random() < 0.95 else number - 1,
                    created,
                    chance.randrange(100),
                    parent,
                    readable=chance.random() < 0.97,
                    sound=chance.random() < 0.9,
                    verified=chance.random() < 0.3,
                    foldable=chance.random() < 0.8,
                    foreign=chance.random() < 0.05,
                )
            )
        if chance.random() < 0.7:  # in the order of their numbers, as they are made
            times = sorted(point.created_ns for point in own)
            own = [point._replace(created_ns=time) for point, time in zip(own, times, strict=True)]
        points += own
    chance.shuffle(points)
    return points, now


def random_policy(chance: random.Random, points: list[PointFacts]) -> Policy:
    def count() -> int:
        return chance.choice((0, 0, 0, 1, 2, 3, 7))

    pinned = frozenset(point.key for point in points if chance.random() < 0.05)
    return Policy(
        *(count() for _ in range(6)),
        within_ns=chance.choice((0, 0, HOUR, 30 * HOUR, 100 * 24 * HOUR)),
        free_floor=chance.choice((0, 50, 200, 1000)),
        pinned=pinned,
        zone=chance.choice(ZONES),
        fold=chance.random() < 0.5,
    )


def check(seed: int) -> None:
    chance = random.Random(seed)
    points, now = random_trees(chance)
    policy = random_policy(chance, points)
    free = chance.choice((None, 0, 40, 300))
    plan = plan_retention(points, policy, now, free=free, despite=tuple(Trouble))
    left = remaining(points, policy, now, free)
    what = f"seed {seed}: {policy}"
    assert [verdict.point for verdict in plan.verdicts] == points, what
    assert {v.point.key for v in plan.verdicts if v.action is not Action.DELETE} == left, what
    assert not plan.refusals, what
    assert all(verdict.reasons for verdict in plan.verdicts), what

    keys = {point.key for point in points}
    here = set(keys)
    for gone in plan.deletions:
        here.remove(gone.key)
        assert with_parents(here, points) == here, f"{what}: deleting {gone.key} broke a chain"
    assert here == left, what
    by_key = {verdict.point.key: verdict for verdict in plan.verdicts}
    kept = {key for key in left if by_key[key].action is Action.KEEP}
    assert with_parents(kept, points) == left, f"{what}: something is left that nothing stands on"
    for merged in plan.merges:
        on_it = {key for key in kept if merged.key in with_parents({key}, points)}
        assert policy.fold, what
        assert on_it, what
        assert all(by_key[key].point.foldable for key in on_it | {merged.key}), what

    rest = [point for point in points if point.key in left]
    again = plan_retention(
        rest, policy, now, free=None if free is None else free + plan.freed, despite=tuple(Trouble)
    )
    assert again.deletions == (), f"{what}: a second run deletes more"


SEEDS = 3000
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_random_trees_equal_the_model(part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        check(seed)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_hundred_thousand_trees_equal_the_model(part: int) -> None:
    first = int(os.environ.get("MOUNTFS_SEED", "1000000"))
    for seed in range(first + part, first + 100_000, PARTS):
        check(seed)
