"""What a `FileTree` holds, entry by entry, in the values of `support.entries`: to compare it with a mount."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from mountfs.tree import NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.tree import FileTree, Node
    from support.entries import Entries

_PIECE = 1 << 20


def tree_entries(tree: FileTree) -> Entries:
    """Everything below the root of a tree by its path, as `read_entries` tells of a folder."""
    twins: dict[int, bytes] = {}
    found: Entries = {}
    for path, node in sorted(_all_nodes(tree), key=lambda pair: pair[0]):
        found[path] = _entry(tree, node)
        if node.kind is not NodeKind.DIRECTORY and node.links > 1:
            found[path]["twin"] = twins.setdefault(node.inode, path)
    return found


def _all_nodes(tree: FileTree) -> Iterator[tuple[bytes, Node]]:
    pending = [(b"", tree.root())]
    while pending:
        path, parent = pending.pop()
        for node in tree.children(parent):
            below = path + b"/" + node.name if path else node.name
            yield below, node
            if node.kind is NodeKind.DIRECTORY:
                pending.append((below, node))


def _entry(tree: FileTree, node: Node) -> dict[str, Any]:
    names = ("mode", "uid", "gid", "links", "atime_ns", "mtime_ns", "ctime_ns", "device")
    entry = {"kind": node.kind.value, **{name: getattr(node, name) for name in names}}
    entry["xattrs"] = dict(tree.xattrs(node))
    if node.kind is not NodeKind.DIRECTORY:
        entry["size"] = node.size
    if node.kind is NodeKind.FILE:
        digest = hashlib.sha256()
        for offset in range(0, node.size, _PIECE):
            digest.update(tree.read(node, offset, min(_PIECE, node.size - offset)))
        entry["sha256"] = digest.hexdigest()
    if node.kind is NodeKind.SYMLINK:
        entry["target"] = tree.readlink(node)
    return entry
