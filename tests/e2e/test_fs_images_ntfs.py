"""NTFS volumes that ntfs-3g wrote, entry by entry against ntfs-3g's own read-only mount."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import stat
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from imageformat.extent import ExtentKind
from mountfs.drivers import ntfs
from mountfs.tree import FileSystemInfo, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.tree import FileTree, Node

pytestmark = [pytest.mark.root, pytest.mark.fuse]

KINDS = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFDIR: NodeKind.DIRECTORY,
    stat.S_IFLNK: NodeKind.SYMLINK,
    stat.S_IFIFO: NodeKind.FIFO,
    stat.S_IFSOCK: NodeKind.SOCKET,
    stat.S_IFCHR: NodeKind.CHARACTER_DEVICE,
    stat.S_IFBLK: NodeKind.BLOCK_DEVICE,
}
WOF = struct.pack("<IHH", 0x8000_0017, 16, 0) + struct.pack("<IIII", 1, 2, 1, 0)


def missing(what: object) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"missing: {what}")
    pytest.skip(f"missing: {what}")


@contextmanager
def mounted(image: Path, folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["ntfs-3g", "-o", options, image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def windows_link(target: str) -> bytes:
    text = target.encode("utf-16-le")
    data = struct.pack("<HHHHI", 0, len(text), len(text), len(text), 1) + text + text
    return struct.pack("<IHH", 0xA000_000C, len(data), 0) + data


def populate(top: Path) -> None:
    rng = random.Random(5)
    (top / "resident").write_bytes(b"resident")
    (top / "plain").write_bytes(rng.randbytes(500_001))
    (top / "folder").mkdir()
    os.link(top / "plain", top / "folder" / "hard")
    with (top / "sparse").open("wb") as file:
        for at in (0, 3_000_000, 8_000_000):
            file.seek(at)
            file.write(rng.randbytes(5000))
        file.truncate(10_000_123)
    with (top / "fragments").open("wb") as file, (top / "between").open("wb") as other:
        for _ in range(120):
            for target in (file, other):
                target.write(rng.randbytes(4096))
                target.flush()
                os.fsync(target.fileno())
    (top / "compressed").mkdir()
    os.setxattr(top / "compressed", "system.ntfs_attrib_be", bytes.fromhex("00000800"))
    (top / "compressed" / "text").write_bytes(b"all work and no play " * 30_000 + b"end")
    (top / "compressed" / "noise").write_bytes(rng.randbytes(200_000) + b"z" * 200_000)
    with (top / "compressed" / "holes").open("wb") as file:
        file.write(b"start")
        file.seek(700_000)
        file.write(b"end")
    for name, value in (("first", b"stream"), ("large ü", rng.randbytes(60_000)), ("empty", b"")):
        os.setxattr(top / "resident", f"user.{name}", value)
    os.setxattr(top / "folder", "user.of a folder", b"stream of a folder")
    (top / "link").symlink_to("folder/hard")
    os.mkfifo(top / "fifo")
    os.mknod(top / "device", stat.S_IFCHR | 0o600, os.makedev(300, 70_000))
    for name in ("ü" * 255, "😀" * 127, " leading", "dollar $MFT", "new\nline", "DOS~1.TXT"):
        (top / name).write_bytes(name.encode())
    (top / "a long name with a short one.text").write_bytes(b"two names")
    os.setxattr(top / "a long name with a short one.text", "system.ntfs_dos_name", b"ALONGN~1.TEX")
    (top / "many").mkdir()
    for number in range(1500):
        (top / "many" / f"entry number {number}").touch()
    for number in {*range(0, 1500, 3), *range(700)}:
        (top / "many" / f"entry number {number}").unlink()
    os.utime(top / "plain", ns=(1_234_567_890_123_456_700, 987_654_321_000_000_100))
    (top / "windows link").touch()
    os.setxattr(top / "windows link", "system.ntfs_reparse_data", windows_link("folder\\hard"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid() != 0 or shutil.which("ntfs-3g") is None or not Path("/dev/fuse").exists():
        missing("root, ntfs-3g and /dev/fuse")
    folder = tmp_path_factory.mktemp("ntfs")
    made = folder / "image"
    with made.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ntfs", "-q", "-F", made], check=True, capture_output=True)
    with mounted(made, folder / "mount", "compression,streams_interface=xattr") as top:
        populate(top)
    return made


def open_tree(path: Path) -> FileTree:
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return ntfs.PLUGIN.open(MemoryDevice(content), FileSystemInfo("ntfs"))  # type: ignore[arg-type]


def all_nodes(tree: FileTree) -> dict[str, Node]:
    found, pending = {}, [("", tree.root())]
    while pending:
        path, parent = pending.pop()
        for node in tree.children(parent):
            below = f"{path}/{node.name.decode()}".removeprefix("/")
            found[below] = node
            if node.kind is NodeKind.DIRECTORY:
                pending.append((below, node))
    return found


def values(node: Node) -> dict[str, Any]:
    names = ("kind", "mode", "uid", "gid", "links", "inode", "atime_ns", "mtime_ns", "ctime_ns", "device")
    size = {"size": node.size} if node.kind in {NodeKind.FILE, NodeKind.SYMLINK} else {}
    return {name: getattr(node, name) for name in names} | size


def mounted_values(path: Path) -> dict[str, Any]:
    found = path.lstat()
    kind = KINDS[stat.S_IFMT(found.st_mode)]
    return {
        "kind": kind,
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "links": found.st_nlink,
        "inode": found.st_ino,
        "atime_ns": found.st_atime_ns,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "device": (os.major(found.st_rdev), os.minor(found.st_rdev)),
    } | ({"size": found.st_size} if kind in {NodeKind.FILE, NodeKind.SYMLINK} else {})


def test_every_entry_is_as_ntfs3g_sees_it(image: Path, tmp_path: Path) -> None:
    tree = open_tree(image)
    nodes = all_nodes(tree)
    with mounted(image, tmp_path / "mount", "ro,streams_interface=xattr") as top:
        assert nodes.keys() == {str(path.relative_to(top)) for path in top.rglob("*")}
        assert len(nodes) > 500
        for name, node in nodes.items():
            path = top / name
            assert (name, values(node)) == (name, mounted_values(path))
            if node.kind is NodeKind.SYMLINK:
                assert tree.readlink(node) == os.fsencode(path.readlink())
            if node.kind is NodeKind.FILE:
                same = tree.read(node, 0, node.size) == path.read_bytes()
                assert same, name
            if node.kind in {NodeKind.FILE, NodeKind.DIRECTORY}:
                held = {s.name.decode(): tree.read(node, 0, s.size, s.name) for s in tree.streams(node)}
                listed = [key for key in os.listxattr(path) if key.startswith("user.")]
                assert held == {key.removeprefix("user."): os.getxattr(path, key) for key in listed}


def test_the_volume_holds_what_the_test_is_about(image: Path) -> None:
    tree = open_tree(image)
    nodes = all_nodes(tree)
    assert nodes["plain"].inode == nodes["folder/hard"].inode
    assert len(tree.streams(nodes["resident"])) == 3
    assert nodes["device"].device == (300, 70_000)
    assert tree.readlink(nodes["windows link"]) == b"folder/hard"
    kinds = {extent.kind for extent in tree.extents(nodes["sparse"])}
    assert kinds == {ExtentKind.DATA, ExtentKind.ZERO}
    assert len([e for e in tree.extents(nodes["plain"]) if e.kind is ExtentKind.DATA]) == 1


def test_reads_at_any_offset_of_compressed_and_sparse_files(image: Path) -> None:
    tree = open_tree(image)
    nodes, rng = all_nodes(tree), random.Random(11)
    for name in ("compressed/text", "compressed/noise", "compressed/holes", "sparse", "fragments"):
        whole = tree.read(nodes[name], 0, nodes[name].size)
        for _ in range(100):
            start, size = rng.randrange(len(whole)), rng.choice([1, 511, 4096, 65_536, 300_000])
            same = tree.read(nodes[name], start, size) == whole[start : start + size]
            assert same, (name, start, size)


def data_attribute(content: bytearray, inode: int) -> int:
    """Return where the unnamed data attribute of a file record lies in the image."""
    at = -1
    while (at := content.find(b"FILE", at + 1)) >= 0:
        if at % 1024 == 0 and struct.unpack_from("<I", content, at + 44)[0] == inode:
            break
    assert at >= 0
    at += struct.unpack_from("<H", content, at + 20)[0]
    while struct.unpack_from("<I", content, at)[0] != 0x80:
        at += struct.unpack_from("<I", content, at + 4)[0]
    return at


def test_what_was_never_written_reads_as_zeros(image: Path, tmp_path: Path) -> None:
    """Windows reserves space without clearing it; ntfs-3g reads the same patched volume."""
    inode = all_nodes(open_tree(image))["plain"].inode
    patched = tmp_path / "patched"
    content = bytearray(image.read_bytes())
    struct.pack_into("<Q", content, data_attribute(content, inode) + 56, 300_001)
    patched.write_bytes(content)
    tree = open_tree(patched)
    node = all_nodes(tree)["plain"]
    whole = tree.read(node, 0, node.size)
    with mounted(patched, tmp_path / "mount", "ro") as top:
        same = whole == (top / "plain").read_bytes()
    assert same
    assert not any(whole[300_001:])
    assert any(whole[299_900:300_001])
    starts = [(extent.offset, extent.kind) for extent in tree.extents(node)]
    assert starts == [(0, ExtentKind.DATA), (300_001, ExtentKind.ZERO)]


def test_encrypted_content_is_refused(image: Path, tmp_path: Path) -> None:
    inode = all_nodes(open_tree(image))["plain"].inode
    content = bytearray(image.read_bytes())
    at = data_attribute(content, inode)
    struct.pack_into("<H", content, at + 12, 0x4000)
    patched = tmp_path / "patched"
    patched.write_bytes(content)
    tree = open_tree(patched)
    with pytest.raises(VolumeError, match="encrypted"):
        tree.read(all_nodes(tree)["plain"], 0, 10)


def test_content_that_lies_elsewhere_is_refused(image: Path, tmp_path: Path) -> None:
    """The main stream of a file that Windows compressed as a whole is a hole; it must not read as zeros."""
    patched = tmp_path / "patched"
    shutil.copy(image, patched)
    with mounted(patched, tmp_path / "mount", "streams_interface=xattr") as top:
        os.setxattr(top / "between", "system.ntfs_reparse_data", WOF)
    tree = open_tree(patched)
    node = all_nodes(tree)["between"]
    assert node.kind is NodeKind.FILE
    with pytest.raises(VolumeError, match="CompactOS"):
        tree.read(node, 0, 10)
    with pytest.raises(VolumeError, match="CompactOS"):
        list(tree.extents(node))
