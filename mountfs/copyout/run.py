"""One copy from start to end: where each source goes, and what happens to each node on the way."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from imageformat.errors import (
    DestinationFullError,
    InterruptedByUserError,
    MountfsError,
    VolumeError,
)
from mountfs.copyout.attributes import set_attributes
from mountfs.copyout.content import PIECE, data_size, read_exactly, write_content
from mountfs.copyout.folder import FATAL, target_error
from mountfs.copyout.plan import open_target, own_name
from mountfs.copyout.report import Ledger, LossKind, Overwrite
from mountfs.names import safe_text
from mountfs.traversal import Step, Visit, Walk
from mountfs.tree import NodeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mountfs.copyout.folder import Folder
    from mountfs.copyout.places import Place
    from mountfs.copyout.report import CopyEvent, CopyOptions, CopyResult
    from mountfs.tree import FileTree, Node, Stream

_MAX_ATTRIBUTE = 65536
"""The longest value of an extended attribute that Linux takes."""
_SPECIAL_TYPES = {
    NodeKind.FIFO: stat.S_IFIFO,
    NodeKind.SOCKET: stat.S_IFSOCK,
    NodeKind.CHARACTER_DEVICE: stat.S_IFCHR,
    NodeKind.BLOCK_DEVICE: stat.S_IFBLK,
}
_MAX_DEVICE = (0xFFF, 0xFFFFF)
_NTFS_ATTRIBUTES, _IS_FOLDER = "system.ntfs_attrib", 0x10


def copy_out(
    tree: FileTree,
    sources: Sequence[tuple[bytes, Node]],
    target: Path,
    options: CopyOptions,
    report: Callable[[CopyEvent], None],
) -> CopyResult:
    """Copy nodes of a tree, with all below them, to a local path, as ``cp -r`` does.

    One source and no such target: the target is the new name. The target is a folder: into it; the root
    of a tree has no name of its own, so what is in it goes there. Existing folders are merged. A file gets
    its name only when it is complete. What fails is recorded, and the copy goes on beside it.

    Args:
        tree: where to read.
        sources: path, for messages, and node of each thing to copy.
        target: where to copy to.
        options: how.
        report: told of progress and of every loss and failure as it happens; what it raises ends the copy.

    Raises:
        UsageError: several sources, and the target is not a folder.
        DestinationFullError: no space is left. What is complete stays.
        DestinationReadOnlyError: the target is read-only.
        AccessDeniedError: the target may not be entered.
        DestinationError: the target is missing or broke down.
    """
    ledger = Ledger(report, options.max_listed)
    base, new_name = open_target(sources, target)
    try:
        copier = _Copier(tree, options, base, ledger)
        for path, node in sources:
            own = own_name(path, node)
            copier.copy(node, path, new_name or (None if own is None else base.name_of(own)))
    finally:
        base.close()
    return ledger.result()


@dataclass(slots=True)
class _Original:
    """Where the first of several hard links was copied to."""

    place: bytes
    name: bytes
    identity: tuple[int, ...]
    left: int


class _Copier:
    """Copies sources into one folder. Holds one open folder for each level."""

    def __init__(self, tree: FileTree, options: CopyOptions, base: Folder, ledger: Ledger) -> None:
        self._tree = tree
        self._options = options
        self._base = base
        self._ledger = ledger
        self._folders: list[Folder] = []
        self._originals: dict[tuple[int, NodeKind, int], _Original] = {}

    def copy(self, node: Node, path: bytes, name: bytes | None) -> None:
        """Copy one source to a name in the base folder, or what is in it when the name is None."""
        walk = Walk(self._tree, node, path)
        self._folders = [self._base.again()]
        try:
            for step in walk:
                self._follow(walk, step, name)
        finally:
            for folder in self._folders:
                folder.close()

    def _follow(self, walk: Walk, step: Step, top_name: bytes | None) -> None:
        parent = self._folders[-1]
        name = parent.name_of(step.node.name) if len(self._folders) > 1 else top_name
        if step.visit is Visit.REFUSED:
            self._ledger.fail(step.path, step.error or VolumeError("the folder cannot be read"))
        elif step.visit is Visit.LEAVE:
            self._guard(step.path, lambda: self._leave(step))
        elif step.visit is Visit.ENTER:
            if not self._guard(step.path, lambda: self._enter(parent, name)):
                walk.prune()
        elif name is None:
            self._ledger.fail(step.path, VolumeError("the root of the tree is not a folder"))
        else:
            self._guard(step.path, lambda: self._entry(parent, name, step))

    def _guard(self, path: bytes, action: Callable[[], None]) -> bool:
        """Do something, and record it when it fails for this path alone."""
        try:
            action()
        except InterruptedByUserError:
            raise
        except MountfsError as error:
            self._ledger.fail(path, error)
            return False
        except OSError as error:
            if error.errno in FATAL:
                raise target_error(error, path) from error
            self._ledger.fail(path, target_error(error, path))
            return False
        return True

    def _enter(self, parent: Folder, name: bytes | None) -> None:
        self._folders.append(parent.again() if name is None else parent.enter(name))
        self._ledger.folders += 1

    def _leave(self, step: Step) -> None:
        folder = self._folders.pop()
        try:
            if not folder.fresh and self._options.overwrite is Overwrite.REFUSE:
                self._ledger.lose(step.path, LossKind.FOLDER)
                return
            self._set(folder.own_place(), step, self._extended(step))
            if self._options.sync:
                folder.sync()
        finally:
            folder.close()

    def _entry(self, folder: Folder, name: bytes, step: Step) -> None:
        if step.node.kind in _SPECIAL_TYPES and not self._options.special_files:
            self._ledger.lose(step.path, LossKind.SPECIAL_FILE, step.node.kind.value)
            return
        folder.check_free(name, self._options.overwrite)
        if self._link(folder, name, step):
            return
        if step.node.kind is NodeKind.FILE:
            status = self._copy_file(folder, name, step)
        elif step.node.kind is NodeKind.SYMLINK:
            status = self._copy_symlink(folder, name, step)
        else:
            status = self._make_special(folder, name, step)
        if step.node.links > 1:
            self._remember(folder, name, step, status)
        self._count(step)

    def _count(self, step: Step) -> None:
        if step.node.kind is NodeKind.FILE:
            self._ledger.files += 1
        elif step.node.kind is NodeKind.SYMLINK:
            self._ledger.links += 1
        else:
            self._ledger.special += 1
        self._ledger.advance(step.path, 0)

    def _copy_file(self, folder: Folder, name: bytes, step: Step) -> os.stat_result:
        self._check_space(folder, step.node)
        with folder.staged() as staged:
            with contextlib.closing(folder.create(staged)) as created:
                write_content(
                    self._tree, step.node, created.fd, lambda count: self._ledger.advance(step.path, count)
                )
                extended = self._extended(step)
                status = created.finish(
                    lambda place: self._set(place, step, extended), sync=self._options.sync
                )
            folder.publish(staged, name, self._options.overwrite)
        return status

    def _copy_symlink(self, folder: Folder, name: bytes, step: Step) -> os.stat_result:
        target = self._tree.readlink(step.node)
        if not target or b"\0" in target:
            raise VolumeError("the symbolic link has no valid target")
        with folder.staged() as staged:
            extended = self._extended(step)
            attributes = int.from_bytes(extended.get(_NTFS_ATTRIBUTES, b"")[:4], "little")
            folder.symlink(target, staged, to_folder=bool(attributes & _IS_FOLDER))
            return self._finish(folder, staged, name, step, extended)

    def _make_special(self, folder: Folder, name: bytes, step: Step) -> os.stat_result:
        major, minor = step.node.device
        if not (0 <= major <= _MAX_DEVICE[0] and 0 <= minor <= _MAX_DEVICE[1]):
            raise VolumeError(f"no device has the number {major}, {minor}")
        with folder.staged() as staged:
            folder.make_special(staged, _SPECIAL_TYPES[step.node.kind], (major, minor))
            return self._finish(folder, staged, name, step, self._extended(step))

    def _finish(
        self, folder: Folder, staged: bytes, name: bytes, step: Step, extended: dict[str, bytes]
    ) -> os.stat_result:
        status = self._set(folder.place_of(staged), step, extended)
        folder.publish(staged, name, self._options.overwrite)
        return status

    def _set(self, place: Place, step: Step, extended: dict[str, bytes]) -> os.stat_result:
        return set_attributes(place, step.node, extended, self._options, self._loser(step.path))

    def _check_space(self, folder: Folder, node: Node) -> None:
        if node.size <= PIECE:
            return
        space = folder.space()
        needed = data_size(self._tree, node, space.total)
        if needed > space.total:
            raise DestinationFullError(f"the file claims more data than the target's {space.total} bytes")
        if needed > space.free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _remember(self, folder: Folder, name: bytes, step: Step, status: os.stat_result) -> None:
        if not step.node.inode:
            self._ledger.lose(step.path, LossKind.HARD_LINK, "the file system does not tell its other names")
            return
        original = _Original(folder.place, name, _identity(status), step.node.links - 1)
        self._originals[_link_key(step.node)] = original

    def _link(self, folder: Folder, name: bytes, step: Step) -> bool:
        """Make one more name of a file copied before; False when it must be copied."""
        key = _link_key(step.node)
        original = self._originals.get(key) if step.node.links > 1 and step.node.inode else None
        if original is None:
            return False
        with folder.staged() as staged:
            try:
                folder.link(original.place, original.name, staged)
                status = folder.status(staged)
            except OSError as error:
                if error.errno in FATAL:
                    raise
                self._ledger.lose(step.path, LossKind.HARD_LINK, os.strerror(error.errno or 0))
                return False
            if _identity(status) != original.identity:
                self._ledger.lose(step.path, LossKind.HARD_LINK, "the first copy was replaced meanwhile")
                return False
            folder.publish(staged, name, self._options.overwrite)
        original.left -= 1
        if original.left <= 0:
            del self._originals[key]
        self._count(step)
        return True

    def _loser(self, path: bytes) -> Callable[[LossKind, str], None]:
        return lambda what, detail: self._ledger.lose(path, what, detail)

    def _extended(self, step: Step) -> dict[str, bytes]:
        """Read the extended attributes, and the named streams as such; failures are recorded."""
        found: dict[str, bytes] = {}
        self._guard(step.path, lambda: found.update(self._tree.xattrs(step.node)))
        if step.node.kind in {NodeKind.FILE, NodeKind.DIRECTORY}:
            self._guard(step.path, lambda: self._read_streams(step, found))
        return found

    def _read_streams(self, step: Step, found: dict[str, bytes]) -> None:
        for stream in self._tree.streams(step.node):
            self._guard(step.path + b":" + stream.name, partial(self._read_stream, step, stream, found))

    def _read_stream(self, step: Step, stream: Stream, found: dict[str, bytes]) -> None:
        attribute = "user." + stream.name.decode("utf-8", "surrogateescape")
        label = safe_text(stream.name)
        if not 0 <= stream.size <= _MAX_ATTRIBUTE:
            self._ledger.lose(step.path, LossKind.STREAM, f"{label}, {stream.size} bytes: too long")
        elif attribute in found:
            self._ledger.lose(step.path, LossKind.STREAM, f"{label}: an attribute has that name")
        else:
            found[attribute] = read_exactly(self._tree, step.node, 0, stream.size, stream.name)


def _link_key(node: Node) -> tuple[int, NodeKind, int]:
    return (node.inode, node.kind, node.size)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    # inode numbers are used again at once, so the number alone does not prove that it is our file
    return (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)
