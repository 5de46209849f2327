"""What `ls` and `tree` show, as values: how it is printed is the renderer's business.

Names as text are safe for a terminal; names in `describe` are exact.
"""

from __future__ import annotations

import base64
import datetime as dt
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import InterruptedByUserError, MountfsError
from mountfs.names import safe_text
from mountfs.traversal import Entered
from mountfs.tree import Node, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.tree import FileTree

_TYPE_BITS = {
    NodeKind.DIRECTORY: stat.S_IFDIR,
    NodeKind.FILE: stat.S_IFREG,
    NodeKind.SYMLINK: stat.S_IFLNK,
    NodeKind.FIFO: stat.S_IFIFO,
    NodeKind.SOCKET: stat.S_IFSOCK,
    NodeKind.CHARACTER_DEVICE: stat.S_IFCHR,
    NodeKind.BLOCK_DEVICE: stat.S_IFBLK,
}
_DEVICES = frozenset({NodeKind.CHARACTER_DEVICE, NodeKind.BLOCK_DEVICE})
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def list_directory(tree: FileTree, node: Node) -> list[Node]:
    """Return what a folder holds in order of name; a node that is no folder stands for itself.

    Raises:
        MountfsError: the folder cannot be read.
    """
    if node.kind is not NodeKind.DIRECTORY:
        return [node]
    return sorted(tree.children(node), key=lambda child: child.name)


def mode_text(node: Node) -> str:
    """Return type and permissions as `ls` writes them: ``drwxr-xr-x``."""
    return stat.filemode(_TYPE_BITS[node.kind] | (node.mode & 0o7777))


@dataclass(frozen=True, slots=True)
class LongRow:
    """One line of a long listing."""

    mode: str
    links: int
    owner: str
    """User and group by number: ``1000:1000``."""
    size: int | None
    """None for device nodes."""
    device: str
    """``major, minor`` of a device node, else empty."""
    mtime_ns: int
    name: str
    target: str | None
    """Of a symbolic link; None when it cannot be read."""

    @property
    def label(self) -> str:
        """Name, and where a link points to."""
        return self.name if self.target is None else f"{self.name} -> {self.target}"


def long_row(tree: FileTree, node: Node) -> LongRow:
    """Describe one node for a long listing. A link that cannot be read has no target."""
    target = _target(tree, node)
    is_device = node.kind in _DEVICES
    return LongRow(
        mode=mode_text(node),
        links=node.links,
        owner=f"{node.uid}:{node.gid}",
        size=None if is_device else node.size,
        device=f"{node.device[0]}, {node.device[1]}" if is_device else "",
        mtime_ns=node.mtime_ns,
        name=safe_text(node.name),
        target=None if target is None else safe_text(target),
    )


def _target(tree: FileTree, node: Node) -> bytes | None:
    if node.kind is not NodeKind.SYMLINK:
        return None
    try:
        return tree.readlink(node)
    except InterruptedByUserError:
        raise
    except MountfsError:
        return None


@dataclass(frozen=True, slots=True)
class TreeRow:
    """One line of a drawn tree."""

    node: Node
    last: tuple[bool, ...]
    """For each level from the top: is this, or the folder it is in, the last of its folder? Empty for the
    top itself."""
    note: str = ""
    """Why a folder is not shown further."""


def tree_rows(tree: FileTree, node: Node, max_depth: int | None = None) -> Iterator[TreeRow]:
    """Yield a node and all below it in the order in which a tree is drawn.

    Folders deeper than ``max_depth`` are not opened. A folder that cannot be read, or that contains
    itself, is a row with a note.
    """
    drawing = _Drawing(tree, max_depth)
    yield drawing.row(node, ())
    while drawing.pending:
        children, last = drawing.pending[-1]
        if children:
            child = children.pop()
            yield drawing.row(child, (*last, not children))
        else:
            drawing.close_folder()


class _Drawing:
    """Where the drawing of a tree stands: the folders it is in, each with what is still to come of it."""

    def __init__(self, tree: FileTree, max_depth: int | None) -> None:
        self._tree = tree
        self._max_depth = max_depth
        self._entered = Entered()
        self.pending: list[tuple[list[Node], tuple[bool, ...]]] = []
        """What is to come in reverse order, and the lines that lead to the folder."""

    def row(self, node: Node, last: tuple[bool, ...]) -> TreeRow:
        """Return the row of a node, and open it when it is a folder."""
        if node.kind is not NodeKind.DIRECTORY or (
            self._max_depth is not None and len(last) >= self._max_depth
        ):
            return TreeRow(node, last)
        refusal = self._entered.refusal(node)
        if refusal is not None:
            return TreeRow(node, last, safe_text(str(refusal)))
        try:
            children = list_directory(self._tree, node)
        except InterruptedByUserError:
            raise
        except MountfsError as error:
            return TreeRow(node, last, safe_text(str(error)))
        self._entered.enter(node)
        self.pending.append((children[::-1], last))
        return TreeRow(node, last)

    def close_folder(self) -> None:
        """Leave the innermost folder."""
        self.pending.pop()
        self._entered.leave()


def branch(row: TreeRow, *, ascii_only: bool = False) -> str:
    """Return the lines that lead to a row: ``|   `-- `` or its box-drawing sisters."""
    if not row.last:
        return ""
    pipe, tee, corner = ("|   ", "|-- ", "`-- ") if ascii_only else ("│   ", "├── ", "└── ")
    above = "".join("    " if last else pipe for last in row.last[:-1])
    return above + (corner if row.last[-1] else tee)


def describe(tree: FileTree, node: Node) -> dict[str, object]:
    """Return everything about a node as values that JSON can carry.

    A name or target that is not UTF-8 has U+FFFD in its text, and the exact bytes as base64 beside it in
    ``name_b64`` or ``target_b64``.
    """
    found: dict[str, object] = {
        **exact_text("name", node.name),
        "kind": node.kind.value,
        "size": node.size,
        "mode": f"{node.mode & 0o7777:04o}",
        "uid": node.uid,
        "gid": node.gid,
        "links": node.links,
        "inode": node.inode,
        "mtime": time_text(node.mtime_ns),
        "mtime_ns": node.mtime_ns,
        "atime_ns": node.atime_ns,
        "ctime_ns": node.ctime_ns,
        "birth_ns": node.birth_ns or None,
    }
    if node.kind in _DEVICES:
        found["device"] = list(node.device)
    target = _target(tree, node)
    if target is not None:
        found |= exact_text("target", target)
    return found


def exact_text(key: str, raw: bytes) -> dict[str, object]:
    """Return bytes as text under ``key``, and as base64 under ``key_b64`` when they are not UTF-8."""
    try:
        return {key: raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {key: raw.decode("utf-8", "replace"), f"{key}_b64": base64.b64encode(raw).decode("ascii")}


def time_text(time_ns: int) -> str | None:
    """Return a time as ISO 8601 in UTC with nanoseconds; None when no calendar has it."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    try:
        moment = _EPOCH + dt.timedelta(seconds=seconds)
    except OverflowError:
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
