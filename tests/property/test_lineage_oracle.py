"""The judgement of a set's ancestry against a second one, made by trying every line of ancestors."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from imageformat.catalog import Proof
from imageformat.layer import DiskInfo, ImageInfo, ImageType
from imageformat.lineage import Member, chain_problems, standings

IDS = st.integers(1, 5)
ROOTS = st.sampled_from([b"a", b"a", b"a", b"b"])
SETS = st.sampled_from([1, 1, 1, 1, 2])
PROOFS = st.sampled_from([None, Proof(1, 0), Proof(1, 0), Proof(1, 3)])


def image(
    number: int, name: int, set_id: int, root: bytes, parent: tuple[int, bytes] | None, depth: int
) -> ImageInfo:
    return ImageInfo(
        format="mfi",
        id=UUID(int=name),
        set_id=UUID(int=set_id),
        type=ImageType.INCREMENTAL if parent else ImageType.FULL,
        number=number,
        created_ns=0,
        disks=(DiskInfo(4096, 4096),),
        root=root,
        parent_id=UUID(int=parent[0]) if parent else None,
        parent_root=parent[1] if parent else None,
        depth=depth,
    )


@st.composite
def wild_sets(draw: st.DrawFn) -> list[ImageInfo]:
    """Anything goes: rings, copies, wrong roots, wrong depths, parents that are not there."""
    images = []
    for number in range(draw(st.integers(0, 8))):
        parent = draw(st.none() | st.tuples(IDS, ROOTS))
        depth = draw(st.integers(1, 4)) if parent else 0
        images.append(image(number, draw(IDS), draw(SETS), draw(ROOTS), parent, depth))
    return images


@st.composite
def nearly_right_sets(draw: st.DrawFn) -> list[ImageInfo]:
    """Chains as a backup makes them, of which some images are lost, copied or forged; in any order."""
    images: list[ImageInfo] = []
    for number in range(draw(st.integers(1, 9))):
        below = draw(st.sampled_from([None, *images, *images[-1:] * 3])) if images else None
        parent = (below.id.int, below.root) if below else None
        root = bytes([number])
        images.append(image(number, number + 1, 1, root, parent, below.depth + 1 if below else 0))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(images) - 1))
        old = images[at]
        parent = (old.parent_id.int, old.parent_root or b"") if old.parent_id else None
        forged = [
            image(old.number, old.id.int, 1, b"forged", parent, old.depth),
            image(old.number, old.id.int, 2, old.root, parent, old.depth),
            image(old.number, old.id.int, 1, old.root, parent, old.depth + 1),
            image(old.number, old.id.int, 1, old.root, (99, b"lost"), max(1, old.depth)),
            image(old.number, old.id.int, 1, old.root, parent, old.depth),
        ]
        which = draw(st.integers(0, 5))
        if which == 5 and len(images) > 1:
            del images[at]
        elif draw(st.booleans()):
            images.append(forged[which % 5])
        else:
            images[at] = forged[which % 5]
    return draw(st.permutations(images))


def right(child: ImageInfo, parent: ImageInfo) -> bool:
    return (
        parent.id == child.parent_id
        and parent.root == child.parent_root
        and parent.set_id == child.set_id
        and parent.depth == child.depth - 1
    )


def lines(images: list[ImageInfo], at: int) -> list[list[int]]:
    """Every line of right ancestors of an image, down to a full one."""
    if images[at].parent_id is None:
        return [[at]]
    parents = [other for other in range(len(images)) if right(images[at], images[other])]
    return [[at, *line] for parent in parents for line in lines(images, parent)]


def faulty(images: list[ImageInfo], at: int) -> set[str]:
    """Which errors are right for an image that has no line down to a full one."""
    parents = [other for other in range(len(images)) if right(images[at], images[other])]
    if parents:
        return set().union(*(faulty(images, parent) for parent in parents))
    named = [other for other in images if other.id == images[at].parent_id]
    if not named:
        return {"ParentMissingError"}
    allowed = {"ParentMismatchError"}
    if comes_back(images, images[at]):
        allowed.add("ChainCycleError")
    return allowed


def comes_back(images: list[ImageInfo], start: ImageInfo) -> bool:
    """Whether following ids, by any of the copies, can go round in a ring."""
    reached = {start.id}
    front = {start.id}
    rings = False
    edges = {(info.id, info.parent_id) for info in images if info.parent_id is not None}
    while front:
        front = {parent for child, parent in edges if child in front} - reached
        reached |= front
    for name in reached:
        seen, front = set(), {name}
        while front:
            front = {parent for child, parent in edges if child in front} - seen
            seen |= front
        rings = rings or name in seen
    return rings


def must_be_a_ring(images: list[ImageInfo], at: int) -> bool:
    """When no id is there twice, following the parents is plain: this image stands on the ring itself."""
    by_id = {info.id: info for info in images}
    current, seen = images[at], set()
    while current.id not in seen:
        seen.add(current.id)
        if current.parent_id not in by_id:
            return False
        current = by_id[current.parent_id]
    return True


@settings(max_examples=400)
@given(wild_sets() | nearly_right_sets())
def test_problems_are_those_of_the_second_judge(images: list[ImageInfo]) -> None:
    unique = len({info.id for info in images}) == len(images)
    for at, problem in enumerate(chain_problems(images)):
        if lines(images, at):
            assert problem is None
            continue
        assert problem is not None
        assert problem.error in faulty(images, at)
        if unique:
            assert (problem.error == "ChainCycleError") == must_be_a_ring(images, at)


@settings(max_examples=400)
@given(
    (wild_sets() | nearly_right_sets()).flatmap(
        lambda images: st.tuples(
            st.just(images), st.lists(PROOFS, min_size=len(images), max_size=len(images))
        )
    )
)
def test_a_line_is_worth_what_its_worst_image_is_worth(
    made: tuple[list[ImageInfo], list[Proof | None]],
) -> None:
    images, proofs = made
    found = standings([Member(info, proof) for info, proof in zip(images, proofs, strict=True)])
    for at, standing in enumerate(found):
        possible = lines(images, at)
        damaged = [
            any(p is not None and p.damaged_blocks for p in map(proofs.__getitem__, line))
            for line in possible
        ]
        clean = [
            all(p is not None and not p.damaged_blocks for p in map(proofs.__getitem__, line))
            for line in possible
        ]
        if possible:
            assert standing.damaged == all(damaged), "the best line counts"
            assert standing.verified == any(clean)
        else:
            assert not standing.verified
        if standing.parent is not None:
            assert right(images[at], images[standing.parent])
        assert (standing.parent is None) <= (not possible or images[at].parent_id is None)
