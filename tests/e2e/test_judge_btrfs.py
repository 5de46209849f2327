"""btrfs in all its variants, written by the kernel: entry by entry what the kernel's own mount says of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import random
import shutil
import socket
import stat
import struct
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError, VolumeError
from imageformat.extent import ExtentKind
from mountfs.drivers import btrfs
from mountfs.signatures import identify
from mountfs.tree import FileSystemInfo, NodeKind, walk
from support.content import damage, make_tree, mixture, noise, text
from support.disks import MIB
from support.entries import Entries, differences, read_entries
from support.kernel import kernel_mount, loop_device
from support.requirements import require_root, require_tool, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.tree import FileTree, Node

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Variant:
    """How a file system is made and mounted."""

    make: tuple[str, ...] = ()
    mount: tuple[str, ...] = ("noatime",)
    size: int = 160 * MIB
    crowd: int = 500


SINGLE = ("-m", "single", "-d", "single")
VARIANTS = {
    "default": Variant(crowd=20_000),
    "xxhash, nodes of 4 KiB": Variant(("--csum", "xxhash", "-n", "4096", *SINGLE), crowd=2000),
    "sha256, nodes of 64 KiB": Variant(("--csum", "sha256", "-n", "65536")),
    "blake2, nodes of 32 KiB": Variant(("--csum", "blake2", "-n", "32768")),
    "mixed": Variant(("--mixed",), size=100 * MIB),
    "all twice": Variant(("-m", "dup", "-d", "dup"), size=256 * MIB),
    "as of old": Variant(("-O", "^no-holes,^extref,^skinny-metadata", "-R", "^free-space-tree")),
    "zlib": Variant(mount=("noatime", "compress-force=zlib")),
    "lzo": Variant(mount=("noatime", "compress-force=lzo")),
    "zstd": Variant(mount=("noatime", "compress-force=zstd:9")),
    "lzo, blocks inline": Variant(mount=("noatime", "compress=lzo", "max_inline=4095")),
    "without checksums": Variant(mount=("noatime", "nodatasum")),
    "without copying": Variant(mount=("noatime", "nodatacow")),
}
FICLONERANGE = 0x4020940D
NAME_ONLY_INODE = 2
"""Of a directory that the kernel makes up where a snapshot has only the name of a subvolume."""


def populate(top: Path, variant: Variant) -> None:
    make_tree(top)
    (top / "long link").symlink_to("l" * 1000)
    (top / "longest link").symlink_to("m" * 3900)
    (top / "dangling").symlink_to("../../nowhere")
    for name in (b"new\nline", b"not utf-8 \xff\xfe", b"back\\slash", b"n" * 255, b" ", b"...", b"%2F"):
        Path(os.fsdecode(os.fsencode(top) + b"/" + name)).write_bytes(name)
    (top / "crowd").mkdir()
    for number in range(variant.crowd):
        with (top / "crowd" / f"entry number {number}").open("wb") as file:
            file.write(b"%d" % number)
    for number in range(0, variant.crowd, 7):
        (top / "crowd" / f"entry number {number}").unlink()
    contents(top)
    special_files(top)
    attributes(top)
    linked = top / "linked" / "first"
    linked.parent.mkdir()
    linked.write_bytes(b"many names")
    # Without extrefs, the references of a folder must fit into one leaf.
    for number in range(10 if "^extref" in " ".join(variant.make) else 400):
        os.link(linked, linked.parent / f"{number:0200}")


def contents(top: Path) -> None:
    """Files of all lengths and all kinds of extents."""
    (top / "inline").mkdir()
    for length in (1, 47, 48, 2047, 2048, 2049, 3000, 4000, 4095, 4096, 4097):
        (top / "inline" / f"text {length}").write_bytes(text(length, length))
        (top / "inline" / f"noise {length}").write_bytes(noise(length, length))
    (top / "compressible").write_bytes(text(1, 3_000_001))
    (top / "mixture").write_bytes(mixture(2, 1_500_000, unit=50_000))
    (top / "zeros").write_bytes(bytes(700_000))
    (top / "short repeats").write_bytes(b"".join(bytes([n % 251]) * (n % 300) for n in range(4000)))
    with (top / "sparse").open("wb") as file:
        for at in (0, 100_000, 9_000_000, 30_000_000):
            file.seek(at)
            file.write(noise(at, 5000))
        file.truncate(40_000_123)
    with (top / "all hole").open("wb") as file:
        file.truncate(1 << 40)
        file.truncate(5_000_000)
    with (top / "inline and a hole").open("wb") as file:
        file.write(b"start" * 20)
        file.flush()
        os.fsync(file.fileno())
        file.truncate(9_000_000)
    run("fallocate", "--length", "3000000", top / "preallocated")
    with (top / "preallocated").open("r+b") as file:
        for at in (5000, 1_000_000, 2_222_222):
            file.seek(at)
            file.write(noise(at, 70_000))
    (top / "beyond").write_bytes(noise(8, 10_000))
    run("fallocate", "--keep-size", "--length", "1000000", top / "beyond")
    (top / "punched").write_bytes(noise(3, 600_000))
    run("fallocate", "--punch-hole", "--offset", "100000", "--length", "200000", top / "punched")
    with (top / "torn").open("wb") as torn, (top / "between").open("wb") as other:
        for number in range(60):
            for file in (torn, other):
                file.write(noise(number, 8192))
                file.flush()
                os.fsync(file.fileno())
    with (top / "overwritten").open("w+b") as file:
        file.write(text(5, 1_000_000))
        file.flush()
        os.fsync(file.fileno())
        for at in range(3000, 900_000, 70_001):
            file.seek(at)
            file.write(noise(at, 9000))
    (top / "no copy").mkdir()
    run("chattr", "+C", top / "no copy")
    (top / "no copy" / "no checksums").write_bytes(noise(9, 300_000))
    reflinks(top)


def reflinks(top: Path) -> None:
    for name in ("photo.jpg", "compressible", "sparse"):
        copied = os.open(top / f"copy of {name}", os.O_CREAT | os.O_RDWR)
        with (top / name).open("rb") as file:
            try:
                fcntl.ioctl(copied, 0x40049409, file.fileno())
            except OSError as error:
                # Between files with and without checksums nothing can be shared.
                assert error.errno == errno.EINVAL
        os.close(copied)
    with (top / "compressible").open("rb") as file, (top / "patchwork").open("w+b") as target:
        target.write(noise(4, 800_000))
        target.flush()
        for source, at in ((40_960, 8192), (204_800, 400_000 // 4096 * 4096), (0, 790_528)):
            wanted = struct.pack("qQQQ", file.fileno(), source, 65_536, at)
            fcntl.ioctl(target.fileno(), FICLONERANGE, wanted)


def special_files(top: Path) -> None:
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "block", stat.S_IFBLK | 0o660, os.makedev(8, 17))
    os.mknod(top / "character", stat.S_IFCHR | 0o600, os.makedev(300, 70_000))
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(top):
        server.bind("socket")


def attributes(top: Path) -> None:
    (top / "set-id").write_bytes(b"#!")
    os.chown(top / "set-id", 70_000, 4_000_000_000)
    (top / "set-id").chmod(0o6755)
    (top / "many").chmod(0o1777)
    os.chown(top / "link", 1234, 5678, follow_symlinks=False)
    os.setxattr(top / "hello.txt", "user.comment", b"value")
    os.setxattr(top / "hello.txt", "user.empty", b"")
    os.setxattr(top / "photo.jpg", "user.larger", b"v" * 3000)
    for number in range(60):
        os.setxattr(top / "empty", f"user.number {number}", b"%d" % number * number)
    os.setxattr(top / "many", "trusted.folder", b"\0\1\2")
    run("setfacl", "-m", "u:1000:r--,g:2000:rwx", top / "etc" / "motd")
    run("setfacl", "-d", "-m", "u:1000:r-x", top / "etc")
    run("chattr", "+c", top / "etc")
    os.utime(top / "hello.txt", ns=(1_234_567_890_123_456_789, 987_654_321_000_000_001))
    os.utime(top / "empty", ns=(-5_000_000_001, -(2**30) * 10**9))
    os.utime(top / "photo.jpg", ns=(2**33 * 10**9 + 7, 2**32 * 10**9 + 999_999_999))


def subvolumes(top: Path) -> None:
    """Subvolumes and snapshots, nested both ways, one of them gone again."""
    inner, frozen = top / "sub", top / "deep" / "frozen"
    for path in (inner, inner / "nested", top / "gone"):
        run("btrfs", "subvolume", "create", path)
    make_tree(inner, 3)
    (inner / "inner folder").mkdir()
    run("btrfs", "subvolume", "create", inner / "inner folder" / "lower")
    (inner / "inner folder" / "lower" / "bottom").write_bytes(noise(6, 20_000))
    (inner / "nested" / "photo").write_bytes(noise(7, 90_000))
    os.link(inner / "photo.jpg", inner / "deep" / "the same photo")
    os.sync()
    run("btrfs", "subvolume", "snapshot", inner, top / "snap")
    (inner / "photo.jpg").write_bytes(noise(8, 123_456))
    (inner / "hello.txt").unlink()
    run("btrfs", "subvolume", "snapshot", "-r", inner, frozen)
    with (top / "snap" / "photo.jpg").open("r+b") as file:
        file.seek(50_000)
        file.write(b"changed in the snapshot")
    (top / "snap" / "only here").write_bytes(b"new")
    (top / "gone" / "file").write_bytes(noise(1, 100_000))
    run("btrfs", "subvolume", "delete", top / "gone")
    run("btrfs", "subvolume", "snapshot", top / "snap", inner / "snap of snap")


@dataclass(frozen=True)
class Made:
    """An image, and what the kernel finds in it."""

    image: Path
    truth: Entries
    numbers: dict[bytes, tuple[int, int]]
    """Device and inode of each path, as the kernel numbers them."""

    def compared(self, entries: Entries) -> Entries:
        """Without the times that the kernel makes up whenever it is asked."""
        made_up = {"atime_ns", "mtime_ns", "ctime_ns"}
        changed = {}
        for path, entry in entries.items():
            left_out = made_up if path in self.names_only else frozenset()
            changed[path] = {name: value for name, value in entry.items() if name not in left_out}
        return changed

    @property
    def names_only(self) -> set[bytes]:
        return {path for path, (_, inode) in self.numbers.items() if inode == NAME_ONLY_INODE}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    require_root()
    require_tool("mkfs.btrfs", "btrfs", "losetup", "setfacl", "chattr", "fallocate")
    path = Path(tempfile.mkdtemp(prefix="btrfs-"))
    yield path
    shutil.rmtree(path)


def make(folder: Path, variant: Variant) -> Made:
    image = folder / "disk.img"
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(variant.size)
    run("mkfs.btrfs", "-q", "-f", "-L", "Archive", *variant.make, image)
    with loop_device(image) as device:
        with kernel_mount(device, "btrfs", read_only=False, options=variant.mount) as top:
            populate(top, variant)
            subvolumes(top)
        return judged(image, device)


def judged(image: Path, device: str, *options: str) -> Made:
    with kernel_mount(device, "btrfs", options=("subvolid=5", *options)) as top:
        truth = read_entries(top)
        numbers = {}
        for path in truth:
            status = os.lstat(os.fsencode(top) + b"/" + path)
            numbers[path] = (status.st_dev, status.st_ino)
    return Made(image, truth, numbers)


@pytest.fixture(scope="module", params=VARIANTS)
def made(request: pytest.FixtureRequest, folder: Path) -> Made:
    return make(folder, VARIANTS[request.param])


@contextlib.contextmanager
def opened(image: Path) -> Iterator[FileTree]:
    with image.open("rb") as file, ExitStack() as stack:
        content = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        tree = btrfs.PLUGIN.open(MemoryDevice(content), FileSystemInfo("btrfs"))
        stack.callback(tree.close)
        yield tree


def everything(tree: FileTree) -> Iterator[tuple[bytes, Node]]:
    pending = [(b"", tree.root())]
    while pending:
        above, parent = pending.pop()
        for node in tree.children(parent):
            path = above + node.name
            yield path, node
            if node.kind is NodeKind.DIRECTORY:
                pending.append((path + b"/", node))


def read_all(tree: FileTree, node: Node) -> bytes:
    step = 1_000_003
    return b"".join(tree.read(node, at, step) for at in range(0, node.size, step))


def seen(tree: FileTree) -> Entries:
    """The whole tree in the form of `read_entries`."""
    found: Entries = {}
    twins: dict[int, bytes] = {}
    for path, node in sorted(everything(tree), key=lambda pair: pair[0]):
        entry: dict[str, Any] = {
            "kind": node.kind.value,
            **{name: getattr(node, name) for name in ("mode", "uid", "gid", "links", "device")},
            **{name: getattr(node, name) for name in ("atime_ns", "mtime_ns", "ctime_ns")},
            "xattrs": tree.xattrs(node),
        }
        if node.kind is not NodeKind.DIRECTORY:
            entry["size"] = node.size
            if node.links > 1:
                entry["twin"] = twins.setdefault(node.inode, path)
        if node.kind is NodeKind.FILE:
            entry["sha256"] = hashlib.sha256(read_all(tree, node)).hexdigest()
        if node.kind is NodeKind.SYMLINK:
            entry["target"] = tree.readlink(node)
        found[path] = entry
    return found


def test_the_tree_is_what_the_kernel_sees(made: Made) -> None:
    assert {entry["kind"] for entry in made.truth.values()} == {kind.value for kind in NodeKind}
    assert made.names_only > {b"snap/nested", b"deep/frozen/inner folder/lower"}
    with opened(made.image) as tree:
        assert differences(made.compared(made.truth), made.compared(seen(tree))) == []
        by_kernel: dict[tuple[int, int], int] = {}
        for path, node in everything(tree):
            if path not in made.names_only:
                assert by_kernel.setdefault(made.numbers[path], node.inode) == node.inode
        assert len(set(by_kernel.values()) - {0}) == len(by_kernel)
