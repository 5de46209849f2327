"""Deciding what a backup will be. Pure: facts in, plan out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import UsageError
from imageformat.extent import NOT_STORED, ExtentKind, coalesce
from imageformat.layer import ImageType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from imageformat.extent import Extent
    from imageformat.repository import ImageSet, Point

MAX_CHAIN = 1000
"""A chain this long is not continued; the next image is a full one."""
NATIVE_SUFFIX = ".mfi"
MAX_NUMBER = 0xFFFF_FFFF
"""What the format can hold; a damaged or hostile image may claim it."""


@dataclass(frozen=True, slots=True)
class BackupPlan:
    """What kind of image comes next, and on what it stands."""

    type: ImageType
    parent: Point | None
    number: int
    warning: str = ""
    """Why it is not what was asked for."""


def plan_backup(image_set: ImageSet, wanted: ImageType | None, parent: Point | None = None) -> BackupPlan:
    """Choose type and parent of the next image.

    Without ``wanted``: full first, incremental later. A chain that is broken, known to be damaged or too
    long is not continued: a full image is made instead, with a warning.

    Raises:
        UsageError: a full image has no parent, and a differential one only a full.
    """
    number = next_number(image_set)
    if parent is not None:
        if wanted is ImageType.FULL:
            raise UsageError("a full image has no parent; leave out --type full or --parent")
        if wanted is ImageType.DIFFERENTIAL and parent.info and parent.info.type is not ImageType.FULL:
            raise UsageError(
                f"point {parent.number} is not full; a differential image holds what changed since a full "
                "one; name a full point with --parent, or use --type inc"
            )
        return _on(parent, wanted or ImageType.INCREMENTAL, number)
    continued = [point for point in image_set.points if _is_continued(point, image_set)]
    if wanted is ImageType.FULL or not continued:
        return BackupPlan(ImageType.FULL, None, number)
    readable = [point for point in continued if point.info is not None]
    if wanted is ImageType.DIFFERENTIAL:
        readable = [point for point in readable if point.info and point.info.type is ImageType.FULL]
    if not readable:
        return BackupPlan(ImageType.FULL, None, number, "there is no readable image to continue")
    return _on(readable[-1], wanted or ImageType.INCREMENTAL, number)


def _is_continued(point: Point, image_set: ImageSet) -> bool:
    """Tell whether a new image may go on from a point unasked: from one of another tool only if one does."""
    if point.file_name.endswith(NATIVE_SUFFIX):
        return True
    return any(child.parent_key == point.key for child in image_set.points)


def _on(parent: Point, kind: ImageType, number: int) -> BackupPlan:
    """Plan an image on ``parent``, or a full one when that cannot be trusted."""
    if parent.info is None or parent.problem is not None:
        reason = parent.problem.message if parent.problem else f"{parent.key} cannot be read"
        return BackupPlan(ImageType.FULL, None, number, f"the chain cannot be continued: {reason}")
    if parent.state == "damaged":
        reason = f"point {parent.info.number}, or one that it stands on, is damaged and cannot be built on"
        return BackupPlan(ImageType.FULL, None, number, reason)
    if parent.info.depth + 1 >= MAX_CHAIN:
        return BackupPlan(ImageType.FULL, None, number, f"the chain has {MAX_CHAIN} images")
    return BackupPlan(kind, parent, number)


def next_number(image_set: ImageSet) -> int:
    """Return a number that no image of the set has, not even one whose content cannot be read."""
    numbers = {point.number for point in image_set.points}
    following = max(numbers, default=0) + 1
    return following if following <= MAX_NUMBER else next(n for n in count(1) if n not in numbers)


def image_name(number: int, kind: ImageType, created_ns: int, image_id: UUID) -> str:
    """Return the file name of a new image, for people; nothing depends on it."""
    moment = datetime.fromtimestamp(created_ns // 1_000_000_000, UTC)
    return f"{number:04d}-{kind.value}-{moment:%Y%m%dT%H%M%SZ}-{image_id.hex[:8]}{NATIVE_SUFFIX}"


def set_name_for(source: str) -> str:
    """Return the default set name of a source: its last path component without a suffix.

    Raises:
        UsageError: nothing usable is left.
    """
    last = source.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    stem = re.sub(r"\.(img|raw|dd|bin|disk)$", "", last, flags=re.IGNORECASE)
    return check_set_name(re.sub(r"[^\w.+-]+", "-", stem).strip("-."))


def check_set_name(name: str) -> str:
    """Return a legal set name, or raise `UsageError`."""
    fits = name.isprintable() and name == name.strip() and not set(name) & set("/\\:@")
    if not name or name[0] in ".-" or len(name) > 100 or not fits:
        raise UsageError(
            f"'{name}' cannot name a set: use --set with letters, digits, '-', '_', '.', up to 100"
        )
    return name


class Run(NamedTuple):
    """``blocks`` blocks from ``first`` on: DATA is read; ZERO, UNUSED and EXCLUDED are not."""

    first: int
    blocks: int
    kind: ExtentKind


def block_runs(extents: Iterable[Extent], size: int, block_size: int, longest: int) -> Iterator[Run]:
    """Cut a disk into runs of whole blocks: holes as long as they are, data in at most ``longest`` blocks.

    A block is UNUSED only when all of it is, and EXCLUDED when it holds nothing else but UNUSED. One that is
    partly UNUSED and else ZERO is ZERO: nothing in it is in use but zeros, and those have to be restored. One
    that is partly EXCLUDED and else ZERO is read: it is neither zeros nor an error. ``extents`` covers the
    disk in ascending order.
    """
    position = 0
    blocks = -(-size // block_size)
    for fill in _fills(extents, size, block_size):
        yield from _data_runs(position, fill.first, longest)
        yield fill
        position = fill.first + fill.blocks
    yield from _data_runs(position, blocks, longest)


def _fills(extents: Iterable[Extent], size: int, block_size: int) -> Iterator[Run]:
    """Yield the runs that are not read, ascending."""
    pending: Run | None = None
    for run in _uniform(extents, size, block_size):
        if pending is not None and run.kind is pending.kind and run.first == pending.first + pending.blocks:
            pending = Run(pending.first, pending.blocks + run.blocks, run.kind)
            continue
        if pending is not None:
            yield pending
        pending = run
    if pending is not None:
        yield pending


def _uniform(extents: Iterable[Extent], size: int, block_size: int) -> Iterator[Run]:
    """Yield runs of blocks that one extent covers, and single blocks that several share; not those read."""
    blocks = -(-size // block_size)
    begun: set[ExtentKind] = set()  # the kinds in the block that the extents so far end in
    for extent in coalesce(extents):
        first = -(-extent.offset // block_size)
        end = blocks if extent.end >= size else extent.end // block_size
        if extent.offset % block_size:
            begun.add(extent.kind)
            if end < first:
                continue
            if (kind := _shared_kind(begun)) is not ExtentKind.DATA:
                yield Run(first - 1, 1, kind)
        if end > first and extent.kind in NOT_STORED:
            yield Run(first, end - first, extent.kind)
        begun = {extent.kind}


def _shared_kind(kinds: set[ExtentKind]) -> ExtentKind:
    """Return what a block of several kinds is; see `block_runs`."""
    used = kinds - {ExtentKind.UNUSED}
    if not used:
        return ExtentKind.UNUSED
    return used.pop() if len(used) == 1 and used <= NOT_STORED else ExtentKind.DATA


def _data_runs(first: int, end: int, longest: int) -> Iterator[Run]:
    for start in range(first, end, longest):
        yield Run(start, min(longest, end - start), ExtentKind.DATA)
