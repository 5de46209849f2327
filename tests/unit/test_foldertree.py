"""Named subtrees that come and go."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import CorruptImageError, MountfsError, NotFoundError, UsageError, VolumeError
from mountfs.foldertree import RETRY_S, Entry, FolderTree
from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.tree import NodeKind, walk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mountfs.tree import Node


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Tracked(MemoryTree):
    """Knows whether it is open, and fails loudly when it is used closed."""

    def __init__(self, text: bytes, log: list[str]) -> None:
        links = {"links": 2, "inode": 7}
        super().__init__(
            folder(
                {
                    b"id": Item(text, xattrs={"user.x": b"y"}, streams={b"s": b"stream"}),
                    b"hard": Item(b"h", **links),
                    b"link": Item(b"id", kind=NodeKind.SYMLINK),
                    b"sub": folder({b"deep": Item(text)}),
                }
            )
        )
        self.text = text
        self.log = log
        self.open = True
        log.append(f"open {text.decode()}")

    def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:
        assert self.open, "read after close"
        return super().read(node, offset, size, stream)

    def close(self) -> None:
        assert self.open, "closed twice"
        self.open = False
        self.log.append(f"close {self.text.decode()}")


class World:
    """A changing set of points, with a count of how often it was asked."""

    def __init__(self, *names: bytes, **settings: float) -> None:
        self.clock = Clock()
        self.log: list[str] = []
        self.asked = 0
        self.points: dict[bytes, Entry] = {}
        for name in names:
            self.add(name)
        self.tree = FolderTree(self._list, clock=self.clock, **settings)

    def add(self, name: bytes, text: bytes | None = None) -> None:
        content = text or name
        self.points[name] = Entry(open=lambda: Tracked(content, self.log), identity=content, mtime_ns=5)

    def _list(self) -> Mapping[bytes, Entry]:
        self.asked += 1
        return self.points

    def text(self, path: bytes) -> bytes:
        node = walk(self.tree, path)
        return self.tree.read(node, 0, 1000)

    def names(self) -> list[bytes]:
        return [node.name for node in self.tree.children(self.tree.root())]


def test_listing_opens_nothing() -> None:
    world = World(b"p1", b"p2")
    nodes = list(world.tree.children(world.tree.root()))
    assert [(node.name, node.kind, node.mtime_ns, node.volatile) for node in nodes] == [
        (b"p1", NodeKind.DIRECTORY, 5, True),
        (b"p2", NodeKind.DIRECTORY, 5, True),
    ]
    assert world.tree.root().mtime_ns == 5
    assert world.log == []


def test_a_subtree_shows_through_whole() -> None:
    world = World(b"p1")
    tree = world.tree
    assert world.text(b"p1/id") == b"p1"
    assert world.text(b"p1/sub/deep") == b"p1"
    node = walk(tree, b"p1/id")
    assert tree.xattrs(node) == {"user.x": b"y"}
    assert [stream.name for stream in tree.streams(node)] == [b"s"]
    assert tree.read(node, 1, 3, b"s") == b"tre"
    assert [extent.length for extent in tree.extents(node)] == [2]
    assert tree.readlink(walk(tree, b"p1/link")) == b"id"
    assert world.log == ["open p1"]
    assert tree.xattrs(walk(tree, b"p1")) == {}
    assert tree.streams(tree.root()) == ()


def test_inodes_are_unique_over_subtrees_and_links_stay_links() -> None:
    world = World(b"p1", b"p2")
    hard = [walk(world.tree, path).inode for path in (b"p1/hard", b"p2/hard")]
    folders = [world.tree.root().inode, *(node.inode for node in world.tree.children(world.tree.root()))]
    assert len({*hard, *folders}) == 5
    assert all(0 < number < 1 << 63 for number in (*hard, *folders))
    assert walk(world.tree, b"p1/hard").inode == hard[0]
    assert walk(world.tree, b"p1/id").inode == 0, "unknown stays unknown"


def test_entries_are_asked_once_in_a_while_and_on_a_miss() -> None:
    world = World(b"p1")
    for _ in range(5):
        assert world.names() == [b"p1"]
        assert world.text(b"p1/id") == b"p1"
    assert world.asked == 1
    world.add(b"p2")
    assert world.names() == [b"p1"]
    assert world.text(b"p2/id") == b"p2"
    assert world.asked == 2
    world.clock.now += 1.0
    assert world.names() == [b"p1", b"p2"]
    assert world.asked == 3


def test_a_vanished_subtree_is_closed_and_its_nodes_are_gone() -> None:
    world = World(b"p1", b"p2")
    node = walk(world.tree, b"p1/id")
    top = walk(world.tree, b"p1")
    del world.points[b"p1"]
    world.clock.now += 1.0
    assert world.tree.child(world.tree.root(), b"p1") is None
    assert world.log == ["open p1", "close p1"]
    for call in (
        lambda: world.tree.read(node, 0, 1),
        lambda: world.tree.child(top, b"id"),
        lambda: list(world.tree.children(top)),
        lambda: world.tree.readlink(node),
        lambda: world.tree.xattrs(node),
        lambda: world.tree.streams(node),
        lambda: list(world.tree.extents(node)),
    ):
        with pytest.raises(NotFoundError):
            call()


def test_another_identity_is_another_subtree() -> None:
    world = World(b"p1")
    old_node, old_top = walk(world.tree, b"p1/id"), walk(world.tree, b"p1")
    world.add(b"p1", b"new")
    world.clock.now += 1.0
    assert walk(world.tree, b"p1").key != old_top.key
    assert world.text(b"p1/id") == b"new"
    assert world.log == ["open p1", "close p1", "open new"]
    with pytest.raises(NotFoundError):
        world.tree.read(old_node, 0, 1)


def test_the_same_identity_is_kept_open() -> None:
    world = World(b"p1")
    assert world.text(b"p1/id") == b"p1"
    world.add(b"p1")
    world.clock.now += 1.0
    assert world.text(b"p1/id") == b"p1"
    assert world.log == ["open p1"]


def test_a_subtree_that_cannot_be_opened_says_why() -> None:
    world = World(b"good")
    failures = [CorruptImageError("block 7 is damaged\x1b[31m"), CorruptImageError("again")]

    def open_bad() -> MemoryTree:
        if failures:
            raise failures.pop(0)
        return Tracked(b"mended", world.log)

    world.points[b"bad"] = Entry(open=open_bad)
    assert world.names() == [b"good", b"bad"]
    assert [node.name for node in world.tree.children(walk(world.tree, b"bad"))] == [b"ERROR.txt"]
    reason = walk(world.tree, b"bad/ERROR.txt")
    assert reason.volatile
    text = world.tree.read(reason, 0, 1000)
    assert b"block 7 is damaged\\x1b[31m" in text
    assert b"CorruptImageError" in text
    assert len(failures) == 1, "a failure is remembered for a while"
    assert world.text(b"good/id") == b"good"
    world.clock.now += RETRY_S
    assert b"again" in world.text(b"bad/ERROR.txt")
    world.clock.now += RETRY_S
    assert world.text(b"bad/id") == b"mended"
    with pytest.raises(NotFoundError):
        world.tree.read(reason, 0, 10)


def test_the_reason_of_a_failure_is_never_taken_for_a_file_of_that_name() -> None:
    world = World()
    works = [False]

    def open_it() -> MemoryTree:
        if not works[0]:
            raise VolumeError("not yet")
        return MemoryTree(folder({b"ERROR.txt": Item(b"a file of the volume")}))

    world.points[b"p"] = Entry(open=open_it)
    reason = walk(world.tree, b"p/ERROR.txt")
    works[0] = True
    world.clock.now += RETRY_S
    with pytest.raises(NotFoundError):
        world.tree.read(reason, 0, 100)
    assert world.text(b"p/ERROR.txt") == b"a file of the volume"


def test_symbolic_links() -> None:
    world = World(b"p1")
    world.points[b"latest"] = Entry(link=b"p1", mtime_ns=9)
    node = world.tree.child(world.tree.root(), b"latest")
    assert node is not None
    assert (node.kind, node.size, world.tree.readlink(node)) == (NodeKind.SYMLINK, 2, b"p1")
    for call in (lambda: world.tree.read(node, 0, 1), lambda: world.tree.child(node, b"id")):
        with pytest.raises(MountfsError):
            call()
    with pytest.raises(VolumeError):
        world.tree.readlink(walk(world.tree, b"p1"))
    world.points[b"latest"] = Entry(link=b"p2")
    world.clock.now += 1.0
    with pytest.raises(NotFoundError):
        world.tree.readlink(node)


def test_an_entry_is_one_thing() -> None:
    for wrong in ({}, {"link": b"x", "open": lambda: MemoryTree(folder({}))}):
        with pytest.raises(UsageError):
            Entry(**wrong)


def test_the_longest_unused_are_closed() -> None:
    world = World(b"a", b"b", b"c", max_open=2)
    for name in (b"a", b"b", b"a", b"c"):
        assert world.text(name + b"/id") == name
    assert world.log == ["open a", "open b", "open c", "close b"]


def test_an_unfinished_listing_keeps_its_subtree_open() -> None:
    world = World(b"a", b"b", b"c", max_open=1)
    listing = world.tree.children(walk(world.tree, b"a"))
    assert next(listing).name == b"id"
    assert world.text(b"b/id") == b"b"
    assert world.text(b"c/id") == b"c"
    assert "close a" not in world.log
    assert [node.name for node in listing] == [b"hard", b"link", b"sub"]
    assert world.text(b"c/id") == b"c"
    assert world.log.count("close a") == 1


def test_close_waits_for_those_inside() -> None:
    world = World(b"a", b"b")
    assert world.text(b"b/id") == b"b"
    listing = world.tree.children(walk(world.tree, b"a"))
    next(listing)
    world.tree.close()
    world.tree.close()
    assert world.log == ["open b", "open a", "close b"]
    assert len(list(listing)) == 3
    assert world.log[-1] == "close a"
    with pytest.raises(NotFoundError):
        world.text(b"a/id")


def test_when_the_list_fails_the_last_one_stays(caplog: pytest.LogCaptureFixture) -> None:
    world = World(b"a")
    works = [True]

    def entries() -> Mapping[bytes, Entry]:
        if not works[0]:
            raise VolumeError("the repository is away")
        return world.points

    tree = FolderTree(entries, clock=world.clock)
    works[0] = False
    with pytest.raises(VolumeError):
        tree.root()
    works[0] = True
    assert tree.child(tree.root(), b"a") is not None
    works[0] = False
    world.clock.now += 10
    with caplog.at_level(logging.WARNING):
        assert tree.child(tree.root(), b"a") is not None
    assert "the repository is away" in caplog.text


def test_trees_of_trees_of_trees() -> None:
    world = World(b"p1", b"p2")
    outer = FolderTree(lambda: {b"set": Entry(open=lambda: world.tree)}, clock=world.clock)
    node = walk(outer, b"set/p1/sub/deep")
    assert outer.read(node, 0, 10) == b"p1"
    assert walk(outer, b"set/p1").volatile
    assert not node.volatile
    assert walk(outer, b"set/p1/hard").inode != walk(outer, b"set/p2/hard").inode
    del world.points[b"p1"]
    world.clock.now += 1
    with pytest.raises(NotFoundError):
        outer.read(node, 0, 10)
    outer.close()
    assert world.log == ["open p1", "open p2", "close p1", "close p2"]


def test_many_threads_open_once() -> None:
    opened = []
    barrier = threading.Barrier(8)

    def open_slowly() -> MemoryTree:
        time.sleep(0.05)
        opened.append(1)
        return MemoryTree(folder({b"id": Item(b"x")}))

    tree = FolderTree(lambda: {b"a": Entry(open=open_slowly)})
    found: list[bytes] = []

    def look() -> None:
        barrier.wait()
        found.append(tree.read(walk(tree, b"a/id"), 0, 1))

    run([look] * 8)
    assert found == [b"x"] * 8
    assert opened == [1]


def test_nothing_is_closed_under_a_reader() -> None:
    log: list[str] = []
    names = [b"%d" % number for number in range(12)]
    points = {name: Entry(open=lambda name=name: Tracked(name, log), identity=name) for name in names}
    tree = FolderTree(lambda: dict(points), max_open=3, refresh_s=0.0)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(150):
                name = names[(seed * 7 + step * 5) % len(names)]
                assert tree.read(walk(tree, name + b"/id"), 0, 10) == name
                if step % 10 == seed:
                    assert len(list(tree.children(walk(tree, name)))) == 4
        except BaseException as error:
            failures.append(error)
            raise

    run([lambda seed=seed: work(seed) for seed in range(4)])
    assert failures == []
    tree.close()
    assert log.count("open 3") == log.count("close 3") > 1
    assert sum(line.startswith("open") for line in log) == sum(line.startswith("close") for line in log)


def run(jobs: list) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
