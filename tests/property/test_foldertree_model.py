"""A `FolderTree` against a dictionary, whatever comes, goes, is replaced, fails and is listed half-way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from imageformat.errors import CorruptImageError, NotFoundError
from mountfs.foldertree import RETRY_S, Entry, FolderTree
from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.posixview import PosixView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.tree import Node

NAMES = st.sampled_from([b"p1", b"p2", b"p3", b"p4", b"p5"])
MAX_OPEN = 2
REFRESH_S = 1.0


class _Point(MemoryTree):
    def __init__(self, text: bytes, living: set[_Point]) -> None:
        super().__init__(folder({b"id": Item(text), b"sub": folder({b"id": Item(text)})}))
        self._living = living
        living.add(self)

    def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:
        assert self in self._living, "read after close"
        return super().read(node, offset, size, stream)

    def close(self) -> None:
        self._living.remove(self)


class FolderTreeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.version = 0
        self.model: dict[bytes, bytes] = {}
        self.broken: set[bytes] = set()
        self.living: set[_Point] = set()
        self.listings: list[Iterator[Node]] = []
        self.tree = FolderTree(self._entries, refresh_s=REFRESH_S, max_open=MAX_OPEN, clock=lambda: self.now)
        self.view = PosixView(self.tree, paths=8)

    def _entries(self) -> dict[bytes, Entry]:
        return {
            name: Entry(open=lambda name=name, text=text: self._open(name, text), identity=text)
            for name, text in self.model.items()
        }

    def _open(self, name: bytes, text: bytes) -> _Point:
        if name in self.broken:
            raise CorruptImageError("broken")
        return _Point(text, self.living)

    @rule(name=NAMES)
    def appear_or_be_replaced(self, name: bytes) -> None:
        self.version += 1
        self.model[name] = b"%d" % self.version
        self.now += REFRESH_S

    @rule(name=NAMES)
    def vanish(self, name: bytes) -> None:
        self.model.pop(name, None)
        self.now += REFRESH_S

    @rule(name=NAMES)
    def break_or_mend(self, name: bytes) -> None:
        self.broken ^= {name}
        self.version += 1
        if name in self.model:
            self.model[name] = b"%d" % self.version
        self.now += max(RETRY_S, REFRESH_S)

    @rule(name=NAMES, path=st.sampled_from([b"/id", b"/sub/id"]))
    def read(self, name: bytes, path: bytes) -> None:
        try:
            handle = self.view.open(b"/" + name + path, 0)
        except FileNotFoundError:
            assert name not in self.model or name in self.broken
            return
        assert self.view.read(handle, 0, 100) == self.model[name]
        assert self.view.attributes(b"/" + name + path).size == len(self.model[name])
        self.view.release(handle)

    @rule(name=NAMES)
    def list_half_way(self, name: bytes) -> None:
        node = self.tree.child(self.tree.root(), name)
        assert (node is None) == (name not in self.model)
        if node is not None:
            listing = self.tree.children(node)
            assert next(listing).name == (b"ERROR.txt" if name in self.broken else b"id")
            self.listings.append(listing)

    @rule()
    def finish_a_listing(self) -> None:
        if self.listings:
            assert [node.name for node in self.listings.pop(0)] in ([b"sub"], [])

    @rule(name=NAMES)
    def a_node_of_another_time(self, name: bytes) -> None:
        node = self.tree.child(self.tree.root(), name)
        if node is None or name in self.broken:
            return
        inner = self.tree.child(node, b"id")
        assert inner is not None
        self.appear_or_be_replaced(name)
        try:
            self.tree.read(inner, 0, 100)
        except NotFoundError:
            return
        raise AssertionError("bytes of a replaced point were read")

    @invariant()
    def listing_is_the_model(self) -> None:
        self.now += REFRESH_S
        assert {node.name for node in self.tree.children(self.tree.root())} == set(self.model)

    @invariant()
    def few_are_open(self) -> None:
        assert len(self.living) <= MAX_OPEN + len(self.listings)

    def teardown(self) -> None:
        self.tree.close()
        for listing in self.listings:
            list(listing)
        assert self.living == set()


FolderTreeMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestFolderTree = FolderTreeMachine.TestCase
