"""EROFS made by mkfs.erofs in its ways, against the kernel's mount, fsck.erofs and the source."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from mountfs.drivers import erofs
from mountfs.signatures import identify
from mountfs.tree import FileSystemInfo, walk
from support import everything
from support.content import damage, mixture, text
from support.entries import Entries, differences, read_entries
from support.kernel import kernel_mount, loop_device
from support.requirements import require_root, run
from support.trees import check_by_blkid, open_image, tree_entries

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

UNKEPT = ("atime_ns", "ctime_ns")
UUID = "12345678-9abc-4def-8123-456789abcdef"

WAYS = {
    "plain": (),
    "extended": ("-Eforce-inode-extended",),
    "not-inline": ("-Enoinline_data",),
    "chunks": ("--chunksize=4096", "-Eforce-inode-blockmap"),
    "chunk-indexes": ("--chunksize=65536", "-Eforce-chunk-indexes"),
    "lz4": ("-zlz4",),
    "compact": ("-zlz4", "-Eforce-inode-compact", "--all-root"),
    "lz4hc-of-64k": ("-zlz4hc", "-C65536"),
    "lz4-of-1m": ("-zlz4", "-C1048576"),
    "tails-packed": ("-zlz4hc", "-Eztailpacking"),
    "tails-packed-of-16k": ("-zlz4", "-C16384", "-Eztailpacking"),
    "short-extents": ("-zlz4", "--max-extent-bytes=8192"),
    "no-attributes": ("-x-1",),
    "shared-attributes": ("-x1",),
}
LOST = {"compact": ("mtime_ns", "uid", "gid"), "no-attributes": ("xattrs",)}
"""What a way does not keep of the source; inodes of 32 bytes have no times."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_root()
    top = tmp_path_factory.mktemp("erofs") / "source"
    top.mkdir()
    everything.fill(top, block=4096, crowd=250)
    for number in range(12):
        (top / f"large-{number}").write_bytes(text(number, 20_000 + 17_777 * number))
    (top / "patches").write_bytes(mixture(3, 900_001, unit=20_000))
    everything.attributes(top)
    everything.whole_seconds(top)
    return top


def pack(source: Path, image: Path, *options: str) -> Path:
    run("mkfs.erofs", "--quiet", f"-U{UUID}", *options, image, source)
    return image


def as_mounted(image: Path) -> Entries:
    with loop_device(image, read_only=True) as device, kernel_mount(device, "erofs") as top:
        return read_entries(top)


@pytest.mark.parametrize("way", WAYS)
def test_a_volume_holds_what_the_kernel_and_fsck_find(way: str, source: Path, tmp_path: Path) -> None:
    image = pack(source, tmp_path / "image", *WAYS[way])
    found = tree_entries(open_image(erofs, image))
    ignored = (*UNKEPT, *LOST.get(way, ()))
    assert differences(read_entries(source), found, ignoring=ignored) == []
    assert differences(as_mounted(image), found) == []
    run("fsck.erofs", f"--extract={tmp_path / 'extracted'}", image)
    judged = read_entries(tmp_path / "extracted")
    # fsck.erofs restores contents and little else.
    contents = {
        path: (entry["kind"], entry.get("sha256"), entry.get("target")) for path, entry in judged.items()
    }
    assert contents == {
        path: (entry["kind"], entry.get("sha256"), entry.get("target")) for path, entry in found.items()
    }
    shutil.rmtree(tmp_path)


def test_the_name_of_a_volume(source: Path, tmp_path: Path) -> None:
    image = pack(source / "etc", tmp_path / "image")
    check_by_blkid(image, "erofs")
    info = identify(MemoryDevice(image.read_bytes()))
    assert info == FileSystemInfo("erofs", "", UUID)


def test_older_compression_is_refused(source: Path, tmp_path: Path) -> None:
    tree = open_image(erofs, pack(source, tmp_path / "image", "-zlz4", "-Elegacy-compress"))
    with pytest.raises(VolumeError, match=r"Linux 4\.19"):
        tree.read(walk(tree, b"large-11"), 0, 1)


def test_a_damaged_cluster_is_an_error(source: Path, tmp_path: Path) -> None:
    image = pack(source, tmp_path / "image", "-zlz4")
    tree = open_image(erofs, image)
    node = walk(tree, b"large-11")
    truth = tree.read(node, 0, node.size)
    offset, length = list(tree.placements(node))[3]
    for at in range(length // 2, length):
        damage(image, offset + at, mask=0xFF)
    hurt = open_image(erofs, image)
    with pytest.raises(VolumeError, match="LZ4"):
        hurt.read(node, 0, node.size)
    assert hurt.read(node, 0, 4096) == truth[:4096]
    assert hurt.read(node, node.size - 4096, 4096) == truth[-4096:]
