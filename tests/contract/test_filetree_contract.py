"""What every `FileTree` promises. To put another tree under it, add a maker to `MAKERS`.

A maker gets a temporary folder and returns an open tree that holds at least two files with content and
one directory.
"""

from __future__ import annotations

import json
import lzma
import mmap
import os
import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError
from imageformat.extent import ExtentKind
from mountfs.drivers import btrfs, erofs, ext, fat, hfsplus, iso9660, ntfs, squashfs, udf, xfs
from mountfs.tree import FileSystemInfo, NodeKind, walk
from support.disks import MIB, make_btrfs
from support.requirements import require_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from mountfs.tree import FileTree, Node

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("MOUNTFS_SHARED_DATA", REPOSITORY.parent / "shared" / "data")) / "fs-images"


def missing(what: object) -> NoReturn:
    """A test that cannot run fails in CI and is skipped elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(f"missing: {what}")
    pytest.skip(f"missing: {what}")


def stored(driver: ModuleType, fs_type: str, case: str) -> Callable[[Path], FileTree]:
    """A maker for a stored image that is one file system."""

    def make(_tmp: Path) -> FileTree:
        packed = SHARED / "images" / f"{case}.disk.img.xz"
        if not packed.exists():
            missing(packed)
        content = lzma.decompress(packed.read_bytes())
        return driver.PLUGIN.open(MemoryDevice(content), FileSystemInfo(fs_type))

    return make


def made_ext4(tmp: Path) -> FileTree:
    """A fresh ext4 with holes, links and a large directory, made without root."""
    if shutil.which("mkfs.ext4") is None:
        missing("mkfs.ext4")
    source = tmp / "source"
    (source / "many").mkdir(parents=True)
    for number in range(500):
        (source / "many" / f"file-{number}").write_bytes(b"%d" % number)
    for number in range(6):
        (source / f"random-{number}").write_bytes(random.Random(number).randbytes(300_000 + number))
    with (source / "sparse").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
        file.truncate(9_000_001)
    (source / "link").symlink_to("random-1")
    (source / "long link").symlink_to("x" * 900)
    os.link(source / "random-1", source / "hard")
    image = tmp / "ext4.img"
    subprocess.run(["mkfs.ext4", "-q", "-d", source, image, "32M"], check=True)
    return ext.PLUGIN.open(MemoryDevice(image.read_bytes()), FileSystemInfo("ext4"))


def made_btrfs(tmp: Path) -> FileTree:
    """A fresh btrfs with holes, links and a large directory, made without root."""
    require_tool("mkfs.btrfs")
    source = tmp / "source"
    (source / "many").mkdir(parents=True)
    for number in range(500):
        (source / "many" / f"file-{number}").write_bytes(b"%d" % number)
    for number in range(6):
        (source / f"random-{number}").write_bytes(random.Random(number).randbytes(300_000 + number))
    with (source / "sparse").open("wb") as file:
        file.truncate(9_000_001)
    (source / "link").symlink_to("random-1")
    os.link(source / "random-1", source / "hard")
    image = make_btrfs(tmp / "btrfs.img", 40 * MIB, populate_from=source)
    return btrfs.PLUGIN.open(MemoryDevice(image.read_bytes()), FileSystemInfo("btrfs"))


def packed(driver: ModuleType, fs_type: str, *command: str) -> Callable[[Path], FileTree]:
    """A maker that has a program pack a folder; SOURCE and IMAGE stand for the paths."""

    def make(tmp: Path) -> FileTree:
        if shutil.which(command[0]) is None:
            missing(command[0])
        source, image = tmp / "source", tmp / "image"
        (source / "many").mkdir(parents=True)
        for number in range(60):
            (source / "many" / f"{number}-file").write_bytes(b"some text %d, " % number * (number * 50))
        for number in range(4):
            (source / f"{number}-random").write_bytes(random.Random(number).randbytes(300_000 + number))
        (source / "zeros").write_bytes(bytes(700_000))
        (source / "link").symlink_to("1-random")
        os.link(source / "1-random", source / "hard")
        paths = {"SOURCE": source, "IMAGE": image}
        subprocess.run([paths.get(word, word) for word in command], check=True, capture_output=True)
        return driver.PLUGIN.open(MemoryDevice(image.read_bytes()), FileSystemInfo(fs_type))

    return make


def made_xfs(tmp: Path) -> FileTree:
    """A fresh XFS with links and a large directory, made without root."""
    if shutil.which("mkfs.xfs", path=os.defpath + ":/usr/sbin:/sbin") is None:
        missing("mkfs.xfs")
    for number in range(6):
        (tmp / f"random-{number}").write_bytes(random.Random(number).randbytes(300_000 + number))
    contents = [f"random-{number} ---644 7 8 {tmp}/random-{number}" for number in range(6)]
    many = [f"file-{number} ---600 0 0 {tmp}/random-{number % 6}" for number in range(300)]
    links = ["link l--777 0 0 random-1", "fifo p--644 0 0"]
    lines = ["boot 0 0", "d--755 0 0", "many d--755 0 0", *many, "$", *contents, *links, "$", "$"]
    (tmp / "content").write_text("\n".join(lines) + "\n")
    image = tmp / "xfs.img"
    image.touch()
    os.truncate(image, 320 << 20)
    command = ["mkfs.xfs", "-q", "-p", tmp / "content", image]
    subprocess.run(command, check=True, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})
    with image.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return xfs.PLUGIN.open(MemoryDevice(content), FileSystemInfo("xfs"))


MAKERS = {
    "ext4 made here": made_ext4,
    "btrfs made here": made_btrfs,
    "ext4": stored(ext, "ext4", "ext4-ratarmount-10m"),
    "xfs made here": made_xfs,
    "fat12": stored(fat, "fat12", "fat12-rust"),
    "fat32": stored(fat, "fat32", "fat-dfir-fat32-small"),
    "exfat": stored(fat, "exfat", "exfat-goexfat"),
    "iso9660": stored(iso9660, "iso9660", "iso-dfvfs"),
    "iso9660 made here": packed(iso9660, "iso9660", "genisoimage", "-R", "-o", "IMAGE", "SOURCE"),
    "udf made here": packed(udf, "udf", "genisoimage", "-udf", "-o", "IMAGE", "SOURCE"),
    "squashfs": packed(squashfs, "squashfs", "mksquashfs", "SOURCE", "IMAGE"),
    "squashfs of lz4": packed(
        squashfs, "squashfs", "mksquashfs", "SOURCE", "IMAGE", "-comp", "lz4", "-b", "8K"
    ),
    "erofs": packed(erofs, "erofs", "mkfs.erofs", "-zlz4", "-Eztailpacking", "IMAGE", "SOURCE"),
    "erofs in chunks": packed(erofs, "erofs", "mkfs.erofs", "--chunksize=8192", "IMAGE", "SOURCE"),
    "ntfs": stored(ntfs, "ntfs", "ntfs-colinfinck"),
    "hfs+": stored(hfsplus, "hfs+", "hfsp-dfvfs"),
}


@pytest.fixture(scope="module", params=MAKERS)
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileTree]:
    opened = MAKERS[request.param](tmp_path_factory.mktemp("tree"))
    yield opened
    opened.close()
    opened.close()


def everything(tree: FileTree) -> Iterator[tuple[bytes, Node, Node]]:
    """Yield (path, parent, node) of the whole tree."""
    pending = [(b"", tree.root())]
    while pending:
        path, parent = pending.pop()
        for node in tree.children(parent):
            below = path + b"/" + node.name
            yield below, parent, node
            if node.kind is NodeKind.DIRECTORY:
                pending.append((below, node))


def files(tree: FileTree) -> list[Node]:
    return [node for _, _, node in everything(tree) if node.kind is NodeKind.FILE]


def test_the_root_is_a_directory_without_a_name(tree: FileTree) -> None:
    root = tree.root()
    assert root.kind is NodeKind.DIRECTORY
    assert root.name == b""
    assert root == tree.root()


def test_children_are_unique_and_agree_with_child_and_walk(tree: FileTree) -> None:
    by_directory = {}
    for path, parent, node in everything(tree):
        names = by_directory.setdefault(parent.key, set())
        assert node.name not in names | {b"", b".", b".."}
        names.add(node.name)
        assert tree.child(parent, node.name) == node
        assert b"/" in node.name or walk(tree, path) == node
    assert sum(map(len, by_directory.values())) >= 3


def test_a_name_that_is_not_there(tree: FileTree) -> None:
    assert tree.child(tree.root(), b"no such name \xff\n") is None


def test_values_make_sense(tree: FileTree) -> None:
    inodes = {}
    for _, _, node in everything(tree):
        assert 0 <= node.mode <= 0o7777
        assert node.size >= 0
        assert node.links >= 1
        hash(node.key)
        if node.inode:
            assert inodes.setdefault(node.inode, node.key) == node.key


def test_reads_are_short_only_at_the_end(tree: FileTree) -> None:
    for node in files(tree):
        assert len(tree.read(node, 0, node.size)) == node.size
        same = tree.read(node, 0, node.size + 1000) == tree.read(node, 0, node.size)
        assert same, node.name
        assert tree.read(node, node.size, 10) == b""
        assert tree.read(node, node.size + 10**12, 10) == b""
        assert tree.read(node, 0, 0) == b""
        assert len(tree.read(node, max(0, node.size - 3), 10)) == min(3, node.size)


def test_reads_at_any_offset_agree_with_the_whole(tree: FileTree) -> None:
    rng = random.Random(7)
    for node in files(tree)[:40]:
        whole = tree.read(node, 0, node.size)
        for _ in range(25):
            start = rng.randrange(node.size + 1)
            size = rng.choice([1, 100, 4096, 70_000, node.size])
            same = tree.read(node, start, size) == whole[start : start + size]
            assert same, (node.name, start, size)


def test_extents_cover_the_file_and_holes_are_zeros(tree: FileTree) -> None:
    for node in files(tree):
        position = 0
        for extent in tree.extents(node):
            assert extent.offset == position
            assert extent.length > 0
            assert extent.kind in {ExtentKind.DATA, ExtentKind.ZERO}
            if extent.kind is ExtentKind.ZERO:
                assert not any(tree.read(node, extent.offset, extent.length))
            position = extent.end
        assert position == node.size


def test_links_have_targets_of_their_size(tree: FileTree) -> None:
    for _, _, node in everything(tree):
        if node.kind is NodeKind.SYMLINK:
            assert len(tree.readlink(node)) == node.size > 0


def test_attributes_and_streams_can_be_read(tree: FileTree) -> None:
    for _, _, node in everything(tree):
        for name, value in tree.xattrs(node).items():
            assert isinstance(name, str)
            assert isinstance(value, bytes)
        for stream in tree.streams(node):
            assert stream.name
            assert len(tree.read(node, 0, stream.size + 5, stream=stream.name)) == stream.size


def test_misuse_is_an_error_of_ours(tree: FileTree) -> None:
    file, root = files(tree)[0], tree.root()
    for wrong in (
        lambda: list(tree.children(file)),
        lambda: tree.child(file, b"x"),
        lambda: tree.read(root, 0, 1),
        lambda: tree.read(file, -1, 1),
        lambda: tree.read(file, 0, -1),
        lambda: tree.read(file, 0, 1, stream=b"no such stream"),
        lambda: tree.readlink(file),
        lambda: list(tree.extents(root)),
    ):
        with pytest.raises(MountfsError):
            wrong()


def test_four_threads_read_the_right_bytes(tree: FileTree) -> None:
    wanted = files(tree)[:60]
    alone = [tree.read(node, 0, node.size) for node in wanted]

    def read_in_pieces(seed: int) -> str | None:
        rng = random.Random(seed)
        order = list(range(len(wanted)))
        rng.shuffle(order)
        for index in order:
            step = rng.choice([1000, 4096, 65_536])
            node = wanted[index]
            found = b"".join(tree.read(node, at, step) for at in range(0, min(node.size, 2_000_000), step))
            if not alone[index].startswith(found) or len(found) < min(node.size, 2_000_000):
                return json.dumps({"file": str(node.name), "seed": seed})
        return None

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read_in_pieces, range(8))) == [None] * 8
