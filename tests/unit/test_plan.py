"""What a backup will be: the plan against every state that a set can be in."""

from __future__ import annotations

from uuid import UUID

import pytest

from engine.plan import plan_backup
from imageformat.catalog import Problem
from imageformat.errors import ParentMissingError, UsageError
from imageformat.layer import DiskInfo, ImageInfo, ImageType
from imageformat.repository import ImageSet, Point

FULL, DIFF, INC = ImageType.FULL, ImageType.DIFFERENTIAL, ImageType.INCREMENTAL


def point(number: int, kind: ImageType, depth: int = 0, **facts: object) -> Point:
    info = ImageInfo(
        "mfi", UUID(int=number), UUID(int=99), kind, number, number, (DiskInfo(0, 4096),), b"", depth=depth
    )
    return Point("s", f"s/{number}.mfi", 1, info, **{"problem": None, **facts})  # type: ignore[arg-type]


def planned(
    *points: Point, wanted: ImageType | None = None, parent: Point | None = None
) -> tuple[object, ...]:
    plan = plan_backup(ImageSet("s", "s/", points), wanted, parent)
    return plan.type, plan.parent.number if plan.parent else None, plan.number, bool(plan.warning)


SOUND = (point(1, FULL), point(2, INC, 1), point(3, DIFF, 1), point(4, INC, 2))
MISSING = Problem.of(ParentMissingError("gone"))


@pytest.mark.parametrize(
    ("points", "wanted", "expected"),
    [
        ((), None, (FULL, None, 1, False)),
        ((), INC, (FULL, None, 1, False)),
        (SOUND, None, (INC, 4, 5, False)),
        (SOUND, INC, (INC, 4, 5, False)),
        (SOUND, DIFF, (DIFF, 1, 5, False)),
        (SOUND, FULL, (FULL, None, 5, False)),
        ((*SOUND, point(5, INC, 3, problem=MISSING)), None, (FULL, None, 6, True)),
        ((point(1, FULL), point(2, INC, 999)), None, (FULL, None, 3, True)),
        ((Point("s", "s/0007-x.mfi", 1, None, MISSING),), None, (FULL, None, 8, True)),
        ((point(2, INC, 1, chain_damaged=True),), None, (FULL, None, 3, True)),
        ((point(1, FULL, chain_damaged=True),), DIFF, (FULL, None, 2, True)),
    ],
)
def test_the_plan_follows_the_set(
    points: tuple[Point, ...], wanted: ImageType | None, expected: tuple[object, ...]
) -> None:
    assert planned(*points, wanted=wanted) == expected


def test_a_parent_can_be_named() -> None:
    assert planned(*SOUND, parent=SOUND[1]) == (INC, 2, 5, False)
    assert planned(*SOUND, parent=SOUND[0], wanted=DIFF) == (DIFF, 1, 5, False)


@pytest.mark.parametrize("wanted", [FULL, DIFF])
def test_a_parent_that_the_type_forbids_is_refused(wanted: ImageType) -> None:
    with pytest.raises(UsageError):
        planned(*SOUND, parent=SOUND[1], wanted=wanted)
