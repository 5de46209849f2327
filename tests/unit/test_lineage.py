"""What a point is worth is what the worst file of its chain is worth, and a copy never hides an original."""

from __future__ import annotations

import dataclasses
from uuid import UUID

import pytest

from engine.verify import verify
from golden.chains import MadeChain, make_chain, points_by_key, repository_with
from imageformat.catalog import Proof
from imageformat.layer import DiskInfo, ImageInfo, ImageType
from imageformat.lineage import Member, Standing, chain_problems, standings
from support.content import noise

FULL, INC, DIFF, INC_ON_DIFF = range(4)
CLEAN, DAMAGED = Proof(1, 0), Proof(1, 7)


@pytest.fixture(scope="module")
def made() -> MadeChain:
    disk = noise(1, 40_000)
    return make_chain(
        [
            (ImageType.FULL, disk),
            (ImageType.INCREMENTAL, noise(2, 5000) + disk[5000:]),
            (ImageType.DIFFERENTIAL, disk[:30_000] + noise(3, 10_000)),
            (ImageType.INCREMENTAL, noise(4, 5000) + disk[5000:]),
        ]
    )


@pytest.mark.parametrize(
    ("hit", "expected"),
    [
        (FULL, ["damaged"] * 4),
        (INC, ["verified", "damaged", "verified", "verified"]),
        (DIFF, ["verified", "verified", "damaged", "damaged"]),
        (None, ["verified"] * 4),
    ],
)
def test_damage_of_an_ancestor_is_damage_of_the_point(
    made: MadeChain, hit: int | None, expected: list[str]
) -> None:
    files = dict(made.files)
    if hit is not None:
        content = bytearray(files[made.keys[hit]])
        content[5000] ^= 1  # in the first block, which is noise
        files[made.keys[hit]] = bytes(content)
    with repository_with(files) as repository:
        before = points_by_key(repository)
        assert [before[key].state for key in made.keys] == ["ok"] * 4
        list(verify(repository, list(before.values()), threads=1))
        after = points_by_key(repository)
    assert [after[key].state for key in made.keys] == expected
    assert [after[key].chain_damaged for key in made.keys] == [state == "damaged" for state in expected]


def test_a_point_is_verified_when_all_of_its_chain_is(made: MadeChain) -> None:
    with repository_with(made.files) as repository:
        found = points_by_key(repository)
        list(verify(repository, [found[made.keys[INC]]], threads=1))
        assert points_by_key(repository)[made.keys[INC]].state == "ok", "its parent was never verified"
        list(verify(repository, [found[made.keys[FULL]]], threads=1))
        states = [points_by_key(repository)[key].state for key in made.keys]
    assert states == ["verified", "verified", "ok", "ok"]


def image(number: int, parent: ImageInfo | None = None, **changes: object) -> ImageInfo:
    info = ImageInfo(
        format="mfi",
        id=UUID(int=number),
        set_id=UUID(int=999),
        type=ImageType.INCREMENTAL if parent else ImageType.FULL,
        number=number,
        created_ns=number,
        disks=(DiskInfo(4096, 4096),),
        root=bytes([number % 256]) * 16,
        parent_id=parent.id if parent else None,
        parent_root=parent.root if parent else None,
        depth=parent.depth + 1 if parent else 0,
    )
    return dataclasses.replace(info, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong_first", [True, False])
@pytest.mark.parametrize(
    "changes", [{"root": b"other content..."}, {"depth": 3}, {"set_id": UUID(int=5)}], ids=str
)
def test_a_wrong_copy_does_not_hide_the_right_parent(changes: dict[str, object], wrong_first: bool) -> None:
    parent = image(1)
    pair = [parent, dataclasses.replace(parent, **changes)]  # type: ignore[arg-type]
    assert chain_problems([*(reversed(pair) if wrong_first else pair), image(2, parent)])[2] is None


def test_of_two_right_parents_the_undamaged_is_taken() -> None:
    parent = image(1)
    members = [Member(parent, DAMAGED), Member(parent, CLEAN), Member(image(2, parent), CLEAN)]
    assert standings(members)[2] == Standing(None, 1, damaged=False, verified=True)
    members[:2] = [Member(parent), Member(parent, CLEAN)]
    assert standings(members)[2].verified, "the verified is better than the unknown"
    broken = dataclasses.replace(image(3, image(1)), id=parent.id, root=parent.root, depth=0)
    assert standings([Member(broken), Member(parent), Member(image(2, parent))])[2].parent == 1


def test_a_long_chain_is_judged_in_one_pass() -> None:
    line = [image(1)]
    for number in range(2, 30_001):
        line.append(image(number, line[-1]))
    found = standings([Member(info, DAMAGED if info.number == 1 else CLEAN) for info in reversed(line)])
    assert all(standing.damaged and standing.problem is None for standing in found)
    cut = chain_problems(line[1:])
    assert {problem and problem.error for problem in cut} == {"ParentMissingError"}
    assert {problem and problem.message.partition(":")[0] for problem in cut} == {"point 2"}
