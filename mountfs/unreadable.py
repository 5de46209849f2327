"""What of a point could not be read from its source, and the files that this belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imageformat.extent import ExtentKind
from mountfs.damage import name_damage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imageformat.repository import Point
    from mountfs.damage import FilesByDamage
    from mountfs.session import Session

MAX_RANGES = 1000
"""Ranges whose files are looked for; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The BAD sectors of a disk."""

    size: int = 0
    """All of them, in bytes."""
    count: int = 0
    """Ranges that they make."""
    ranges: Sequence[tuple[int, int]] = ()
    """The first of them: offset on the disk, length."""
    files: FilesByDamage = field(default_factory=dict)


def find_unreadable(session: Session, point: Point, *, disk: int = 0) -> Unreadable:
    """Find the BAD sectors of a point that can be opened. Looks through its index only if it has some.

    Raises:
        ImageError, ChainError, StorageError: the index cannot be read.
    """
    if not _may_have_some(session, point):
        return Unreadable()
    view = session.view(point, disk=disk)
    size = count = 0
    ranges: list[tuple[int, int]] = []
    for extent in view.extents(0, view.size):
        if extent.kind is ExtentKind.BAD:
            size, count = size + extent.length, count + 1
            if len(ranges) < MAX_RANGES:
                ranges.append((extent.offset, extent.length))
    return Unreadable(size, count, ranges, name_damage(session, point, ranges, disk=disk))


def _may_have_some(session: Session, point: Point) -> bool:
    if point.info is None or point.is_foreign:
        return False
    if point.info.details.get("partial_blocks"):
        return True
    chain = session.location.repository.chain(point)
    lines: Sequence[Mapping[str, object]] = [
        chain.layer(depth).info.details for depth in range(chain.depth + 1)
    ]
    return any(details.get("bad_blocks") for details in lines)
