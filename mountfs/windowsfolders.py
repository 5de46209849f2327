"""The folders of a tree as Windows asks for them: sorted, and by names in which case does not matter.

A folder is read whole when it is first needed, since only all of its names tell how each is shown. The names
of the last folders are kept, up to a number in all. Where something in a folder may vanish or be replaced, it
is read again after a second.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from mountfs.names import safe_text
from mountfs.tree import NodeKind
from mountfs.windowsnames import fold, shown_names

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from mountfs.tree import FileTree, Node

KEPT_ENTRIES = 200_000
FOLDER_LIMIT = 4_000_000
"""More names than this in one folder are refused rather than held in memory."""
VOLATILE_S = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a folder."""

    shown: str
    order: tuple[str, str]
    """Its place in the listing: the name as Windows compares it, then as it is."""
    node: Node


class Step(NamedTuple):
    """One step of a path: a name as it is shown, or one of a link's target, as the tree has it."""

    name: str | None
    raw: bytes = b""

    @property
    def is_up(self) -> bool:
        """Whether it leads to the folder above."""
        return self.name == ".." or (self.name is None and self.raw == b"..")


@dataclass(frozen=True, slots=True)
class _Folder:
    ordered: list[Entry]
    by_fold: dict[str, Entry]
    good_until: float
    """`time.monotonic`; infinite when nothing in it can change."""


class Folders:
    """Looks up and lists. Any number of threads may call it at once."""

    def __init__(
        self, tree: FileTree, *, kept: int = KEPT_ENTRIES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tree = tree
        self._kept = kept
        self._clock = clock
        self._cache: OrderedDict[tuple[Hashable, ...], _Folder] = OrderedDict()
        self._entries = 0
        self._lock = threading.Lock()

    def root(self) -> Entry:
        """Return the top of the tree."""
        return Entry("", ("", ""), self._tree.root())

    def walk(self, names: Sequence[str], start: tuple[Entry, ...] = ()) -> Iterator[Entry | None]:
        """Yield what each name of a path leads to, and None, once, where it ends. Follows no links."""
        path = start or (self.root(),)
        for name in names:
            entry = self.step(path, Step(name))
            yield entry
            if entry is None:
                return
            path = (*path, entry)

    def step(self, path: tuple[Entry, ...], step: Step) -> Entry | None:
        """Look up one name in the folder at the end of a path; None when it is not there."""
        if path[-1].node.kind is not NodeKind.DIRECTORY:
            return None
        folder = self.folder(path)
        if step.name is not None:
            return folder.by_fold.get(fold(step.name))
        return next((entry for entry in self._spelled(folder, step.raw)), None)

    @staticmethod
    def _spelled(folder: _Folder, raw: bytes) -> Iterator[Entry]:
        """Yield the entry whose name in the tree is ``raw``."""
        text = raw.decode("utf-8", "replace")
        plain = folder.by_fold.get(fold(text))
        if plain is not None and plain.node.name == raw:
            yield plain
            return
        yield from (entry for entry in folder.ordered if entry.node.name == raw)

    def folder(self, path: tuple[Entry, ...]) -> _Folder:
        """Return the folder at the end of a path.

        Raises:
            VolumeError: it has more names than memory should hold.
        """
        key = tuple(entry.node.key for entry in path)
        with self._lock:
            known = self._cache.get(key)
            if known is not None and known.good_until > self._clock():
                self._cache.move_to_end(key)
                return known
        made = self._read(path[-1].node)
        self._keep(key, made)
        return made

    def _read(self, node: Node) -> _Folder:
        nodes: dict[bytes, Node] = {}
        for child in self._tree.children(node):
            nodes[child.name] = child
            if len(nodes) > FOLDER_LIMIT:
                raise VolumeError(f"{safe_text(node.name)}: more than {FOLDER_LIMIT} names in one folder")
        by_fold = {}
        for raw, shown in shown_names(list(nodes)).items():
            folded = fold(shown)
            by_fold[folded] = Entry(shown, (folded, shown), nodes[raw])
        ordered = sorted(by_fold.values(), key=lambda entry: entry.order)
        volatile = any(child.volatile for child in nodes.values()) or node.volatile
        return _Folder(ordered, by_fold, self._clock() + VOLATILE_S if volatile else float("inf"))

    def _keep(self, key: tuple[Hashable, ...], folder: _Folder) -> None:
        with self._lock:
            before = self._cache.pop(key, None)
            self._entries += len(folder.ordered) - (len(before.ordered) if before else 0)
            self._cache[key] = folder
            while self._entries > self._kept and len(self._cache) > 1:
                _, dropped = self._cache.popitem(last=False)
                self._entries -= len(dropped.ordered)
