"""Before the copy: where the sources go, and how much there is to do."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import InterruptedByUserError, MountfsError, UsageError
from mountfs.copyout.content import PIECE, data_size
from mountfs.copyout.folder import open_folder, target_error
from mountfs.copyout.windowsfolder import open_windows_folder
from mountfs.names import safe_text
from mountfs.traversal import Visit, Walk
from mountfs.tree import NodeKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mountfs.copyout.folder import Folder
    from mountfs.tree import FileTree, Node


class Measure(NamedTuple):
    """What a copy will have to do, about."""

    files: int
    bytes: int
    """Without the holes of files of 1 MiB and more; hard links once."""


def measure(tree: FileTree, sources: Sequence[tuple[bytes, Node]]) -> Measure:
    """Estimate what `copy_out` has to do; what cannot be read does not count."""
    files = total = 0
    linked: set[int] = set()
    for path, node in sources:
        for step in Walk(tree, node, path):
            if step.visit is not Visit.ENTRY or step.node.kind is not NodeKind.FILE:
                continue
            files += 1
            if step.node.links > 1 and step.node.inode:
                if step.node.inode in linked:
                    continue
                linked.add(step.node.inode)
            total += _cheap_size(tree, step.node)
    return Measure(files, total)


def _cheap_size(tree: FileTree, node: Node) -> int:
    if node.size < PIECE:
        return max(0, node.size)
    try:
        return data_size(tree, node, node.size)
    except InterruptedByUserError:
        raise
    except MountfsError:
        return 0


def open_target(sources: Sequence[tuple[bytes, Node]], target: Path) -> tuple[Folder, bytes | None]:
    """Open the folder to copy into; with the name to use there when the target is that name.

    Raises:
        MountfsError: see `copy_out`.
    """
    if not sources:
        raise UsageError("nothing to copy")
    path = os.fsencode(target)
    if b"\0" in path:
        raise UsageError("a path cannot contain a NUL")
    try:
        if stat.S_ISDIR(target.stat().st_mode):
            return _opened(path), None
    except FileNotFoundError:
        pass
    except OSError as error:
        raise target_error(error, path) from error
    if len(sources) > 1:
        raise UsageError(f"{safe_text(path)} is not a folder, and there are several things to copy")
    if target.name in {"", ".", ".."}:
        raise UsageError(f"{safe_text(path)} does not exist")
    return _opened(os.fsencode(target.parent)), os.fsencode(target.name)


def _opened(path: bytes) -> Folder:
    return open_windows_folder(path) if sys.platform == "win32" else open_folder(path)


def own_name(path: bytes, node: Node) -> bytes | None:
    """Return the name of a source, as its tree has it; None for a root."""
    parts = [part for part in path.split(b"/") if part not in {b"", b"."}]
    return node.name or (parts[-1] if parts else None)
