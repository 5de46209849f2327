"""Lineage: on which file each image of a set stands, and whether its whole line can be trusted. Pure.

Images are judged by what they say of themselves. An image names its parent by id and by the root of its
content, so a file that merely has the parent's id never hides the right one; of several right ones (a
copied file) the best is taken: one that nothing is known to be wrong with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imageformat.catalog import Problem
from imageformat.errors import ChainCycleError, MountfsError, ParentMismatchError, ParentMissingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import TypeAlias
    from uuid import UUID

    from imageformat.catalog import Proof
    from imageformat.layer import ImageInfo

    Place: TypeAlias = tuple[UUID, UUID, bytes | None, int]


class Member(NamedTuple):
    """One readable image of a set, and how its last verification ended."""

    info: ImageInfo
    proof: Proof | None = None


class Standing(NamedTuple):
    """What is known of an image together with all that it stands on."""

    problem: Problem | None
    """Why its line of ancestors is not the one it was built on; None when it is."""
    parent: int | None = None
    """Position of its parent; None for a full image, and when the parent is not there."""
    damaged: bool = False
    """A verification found it, or one of its ancestors, damaged."""
    verified: bool = False
    """It and all of its ancestors were verified and found right."""

    @property
    def badness(self) -> tuple[bool, bool, bool]:
        """Sort key: the best comes first."""
        return self.problem is not None, self.damaged, not self.verified


def standings(members: Sequence[Member]) -> tuple[Standing, ...]:
    """Judge every image of a set, in the order given; linear in their number.

    A parent is always one step less deep than its child, so the shallow are judged before the deep and
    every verdict is a step from the parent's.
    """
    links = _Links([member.info for member in members])
    found: dict[int, Standing] = {}
    best: dict[Place, int] = {}
    for position in sorted(range(len(members)), key=lambda at: members[at].info.depth):
        member = members[position]
        parent = best.get(_parent_place(member.info)) if member.info.parent_id is not None else None
        found[position] = _standing(member, parent, found, links)
        place = _place(member.info)
        rival = best.get(place)
        if rival is None or found[position].badness < found[rival].badness:
            best[place] = position
    return tuple(found[position] for position in range(len(members)))


def chain_problems(infos: Iterable[ImageInfo]) -> tuple[Problem | None, ...]:
    """Return what is wrong with each image's line of ancestors, in the order given; None when nothing is."""
    return tuple(standing.problem for standing in standings([Member(info) for info in infos]))


def _place(info: ImageInfo) -> Place:
    return info.set_id, info.id, info.root, info.depth


def _parent_place(info: ImageInfo) -> Place:
    """Return what the right parent of an image says of itself."""
    return info.set_id, info.parent_id or info.id, info.parent_root, info.depth - 1


def _standing(member: Member, parent: int | None, found: Mapping[int, Standing], links: _Links) -> Standing:
    proof = member.proof
    damaged = proof is not None and proof.damaged_blocks > 0
    clean = proof is not None and not proof.damaged_blocks
    if member.info.parent_id is None:
        return Standing(None, None, damaged, clean)
    if parent is None:
        return Standing(Problem.of(links.error(member.info)), None, damaged)
    below = found[parent]
    verified = clean and below.verified and below.problem is None
    return Standing(below.problem, parent, damaged or below.damaged, verified)


class _Links:
    """Finds out why an image has no right parent. Costs nothing as long as all have."""

    def __init__(self, infos: Sequence[ImageInfo]) -> None:
        self._infos = infos
        self._by_id: dict[UUID, ImageInfo] = {}
        self._by_root: dict[tuple[UUID, bytes | None], ImageInfo] = {}
        self._endless: dict[int, bool] = {}
        """By identity of the object: copies of an image may differ in what they claim."""

    def error(self, child: ImageInfo) -> MountfsError:
        """Return what to say of an image without a right parent."""
        if not self._by_id:
            for info in self._infos:
                self._by_id.setdefault(info.id, info)
                self._by_root.setdefault((info.id, info.root), info)
        parent = self._nearest(child)
        if parent is None:
            return ParentMissingError(
                f"point {child.number}: its parent image {child.parent_id} cannot be read or is missing; "
                "put its file back"
            )
        if self._never_ends(child):
            return ChainCycleError(f"point {child.number}: is its own ancestor; its set was tampered with")
        if parent.root != child.parent_root or parent.set_id != child.set_id:
            return ParentMismatchError(
                f"point {child.number}: its parent (point {parent.number}) was replaced by other content"
            )
        return ParentMismatchError(f"point {child.number}: its parent stands at another place of the chain")

    def _nearest(self, child: ImageInfo) -> ImageInfo | None:
        """Return the image that comes closest to being the parent."""
        if child.parent_id is None:
            return None
        return self._by_root.get((child.parent_id, child.parent_root)) or self._by_id.get(child.parent_id)

    def _never_ends(self, info: ImageInfo) -> bool:
        """Tell whether following parents from an image comes back to where it was."""
        line: set[int] = set()
        current: ImageInfo | None = info
        ends = True
        while current is not None:
            if id(current) in self._endless or id(current) in line:
                ends = not self._endless.get(id(current), True)
                break
            line.add(id(current))
            current = self._nearest(current)
        self._endless.update(dict.fromkeys(line, not ends))
        return not ends
