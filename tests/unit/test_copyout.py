"""Copying out of trees kept in memory; what arrives is judged with lstat, readlink, SHA-256 and SEEK_HOLE."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import itertools
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imageformat.errors import (
    AccessDeniedError,
    CorruptImageError,
    DestinationError,
    DestinationFullError,
    DestinationReadOnlyError,
    InterruptedByUserError,
    UsageError,
    VolumeError,
)
from imageformat.extent import Extent, ExtentKind
from mountfs.copyout import (
    CopyEvent,
    CopyOptions,
    CopyProgress,
    CopyResult,
    Failure,
    Loss,
    LossKind,
    Overwrite,
    copy_out,
    measure,
)
from mountfs.copyout.folder import open_folder
from mountfs.names import to_path_name
from mountfs.tree import Node, NodeKind, Stream, walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KIB, MIB = 1 << 10, 1 << 20


@dataclass
class Item:
    node: Node
    children: list[Item] = field(default_factory=list)
    data: dict[int, bytes] = field(default_factory=dict)
    target: bytes = b""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    streams: dict[bytes, bytes] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)


class MemoryTree:
    """A tree of items; `damaged` offsets cannot be read."""

    def __init__(self, top: Item) -> None:
        self._items: dict[object, Item] = {}
        self._top = top
        self._add(top)

    def _add(self, item: Item) -> None:
        if item.node.key not in self._items:
            self._items[item.node.key] = item
            for child in item.children:
                self._add(child)

    def root(self) -> Node:
        return self._top.node

    def child(self, parent: Node, name: bytes) -> Node | None:
        return next((node for node in self.children(parent) if node.name == name), None)

    def children(self, parent: Node) -> Iterator[Node]:
        for item in self._items[parent.key].children:
            if item.node.name == b"UNLISTABLE":
                raise VolumeError("the folder is damaged here")
            yield item.node

    def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:
        item = self._items[node.key]
        if stream is not None:
            if stream == b"damaged":
                raise CorruptImageError("stream damaged")
            return item.streams[stream][offset : offset + size]
        if any(offset <= place < offset + size for place in item.damaged):
            raise CorruptImageError(f"block at {min(item.damaged)} is damaged")
        size = max(0, min(size, node.size - offset))
        buffer = bytearray(size)
        for start, chunk in item.data.items():
            low, high = max(start, offset), min(start + len(chunk), offset + size)
            if low < high:
                buffer[low - offset : high - offset] = chunk[low - start : high - start]
        return bytes(buffer)

    def extents(self, node: Node) -> Iterator[Extent]:
        position = 0
        for start, chunk in sorted(self._items[node.key].data.items()):
            if start > position:
                yield Extent(position, start - position, ExtentKind.ZERO)
            yield Extent(start, len(chunk), ExtentKind.DATA)
            position = start + len(chunk)
        if position < node.size:
            yield Extent(position, node.size - position, ExtentKind.ZERO)

    def readlink(self, node: Node) -> bytes:
        return self._items[node.key].target

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        found = self._items[node.key].xattrs
        if "damaged" in found:
            raise VolumeError("attributes damaged")
        return found

    def streams(self, node: Node) -> tuple[Stream, ...]:
        return tuple(Stream(name, len(value)) for name, value in self._items[node.key].streams.items())

    def close(self) -> None:
        pass


def node(name: bytes, kind: NodeKind, **values: Any) -> Node:
    defaults = {
        "key": object(),
        "mode": 0o644 if kind is not NodeKind.DIRECTORY else 0o755,
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "atime_ns": 1_111_111_111_123_456_789,
        "mtime_ns": 987_654_321_987_654_321,
    }
    return Node(name=name, kind=kind, **(defaults | values))


def file(
    name: bytes, data: bytes | dict[int, bytes] = b"content", size: int | None = None, **values: Any
) -> Item:
    chunks = {0: data} if isinstance(data, bytes) else data
    chunks = {start: chunk for start, chunk in chunks.items() if chunk}
    end = max((start + len(chunk) for start, chunk in chunks.items()), default=0)
    extra = {key: values.pop(key) for key in ("xattrs", "streams", "damaged") if key in values}
    length = end if size is None else size
    return Item(node(name, NodeKind.FILE, size=length, **values), data=chunks, **extra)


def folder(name: bytes, *children: Item, **values: Any) -> Item:
    extra = {key: values.pop(key) for key in ("xattrs", "streams") if key in values}
    return Item(node(name, NodeKind.DIRECTORY, **values), children=list(children), **extra)


def link(name: bytes, target: bytes, **values: Any) -> Item:
    return Item(node(name, NodeKind.SYMLINK, mode=0o777, **values), target=target)


def special(name: bytes, kind: NodeKind, **values: Any) -> Item:
    return Item(node(name, kind, **values))


def again(item: Item, name: bytes) -> Item:
    """A second name of the same thing."""
    return replace(item, node=replace(item.node, name=name))


def copy(
    top: Item,
    target: Path,
    *paths: bytes,
    options: CopyOptions | None = None,
    events: list[CopyEvent] | None = None,
    tree: MemoryTree | None = None,
) -> CopyResult:
    source = tree or MemoryTree(top)
    sources = [(path, walk(source, path)) for path in paths or (b"/",)]
    return copy_out(
        source,
        sources,
        target,
        options or CopyOptions(),
        events.append if events is not None else lambda _: None,
    )


def open_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def everything_below(path: Path) -> set[str]:
    return {
        str((Path(top) / name).relative_to(path))
        for top, dirs, files in os.walk(path)
        for name in dirs + files
    }


def kinds(result: CopyResult) -> set[LossKind]:
    return {loss.what for loss in result.losses}


# ---------------------------------------------------------------- what arrives


def test_everything_arrives_as_it_was(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(3 * MIB + 17)
    top = folder(
        b"",
        folder(
            b"docs",
            file(b"a.txt", content, mode=0o640),
            file(b"empty", b""),
            link(b"l", b"../no such/thing"),
            folder(b"deep", file(b"x", b"x", mode=0o400), mode=0o511, mtime_ns=5),
            mode=0o750,
        ),
    )
    target = tmp_path / "new"
    result = copy(top, target, b"docs")
    assert result.failure_count == 0
    assert result.losses == ()
    assert (result.files, result.folders, result.links, result.bytes) == (3, 2, 1, len(content) + 1)
    assert everything_below(target) == {"a.txt", "empty", "l", "deep", "deep/x"}
    assert (target / "a.txt").stat().st_atime_ns == 1_111_111_111_123_456_789
    assert hashlib.sha256((target / "a.txt").read_bytes()).digest() == hashlib.sha256(content).digest()
    assert stat.S_IMODE((target / "a.txt").stat().st_mode) == 0o640
    assert (target / "l").readlink() == Path("../no such/thing")
    for path in (target, target / "a.txt", target / "l"):
        assert path.lstat().st_mtime_ns == 987_654_321_987_654_321
    assert (target / "deep").stat().st_mtime_ns == 5
    assert stat.S_IMODE((target / "deep").stat().st_mode) == 0o511
    assert stat.S_IMODE(target.stat().st_mode) == 0o750


def test_a_source_goes_into_an_existing_folder(tmp_path: Path) -> None:
    top = folder(b"", file(b"a", b"1"), file(b"b", b"2"))
    copy(top, tmp_path, b"a", b"b")
    copy(top, tmp_path / "c", b"a")
    copy(folder(b"", folder(b"d", file(b"e", b"3"))), tmp_path, b"/d/")
    assert everything_below(tmp_path) == {"a", "b", "c", "d", "d/e"}
    assert (tmp_path / "c").read_bytes() == b"1"


def test_the_root_has_no_name_and_is_poured_in(tmp_path: Path) -> None:
    top = folder(b"", file(b"a"), folder(b"d", file(b"x")))
    result = copy(top, tmp_path)
    assert everything_below(tmp_path) == {"a", "d", "d/x"}
    assert result.loss_counts == {LossKind.FOLDER: 1}, "the folder was there and keeps its own attributes"
    copy(top, tmp_path / "fresh")
    assert everything_below(tmp_path / "fresh") == {"a", "d", "d/x"}


def test_targets_that_make_no_sense(tmp_path: Path) -> None:
    top = folder(b"", file(b"a"), file(b"b"))
    with pytest.raises(UsageError, match="not a folder"):
        copy(top, tmp_path / "none", b"a", b"b")
    with pytest.raises(DestinationError, match="No such file"):
        copy(top, tmp_path / "none" / "x", b"a")
    (tmp_path / "plain").write_text("")
    with pytest.raises(DestinationError):
        copy(top, tmp_path / "plain" / "x", b"a")
    with pytest.raises(UsageError):
        copy(top, tmp_path / "plain", b"a", b"b")
    with pytest.raises(UsageError):
        copy_out(MemoryTree(top), [], tmp_path, CopyOptions(), lambda _: None)
    with pytest.raises(UsageError):
        copy(top, Path("nul\0name"), b"a")


def test_holes_stay_holes(tmp_path: Path) -> None:
    chunks = {64 * KIB: b"A" * 4096, 5 * MIB: b"B" * 8192, 40 * MIB - 4096: b"C" * 4096}
    top = folder(b"", file(b"sparse", chunks, size=64 * MIB), file(b"hole", {}, size=MIB))
    result = copy(top, tmp_path / "t")
    path = tmp_path / "t" / "sparse"
    status = path.stat()
    assert status.st_size == 64 * MIB
    assert status.st_blocks * 512 < 128 * KIB
    assert result.bytes == 16384
    expected = bytearray(64 * MIB)
    for start, chunk in chunks.items():
        expected[start : start + len(chunk)] = chunk
    assert path.read_bytes() == bytes(expected)
    with path.open("rb") as opened:
        found, position = [], 0
        while True:
            try:
                position = os.lseek(opened.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            found.append(position)
            position = os.lseek(opened.fileno(), position, os.SEEK_HOLE)
    assert found == sorted(chunks)
    assert (tmp_path / "t" / "hole").stat().st_blocks == 0


def test_hard_links_stay_one_file(tmp_path: Path) -> None:
    first = file(b"one", b"shared", inode=77, links=3)
    top = folder(
        b"",
        first,
        folder(b"d", again(first, b"two"), mode=0o500),
        again(first, b"three"),
        file(b"x", inode=78),
    )
    result = copy(top, tmp_path / "t")
    places = [tmp_path / "t" / name for name in ("one", "d/two", "three")]
    assert len({path.stat().st_ino for path in places}) == 1
    assert places[0].stat().st_nlink == 3
    assert (result.files, result.bytes, result.losses) == (4, len(b"shared") + len(b"content"), ())
    assert measure(MemoryTree(top), [(b"/", top.node)]) == (4, len(b"shared") + len(b"content"))


def test_hard_links_of_symbolic_links(tmp_path: Path) -> None:
    first = link(b"one", b"x", inode=5, links=2)
    copy(folder(b"", first, again(first, b"two")), tmp_path / "t")
    assert (tmp_path / "t" / "one").lstat().st_ino == (tmp_path / "t" / "two").lstat().st_ino


def test_hard_links_that_cannot_be_told_are_a_loss(tmp_path: Path) -> None:
    result = copy(folder(b"", file(b"one", inode=0, links=2)), tmp_path / "t")
    assert kinds(result) == {LossKind.HARD_LINK}


def test_a_linked_file_replaced_meanwhile_is_copied_again(tmp_path: Path) -> None:
    first = file(b"one", b"shared", inode=77, links=2)
    top = folder(b"", first, again(first, b"two"))

    def swap(event: CopyEvent) -> None:
        if isinstance(event, CopyProgress) and event.files_done == 1 and (tmp_path / "t/one").exists():
            (tmp_path / "t/one").unlink(missing_ok=True)
            (tmp_path / "t/one").symlink_to("/etc/passwd")

    result = copy_out(MemoryTree(top), [(b"/", top.node)], tmp_path / "t", CopyOptions(), swap)
    assert (tmp_path / "t/two").read_bytes() == b"shared"
    assert not (tmp_path / "t/two").is_symlink()
    assert kinds(result) == {LossKind.HARD_LINK}


def test_extended_attributes_and_streams(tmp_path: Path) -> None:
    top = folder(
        b"",
        file(
            b"a",
            xattrs={
                "user.one": b"1",
                "user.same": b"x",
                "nonsense": b"",
                "user.nul\0": b"",
                "user.\ud800": b"",
            },
            streams={b"Zone.Identifier": b"[Zone]", b"same": b"y", b"huge": bytes(65537)},
        ),
        xattrs={"user.dir": b"d"},
        streams={b"s": b"of folder"},
    )
    result = copy(top, tmp_path / "t")
    path = tmp_path / "t" / "a"
    assert {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.")} == {
        "user.one": b"1",
        "user.same": b"x",
        "user.Zone.Identifier": b"[Zone]",
    }
    assert os.getxattr(tmp_path / "t", "user.s") == b"of folder"
    assert result.loss_counts == {LossKind.ATTRIBUTE: 3, LossKind.STREAM: 2}
    assert result.failure_count == 0


def test_damaged_attributes_and_streams_are_failures_but_the_file_arrives(tmp_path: Path) -> None:
    top = folder(
        b"", file(b"a", streams={b"damaged": b"1", b"fine": b"2"}), file(b"b", xattrs={"damaged": b""})
    )
    result = copy(top, tmp_path / "t")
    assert {failure.path for failure in result.failures} == {b"/a:damaged", b"/b"}
    assert everything_below(tmp_path / "t") == {"a", "b"}
    assert os.getxattr(tmp_path / "t" / "a", "user.fine") == b"2"


def test_set_id_bits_are_dropped_and_told(tmp_path: Path) -> None:
    top = folder(b"", file(b"su", mode=0o4755), folder(b"tmp", mode=0o1777), file(b"sg", mode=0o2755))
    result = copy(top, tmp_path / "t")
    assert [stat.S_IMODE((tmp_path / "t" / name).stat().st_mode) for name in ("su", "tmp", "sg")] == [
        0o755,
        0o777,
        0o755,
    ]
    assert result.loss_counts == {LossKind.SPECIAL_BITS: 3}
    result = copy(top, tmp_path / "k", options=CopyOptions(keep_special_bits=True))
    assert stat.S_IMODE((tmp_path / "k" / "su").stat().st_mode) == 0o4755
    assert stat.S_IMODE((tmp_path / "k" / "tmp").stat().st_mode) == 0o1777
    assert result.losses == ()


@pytest.mark.root
def test_owners_and_privileged_attributes(tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    top = folder(
        b"",
        file(
            b"a",
            uid=12345,
            gid=54321,
            mode=0o6755,
            xattrs={"trusted.x": b"t", "security.capability": capability},
        ),
        link(b"l", b"a", uid=12345, gid=54321),
        file(b"nobody", uid=2**32 - 1, gid=2**40),
        uid=7,
    )
    top.children[1].xattrs["trusted.l"] = b"link"
    result = copy(top, tmp_path / "t")
    for name in ("a", "l"):
        status = (tmp_path / "t" / name).lstat()
        assert (status.st_uid, status.st_gid) == (12345, 54321)
    assert os.getxattr(tmp_path / "t" / "a", "trusted.x") == b"t"
    assert os.getxattr(tmp_path / "t" / "l", "trusted.l", follow_symlinks=False) == b"link"
    assert "security.capability" not in os.listxattr(tmp_path / "t" / "a")
    assert result.loss_counts == {LossKind.SPECIAL_BITS: 2, LossKind.OWNER: 1}
    assert (tmp_path / "t").stat().st_uid == 7
    kept = copy(top, tmp_path / "k", b"a", options=CopyOptions(keep_special_bits=True))
    assert kept.losses == ()
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o6755
    assert os.getxattr(tmp_path / "k", "security.capability") == capability


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can reach; those of pytest are closed to others."""
    place = Path(tempfile.mkdtemp(prefix="mountfs-test-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.root
def test_without_root_the_owner_is_a_loss_and_set_id_is_not_given_to_the_wrong_one(public: Path) -> None:
    top = folder(b"", file(b"a", uid=0, gid=0, mode=0o4755))
    os.chown(public, 65534, 65534)
    with as_nobody():
        result = copy(top, public, b"a", options=CopyOptions(keep_special_bits=True))
    assert result.failure_count == 0
    assert kinds(result) == {LossKind.OWNER, LossKind.SPECIAL_BITS}
    assert stat.S_IMODE((public / "a").stat().st_mode) == 0o755
    (public / "a").unlink()
    with as_nobody():
        result = copy(top, public, b"a", options=CopyOptions(keep_owner=False))
    assert kinds(result) == {LossKind.SPECIAL_BITS}


def test_special_files_are_skipped_and_told(tmp_path: Path) -> None:
    all_kinds = [NodeKind.FIFO, NodeKind.SOCKET, NodeKind.CHARACTER_DEVICE, NodeKind.BLOCK_DEVICE]
    top = folder(b"", *(special(kind.name.encode(), kind) for kind in all_kinds))
    result = copy(top, tmp_path / "t")
    assert everything_below(tmp_path / "t") == set()
    assert result.loss_counts == {LossKind.SPECIAL_FILE: 4}


@pytest.mark.root
def test_special_files_are_made_when_wanted(tmp_path: Path) -> None:
    top = folder(
        b"",
        special(b"f", NodeKind.FIFO, mode=0o622),
        special(b"s", NodeKind.SOCKET),
        special(b"c", NodeKind.CHARACTER_DEVICE, device=(1, 3), mode=0o666),
        special(b"b", NodeKind.BLOCK_DEVICE, device=(259, 70000), uid=3),
        special(b"bad", NodeKind.BLOCK_DEVICE, device=(2**40, -1)),
    )
    result = copy(top, tmp_path / "t", options=CopyOptions(special_files=True))
    status = {name: (tmp_path / "t" / name).lstat() for name in "fscb"}
    assert stat.S_ISFIFO(status["f"].st_mode)
    assert stat.S_IMODE(status["f"].st_mode) == 0o622
    assert stat.S_ISSOCK(status["s"].st_mode)
    assert stat.S_ISCHR(status["c"].st_mode)
    assert stat.S_IMODE(status["c"].st_mode) == 0o666
    assert status["c"].st_rdev == os.makedev(1, 3)
    assert status["b"].st_rdev == os.makedev(259, 70000)
    assert status["b"].st_uid == 3
    assert (result.special, result.losses) == (4, ())
    assert [failure.path for failure in result.failures] == [b"/bad"]


# ---------------------------------------------------------------- what is there already


def test_existing_files_are_refused_or_replaced(tmp_path: Path) -> None:
    top = folder(b"", folder(b"d", file(b"a", b"new"), link(b"l", b"new"), file(b"fresh", b"f")))
    (tmp_path / "d").mkdir(0o700)
    (tmp_path / "d/a").write_bytes(b"old")
    (tmp_path / "d/l").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_bytes(b"untouched")
    result = copy(top, tmp_path, b"d")
    assert {failure.path for failure in result.failures} == {b"d/a", b"d/l"}
    assert all("--overwrite" in str(failure.error) for failure in result.failures)
    assert (tmp_path / "d/a").read_bytes() == b"old"
    assert (tmp_path / "d/fresh").read_bytes() == b"f"
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
    assert kinds(result) == {LossKind.FOLDER}
    for _ in range(2):
        result = copy(top, tmp_path, b"d", options=CopyOptions(overwrite=Overwrite.REPLACE))
        assert (result.failures, result.losses) == ((), ())
        assert (tmp_path / "d/a").read_bytes() == b"new"
        assert (tmp_path / "d/l").readlink() == Path("new")
        assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o755
        assert everything_below(tmp_path / "d") == {"a", "l", "fresh"}
    assert (tmp_path / "victim").read_bytes() == b"untouched"


def test_hard_links_are_replaced_too(tmp_path: Path) -> None:
    first = file(b"one", b"shared", inode=77, links=2)
    top = folder(b"", folder(b"d", first, again(first, b"two")))
    for _ in range(2):
        result = copy(top, tmp_path, b"d", options=CopyOptions(overwrite=Overwrite.REPLACE))
        assert result.failures == ()
        assert everything_below(tmp_path / "d") == {"one", "two"}
        assert (tmp_path / "d/one").stat().st_ino == (tmp_path / "d/two").stat().st_ino


def test_a_folder_is_never_replaced_by_a_file_nor_a_file_by_a_folder(tmp_path: Path) -> None:
    top = folder(b"", file(b"x"), folder(b"y", file(b"inner")))
    (tmp_path / "x").mkdir()
    (tmp_path / "y").write_bytes(b"old")
    result = copy(top, tmp_path, options=CopyOptions(overwrite=Overwrite.REPLACE))
    assert {failure.path for failure in result.failures} == {b"/x", b"/y"}
    assert (tmp_path / "x").is_dir()
    assert (tmp_path / "y").read_bytes() == b"old"
    assert everything_below(tmp_path) == {"x", "y"}


def test_folders_of_the_same_name_from_two_sources_are_merged(tmp_path: Path) -> None:
    top = folder(b"", folder(b"p", folder(b"d", file(b"1"))), folder(b"q", folder(b"d", file(b"2"))))
    result = copy(top, tmp_path, b"p/d", b"q/d")
    assert result.failures == ()
    assert everything_below(tmp_path) == {"d", "d/1", "d/2"}


def test_one_name_twice_in_a_folder_never_replaces_silently(tmp_path: Path) -> None:
    top = folder(
        b"", file(b"a", b"first"), file(b"a", b"second"), folder(b"d", file(b"1")), folder(b"d", file(b"2"))
    )
    for overwrite in Overwrite:
        target = tmp_path / overwrite.value
        result = copy(top, target, options=CopyOptions(overwrite=overwrite))
        assert [failure.path for failure in result.failures] == [b"/a", b"/d"]
        assert (target / "a").read_bytes() == b"first"
        assert everything_below(target) == {"a", "d", "d/1"}


# ---------------------------------------------------------------- damage


def test_a_damaged_block_costs_that_file_only(tmp_path: Path) -> None:
    big = bytes(range(256)) * (12 * KIB)
    top = folder(b"", file(b"a", b"1"), file(b"hurt", big, damaged={2 * MIB + 5}), file(b"z", b"2"))
    events: list[CopyEvent] = []
    result = copy(top, tmp_path / "t", events=events)
    assert everything_below(tmp_path / "t") == {"a", "z"}
    (failure,) = result.failures
    assert failure.path == b"/hurt"
    assert isinstance(failure.error, CorruptImageError)
    assert str(2 * MIB + 5) in str(failure.error)
    assert failure in events
    assert (result.failure_count, result.files) == (1, 2)


def test_a_damaged_file_leaves_the_old_one_in_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old and good")
    top = folder(b"", file(b"a", b"new", damaged={1}))
    result = copy(top, tmp_path, options=CopyOptions(overwrite=Overwrite.REPLACE))
    assert result.failure_count == 1
    assert (tmp_path / "a").read_bytes() == b"old and good"
    assert everything_below(tmp_path) == {"a"}


class LyingTree(MemoryTree):
    """Says of every file what it was told to say."""

    def __init__(self, top: Item, extents: list[Extent], short: int = 0) -> None:
        super().__init__(top)
        self._extents = extents
        self._short = short

    def extents(self, node: Node) -> Iterator[Extent]:  # noqa: ARG002
        yield from self._extents

    def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:
        return super().read(node, offset, size - self._short, stream)


DATA, ZERO, BAD, UNUSED = ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.BAD, ExtentKind.UNUSED


@pytest.mark.parametrize(
    "extents",
    [
        [],
        [Extent(0, 6, DATA)],
        [Extent(0, 8, DATA)],
        [Extent(1, 6, DATA)],
        [Extent(0, 3, DATA), Extent(4, 3, DATA)],
        [Extent(0, 3, DATA), Extent(2, 5, ZERO)],
        [Extent(0, 9, ZERO), Extent(9, -2, DATA)],
        [Extent(0, 3, DATA), Extent(3, 4, BAD)],
    ],
)
def test_extents_that_contradict_each_other_never_become_zeros(tmp_path: Path, extents: list[Extent]) -> None:
    top = folder(b"", file(b"a", b"content"))
    result = copy(top, tmp_path / "t", tree=LyingTree(top, extents))
    assert result.failure_count == 1
    assert everything_below(tmp_path / "t") == set()


def test_a_short_read_never_becomes_zeros(tmp_path: Path) -> None:
    top = folder(b"", file(b"a", b"content"))
    result = copy(top, tmp_path / "t", tree=LyingTree(top, [Extent(0, 7, DATA)], short=1))
    assert [failure.path for failure in result.failures] == [b"/a"]
    assert everything_below(tmp_path / "t") == set()


def test_unused_space_of_a_file_is_read_not_assumed(tmp_path: Path) -> None:
    top = folder(b"", file(b"a", b"content"))
    copy(top, tmp_path / "t", tree=LyingTree(top, [Extent(0, 7, UNUSED)]))
    assert (tmp_path / "t/a").read_bytes() == b"content"


def test_a_folder_whose_list_breaks_off(tmp_path: Path) -> None:
    top = folder(b"", folder(b"d", file(b"1"), file(b"UNLISTABLE"), file(b"2"), mode=0o750), file(b"after"))
    result = copy(top, tmp_path / "t")
    assert everything_below(tmp_path / "t") == {"d", "d/1", "after"}
    assert [failure.path for failure in result.failures] == [b"/d"]
    assert stat.S_IMODE((tmp_path / "t/d").stat().st_mode) == 0o750


def test_lists_are_bounded_counts_are_not(tmp_path: Path) -> None:
    top = folder(b"", *(file(b"%d" % number, mode=0o4755, damaged={0}) for number in range(20)))
    top.children += [file(b"s%d" % number, mode=0o4755) for number in range(20)]
    events: list[CopyEvent] = []
    result = copy(top, tmp_path / "t", options=CopyOptions(max_listed=5), events=events)
    assert (len(result.failures), result.failure_count) == (5, 20)
    assert (len(result.losses), result.loss_counts) == (5, {LossKind.SPECIAL_BITS: 20})
    assert sum(isinstance(event, Failure) for event in events) == 20
    assert sum(isinstance(event, Loss) for event in events) == 20


# ---------------------------------------------------------------- hostile trees

NASTY = [
    b"", b".", b"..", b"../../escaped", b"/", b"/etc/passwd", b"//", b"a/b", b"..\\..", b"\0", b"a\0b",
    b"\0\0", b"%00", b"%2F", b"%2f", b"%2E", b"%2E%2E", b"%empty", b"%", b"%25", b"%25empty", b"%%2F",
    b"new\nline", b"\r", b"\t", b"\x1b[2J", b"\x1b]0;title\x07", b"\x9b31m", b"\xc2\x9b31m", b"\x7f",
    b"\x08\x08", b" ", b" lead", b"trail ", b"-rf", b"--help", b"~", b"~root", b"$HOME", b"$(id)", b"`id`",
    b"*", b"?", b"[red]x", b"'", b'"', b";ls", b"|", b"&", b"\\", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xaf",
    b"\xc0\xae\xc0\xae", "\u202egpj.exe".encode(), "\u2066x\u2069".encode(), "\u2028".encode(),
    "e\u0301".encode(), "é".encode(), b"n" * 255, b"CON", b"aux.txt", b"x:stream", b".mountfs-x.part",
    b"...", b"\xe2\x80\x8b",
]  # fmt: skip


def test_sixty_nasty_names_stay_inside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "in" / "t"
    target.parent.mkdir()
    assert len(set(NASTY)) == len(NASTY) >= 60
    top = folder(
        b"",
        folder(b"files", *(file(name, b"%d" % index) for index, name in enumerate(NASTY))),
        folder(b"folders", *(folder(name, file(name, b"x")) for name in NASTY)),
        folder(b"links", *(link(name, os.fsencode(outside)) for name in NASTY)),
        folder(b"long", file(b"/" * 200), file(b"n" * 256), file(b"fine")),
    )
    result = copy(top, target)
    assert [failure.path[:6] for failure in result.failures] == [b"/long/", b"/long/"]
    assert everything_below(outside) == set()
    assert everything_below(tmp_path / "in") - everything_below(target) == {"t"} | {
        f"t/{name}" for name in everything_below(target)
    }
    there = {os.fsencode(path.name): path.read_bytes() for path in (target / "files").iterdir()}
    assert there == {to_path_name(name): b"%d" % index for index, name in enumerate(NASTY)}
    assert len(list((target / "folders").iterdir())) == len(list((target / "links").iterdir())) == len(NASTY)


@pytest.mark.parametrize("overwrite", list(Overwrite))
def test_writing_through_a_link_that_was_just_extracted(tmp_path: Path, overwrite: Overwrite) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_bytes(b"root")
    where = os.fsencode(outside)
    top = folder(
        b"",
        link(b"d", where),
        folder(b"d", file(b"owned")),
        link(b"f", where + b"/passwd"),
        file(b"f", b"owned"),
        link(b"up", b"../outside"),
        folder(b"up", folder(b"deeper", file(b"owned"))),
    )
    result = copy(top, tmp_path / "t", options=CopyOptions(overwrite=overwrite))
    assert everything_below(outside) == {"passwd"}
    assert (outside / "passwd").read_bytes() == b"root"
    assert (outside / "passwd").stat().st_nlink == 1
    assert {failure.path for failure in result.failures} == {b"/d", b"/f", b"/up"}
    assert everything_below(tmp_path / "t") == {"d", "f", "up"}


def test_a_link_put_in_the_target_beforehand_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "t").mkdir()
    (tmp_path / "t/d").symlink_to(tmp_path / "outside")
    result = copy(folder(b"", folder(b"d", file(b"owned"))), tmp_path / "t")
    assert [failure.path for failure in result.failures] == [b"/d"]
    assert everything_below(tmp_path / "outside") == set()


def test_hard_link_tricks(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    evil = link(b"a", os.fsencode(tmp_path / "secret"), inode=9, links=2)
    posing = file(b"b", b"posing", inode=9, links=2)
    bigger = file(b"c", b"posing too", inode=9, links=2)
    result = copy(folder(b"", evil, posing, bigger), tmp_path / "t")
    assert (tmp_path / "secret").stat().st_nlink == 1
    assert (tmp_path / "t/b").read_bytes() == b"posing"
    assert (tmp_path / "t/c").read_bytes() == b"posing too"
    assert result.failures == ()


def test_folders_that_contain_themselves_or_each_other(tmp_path: Path) -> None:
    inner = folder(b"inner", inode=3)
    outer = folder(b"outer", inner, inode=2)
    inner.children += [again(outer, b"back"), again(inner, b"self"), file(b"f")]
    top = folder(b"", outer, again(inner, b"twice"), inode=1)
    result = copy(top, tmp_path / "t")
    assert everything_below(tmp_path / "t") == {"outer", "outer/inner", "outer/inner/f"}
    assert [failure.path for failure in result.failures] == [
        b"/outer/inner/back",
        b"/outer/inner/self",
        b"/twice",
    ]


def test_a_tree_that_doubles_at_every_level_ends(tmp_path: Path) -> None:
    level = folder(b"end", inode=1000)
    for number in range(64):
        level = folder(b"l%d" % number, again(level, b"a"), again(level, b"b"), inode=number + 1)
    result = copy(folder(b"", level), tmp_path / "t")
    assert result.folders == 66
    assert result.failure_count == 64


def test_depth_is_bounded(tmp_path: Path) -> None:
    chain = folder(b"end")
    for _ in range(1500):
        chain = Item(node(b"d", NodeKind.DIRECTORY), children=[chain])
    top = folder(b"")
    tree = MemoryTree(top)
    pending = [chain]
    while pending:
        item = pending.pop()
        tree._items[item.node.key] = item
        pending += item.children
    top.children.append(chain)
    try:
        result = copy(top, tmp_path / "t", tree=tree)
    finally:
        # deeper than pytest itself can remove
        subprocess.run(["rm", "-rf", tmp_path / "t"], check=True)
    assert result.folders == 512
    assert [type(failure.error) for failure in result.failures] == [VolumeError]


def test_running_out_of_handles_is_recorded(tmp_path: Path) -> None:
    chain = folder(b"end")
    for _ in range(100):
        chain = folder(b"d", chain)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = folder(b"", chain, file(b"after"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_handles() + 40, hard))
    try:
        result = copy(top, tmp_path / "t")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert str(result.failures[0].error).endswith("Too many open files")
    assert (tmp_path / "t/after").exists()


def test_no_handle_is_left_open(tmp_path: Path) -> None:
    before = open_handles()
    first = file(b"one", inode=4, links=2)
    top = folder(b"", folder(b"d", first, file(b"bad", damaged={0})), again(first, b"two"), link(b"l", b"x"))
    copy(top, tmp_path / "t")
    copy(top, tmp_path / "t")
    assert open_handles() == before


@pytest.mark.parametrize("size", [1 << 60, (1 << 63) - 1, 1 << 63, 1 << 80, -1])
def test_absurd_sizes(tmp_path: Path, size: int) -> None:
    top = folder(b"", file(b"bomb", {}, size=size), file(b"after"))
    result = copy(top, tmp_path / "t")
    there = everything_below(tmp_path / "t")
    assert "after" in there
    if "bomb" in there:
        assert (tmp_path / "t/bomb").stat().st_blocks == 0
    else:
        assert [failure.path for failure in result.failures] == [b"/bomb"]
    measure(MemoryTree(top), [(b"/", top.node)])


def test_a_sparse_exbibyte_fits_where_its_data_fits() -> None:
    """On tmpfs, which has no smaller limit of its own."""
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.fail("needs /dev/shm") if "CI" in os.environ else pytest.skip("needs /dev/shm")
    target = shm / f"mountfs-test-{os.getpid()}"
    top = folder(b"", file(b"bomb", {1 << 59: b"data" * 1024}, size=1 << 60))
    try:
        result = copy(top, target)
        status = (target / "bomb").stat()
    finally:
        subprocess.run(["rm", "-rf", target], check=True)
    assert result.failures == ()
    assert (status.st_size, status.st_blocks) == (1 << 60, 8)
    assert measure(MemoryTree(top), [(b"/", top.node)]) == (1, 4096)


def test_a_file_that_claims_more_data_than_there_is_space(tmp_path: Path) -> None:
    class Claims(MemoryTree):
        def extents(self, node: Node) -> Iterator[Extent]:
            yield Extent(0, node.size, DATA)

    top = folder(b"", file(b"bomb", {}, size=1 << 50), file(b"after"))
    result = copy(top, tmp_path / "t", tree=Claims(top))
    assert [type(failure.error) for failure in result.failures] == [DestinationFullError]
    assert everything_below(tmp_path / "t") == {"after"}


@pytest.mark.parametrize("when", [1 << 100, -(1 << 100), (1 << 63) * 10**9, -1, 0])
def test_absurd_times(tmp_path: Path, when: int) -> None:
    result = copy(folder(b"", file(b"a", mtime_ns=when)), tmp_path / "t")
    assert result.failures == ()
    assert (tmp_path / "t/a").read_bytes() == b"content"
    kept = (tmp_path / "t/a").stat().st_mtime_ns == when
    assert kept != (LossKind.TIMES in kinds(result))


def test_links_without_a_valid_target(tmp_path: Path) -> None:
    top = folder(b"", link(b"empty", b""), link(b"nul", b"a\0b"), link(b"long", b"x" * 5000), file(b"after"))
    result = copy(top, tmp_path / "t")
    assert result.failure_count == 3
    assert everything_below(tmp_path / "t") == {"after"}


# ---------------------------------------------------------------- the target fails


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.root
def test_a_full_target_stops_the_copy_and_keeps_what_is_complete(small_disk: Path) -> None:
    piece = random.Random(3).randbytes(800 * KIB)
    top = folder(b"", *(file(b"%d" % number, piece) for number in range(9)))
    with pytest.raises(DestinationFullError, match="No space left"):
        copy(top, small_disk)
    assert everything_below(small_disk) == {"0", "1"}
    small = folder(b"", *(file(b"s%d" % number, bytes(100 * KIB)) for number in range(9)))
    with pytest.raises(DestinationFullError, match="No space left"):
        copy(small, small_disk)
    assert not [name for name in everything_below(small_disk) if name.endswith(".part")]
    assert (small_disk / "1").read_bytes() == piece


@pytest.mark.root
def test_a_read_only_target(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(DestinationReadOnlyError):
        copy(folder(b"", file(b"a")), small_disk)
    with pytest.raises(DestinationReadOnlyError):
        copy(folder(b"", folder(b"d")), small_disk, b"d")


@pytest.mark.root
def test_a_target_that_may_not_be_entered(public: Path) -> None:
    (public / "closed").mkdir(0o700)
    top = folder(b"", file(b"a"))
    with as_nobody():
        with pytest.raises(AccessDeniedError):
            copy(top, public / "closed")
        with pytest.raises(AccessDeniedError):
            copy(top, public / "closed" / "x", b"a")
        result = copy(top, public)
    assert [type(failure.error) for failure in result.failures] == [AccessDeniedError]


def test_a_write_error_of_the_disk_stops_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    top = folder(b"", file(b"a"), file(b"b"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", broken)
        with pytest.raises(DestinationError, match="Input/output"):
            copy(top, tmp_path / "t")
    assert everything_below(tmp_path / "t") == set()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: true_write(fd, bytes(data)[:1000], offset))
    content = random.Random(2).randbytes(10_000)
    copy(folder(b"", file(b"a", content)), tmp_path / "t")
    assert (tmp_path / "t/a").read_bytes() == content


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_target_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)
    first = file(b"one", b"shared", inode=77, links=2)
    top = folder(b"", first, again(first, b"two"), link(b"l", b"x"))
    (tmp_path / "l").write_bytes(b"old")
    result = copy(top, tmp_path)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == b"shared"
    assert LossKind.HARD_LINK in kinds(result)
    assert [failure.path for failure in result.failures] == [b"/l"]
    assert everything_below(tmp_path) == {"one", "two", "l"}


def test_a_name_taken_while_the_file_is_copied_is_not_overwritten(tmp_path: Path) -> None:
    def rival(event: CopyEvent) -> None:
        if isinstance(event, CopyProgress) and not (tmp_path / "a").exists():
            (tmp_path / "a").write_bytes(b"rival")

    top = folder(b"", file(b"a", b"ours"))
    result = copy_out(MemoryTree(top), [(b"a", top.children[0].node)], tmp_path, CopyOptions(), rival)
    assert result.failure_count == 1
    assert (tmp_path / "a").read_bytes() == b"rival"
    assert everything_below(tmp_path) == {"a"}


def test_without_hard_links_a_rival_is_not_overwritten_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        (tmp_path / "a").write_bytes(b"rival")
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    result = copy(folder(b"", file(b"a", b"ours")), tmp_path, b"a")
    assert result.failure_count == 1
    assert (tmp_path / "a").read_bytes() == b"rival"
    assert everything_below(tmp_path) == {"a"}


def test_an_interrupt_of_the_clean_up_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_unlink = os.unlink
    pending = [KeyboardInterrupt]

    def interrupted(*args: Any, **kwargs: Any) -> None:
        if pending:
            raise pending.pop()
        true_unlink(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            copy(folder(b"", file(b"a")), tmp_path, b"a")
    assert everything_below(tmp_path) == {"a"}


def test_the_way_back_to_a_first_copy_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    top = open_folder(os.fsencode(tmp_path))
    with contextlib.closing(top):
        with top.below(b"real/") as fd:
            assert os.fstat(fd).st_ino == (tmp_path / "real").stat().st_ino
        with pytest.raises(NotADirectoryError), top.below(b"link/"):
            pass


@pytest.mark.root
def test_a_file_larger_than_the_free_space_is_not_even_begun(small_disk: Path) -> None:
    class Unread(MemoryTree):
        def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:  # noqa: ARG002
            raise AssertionError("read")

    (small_disk / "there").write_bytes(bytes(MIB))
    top = folder(b"", file(b"a", bytes(MIB + MIB // 2)))
    with pytest.raises(DestinationFullError):
        copy(top, small_disk, tree=Unread(top))
    assert everything_below(small_disk) == {"there"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, InterruptedByUserError])
def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, stop: type[BaseException]) -> None:
    def interrupt(event: CopyEvent) -> None:
        if isinstance(event, CopyProgress) and event.bytes_done > MIB:
            raise stop

    before = open_handles()
    top = folder(b"", file(b"a", b"1"), folder(b"d", file(b"big", bytes(4 * MIB)), file(b"z")))
    with pytest.raises(stop):
        copy_out(MemoryTree(top), [(b"/", top.node)], tmp_path / "t", CopyOptions(), interrupt)
    assert everything_below(tmp_path / "t") == {"a", "d"}
    assert open_handles() == before


def test_an_interrupt_at_any_moment_leaves_no_temporary_file(tmp_path: Path) -> None:
    first = file(b"one", b"x" * 5000, inode=4, links=30)
    top = folder(b"", *(again(first, b"l%d" % number) for number in range(30)), first)
    top.children += [file(b"f%d" % number, b"y" * 9000) for number in range(60)]
    top.children += [link(b"s%d" % number, b"target") for number in range(30)]
    tree = MemoryTree(top)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    tracer = sys.gettrace()
    sys.settrace(None)  # an exception inside the coverage tracer would leave its lock held for ever
    gc.disable()  # and one inside a callback of the collector would be lost
    stopped = 0
    try:
        for turn in range(200):
            target = tmp_path / str(turn)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + turn * 0.00006)
                copy(top, target, tree=tree)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                stopped += 1
            assert [name for name in everything_below(target) if name.endswith(".part")] == []
            shutil.rmtree(target, ignore_errors=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        sys.settrace(tracer)
        gc.enable()
    assert stopped > 20


def test_an_interrupt_that_comes_from_the_tree_is_not_a_failure(tmp_path: Path) -> None:
    class Interrupted(MemoryTree):
        def readlink(self, node: Node) -> bytes:  # noqa: ARG002
            raise InterruptedByUserError("stopped")

    top = folder(b"", link(b"l", b"x"))
    with pytest.raises(InterruptedByUserError):
        copy(top, tmp_path / "t", tree=Interrupted(top))


def test_progress_counts_up_to_what_was_measured(tmp_path: Path) -> None:
    top = folder(
        b"",
        file(b"a", bytes(2 * MIB + 1)),
        file(b"b", {MIB: b"x" * 10}, size=9 * MIB),
        folder(b"d", file(b"c")),
    )
    expected = measure(MemoryTree(top), [(b"/", top.node)])
    events: list[CopyEvent] = []
    copy(top, tmp_path / "t", events=events, options=CopyOptions(sync=True))
    progress = [event for event in events if isinstance(event, CopyProgress)]
    assert [event.bytes_done for event in progress] == sorted(event.bytes_done for event in progress)
    assert (progress[-1].files_done, progress[-1].bytes_done) == expected
    assert max(b.bytes_done - a.bytes_done for a, b in itertools.pairwise(progress)) <= MIB


def test_reads_are_bounded(tmp_path: Path) -> None:
    class Endless(MemoryTree):
        def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:  # noqa: ARG002
            assert size <= MIB
            return bytes(size)

        def extents(self, node: Node) -> Iterator[Extent]:
            yield Extent(0, node.size, DATA)

    top = folder(b"", file(b"a", {}, size=64 * MIB))
    result = copy(top, tmp_path / "t", tree=Endless(top))
    assert result.bytes == 64 * MIB


def test_a_target_that_ignores_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for vfat: every name is folded on its way to the kernel."""

    def fold(function: Any, *keys: int) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            folded = [
                arg.lower() if index in keys and isinstance(arg, bytes) else arg
                for index, arg in enumerate(args)
            ]
            return function(*folded, **kwargs)

        return call

    for name, keys in {"link": (0, 1), "rename": (0, 1), "mkdir": (0,), "open": (0,), "stat": (0,)}.items():
        monkeypatch.setattr(os, name, fold(getattr(os, name), *keys))
    top = folder(
        b"", file(b"a", b"lower"), file(b"A", b"upper"), folder(b"D", file(b"1")), folder(b"d", file(b"2"))
    )
    target = Path(os.fsdecode(os.fsencode(tmp_path).lower()))
    target.mkdir(parents=True, exist_ok=True)
    result = copy(top, target / "t", options=CopyOptions(overwrite=Overwrite.REPLACE))
    assert {failure.path for failure in result.failures} == {b"/A", b"/d"}
    assert (target / "t/a").read_bytes() == b"lower"
