"""Which files does a damaged part of a disk belong to?

A block that cannot be had is a number to a person; the names of the files in it are what they need.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from imageformat.errors import MountfsError
from mountfs.names import safe_text
from mountfs.traversal import Visit, Walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from imageformat.repository import Point
    from mountfs.disktree import DiskTree
    from mountfs.session import Session
    from mountfs.tree import Node
    from mountfs.volumes import Volume

FilesByDamage: TypeAlias = Mapping[tuple[int, int], tuple[str, ...]]
"""Names by (disk offset, length) of a damaged range."""

MAX_NAMES = 20
"""Files listed for one damaged range."""


def name_damage(
    session: Session, point: Point, ranges: Sequence[tuple[int, int]], *, disk: int = 0
) -> FilesByDamage:
    """Find the files of a point that lie in damaged ranges of one of its disks.

    A range in which no file lies is said to be metadata or free space of its volume, or outside of all. A
    file system too damaged to be walked, or a volume that is locked, gives what could be found. Never raises
    a `MountfsError`.
    """
    if not ranges or point.info is None or point.problem is not None:
        return {}
    try:
        tree = session.disk_tree(point, disk=disk)
    except MountfsError:
        return {}
    try:
        return name_ranges(tree, ranges)
    finally:
        tree.close()


def name_ranges(tree: DiskTree, ranges: Sequence[tuple[int, int]]) -> FilesByDamage:
    """Find the files of a disk that lie in ranges of it; see `name_damage`."""
    wanted = sorted(set(ranges))
    names: dict[tuple[int, int], list[str]] = {damaged: [] for damaged in wanted}
    for slot in tree.contents().slots.values():
        reach = list(slot.reach())
        inside = [damaged for damaged in wanted if any(_overlap(damaged, *piece) for piece in reach)]
        if inside:
            _name_in_volume(tree, slot.volume, inside, names)
    return {damaged: tuple(found) or (_place(tree, damaged),) for damaged, found in names.items()}


def _name_in_volume(
    tree: DiskTree,
    volume: Volume,
    ranges: Sequence[tuple[int, int]],
    names: dict[tuple[int, int], list[str]],
) -> None:
    for path, node in _entries(tree, volume):
        hit = {
            damaged for start, length in _placed(tree, node) for damaged in _touching(ranges, start, length)
        }
        for damaged in sorted(hit):
            if len(names[damaged]) < MAX_NAMES:
                names[damaged].append(safe_text(path))
            elif len(names[damaged]) == MAX_NAMES:
                names[damaged].append("... and more")


def _entries(tree: DiskTree, volume: Volume) -> Iterator[tuple[bytes, Node]]:
    """Walk a volume as far as it can be read."""
    top = tree.child(tree.root(), volume.name)
    if top is None:
        return
    try:
        for step in Walk(tree, top, volume.name):
            if step.visit in {Visit.ENTRY, Visit.ENTER}:
                yield step.path, step.node
    except MountfsError:
        return


def _placed(tree: DiskTree, node: Node) -> list[tuple[int, int]]:
    try:
        return list(tree.placements(node))
    except MountfsError:
        return []


def _touching(ranges: Sequence[tuple[int, int]], start: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges (sorted, not overlapping) that touch ``[start, start + length)``."""
    index = max(0, bisect_left(ranges, (start, 0)) - 1)
    while index < len(ranges) and ranges[index][0] < start + length:
        if _overlap(ranges[index], start, length):
            yield ranges[index]
        index += 1


def _overlap(damaged: tuple[int, int], start: int, length: int) -> bool:
    return damaged[0] < start + length and start < damaged[0] + damaged[1]


def _place(tree: DiskTree, damaged: tuple[int, int]) -> str:
    slot = tree.slot_around(damaged[0])
    if slot is None:
        return "no file: the partition table, or space outside of all partitions"
    name = safe_text(slot.volume.path)
    if slot.locked is not None:
        return f"not known: {name} is locked"
    return f"no file: metadata or free space of {name}"
