"""What a tree of a driver holds, as the same values that `support.entries` makes of a folder."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from imageformat.device import MemoryDevice
from mountfs.signatures import identify
from mountfs.tree import NodeKind
from support.requirements import run

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from mountfs.tree import FileTree, Node
    from support.entries import Entries

_PIECE = 1 << 20


def open_image(driver: ModuleType, path: Path) -> FileTree:
    """Open an image by a driver, after the signatures found that it is one of its own."""
    device = MemoryDevice(path.read_bytes())
    info = identify(device)
    assert info is not None
    assert info.type in driver.PLUGIN.types
    return driver.PLUGIN.open(device, info)


def check_by_blkid(path: Path, kind: str) -> None:
    """Compare what we say of a volume with what blkid says of it."""
    info = identify(MemoryDevice(path.read_bytes()))
    assert info is not None
    said = {
        key: run("sh", "-c", 'blkid -p -o value -s "$0" "$1" || true', key, path).removesuffix("\n")
        for key in ("TYPE", "LABEL", "UUID")
    }
    assert said == {"TYPE": kind, "LABEL": info.label, "UUID": info.uuid}
    assert info.type == kind


def tree_entries(tree: FileTree) -> Entries:
    """Everything in a tree by its path, as `support.entries.read_entries` says it of a folder."""
    nodes: dict[bytes, Node] = {}
    pending = [(b"", tree.root())]
    while pending:
        path, parent = pending.pop()
        for node in tree.children(parent):
            below = path + b"/" + node.name if path else node.name
            nodes[below] = node
            if node.kind is NodeKind.DIRECTORY:
                pending.append((below, node))
    twins: dict[int, bytes] = {}
    found: Entries = {}
    for path in sorted(nodes):
        node = nodes[path]
        found[path] = _entry(tree, node)
        if node.kind is not NodeKind.DIRECTORY and node.links > 1:
            found[path]["twin"] = twins.setdefault(node.inode, path)
    return found


def _entry(tree: FileTree, node: Node) -> dict[str, Any]:
    entry = {
        "kind": node.kind.value,
        "mode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
        "links": node.links,
        "atime_ns": node.atime_ns,
        "mtime_ns": node.mtime_ns,
        "ctime_ns": node.ctime_ns,
        "device": node.device,
        "xattrs": dict(tree.xattrs(node)),
    }
    if node.kind is not NodeKind.DIRECTORY:
        entry["size"] = node.size
    if node.kind is NodeKind.FILE:
        digest = hashlib.sha256()
        for at in range(0, node.size, _PIECE):
            digest.update(tree.read(node, at, _PIECE))
        entry["sha256"] = digest.hexdigest()
    if node.kind is NodeKind.SYMLINK:
        entry["target"] = tree.readlink(node)
    return entry
