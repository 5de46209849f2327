"""ext2, ext3 and ext4 volumes that the kernel wrote, entry by entry against the kernel's own mount."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import socket
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from imageformat.device import MemoryDevice
from imageformat.extent import ExtentKind
from mountfs.drivers import ext
from mountfs.tree import FileSystemInfo, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.tree import FileTree, Node

pytestmark = pytest.mark.root

MAKE = {
    "ext2 with 1 KiB blocks": ["mkfs.ext2", "-b", "1024"],
    "ext2 revision 0": ["mkfs.ext2", "-b", "1024", "-r", "0"],
    "ext3": ["mkfs.ext3", "-b", "4096"],
    "ext4": ["mkfs.ext4", "-b", "4096"],
    "ext4 with everything": [
        *("mkfs.ext4", "-b", "1024", "-I", "512"),
        *("-O", "inline_data,ea_inode,meta_bg,^resize_inode,64bit,metadata_csum_seed,large_dir"),
    ],
    "ext4 with clusters": ["mkfs.ext4", "-b", "4096", "-O", "bigalloc", "-C", "16384", "-N", "8000"],
    "ext4 with small inodes": [
        "mkfs.ext4",
        "-b",
        "2048",
        "-I",
        "128",
        "-O",
        "^64bit,^metadata_csum,^flex_bg",
    ],
}
KINDS = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFDIR: NodeKind.DIRECTORY,
    stat.S_IFLNK: NodeKind.SYMLINK,
    stat.S_IFIFO: NodeKind.FIFO,
    stat.S_IFSOCK: NodeKind.SOCKET,
    stat.S_IFCHR: NodeKind.CHARACTER_DEVICE,
    stat.S_IFBLK: NodeKind.BLOCK_DEVICE,
}


def missing(what: object) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"missing: {what}")
    pytest.skip(f"missing: {what}")


@contextmanager
def mounted(image: Path, folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", options, image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def populate(top: Path, *, has_extents: bool) -> None:
    rng = random.Random(3)
    (top / "plain").write_bytes(rng.randbytes(700_001))
    (top / "tiny").write_bytes(b"tiny")
    for size in (59, 60, 61, 100, 150, 300):
        (top / f"inline {size}").write_bytes(b"x" * size)
        (top / f"link {size}").symlink_to("t" * size)
    (top / "long link").symlink_to("l" * 1000)
    (top / "few").mkdir()
    (top / "few" / "a").write_bytes(b"a")
    (top / "some").mkdir()
    for number in range(6):
        (top / "some" / f"a longer name {number}").touch()
    os.link(top / "plain", top / "few" / "hard")
    with (top / "sparse").open("wb") as file:
        for at in (0, 100_000, 9_000_000, 30_000_000):
            file.seek(at)
            file.write(rng.randbytes(5000))
        file.truncate(40_000_123)
    with (top / "fragments").open("wb") as file, (top / "between").open("wb") as other:
        for _ in range(200):
            for target in (file, other):
                target.write(rng.randbytes(4096))
                target.flush()
                os.fsync(target.fileno())
    if has_extents:
        preallocate(top)
    else:
        with (top / "triple").open("wb") as file:
            file.seek(70_000_000)
            file.write(b"behind three levels of indirect blocks")
    special_files(top)
    for name in (
        b"new\nline",
        b"not utf-8 \xff\xfe",
        b"back\\slash",
        b"n" * 255,
        "ü😀".encode(),
        b" ",
        b"...",
    ):
        Path(os.fsdecode(os.fsencode(top) + b"/" + name)).write_bytes(name)
    (top / "many").mkdir()
    for number in range(3000):
        (top / "many" / f"entry number {number}").touch()
    for number in range(0, 3000, 7):
        (top / "many" / f"entry number {number}").unlink()
    deep = top
    for number in range(60):
        deep /= f"d{number}"
        deep.mkdir()
    (deep / "bottom").write_bytes(b"bottom")


def preallocate(top: Path) -> None:
    descriptor = os.open(top / "preallocated", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, 3_000_000)
    os.pwrite(descriptor, b"w" * 9000, 1_000_000)
    os.close(descriptor)
    subprocess.run(["fallocate", "-n", "-l", "2M", top / "tiny"], check=True)
    shutil.copy(top / "plain", top / "punched")
    subprocess.run(["fallocate", "-p", "-o", "131072", "-l", "65536", top / "punched"], check=True)


def special_files(top: Path) -> None:
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "old device", stat.S_IFBLK | 0o660, os.makedev(8, 17))
    os.mknod(top / "new device", stat.S_IFCHR | 0o600, os.makedev(300, 70_000))
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(top)
        server.bind("socket")
        os.chdir(here)
    (top / "set-id").write_bytes(b"#!")
    (top / "set-id").chmod(0o6755)
    (top / "few").chmod(0o1777)
    os.chown(top / "set-id", 70_000, 4_000_000_000, follow_symlinks=False)
    (top / "set-id").chmod(0o6755)
    os.utime(top / "plain", ns=(1_234_567_890_123_456_789, 987_654_321_000_000_001))
    os.utime(top / "tiny", ns=(-5_000_000_001, -(2**31) * 10**9))
    os.utime(top / "few" / "a", ns=(5_000_000_000_000_000_007, 9_000_000_000_123_456_789))
    os.setxattr(top / "tiny", "user.small", b"value")
    os.setxattr(top / "tiny", "user.empty", b"")
    os.setxattr(top / "plain", "user.larger", b"v" * 700)
    os.setxattr(top / "few", "trusted.folder", b"\0\1\2")
    acl = bytes.fromhex(
        "02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000400ffffffff 20000400ffffffff"
    )
    os.setxattr(top / "inline 61", "system.posix_acl_access", acl)


@pytest.fixture(scope="module", params=MAKE)
def volume(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FileTree, Path]]:
    command = MAKE[request.param]
    if os.geteuid() != 0 or shutil.which(command[0]) is None:
        missing(f"root and {command[0]}")
    folder = tmp_path_factory.mktemp("ext")
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(96 << 20)
    subprocess.run([*command, "-q", "-F", image], check=True)
    with mounted(image, folder / "mount", "loop") as top:
        populate(top, has_extents=command[0] == "mkfs.ext4")
        if "everything" in request.param:
            os.setxattr(top / "plain", "user.own inode", b"V" * 3000)
    with image.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tree = ext.PLUGIN.open(MemoryDevice(content), FileSystemInfo("ext4"))  # type: ignore[arg-type]
    with mounted(
        image, folder / "mount", "loop,ro,noload" if "ext2" not in request.param else "loop,ro"
    ) as top:
        yield tree, top
        tree.close()


def all_nodes(tree: FileTree) -> dict[bytes, Node]:
    found, pending = {}, [(b"", tree.root())]
    while pending:
        path, parent = pending.pop()
        for node in tree.children(parent):
            below = path + b"/" + node.name if path else node.name
            found[below] = node
            if node.kind is NodeKind.DIRECTORY:
                pending.append((below, node))
    return found


def kernel_paths(top: Path) -> dict[bytes, bytes]:
    start = os.fsencode(top)
    return {
        os.path.relpath(os.path.join(folder, name), start): os.path.join(folder, name)  # noqa: PTH118
        for folder, folders, files in os.walk(start)
        for name in folders + files
    }


def node_values(node: Node) -> dict[str, Any]:
    names = (
        "kind",
        "mode",
        "uid",
        "gid",
        "links",
        "inode",
        "size",
        "atime_ns",
        "mtime_ns",
        "ctime_ns",
        "device",
    )
    return {name: getattr(node, name) for name in names}


def kernel_values(path: bytes) -> dict[str, Any]:
    found = os.lstat(path)
    return {
        "kind": KINDS[stat.S_IFMT(found.st_mode)],
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "links": found.st_nlink,
        "inode": found.st_ino,
        "size": found.st_size,
        "atime_ns": found.st_atime_ns,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "device": (os.major(found.st_rdev), os.minor(found.st_rdev)),
    }


def test_every_entry_is_as_the_kernel_sees_it(volume: tuple[FileTree, Path]) -> None:
    tree, top = volume
    nodes, paths = all_nodes(tree), kernel_paths(top)
    assert nodes.keys() == paths.keys()
    assert len(nodes) > 2600
    for name, path in paths.items():
        node = nodes[name]
        assert (name, node_values(node)) == (name, kernel_values(path))
        if node.kind is NodeKind.SYMLINK:
            assert tree.readlink(node) == os.readlink(path)  # noqa: PTH115
        if node.kind is NodeKind.FILE:
            same = tree.read(node, 0, node.size) == Path(os.fsdecode(path)).read_bytes()
            assert same, name


def test_extended_attributes_are_as_the_kernel_sees_them(volume: tuple[FileTree, Path]) -> None:
    tree, top = volume
    nodes, count = all_nodes(tree), 0
    for name, path in kernel_paths(top).items():
        listed = os.listxattr(path, follow_symlinks=False)
        count += len(listed)
        held = {key: os.getxattr(path, key, follow_symlinks=False) for key in listed}
        assert dict(tree.xattrs(nodes[name])) == held, name
    assert count >= 5


def test_holes_and_preallocated_space_are_zeros_and_data_is_data(volume: tuple[FileTree, Path]) -> None:
    tree, top = volume
    nodes = all_nodes(tree)
    seen = 0
    for name in (b"sparse", b"preallocated", b"punched"):
        if name not in nodes:
            continue
        whole = (top / name.decode()).read_bytes()
        kinds = set()
        for extent in tree.extents(nodes[name]):
            kinds.add(extent.kind)
            if extent.kind is ExtentKind.ZERO:
                assert not any(whole[extent.offset : extent.end])
        assert kinds == {ExtentKind.DATA, ExtentKind.ZERO}
        seen += 1
    assert seen


def test_the_birth_time_is_that_of_the_kernel(volume: tuple[FileTree, Path]) -> None:
    tree, top = volume
    node = tree.child(tree.root(), b"plain")
    assert node is not None
    found = subprocess.run(["stat", "-c", "%W", top / "plain"], check=True, capture_output=True, text=True)
    assert node.birth_ns // 10**9 == int(found.stdout.replace("-", "0"))
