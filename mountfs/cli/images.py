"""From what a person types to an opened image: ``PATH``, ``PATH@POINT``, ``PATH@POINT:INNER``."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import LockedError, NotFoundError, UsageError
from imageformat.repository import NO_ACCESS, Access
from imageformat.secrets import Secrets
from imageformat.selection import split_image_path, split_selector
from mountfs.cli.passwords import ATTEMPTS, ask, can_ask
from mountfs.cli.render import format_size
from mountfs.names import from_path_name
from mountfs.session import Session
from mountfs.tree import NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from imageformat.errors import MountfsError
    from imageformat.repository import Point
    from mountfs.cli.render import Renderer
    from mountfs.disktree import DiskTree
    from mountfs.tree import Node


class ImageName(NamedTuple):
    """A name, taken apart."""

    path: str
    selector: str | None
    inner: str | None


def parse_name(text: str, *, point: str | None = None, at: str | None = None) -> ImageName:
    """Take ``PATH[@POINT]`` apart; ``--point`` and ``--at`` say the same as ``@POINT``.

    Raises:
        UsageError: the point is named twice.
    """
    path, selector = split_selector(text, os.path.lexists)
    return ImageName(path, _one_selector(selector, point, at), None)


def parse_inner(text: str, *, point: str | None = None, at: str | None = None) -> ImageName:
    """Take ``PATH[@POINT][:INNER]`` apart."""
    path, selector, inner = split_image_path(text, os.path.lexists)
    return ImageName(path, _one_selector(selector, point, at), inner)


def _one_selector(*selectors: str | None) -> str | None:
    given = [selector for selector in selectors if selector is not None]
    if len(given) > 1:
        raise UsageError("the point is named twice; use one of @POINT, --point and --at")
    if given == [""]:
        raise UsageError("the point is empty: name a number, an id, a time or latest, or leave out the @")
    return given[0] if given else None


@contextmanager
def opened_point(
    name: ImageName, *, read_ahead: bool = False, access: Access = NO_ACCESS
) -> Iterator[tuple[Session, Point]]:
    """Open the one point that a name means."""
    with Session(name.path, read_ahead=read_ahead, access=access) as session:
        yield session, session.location.point(name.selector)


def disk_of(point: Point, wanted: int | None) -> int:
    """Return the number of the disk that is meant: the only one of an image, or the one that was named.

    Raises:
        UsageError: there are several, and none was named.
        NotFoundError: there is none of that number.
    """
    disks = point.info.disks if point.info is not None else ()
    if len(disks) < 2 and not wanted:
        return 0
    known = ", ".join(f"{number} ({format_size(disk.size)})" for number, disk in enumerate(disks))
    if wanted is None:
        raise UsageError(f"{point.file_name} has {len(disks)} disks; choose one with --disk: {known}")
    if wanted >= len(disks):
        raise NotFoundError(f"{point.file_name} has no disk {wanted}; it has: {known}")
    return wanted


@contextmanager
def opened_tree(
    name: ImageName, *, disk: int | None = None, read_ahead: bool = False, access: Access = NO_ACCESS
) -> Iterator[DiskTree]:
    """Open the tree of the one point that a name means, of the disk that `disk_of` chooses."""
    with opened_point(name, read_ahead=read_ahead, access=access) as (session, point):
        tree = session.disk_tree(point, disk=disk_of(point, disk))
        try:
            yield tree
        finally:
            tree.close()


def inner_bytes(inner: str | None) -> bytes:
    """Return the path inside an image as the trees know it: escapes of odd names undone."""
    raw = os.fsencode(inner or "")
    return b"/".join(from_path_name(part) if part else part for part in raw.split(b"/"))


def find_node(tree: DiskTree, inner: str | None, *, unlock_last: bool = True) -> tuple[Node, bytes | None]:
    """Resolve a path inside an image; the second value is the named stream of ``file:stream``.

    Asks for the password of a locked volume that the path leads into, when there is somebody to ask; of the
    last, if it is one, only to ``unlock_last``.

    Raises:
        NotFoundError: it is not there; for a partition, the message says which there are.
        LockedError: it would lie in a volume that is locked.
        MountfsError: it may be there, but what should hold it cannot be read.
    """
    raw = os.fsencode(inner or "")
    parts = [from_path_name(part) for part in raw.split(b"/") if part not in {b"", b"."}]
    node = tree.root()
    for depth, part in enumerate(parts):
        found = tree.child(node, part) if node.kind is NodeKind.DIRECTORY else None
        if found is None and _unlock(tree, node):
            found = tree.child(node, part)
        if found is None and part is parts[-1] and b":" in part and node.kind is NodeKind.DIRECTORY:
            name, _, stream = part.rpartition(b":")
            holder = tree.child(node, name)
            if holder is not None and any(known.name == stream for known in tree.streams(holder)):
                return holder, stream
        if found is None:
            raise _missing(tree, node, part, depth)
        node = found
    if parts and unlock_last:
        _unlock(tree, node)
    return node, None


def _unlock(tree: DiskTree, node: Node) -> bool:
    """Ask for the password of the volume whose directory this is, if it is locked; whether it was opened."""
    locked = tree.locked(node)
    if locked is None or not can_ask():
        return False
    name = os.fsdecode(node.name)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            tree.unlock(node, Secrets((ask(name),)))
        except LockedError:
            if attempt == ATTEMPTS:
                raise
        else:
            return True
    return False


def failures_of(tree: DiskTree, node: Node) -> list[MountfsError]:
    """Return why less was shown of a folder than is there; ask after what there is was shown.

    The partition table, the start of a partition, or its file system cannot be read, or the folder is a
    volume that is locked. A file is all there, or reading it has failed.
    """
    if node.kind is not NodeKind.DIRECTORY:
        return []
    found = list(tree.failures())
    locked = tree.locked(node)
    if locked is not None and locked not in found:
        found.insert(0, locked)
    if node == tree.root():
        found += [error for error in tree.layout_failures() if str(error) not in map(str, found)]
    return found


def raise_first(out: Renderer, failures: Sequence[MountfsError]) -> None:
    """Raise the first failure, if there is one, and warn of the others."""
    for error in failures[1:]:
        out.warning(str(error))
    if failures:
        raise failures[0]


def _missing(tree: DiskTree, parent: Node, name: bytes, depth: int) -> MountfsError:
    """Say that there is no such name; or why it cannot be known, when that is so."""
    locked = tree.locked(parent)
    if locked is not None:
        return locked
    if tree.failures():
        return tree.failures()[0]
    shown = os.fsdecode(name)
    if depth == 0:
        known = ", ".join(os.fsdecode(node.name) for node in tree.children(parent))
        error = NotFoundError(f"the image has no partition '{shown}'; it has: {known}")
        for warning in tree.table.warnings:
            error.add_note(warning)
        return error
    if parent.kind is not NodeKind.DIRECTORY:
        return NotFoundError(f"'{os.fsdecode(parent.name)}' is a {parent.kind.value}, not a folder")
    missing = NotFoundError(f"there is no '{shown}' in '{os.fsdecode(parent.name)}'")
    slot = tree.slot_at(parent)
    if slot is not None and slot.volume.reason:
        missing.add_note(f"the files of this volume cannot be shown: {slot.volume.reason}")
    return missing
