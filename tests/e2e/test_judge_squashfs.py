"""SquashFS made by mksquashfs in all its ways, against the kernel's mount, unsquashfs, and the source."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError, VolumeError
from mountfs.drivers import squashfs
from mountfs.signatures import identify
from mountfs.tree import FileSystemInfo, NodeKind, walk
from support import everything
from support.content import damage, noise
from support.entries import Entries, differences, read_entries
from support.kernel import kernel_mount, loop_device
from support.requirements import REPOSITORY, require_root, require_tool, run
from support.trees import check_by_blkid, open_image, tree_entries

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

UNKEPT = ("atime_ns", "ctime_ns")

WAYS = {
    "gzip": (),
    "xz": ("-comp", "xz"),
    "xz-filters": ("-comp", "xz", "-Xbcj", "x86,arm", "-Xdict-size", "8K", "-b", "1M"),
    "zstd": ("-comp", "zstd", "-Xcompression-level", "3"),
    "lz4": ("-comp", "lz4"),
    "lz4-hc": ("-comp", "lz4", "-Xhc", "-b", "4K"),
    "lzo": ("-comp", "lzo"),
    "lzo-fast": ("-comp", "lzo", "-Xalgorithm", "lzo1x_1", "-b", "64K"),
    "lzma": ("-comp", "lzma"),
    "plain": ("-noI", "-noD", "-noF", "-noX"),
    "plain-data": ("-noD", "-noF", "-b", "8K"),
    "plain-metadata": ("-noI", "-noX", "-noId"),
    "small-blocks": ("-b", "4K"),
    "large-blocks": ("-b", "1M"),
    "no-fragments": ("-no-fragments",),
    "always-fragments": ("-always-use-fragments", "-tailends"),
    "no-sparse": ("-no-sparse", "-no-duplicates"),
    "not-exportable": ("-no-exports", "-no-xattrs"),
    "owned": ("-all-root",),
}
NOT_OF_THE_KERNEL = {"lzma", "lz4", "lz4-hc", "lzo", "lzo-fast"}
"""The kernel never could the first; the others it may have been built without."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_root()
    top = tmp_path_factory.mktemp("squash") / "source"
    top.mkdir()
    everything.fill(top)
    everything.attributes(top)
    return top


def pack(source: Path, image: Path, *options: str) -> Path:
    run("mksquashfs", source, image, "-noappend", "-quiet", "-no-progress", *options)
    return image


def as_mounted(image: Path) -> Entries:
    with loop_device(image, read_only=True) as device, kernel_mount(device, "squashfs") as top:
        return read_entries(top)


def extracted(image: Path, target: Path) -> Entries:
    run("unsquashfs", "-quiet", "-no-progress", "-dest", target, image)
    return read_entries(target)


@pytest.mark.parametrize("way", WAYS)
def test_a_volume_holds_what_unsquashfs_and_the_kernel_find(way: str, source: Path, tmp_path: Path) -> None:
    image = pack(source, tmp_path / "image", *WAYS[way])
    found = tree_entries(open_image(squashfs, image))
    check_by_blkid(image, "squashfs")
    truth = extracted(image, tmp_path / "extracted")
    assert len(truth) > 700
    assert differences(truth, found, ignoring=UNKEPT) == []
    if way not in NOT_OF_THE_KERNEL:
        assert differences(as_mounted(image), found) == []
    if way not in {"owned", "not-exportable"}:
        assert differences(read_entries(source), found, ignoring=UNKEPT) == []
    shutil.rmtree(tmp_path)


def test_the_truth_holds_what_the_test_is_about(source: Path) -> None:
    truth = read_entries(source)
    assert {entry["kind"] for entry in truth.values()} == {kind.value for kind in NodeKind}
    assert truth[b"photo.jpg"]["twin"] == b"deep/the same photo"
    assert set(truth[b"hello.txt"]["xattrs"]) == {"user.comment", "user.empty"}
    assert truth[b"character"]["device"] == (300, 70_000)


def test_holes_are_told(source: Path, tmp_path: Path) -> None:
    tree = open_image(squashfs, pack(source, tmp_path / "image", "-b", "4K"))
    extents = list(tree.extents(walk(tree, b"sparse")))
    assert len([extent for extent in extents if extent.kind.value == "zero"]) >= 3
    assert list(tree.placements(walk(tree, b"zeros"))) == []


@pytest.mark.parametrize("compressor", ["gzip", "xz", "zstd", "lz4", "lzo", "lzma"])
def test_a_damaged_block_is_an_error_and_the_others_are_right(
    compressor: str, source: Path, tmp_path: Path
) -> None:
    image = pack(source, tmp_path / "image", "-comp", compressor, "-b", "16K")
    tree = open_image(squashfs, image)
    node = walk(tree, f"text-{5 * 128 * 1024 + 12_345}".encode())
    truth = tree.read(node, 0, node.size)
    places = list(tree.placements(node))
    offset, length = places[3]
    for at in range(length // 4, length // 4 * 3):
        damage(image, offset + at, mask=0xFF)
    hurt = open_image(squashfs, image)
    with pytest.raises(VolumeError, match=r"damaged|bytes instead"):
        hurt.read(node, 3 * 16_384 + 5, 10)
    assert hurt.read(node, 0, 3 * 16_384) == truth[: 3 * 16_384]
    assert hurt.read(node, 4 * 16_384, node.size) == truth[4 * 16_384 :]


def test_another_version_is_refused_with_its_number(tmp_path: Path, source: Path) -> None:
    image = bytearray(pack(source / "etc", tmp_path / "image").read_bytes())
    image[28:30] = b"\3\0"
    info = identify(MemoryDevice(bytes(image)))
    assert info is not None
    with pytest.raises(MountfsError, match=r"SquashFS 3\.0 is not supported"):
        squashfs.PLUGIN.open(MemoryDevice(bytes(image)), info)
    image[20] = 9
    image[28] = 4
    with pytest.raises(MountfsError, match="compressor 9"):
        squashfs.PLUGIN.open(MemoryDevice(bytes(image)), FileSystemInfo("squashfs"))


def test_without_the_library_only_lz4_is_refused(source: Path, tmp_path: Path) -> None:
    images = [pack(source / "etc", tmp_path / name, "-comp", name) for name in ("gzip", "lz4")]
    script = """
import sys
sys.modules["lz4"] = None
from pathlib import Path
from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError
from mountfs.drivers import squashfs
from mountfs.tree import FileSystemInfo
for path in sys.argv[1:]:
    try:
        tree = squashfs.PLUGIN.open(MemoryDevice(Path(path).read_bytes()), FileSystemInfo("squashfs"))
        print(tree.read(tree.child(tree.root(), b"motd"), 0, 99))
    except MountfsError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *images], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    plain, refused = done.stdout.splitlines()
    assert plain == repr(b"welcome back\n")
    assert "mountfs[lz4]" in refused


@pytest.mark.nightly
def test_a_file_of_many_blocks_is_read_at_any_place(tmp_path: Path) -> None:
    require_tool("mksquashfs")
    folder = tmp_path / "folder"
    folder.mkdir()
    with (folder / "large").open("wb") as file:
        file.truncate(6 << 30)
        for at in (5, 4 << 30, (6 << 30) - 3):
            file.seek(at)
            file.write(noise(at, 3))
    image = pack(folder, tmp_path / "image", "-b", "1M")
    tree = open_image(squashfs, image)
    large = walk(tree, b"large")
    assert large.size == 6 << 30
    for at in (5, 4 << 30, (6 << 30) - 3):
        assert tree.read(large, at - 2, 10) == (b"\0\0" + noise(at, 3) + bytes(5))[: large.size - at + 2]
