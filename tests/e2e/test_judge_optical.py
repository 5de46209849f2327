"""ISO 9660 made by genisoimage and xorriso, against what xorriso and 7-Zip extract, and the source."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from mountfs.drivers import iso9660
from mountfs.signatures import identify
from mountfs.tree import NodeKind, walk
from support import everything
from support.content import damage, make_tree, mixture, noise, text
from support.entries import Entries, differences, read_entries
from support.requirements import require_root, require_tool, run
from support.trees import check_by_blkid, open_image, tree_entries

if TYPE_CHECKING:
    from mountfs.tree import FileTree

pytestmark = pytest.mark.root

UNKEPT = ("atime_ns", "ctime_ns")
ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000700e8030000 04000400ffffffff"
    "0800040005000000 10000700ffffffff 20000400ffffffff"
)
DEFAULT = bytes.fromhex(
    "02000000 01000700ffffffff 02000500e8030000 04000500ffffffff 10000500ffffffff 20000500ffffffff"
)

GENISOIMAGE = {
    "rock-ridge": ("-R",),
    "rock-ridge-and-joliet": ("-R", "-J"),
    "level-3": ("-R", "-iso-level", "3", "-allow-limited-size"),
    "not-relocated": ("-R", "-D"),
    "hybrid-with-udf": ("-R", "-udf"),
}
XORRISO = {
    "plain": (),
    "zisofs-32k": ("-zisofs", "level=9:block_size=32k"),
    "zisofs-128k": ("-zisofs", "level=1:block_size=128k"),
    "zisofs-2": ("-zisofs", "version_2=on:block_size_v2=64k"),
    "zisofs-2-of-1m": ("-zisofs", "version_2=on:block_size_v2=1m:susp_z2=on"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_root()
    top = tmp_path_factory.mktemp("optical") / "source"
    top.mkdir()
    everything.fill(top, crowd=300)
    deep = top / "a"
    for number in range(12):
        deep /= f"level {number} of a deep tree"
    deep.mkdir(parents=True)
    (deep / "at the bottom").write_bytes(b"deep")
    (top / "a" / "level 0 of a deep tree" / ("n" * 240)).write_bytes(text(3, 3000))
    everything.whole_seconds(top)
    return top


@pytest.fixture(scope="module")
def attributed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("optical") / "attributed"
    shutil.copytree(source / "many", top / "many")
    for name in ("hello.txt", "photo.jpg", "empty", "etc", "deep"):
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, top / name)
    everything.attributes(top)
    os.removexattr(top / "hello.txt", "user.empty")  # libisofs cannot write it
    os.setxattr(top / "etc" / "motd", "system.posix_acl_access", ACL)
    os.setxattr(top / "deep", "system.posix_acl_default", DEFAULT)
    os.setxattr(top / "deep", "system.posix_acl_access", ACL)
    everything.whole_seconds(top)
    return top


def genisoimage(source: Path, image: Path, *options: str, charset: str = "iso8859-1") -> Path:
    """Names are bytes, which each are a letter of that set; Joliet alone needs to know what they mean."""
    run("genisoimage", "-quiet", "-input-charset", charset, *options, "-o", image, source)
    return image


def xorriso(source: Path, image: Path, *options: str) -> Path:
    keep = ("-acl", "off", "-xattr", "any", "-hardlinks", "on", "-padding", "0")
    packed = ("-find", "/", "-type", "f", "-exec", "set_filter", "--zisofs", "--") if options else ()
    run(
        *("xorriso", "-abort_on", "FATAL", "-report_about", "FAILURE", *keep, *options),
        *("-outdev", image, "-map", source, "/", *packed, "-commit"),
    )
    return image


def extracted(image: Path, target: Path) -> Entries:
    keep = ("-acl", "off", "-xattr", "any", "-hardlinks", "on")
    run(
        *("xorriso", "-abort_on", "FATAL", "-return_with", "FATAL", "32", *keep),
        *("-osirrox", "on:sort_lba_on", "-indev", image, "-extract", "/", target),
    )
    return read_entries(target)


def comparable(entries: Entries) -> Entries:
    """Leave out what xorriso does not restore.

    Sockets, devices, hard links, owners of symbolic links, times of these and of folders.
    """
    return {
        path: {
            key: value
            for key, value in entry.items()
            if key not in {"links", "twin"}
            and (key != "mtime_ns" or entry["kind"] == "file")
            and (key not in {"uid", "gid"} or entry["kind"] != "symlink")
        }
        for path, entry in entries.items()
        if entry["kind"] not in {"socket", "block device", "character device"}
    }


def without_folder_links(entries: Entries) -> Entries:
    return {
        path: {key: value for key, value in entry.items() if (key, entry["kind"]) != ("links", "directory")}
        for path, entry in entries.items()
    }


@pytest.mark.parametrize("way", GENISOIMAGE)
def test_what_genisoimage_wrote(way: str, source: Path, tmp_path: Path) -> None:
    image = genisoimage(source, tmp_path / "image", *GENISOIMAGE[way])
    tree = iso9660.PLUGIN.open(MemoryDevice(image.read_bytes()), None)
    found = tree_entries(tree)
    found.pop(b"rr_moved", None)
    truth = read_entries(source)
    assert differences(without_folder_links(truth), without_folder_links(found), ignoring=UNKEPT) == []
    judged = extracted(image, tmp_path / "extracted")
    judged.pop(b"rr_moved", None)
    assert differences(comparable(judged), comparable(found), ignoring=UNKEPT) == []
    shutil.rmtree(tmp_path)


LABELS = {
    "plain": ("-V", "SOME_LABEL"),
    "joliet": ("-J", "-V", "Ünïcode label"),
    "long-joliet": ("-J", "-R", "-V", "a label of more than 16 letters"),
    "unnamed": ("-R",),
    "bridge": ("-udf", "-V", "bridge"),
}


@pytest.mark.parametrize("way", LABELS)
def test_label_and_uuid(way: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    make_tree(tmp_path / "folder", symlinks=False)
    image = genisoimage(tmp_path / "folder", tmp_path / "image", *LABELS[way], charset="utf-8")
    check_by_blkid(image, "udf" if way == "bridge" else "iso9660")


@pytest.mark.parametrize("way", XORRISO)
def test_what_xorriso_wrote(way: str, source: Path, tmp_path: Path) -> None:
    image = xorriso(source, tmp_path / "image", *XORRISO[way])
    found = tree_entries(open_image(iso9660, image))
    truth = without_folder_links(read_entries(source))
    assert differences(truth, without_folder_links(found), ignoring=UNKEPT) == []
    judged = extracted(image, tmp_path / "extracted")
    assert differences(comparable(judged), comparable(found), ignoring=UNKEPT) == []
    if way != "plain":
        assert image.stat().st_size < 0.8 * sum(entry.get("size", 0) for entry in found.values())
    shutil.rmtree(tmp_path)


def test_attributes_and_acls(attributed: Path, tmp_path: Path) -> None:
    image = xorriso(attributed, tmp_path / "image")
    found = tree_entries(open_image(iso9660, image))
    truth = read_entries(attributed)
    assert set(truth[b"deep"]["xattrs"]) > {"system.posix_acl_access", "system.posix_acl_default"}
    assert len(truth[b"photo.jpg"]["xattrs"]["user.larger"]) > 2048
    # libisofs stores the mode of the group without the mask of an ACL.
    for path in (b"deep", b"etc/motd"):
        assert found[path].pop("mode") & 0o707 == truth[path].pop("mode") & 0o707
    ignored = (*UNKEPT, "links", "mtime_ns")
    assert differences(truth, found, ignoring=ignored) == []
    judged = extracted(image, tmp_path / "extracted")
    for entries in (judged, found):  # xorriso changes ACLs while it extracts; those were compared above
        for entry in entries.values():
            entry["xattrs"] = {
                name: value for name, value in entry["xattrs"].items() if not name.startswith("system.")
            }
    assert differences(judged, found, ignoring=(*ignored, "mode")) == []


def test_acls_in_the_form_of_aaip(attributed: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    run(
        *("xorriso", "-report_about", "FAILURE", "-acl", "on", "-xattr", "user", "-outdev", image),
        *("-map", attributed, "/", "-commit"),
    )
    found = tree_entries(open_image(iso9660, image))
    for path, name, value in (
        (b"etc/motd", "system.posix_acl_access", ACL),
        (b"deep", "system.posix_acl_access", ACL),
        (b"deep", "system.posix_acl_default", DEFAULT),
    ):
        assert found[path]["xattrs"][name] == value


def compressed_by_mkzftree(tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "folder"
    folder.mkdir()
    make_tree(folder)
    (folder / "text").write_bytes(text(1, 1_000_001))
    (folder / "mixture").write_bytes(mixture(2, 40 * 32_768 + 1, unit=32_768))
    (folder / "zeros").write_bytes(bytes(500_000))
    (folder / "32k").write_bytes(text(1, 32_768))
    run("mkzftree", "-f", folder, tmp_path / "packed")
    return folder, genisoimage(tmp_path / "packed", tmp_path / "image", "-R", "-z")


def test_what_mkzftree_compressed(tmp_path: Path) -> None:
    require_root()
    folder, image = compressed_by_mkzftree(tmp_path)
    tree = open_image(iso9660, image)
    truth, found = read_entries(folder), tree_entries(tree)
    assert differences(truth, found, ignoring=(*UNKEPT, "mtime_ns")) == []
    assert [extent.kind.value for extent in tree.extents(walk(tree, b"zeros"))] == ["zero"]
    judged = extracted(image, tmp_path / "extracted")
    assert {path: entry.get("sha256") for path, entry in judged.items()} == {
        path: entry.get("sha256") for path, entry in found.items()
    }


def test_a_damaged_block_of_zisofs_is_an_error(tmp_path: Path) -> None:
    folder, image = compressed_by_mkzftree(tmp_path)
    tree = open_image(iso9660, image)
    node = walk(tree, b"text")
    offset, length = list(tree.placements(node))[7]
    damage(image, offset + length // 2, mask=0xFF)
    hurt, truth = open_image(iso9660, image), (folder / "text").read_bytes()
    with pytest.raises(VolumeError, match="damaged"):
        hurt.read(node, 7 * 32_768, 100)
    assert hurt.read(node, 8 * 32_768, node.size) == truth[8 * 32_768 :]
    head = offset - next(tree.placements(node))[0]
    assert head > 0
    start = image.read_bytes().find(bytes.fromhex("37e45396c9dbd607"))
    for at in (0, 8, 12, 13, 16):
        hostile = bytearray(image.read_bytes())
        for begin in range(start, len(hostile), 2048):
            if hostile.startswith(bytes.fromhex("37e45396c9dbd607"), begin):
                hostile[begin + at] ^= 0x41
        other = iso9660.PLUGIN.open(MemoryDevice(bytes(hostile)), None)
        with pytest.raises(VolumeError, match="damaged"):
            other.read(walk(other, b"text"), 0, 100)


def joliet_names(folder: Path) -> None:
    make_tree(folder, symlinks=False)
    for name in ("Straße über 中文", "x" * 60, "dots.in.a.name", "emoji 😀", "semi"):
        (folder / name).write_bytes(name.encode())


@pytest.mark.parametrize("options", [("-J",), ("-J", "-joliet-long")], ids=["short", "long"])
def test_joliet_alone(options: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    joliet_names(folder)
    image = genisoimage(folder, tmp_path / "image", *options, charset="utf-8")
    check_contents(open_image(iso9660, image), seven_zip(image, tmp_path / "extracted"))
    found = digests(open_image(iso9660, image))
    assert found["résumé.txt"] == hashlib.sha256((folder / "résumé.txt").read_bytes()).hexdigest()
    if "-joliet-long" in options:
        assert "x" * 60 in found
        assert "Straße über 中文" in found


def test_names_of_the_standard_alone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    make_tree(folder, symlinks=False)
    image = genisoimage(folder, tmp_path / "image")
    check_contents(open_image(iso9660, image), seven_zip(image, tmp_path / "extracted"))


def seven_zip(image: Path, target: Path) -> Path:
    run("7zz", "x", "-y", "-bd", f"-o{target}", image)
    return target


def digests(tree: FileTree) -> dict[str, str]:
    return {
        os.fsdecode(path): entry["sha256"]
        for path, entry in tree_entries(tree).items()
        if entry["kind"] == NodeKind.FILE.value
    }


def check_contents(tree: FileTree, folder: Path) -> None:
    """Compare names and contents with a folder that knows no more."""
    truth = {
        os.fsdecode(path): entry["sha256"]
        for path, entry in read_entries(folder).items()
        if entry["kind"] == "file" and not path.startswith(b"[BOOT]")
    }
    assert truth == digests(tree)


def test_a_later_session_is_noted(tmp_path: Path) -> None:
    require_tool("genisoimage")
    for number in (1, 2):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / f"file-{number}").write_bytes(noise(number, 3000))
    image = genisoimage(tmp_path / "1", tmp_path / "image", "-R")
    info = identify(MemoryDevice(image.read_bytes()))
    assert info is not None
    assert info.note == ""
    start = -(-image.stat().st_size // 65_536) * 32
    more = genisoimage(tmp_path / "2", tmp_path / "more", "-R", "-C", f"0,{start}", "-M", str(image))
    both = image.read_bytes().ljust(start * 2048, b"\0") + more.read_bytes()
    info = identify(MemoryDevice(both))
    assert info is not None
    assert str(start * 2048) in info.note
    tree = iso9660.PLUGIN.open(MemoryDevice(both), info)
    assert [node.name for node in tree.children(tree.root())] == [b"file-1"]


@pytest.mark.nightly
def test_a_file_of_more_than_4_gib_is_one_file(tmp_path: Path) -> None:
    require_root()
    folder = tmp_path / "folder"
    folder.mkdir()
    places = (5, 2**32 - 2048, 2**32 - 3, 2**32 + 77, 5 * 2**30 - 9)
    with (folder / "large").open("wb") as file:
        file.truncate(5 * 2**30)
        for at in places:
            file.seek(at)
            file.write(noise(at, 9))
    image = xorriso(folder, tmp_path / "image")
    tree = open_sparse(image)
    large = walk(tree, b"large")
    assert (large.size, large.links) == (5 * 2**30, 1)
    for at in places:
        assert tree.read(large, at, 9) == noise(at, 9)
    image.unlink()


def open_sparse(path: Path) -> FileTree:
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return iso9660.PLUGIN.open(MemoryDevice(content), None)


def test_the_source_has_what_the_test_is_about(source: Path) -> None:
    truth: dict[bytes, dict[str, Any]] = read_entries(source)
    assert max(path.count(b"/") for path in truth) > 12
    assert len({entry["kind"] for entry in truth.values()}) == 7
    assert any(re.search(rb"[\xff\n\\]", path) for path in truth)
