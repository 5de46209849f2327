"""The rules of a POSIX mount, without a kernel: names, handles, listings, holes, what may be remembered."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import given

from imageformat.errors import CorruptImageError
from imageformat.extent import Extent, ExtentKind
from mountfs.foldertree import Entry, FolderTree
from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.names import to_path_name
from mountfs.posixview import NAME_LIMIT, PosixView
from mountfs.tree import NodeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mountfs.tree import Node


class Counting(MemoryTree):
    """Counts how often it is asked."""

    def __init__(self, top: Item) -> None:
        super().__init__(top)
        self.looked = 0
        self.listed = 0
        self.attributes_asked = 0

    def child(self, parent: Node, name: bytes) -> Node | None:
        self.looked += 1
        return super().child(parent, name)

    def children(self, parent: Node) -> Iterator[Node]:
        for node in super().children(parent):
            self.listed += 1
            yield node

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        self.attributes_asked += 1
        return super().xattrs(node)


def refuses(number: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    assert caught.value.errno == number


def test_a_path_is_walked_once() -> None:
    tree = Counting(folder({b"a": folder({b"b": folder({b"c": Item(b"x")})})}))
    view = PosixView(tree)
    for _ in range(3):
        assert view.attributes(b"/a/b/c").size == 1
    assert tree.looked == 3
    view.attributes(b"/a/b")
    assert tree.looked == 3
    for _ in range(2):
        refuses(errno.ENOENT, view.attributes, b"/a/b/d")
    assert tree.looked == 5, "what is absent is not remembered"


def test_no_more_paths_are_remembered_than_allowed() -> None:
    tree = Counting(folder({b"%d" % number: Item(b"") for number in range(10)}))
    view = PosixView(tree, paths=4)
    for number in range(10):
        view.attributes(b"/%d" % number)
    assert len(view._places) == 4
    view.attributes(b"/9")
    assert tree.looked == 10
    view.attributes(b"/0")
    assert tree.looked == 11


def test_a_listing_teaches_the_paths() -> None:
    tree = Counting(folder({b"a": Item(b"x"), b"b": Item(b"")}))
    view = PosixView(tree)
    list(view.listing(view.open_folder(b"/"), 0))
    assert view.attributes(b"/a").size == 1
    assert tree.looked == 0


def test_a_path_deeper_than_the_stack() -> None:
    item = Item(b"bottom")
    for _ in range(3000):
        item = folder({b"d": item})
    view = PosixView(MemoryTree(item))
    path = b"/d" * 3000
    assert view.attributes(path).size == 6


@given(st.binary(min_size=0, max_size=12), st.binary(max_size=12))
def test_every_name_can_be_listed_and_opened(name: bytes, other: bytes) -> None:
    view = PosixView(MemoryTree(folder({name: Item(b"one"), other: Item(b"two")})))
    handle = view.open_folder(b"/")
    shown = [entry[1] for entry in view.listing(handle, 0)][2:]
    assert len(set(shown)) == len({name, other})
    for component in shown:
        assert b"/" not in component
        assert b"\0" not in component
        assert component not in {b"", b".", b".."}
    assert view.attributes(b"/" + to_path_name(other)).size == 3


def test_a_name_that_no_kernel_takes_does_not_spoil_the_listing() -> None:
    view = PosixView(MemoryTree(folder({b"z" * (NAME_LIMIT + 1): Item(b""), b"ok": Item(b"")})))
    assert [name for _, name, _ in view.listing(view.open_folder(b"/"), 0)] == [b".", b"..", b"ok"]


@given(st.data())
def test_a_listing_in_pieces_is_the_listing(data: st.DataObject) -> None:
    names = [b"%02d" % number for number in range(data.draw(st.integers(0, 20)))]
    tree = Counting(folder({name: Item(b"") for name in names}))
    view = PosixView(tree)
    handle = view.open_folder(b"/")
    seen: list[bytes] = []
    position = 0
    while True:
        room = data.draw(st.integers(1, 7))
        taken = 0
        for after, name, _ in view.listing(handle, position):
            if taken == room:
                break
            taken += 1
            seen.append(name)
            position = after
        if not taken:
            break
    assert seen == [b".", b"..", *names]
    assert tree.listed == len(names), "the folder was read once"
    start = data.draw(st.integers(0, len(names) + 4))
    assert [name for _, name, _ in view.listing(handle, start)] == [b".", b"..", *names][start:]


def test_types_and_modes() -> None:
    kinds = {kind.name.encode(): Item(kind=kind, mode=0o7777, device=(4, 5)) for kind in NodeKind}
    view = PosixView(MemoryTree(folder(kinds)), umask=0o022)
    for kind in NodeKind:
        mode = view.attributes(b"/" + kind.name.encode()).mode
        if kind is NodeKind.DIRECTORY:
            assert mode == stat.S_IFDIR | 0o755
        elif kind is NodeKind.SYMLINK:
            assert mode == stat.S_IFLNK | 0o777
        else:
            assert mode == stat.S_IFREG | (0o755 if kind is NodeKind.FILE else 0o644)
    assert view.xattrs(b"/FIFO") == {b"user.mountfs.type": b"fifo"}
    assert view.xattrs(b"/BLOCK_DEVICE")[b"user.mountfs.device"] == b"4:5"
    assert view.xattrs(b"/FILE") == view.xattrs(b"/DIRECTORY") == view.xattrs(b"/SYMLINK") == {}
    assert view.read(view.open(b"/FIFO", os.O_RDONLY), 0, 10) == b""


def test_inodes() -> None:
    view = PosixView(MemoryTree(folder({b"a": Item(b"", inode=5), b"b": Item(b""), b"c": Item(b"")})))
    assert view.attributes(b"/a").inode == 5
    numbers = {view.attributes(path).inode for path in (b"/", b"/a", b"/b", b"/c")}
    assert len(numbers) == 4
    handle = view.open(b"/b", 0)
    assert view.handle_attributes(handle) == view.attributes(b"/b")


def test_streams() -> None:
    streams = {b"s": b"abc", b"odd/\0": b"odd", b"a:b": b"no"}
    tree = MemoryTree(folder({b"f:x": Item(b"m", streams=streams, mode=0o755, inode=3), b"d": folder({})}))
    view = PosixView(tree)
    found = view.attributes(b"/f:x:s")
    assert (found.mode, found.size) == (stat.S_IFREG | 0o644, 3)
    assert found.inode not in {0, 3}, "a stream is no hard link of its file"
    assert view.read(view.open(b"/f:x:s", 0), 1, 10) == b"bc"
    assert view.read(view.open(b"/f:x:%escaped%odd%2F%00", 0), 0, 10) == b"odd"
    assert view.xattrs(b"/f:x:s") == {}
    assert view.xattrs(b"/f:x")[b"user.mountfs.streams"] == b"s\n%escaped%odd%2F%00\na:b"
    for path in (b"/f:x:none", b"/f:x:", b"/:s", b"/none:s", b"/d:s"):
        refuses(errno.ENOENT, view.attributes, path)
    refuses(errno.ENOTDIR, view.attributes, b"/f:x:s/deeper")
    refuses(errno.ENOTDIR, view.open_folder, b"/f:x:s")
    refuses(errno.EINVAL, view.readlink, b"/f:x:s")


def test_opening_for_writing_is_refused() -> None:
    view = PosixView(MemoryTree(folder({b"f": Item(b"")})))
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_APPEND, os.O_CREAT):
        refuses(errno.EROFS, view.open, b"/f", flags)
    refuses(errno.EISDIR, view.open, b"/", os.O_RDONLY)
    refuses(errno.ENOTDIR, view.open_folder, b"/f")


@pytest.mark.parametrize("given_bytes", [0, 5, 9, 11, 20])
def test_a_read_of_the_wrong_length_is_an_error(given_bytes: int) -> None:
    view = PosixView(
        MemoryTree(folder({b"f": Item(size=100, read=lambda _offset, _size: bytes(given_bytes))}))
    )
    handle = view.open(b"/f", 0)
    with pytest.raises(CorruptImageError, match="instead of 10"):
        view.read(handle, 0, 10)
    with pytest.raises(CorruptImageError):
        view.read(handle, 90, 20)
    assert view.read(handle, 100, 10) == b""


def test_attributes_are_asked_once_for_a_series_of_calls() -> None:
    tree = Counting(folder({b"f": Item(b"", xattrs={"user.a": b"1"}), b"g": Item(b"")}))
    view = PosixView(tree)
    for _ in range(3):
        assert view.xattrs(b"/f") == {b"user.a": b"1"}
    assert tree.attributes_asked == 1
    assert view.xattrs(b"/g") == {}
    assert view.xattrs(b"/f") == {b"user.a": b"1"}
    long = PosixView(MemoryTree(folder({b"f": Item(b"", xattrs={"": b"", "x" * 256: b"", "é": b"1"})})))
    assert long.xattrs(b"/f") == {"é".encode(): b"1"}


@given(st.data())
def test_seeking_agrees_with_a_map_of_the_bytes(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(list(ExtentKind)), min_size=1, max_size=8))
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=len(kinds), max_size=len(kinds)))
    extents, position = [], 0
    for kind, length in zip(kinds, lengths, strict=True):
        extents.append(Extent(position, length, kind))
        position += length
    size = data.draw(st.integers(max(1, position - 2), position))
    item = Item(size=size, read=lambda _offset, count: bytes(count), holes=tuple(extents))
    view = PosixView(MemoryTree(folder({b"f": item})))
    handle = view.open(b"/f", 0)
    is_data = [
        extent.kind not in {ExtentKind.ZERO, ExtentKind.UNUSED}
        for extent in extents
        for _ in range(extent.length)
    ]
    is_data = is_data[:size]
    for offset in range(size):
        hole = next((index for index in range(offset, size) if not is_data[index]), size)
        assert view.seek(handle, offset, os.SEEK_HOLE) == hole
        if any(is_data[offset:]):
            assert view.seek(handle, offset, os.SEEK_DATA) == is_data.index(True, offset)
        else:
            refuses(errno.ENXIO, view.seek, handle, offset, os.SEEK_DATA)
    refuses(errno.ENXIO, view.seek, handle, size, os.SEEK_HOLE)
    refuses(errno.ENXIO, view.seek, handle, -1, os.SEEK_DATA)
    refuses(errno.EINVAL, view.seek, handle, 0, os.SEEK_CUR)


def test_what_lies_below_a_point_lives_as_long_as_the_point() -> None:
    points = {
        b"p": Entry(open=lambda: MemoryTree(folder({b"s": folder({b"f": Item(b"old")})})), identity=b"1")
    }
    view = PosixView(FolderTree(lambda: dict(points), refresh_s=0.0))
    old = view.attributes(b"/p/s/f")
    assert view.attributes(b"/p").volatile is not None
    assert view.attributes(b"/").volatile is not None
    assert old.volatile is None
    handle = view.open(b"/p/s/f", 0)
    before = view.attributes(b"/p").volatile
    new = MemoryTree(folder({b"s": folder({b"f": Item(b"newer")})}))
    points[b"p"] = Entry(open=lambda: new, identity=b"2")
    assert view.attributes(b"/p/s/f").size == 5
    assert view.attributes(b"/p").volatile != before
    with pytest.raises(Exception, match="gone"):
        view.read(handle, 0, 3)
    del points[b"p"]
    refuses(errno.ENOENT, view.attributes, b"/p/s/f")


def test_threads_may_share_a_view() -> None:
    content = {b"%d" % number: Item(b"%d" % number * 50) for number in range(200)}
    view = PosixView(MemoryTree(folder({b"d": folder(content)})), paths=20)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(300):
                name = b"%d" % ((seed * 13 + step * 7) % 200)
                handle = view.open(b"/d/" + name, 0)
                assert view.read(handle, 0, 1000) == name * 50
                view.release(handle)
            listing = view.open_folder(b"/d")
            assert len(list(view.listing(listing, 0))) == 202
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert view._files == {}
