"""A depth-first walk that a hostile tree cannot trap.

A damaged or hostile file system may hold folders that contain themselves, or that several folders share,
so that a naive walk never ends. This one is iterative, bounded in depth, and enters a folder only once.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import InterruptedByUserError, MountfsError, VolumeError
from mountfs.names import to_path_name
from mountfs.tree import NodeKind

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from mountfs.tree import FileTree, Node

MAX_DEPTH = 512
"""Folders inside folders; every level may cost the walker's user one open file."""


class Entered:
    """Which folders a walk has entered, and which of them it is inside of."""

    def __init__(self, max_depth: int = MAX_DEPTH) -> None:
        self._max_depth = max_depth
        self._seen: set[Hashable] = set()
        self._inside: list[Hashable] = []

    def refusal(self, node: Node) -> VolumeError | None:
        """Say why a folder must not be entered now; None when it may."""
        identity = _identity(node)
        if identity in self._inside:
            return VolumeError("the folder contains itself; the file system is damaged")
        if identity in self._seen:
            return VolumeError("the folder is in two places; only the first is used")
        if len(self._inside) >= self._max_depth:
            return VolumeError(f"folders are nested deeper than {self._max_depth}")
        return None

    def enter(self, node: Node) -> None:
        """Go into a folder."""
        identity = _identity(node)
        self._seen.add(identity)
        self._inside.append(identity)

    def leave(self) -> None:
        """Come out of the folder entered last."""
        self._inside.pop()


def _identity(node: Node) -> Hashable:
    return node.inode or ("key", node.key)


class Visit(enum.Enum):
    """What a step of a walk means."""

    ENTRY = "entry"
    """Anything that is not a folder."""
    ENTER = "enter"
    """A folder, before what is in it; `Walk.prune` now keeps out of it."""
    LEAVE = "leave"
    """The same folder, after what is in it."""
    REFUSED = "refused"
    """A folder that is not entered, or whose list broke off: ``error`` says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a walk."""

    visit: Visit
    node: Node
    path: bytes
    """From the top, names joined by ``/`` after `to_path_name`."""
    error: MountfsError | None = None


@dataclass(slots=True)
class _Frame:
    node: Node
    path: bytes
    children: Iterator[Node]


class Walk:
    """Steps through a node and all below it. One use, one thread.

    An error of the tree in one folder is a step, never raised: the walk goes on beside it.
    """

    def __init__(self, tree: FileTree, node: Node, path: bytes, *, max_depth: int = MAX_DEPTH) -> None:
        self._tree = tree
        self._top = (node, path)
        self._entered = Entered(max_depth)
        self._stack: list[_Frame] = []
        self._pruned = False

    def prune(self) -> None:
        """Keep out of the folder whose ENTER step came last; it has no LEAVE step then."""
        self._pruned = True

    def __iter__(self) -> Iterator[Step]:
        yield from self._visit(*self._top)
        while self._stack:
            frame = self._stack[-1]
            try:
                child = next(frame.children, None)
            except InterruptedByUserError:
                raise
            except MountfsError as error:
                yield Step(Visit.REFUSED, frame.node, frame.path, error)
                child = None
            if child is None:
                self._stack.pop()
                self._entered.leave()
                yield Step(Visit.LEAVE, frame.node, frame.path)
            else:
                yield from self._visit(child, join(frame.path, child.name))

    def _visit(self, node: Node, path: bytes) -> Iterator[Step]:
        if node.kind is not NodeKind.DIRECTORY:
            yield Step(Visit.ENTRY, node, path)
            return
        refusal = self._entered.refusal(node)
        if refusal is not None:
            yield Step(Visit.REFUSED, node, path, refusal)
            return
        self._pruned = False
        yield Step(Visit.ENTER, node, path)
        if not self._pruned:
            self._entered.enter(node)
            self._stack.append(_Frame(node, path, self._children(node)))

    def _children(self, node: Node) -> Iterator[Node]:
        yield from self._tree.children(node)


def join(path: bytes, name: bytes) -> bytes:
    """Append a raw name to a path."""
    return path.rstrip(b"/") + b"/" + to_path_name(name) if path else to_path_name(name)
