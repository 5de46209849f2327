"""Every target of the coverage-guided fuzzer takes its own seed and random bytes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from imageformat.formats import image_formats
from imageformat.plugins import discover
from mountfs import containers, drivers
from support.fuzztargets import EMPTY_SEEDS, TARGETS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", TARGETS)
def test_target_takes_its_seed_and_any_bytes(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    seed = target.seed(tmp_path)
    assert target.feed(seed, seed.content) > 0 or name in EMPTY_SEEDS
    chance = random.Random(name)
    for size in (0, 1, 511, 70_000):
        target.feed(seed, chance.randbytes(size))
    for _ in range(10):
        damaged = bytearray(seed.content)
        at = chance.randrange(len(damaged))
        damaged[at : at + 4] = chance.randbytes(4)
        target.feed(seed, bytes(damaged[: len(seed.content)]))
    target.feed(seed, seed.content[: len(seed.content) // 2])


def test_every_parser_has_a_target() -> None:
    names = {record.name for record in image_formats()} | {"native"}
    names |= {record.name for package in (drivers, containers) for record in discover(package).available}
    assert names - {"mfi"} <= TARGETS.keys()
