"""What a copy takes, against a plain restatement of the rule; and which points lie where."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.copying import CopyItem, copy_facts, plan_copy
from engine.filecopy import copy_file
from imageformat.catalog import Problem, Proof
from imageformat.errors import CorruptImageError, DestinationError, SourceMismatchError, VerificationError
from imageformat.layer import DiskInfo, ImageInfo, ImageType
from imageformat.repository import ImageSet, Point
from imageformat.storage import ObjectInfo
from imageformat.storage.memory import MemoryObjectWriter, MemoryStorage
from support.content import noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageformat.device import BlockDevice

SET_ID = UUID(int=77)


def point(
    number: int,
    parent: int | None = None,
    *,
    set_id: UUID = SET_ID,
    problem: Problem | None = None,
    proof: Proof | None = None,
    kind: str = "mfi",
    salt: int = 0,
) -> Point:
    """A point whose identity and name follow from its number."""
    info = ImageInfo(
        format=kind,
        id=UUID(int=number + 1000 * salt),
        set_id=set_id,
        number=number,
        type=ImageType.FULL if parent is None else ImageType.INCREMENTAL,
        created_ns=number,
        parent_id=None if parent is None else UUID(int=parent),
        root=bytes([number]) * 32,
        disks=(DiskInfo(size=1 << 20, block_size=4096),),
    )
    return Point(
        "s",
        key(number, kind),
        100 + number,
        info,
        problem,
        proof,
        parent_key=None if parent is None else key(parent),
    )


def key(number: int, kind: str = "mfi") -> str:
    return f"s/{number:04}.{kind}"


def image_set(*points: Point) -> ImageSet:
    return ImageSet("s", "s/", points)


def files(*points: Point) -> list[ObjectInfo]:
    return [ObjectInfo(entry.key, entry.size, "") for entry in points]


CHAINS = st.lists(st.integers(0, 5), min_size=1, max_size=12)
"""How far below itself the parent of each point is; 0, or what leads below the first: a full image."""


@given(CHAINS, st.sets(st.integers(1, 12)), st.booleans())
def test_the_rule(steps: list[int], held: set[int], older: bool) -> None:
    parents = {number: number - step for number, step in enumerate(steps, 1) if 0 < step < number}
    points = [point(number, parents.get(number)) for number in range(1, len(steps) + 1)]
    there = [entry for entry in points if entry.number in held]
    plan = plan_copy(image_set(*points), files(*points), image_set(*there), files(*there), older=older)
    youngest = max((entry.number for entry in there), default=0)
    wanted = {entry.number for entry in points if older or entry.number > youngest}
    while missing := {parents[number] for number in wanted if number in parents} - wanted:
        wanted |= missing
    wanted -= held
    copied = [item.point.number for item in plan.items if item.point]
    assert copied == sorted(wanted), "oldest first"
    have = held & set(range(1, len(steps) + 1))
    for number in copied:
        assert parents.get(number) is None or parents[number] in have, "a parent comes before its child"
        have.add(number)
    assert {entry.number for entry in plan.present} == held & {entry.number for entry in points}
    assert {entry.number for entry in plan.older} == {entry.number for entry in points} - have
    assert not plan.skipped
    assert plan.size == sum(100 + number for number in copied)


def test_parents_come_first_however_they_are_listed() -> None:
    points = [point(3, 2), point(2, 1), point(4, 1), point(1)]
    plan = plan_copy(image_set(*points), files(*points), image_set(), [])
    assert [item.point.number for item in plan.items if item.point] == [1, 2, 3, 4]


class Rotten(MemoryStorage):
    """Keeps another byte than it was given, at one place."""

    place = 0

    def create(self, key: str) -> MemoryObjectWriter:
        writer = super().create(key)
        commit = writer.commit

        def rotten(check: Callable[[BlockDevice], None] | None = None) -> None:
            writer._content[self.place] ^= 1
            commit(check)

        writer.commit = rotten  # type: ignore[method-assign]
        return writer


@pytest.mark.parametrize(
    ("verify", "at", "seen"), [(True, 150_000, True), (False, 150_000, False), (False, 299_999, True)]
)
def test_what_does_not_read_back_is_not_published(verify: bool, at: int, seen: bool) -> None:
    source, target = MemoryStorage(), Rotten()
    source.publish("s/one", noise(1, 300_000))
    target.place = at
    item = CopyItem("s/one", 300_000, None)
    if not seen:
        copy_file(source, target, item, verify=verify)
        assert [entry.key for entry in target.objects("s/")] == ["s/one"]
        return
    with pytest.raises(VerificationError, match="s/one"):
        copy_file(source, target, item, verify=verify)
    assert list(target.objects("s/")) == []


def test_what_merging_here_has_written_anew_is_copied_with_its_parents() -> None:
    ours = [point(1), point(3, 1, salt=5)]
    theirs = [point(1), point(2, 1), point(3, 2)]
    ours[1] = Point(**{**_fields(ours[1]), "key": "s/0003-merged.mfi"})
    plan = plan_copy(image_set(*ours), files(*ours), image_set(*theirs), files(*theirs))
    assert [item.key for item in plan.items] == ["s/0003-merged.mfi"]


def _fields(entry: Point) -> dict[str, object]:
    return {name: getattr(entry, name) for name in Point.__slots__}


def test_broken_points_are_left_out_and_named() -> None:
    broken = point(2, 1, problem=Problem("CorruptImageError", "bits fell over"))
    plan = plan_copy(image_set(point(1), broken, point(3)), [], image_set(), [])
    assert [item.key for item in plan.items] == [key(1), key(3)]
    assert [(entry.point.number, type(entry.error)) for entry in plan.skipped] == [(2, CorruptImageError)]


def test_locked_images_of_other_tools_are_copied_with_what_lies_beside_them() -> None:
    locked = point(1, kind="vmdk", problem=Problem("LockedError", "needs a password"))
    listed = [ObjectInfo("s/0001-flat.vmdk", 5, ""), *files(locked), ObjectInfo("s/merge-new.journal", 5, "")]
    listed.append(ObjectInfo("s/ledger-7.proven", 5, ""))
    plan = plan_copy(image_set(locked), listed, image_set(), [])
    assert [item.key for item in plan.items] == ["s/0001-flat.vmdk", locked.key]
    again = plan_copy(image_set(locked), listed, image_set(locked), listed)
    assert not again.items


def test_a_file_of_that_name_with_other_content_is_not_replaced() -> None:
    plan = plan_copy(image_set(point(1), point(2)), [], image_set(), [ObjectInfo(key(1), 7, "")])
    assert [item.key for item in plan.items] == [key(2)]
    assert [type(entry.error) for entry in plan.skipped] == [DestinationError]


def test_a_set_of_another_source_is_refused() -> None:
    with pytest.raises(SourceMismatchError):
        plan_copy(image_set(point(1)), [], image_set(point(1, set_id=uuid4(), salt=1)), [])


def test_which_points_lie_where() -> None:
    proven = point(1, proof=Proof(verified_ns=99, damaged_blocks=0))
    facts = copy_facts(
        {"home": image_set(proven, point(2, 1)), "away": image_set(point(1)), "none": image_set()}
    )
    assert [(fact.number, [copy.place for copy in fact.copies]) for fact in facts] == [
        (1, ["home", "away"]),
        (2, ["home"]),
    ]
    assert [copy.verified_ns for copy in facts[0].copies] == [99, 0]
    other = copy_facts({"home": image_set(point(1)), "away": image_set(point(1, salt=3))})
    assert [len(fact.copies) for fact in other] == [1, 1], "another image of the same number is another point"
