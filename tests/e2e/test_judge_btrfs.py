"""btrfs in all its variants, written by the kernel: entry by entry what the kernel's own mount says of it."""

from __future__ import annotations

import contextlib
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
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError, VolumeError
from imageformat.extent import ExtentKind
from mountfs.disktree import DiskTree
from mountfs.drivers import btrfs
from mountfs.signatures import identify
from mountfs.tree import FileSystemInfo, NodeKind, walk
from mountfs.volumes import among
from support.content import damage, make_tree, mixture, noise, text
from support.disks import MIB
from support.entries import Entries, differences, read_entries
from support.kernel import kernel_mount, loop_device
from support.requirements import require_root, require_tool, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.tree import FileTree, Node

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("btrfs")]


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
FICLONE, FICLONERANGE = 0x40049409, 0x4020940D
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
    (top / "punched").write_bytes(noise(33, 600_000))
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
            fcntl.ioctl(copied, FICLONE, file.fileno())
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

    @cached_property
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


@pytest.fixture(scope="module")
def twice(folder: Path) -> Made:
    """Data and metadata two times on one device."""
    return make(folder, VARIANTS["all twice"])


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """Where a test may keep an image that it damages."""
    path = tmp_path / "copy.img"
    yield path
    path.unlink(missing_ok=True)


def copied(made: Made, copy: Path) -> Path:
    run("cp", "--sparse=always", made.image, copy)
    return copy


def simple(folder: Path, *options: str) -> Path:
    """A small file system with one copy of everything."""
    image = folder / "simple.img"
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(128 * MIB)
    run("mkfs.btrfs", "-q", "-f", *SINGLE, *options, image)
    with loop_device(image) as device, kernel_mount(device, "btrfs", read_only=False) as top:
        make_tree(top)
        (top / "big").write_bytes(noise(5, 1_000_000))
    return image


@pytest.mark.parametrize("checksum", ["crc32c", "xxhash", "sha256", "blake2"])
def test_a_flipped_byte_is_an_error_with_its_place(checksum: str, tmp_path: Path) -> None:
    image = simple(tmp_path, "--csum", checksum)
    at = image.read_bytes().find(noise(5, 1_000_000)[500_000:504_096])
    damage(image, at + 1234)
    with opened(image) as tree:
        node = walk(tree, b"big")
        assert tree.read(node, 0, 499_000) == noise(5, 1_000_000)[:499_000]
        sector = (at + 1234) // 4096 * 4096
        with pytest.raises(VolumeError, match=f"byte {sector} of the volume .* does not match its"):
            tree.read(node, 499_712, 8192)
        places = list(tree.placements(node))
        assert any(start <= at < start + length for start, length in places)
        assert sum(length for _, length in places) == 1_000_000


def both_places(image: Path, data: bytes) -> list[int]:
    content = image.read_bytes()
    first = content.find(data)
    return [first, content.find(data, first + 1)]


def test_the_other_copy_of_data_is_served(twice: Made, copy: Path) -> None:
    image = copied(twice, copy)
    photo = noise(1 + 2, 300_000)
    places = both_places(image, photo[40_960:49_152])
    assert 0 < places[0] < places[1]
    for place in places:
        with opened(image) as tree:
            assert tree.read(walk(tree, b"photo.jpg"), 0, 300_000) == photo
        damage(image, place + 77)
    with opened(image) as tree, pytest.raises(VolumeError, match="does not match its crc32c"):
        tree.read(walk(tree, b"photo.jpg"), 0, 300_000)


def nodes(image: Path, size: int = 16_384) -> dict[bytes, list[int]]:
    """Where each node of metadata lies, by its logical address: found by looking at every place."""
    content = image.read_bytes()
    identity = content[65_536 + 32 : 65_536 + 48]
    found: dict[bytes, list[int]] = {}
    for at in range(0, len(content), size):
        if content[at + 32 : at + 48] == identity and at != 65_536:
            found.setdefault(content[at + 48 : at + 56] + content[at + 80 : at + 88], []).append(at)
    return found


def test_the_other_copy_of_metadata_is_served(twice: Made, copy: Path) -> None:
    image = copied(twice, copy)
    found = [places for places in nodes(image).values() if len(places) == 2]
    assert len(found) > 20
    for number, places in enumerate(found):
        damage(image, places[number % 2] + 200 + number)
    with opened(image) as tree:
        assert differences(twice.compared(twice.truth), twice.compared(seen(tree))) == []
    for number, places in enumerate(found):
        damage(image, places[1 - number % 2] + 300 + number)
    with pytest.raises(VolumeError, match="does not match"), opened(image):
        pass


def test_the_other_copies_of_the_superblock_count(tmp_path: Path) -> None:
    image = simple(tmp_path)
    with opened(image) as tree:
        expected = seen(tree)
    damage(image, 65_536 + 3000)
    with opened(image) as tree:
        assert differences(expected, seen(tree)) == []
    damage(image, 64 * MIB + 3000)
    with pytest.raises(VolumeError, match="superblock"), opened(image):
        pass


@dataclass(frozen=True)
class Pair:
    """Two devices of one file system."""

    images: tuple[Path, Path]
    truth: Entries


def make_pair(folder: Path, *options: str) -> Pair:
    images = (folder / "one.img", folder / "other.img")
    with ExitStack() as stack:
        devices = []
        for image in images:
            with image.open("wb") as file:
                file.truncate(256 * MIB)
            devices.append(stack.enter_context(loop_device(image)))
        run("mkfs.btrfs", "-q", "-f", *options, *devices)
        run("btrfs", "device", "scan", *devices)
        with kernel_mount(devices[0], "btrfs", read_only=False) as top:
            make_tree(top)
            (top / "big").write_bytes(noise(5, 1_000_000))
        with kernel_mount(devices[0], "btrfs") as top:
            truth = read_entries(top)
        run("btrfs", "device", "scan", "--forget")
    return Pair(images, truth)


def test_one_of_two_mirrors_is_enough(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "-m", "raid1", "-d", "raid1")
    for image in pair.images:
        with opened(image) as tree:
            assert differences(pair.truth, seen(tree)) == []
        info = identify(MemoryDevice(image.read_bytes()))
        assert info is not None
        assert info.note == "one of 2 devices"


@pytest.mark.parametrize("data", ["raid0", "single"])
def test_data_on_a_missing_device_is_an_error_that_names_it(data: str, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "-m", "raid1", "-d", data)
    whole = noise(5, 1_000_000)
    read: list[set[int]] = []
    for number, image in enumerate(pair.images, 1):
        read.append(set())
        failures: set[str] = set()
        with opened(image) as tree:
            assert {path for path, _ in everything(tree)} == set(pair.truth)
            node = walk(tree, b"big")
            for at in range(0, len(whole), 4096):
                try:
                    data_here = tree.read(node, at, 4096)
                except VolumeError as error:
                    failures.add(str(error).split(" lies on ")[1])
                else:
                    assert data_here == whole[at : at + 4096]
                    read[-1].add(at)
        if len(read[-1]) < 245:
            assert failures == {f"device {3 - number} of the file system, which is not in this image"}
    assert read[0] | read[1] == set(range(0, len(whole), 4096))
    if data == "raid0":
        assert read[0]
        assert read[1]
    else:
        assert not read[0] & read[1]


def test_trees_on_a_missing_device_are_an_error_that_names_it(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "-m", "raid0", "-d", "raid0")
    failures = []
    for image in pair.images:
        try:
            with opened(image) as tree:
                seen(tree)
        except VolumeError as error:
            failures.append(str(error))
    assert failures
    assert all("which is not in this image" in failure for failure in failures)


@pytest.mark.parametrize(("profile", "count"), [("raid10", 4), ("raid1c3", 3), ("raid5", 3), ("raid5", 2)])
def test_rows_of_stripes_are_found(profile: str, count: int, tmp_path: Path) -> None:
    """All that any one device has, put together, is the file."""
    images = [tmp_path / f"{number}.img" for number in range(count)]
    with ExitStack() as stack:
        for image in images:
            with image.open("wb") as file:
                file.truncate(256 * MIB)
        devices = [stack.enter_context(loop_device(image)) for image in images]
        metadata = {2: "raid1", 3: "raid1c3", 4: "raid1c4"}[count]
        run("mkfs.btrfs", "-q", "-f", "-m", metadata, "-d", profile, *devices)
        run("btrfs", "device", "scan", *devices)
        with kernel_mount(devices[0], "btrfs", read_only=False) as top:
            (top / "big").write_bytes(noise(5, 1_000_000))
        run("btrfs", "device", "scan", "--forget")
    whole, found, times = noise(5, 1_000_000), bytearray(1_000_000), 0
    for image in images:
        with contextlib.suppress(VolumeError), opened(image) as tree:
            node = walk(tree, b"big")
            for at in range(0, len(whole), 4096):
                with contextlib.suppress(VolumeError):
                    found[at : at + 4096] = tree.read(node, at, 4096)
                    times += 1
    assert found == whole
    assert times == 245 * {"raid10": 2, "raid1c3": 3, "raid5": 4 - count}[profile]


def untorn(image: Path) -> bool:
    """Whether no commit happened while the image was copied: both superblocks are of one generation."""
    if not image.exists():
        return False
    raw = image.read_bytes()
    return raw[65_536 + 0x48 : 65_536 + 0x50] == raw[64 * MIB + 0x48 : 64 * MIB + 0x50]


def test_what_was_fsynced_after_the_last_commit_is_told(tmp_path: Path) -> None:
    image, live = simple(tmp_path), tmp_path / "live.img"
    with loop_device(image) as device, kernel_mount(device, "btrfs", read_only=False) as top:
        os.sync()
        with (top / "late").open("wb") as file:
            file.write(b"fsynced only")
            file.flush()
            os.fsync(file.fileno())
        while not untorn(live):
            run("cp", image, live)
    for path, dirty in ((live, True), (image, False)):
        info = identify(MemoryDevice(path.read_bytes()))
        assert info is not None
        assert ("the log tree was not replayed" in info.note) is dirty
        with opened(path) as tree:
            assert (tree.child(tree.root(), b"late") is None) is dirty
    with loop_device(live, read_only=True) as device:
        judged_live = judged(live, device, "rescue=nologreplay")
    with opened(live) as tree:
        assert differences(judged_live.truth, seen(tree)) == []


def test_another_default_subvolume_is_told(tmp_path: Path) -> None:
    image = simple(tmp_path)
    with loop_device(image) as device:
        with kernel_mount(device, "btrfs", read_only=False) as top:
            run("btrfs", "subvolume", "create", top / "main")
            (top / "main" / "file").write_bytes(b"below")
            run("btrfs", "subvolume", "set-default", top / "main")
        made = judged(image, device)
    assert b"main/file" in made.truth
    raw = image.read_bytes()
    info = identify(MemoryDevice(raw))
    assert info is not None
    assert info.note == "mounted by default was the subvolume 256 main; all of it is shown"
    root_tree = raw[65_536 + 0x50 : 65_536 + 0x58]
    wrong = bytearray(raw)
    for address, places in nodes(image).items():
        if address[:8] == root_tree:
            wrong[places[0] + 200] ^= 1
    info = identify(MemoryDevice(bytes(wrong)))
    assert info is not None
    assert info.note == "mounted by default was perhaps a subvolume; all of it is shown"
    with loop_device(image) as device, kernel_mount(device, "btrfs", read_only=False) as top:
        run("btrfs", "subvolume", "set-default", "5", top)
    info = identify(MemoryDevice(image.read_bytes()))
    assert info is not None
    assert info.note == ""
    with opened(image) as tree:
        assert differences(made.truth, seen(tree)) == []


def test_a_changed_identity_is_followed(tmp_path: Path) -> None:
    image = simple(tmp_path)
    with opened(image) as tree:
        expected = seen(tree)
    run("btrfstune", "-M", "01234567-89ab-cdef-0123-456789abcdef", image)
    info = identify(MemoryDevice(image.read_bytes()))
    assert info is not None
    assert info.uuid == "01234567-89ab-cdef-0123-456789abcdef"
    with opened(image) as tree:
        assert differences(expected, seen(tree)) == []


def test_on_a_disk_every_inode_has_a_number_of_its_own(twice: Made) -> None:
    disk = DiskTree(MemoryDevice(twice.image.read_bytes()), among(btrfs.PLUGIN))
    top = walk(disk, b"0-btrfs-Archive")
    found: dict[tuple[int, int], int] = {}
    pending = [(b"", top)]
    while pending:
        above, parent = pending.pop()
        for node in disk.children(parent):
            path = above + node.name
            if path not in twice.names_only:
                assert found.setdefault(twice.numbers[path], node.inode) == node.inode != 0
            if node.kind is NodeKind.DIRECTORY:
                pending.append((path + b"/", node))
    assert len(set(found.values())) == len(found)
    disk.close()


@pytest.mark.parametrize(("bit", "name"), [(12, "zoned"), (13, "extent_tree_v2"), (40, "0x10000000000")])
def test_features_that_are_not_known_are_named(bit: int, name: str, tmp_path: Path) -> None:
    image = simple(tmp_path, "--csum", "sha256")
    raw = bytearray(image.read_bytes()[65_536 : 65_536 + 4096])
    (flags,) = struct.unpack_from("<Q", raw, 0xBC)
    struct.pack_into("<Q", raw, 0xBC, flags | 1 << bit)
    raw[:32] = hashlib.sha256(raw[32:]).digest()
    with image.open("r+b") as file:
        file.seek(65_536)
        file.write(raw)
    with pytest.raises(VolumeError, match=f"not supported: {name}$"), opened(image):
        pass


def test_holes_are_told_from_data(made: Made) -> None:
    with opened(made.image) as tree:
        for name in (b"sparse", b"preallocated", b"punched", b"inline and a hole", b"all hole"):
            node = walk(tree, name)
            position = 0
            for extent in tree.extents(node):
                assert extent.offset == position
                position = extent.end
                if extent.kind is ExtentKind.ZERO:
                    assert not any(tree.read(node, extent.offset, extent.length))
            assert position == node.size
            held = sum(extent.length for extent in tree.extents(node) if extent.kind is ExtentKind.DATA)
            assert held <= {b"punched": 404_096, b"all hole": 0}.get(name, 250_000)


def test_reads_at_any_offset_agree_with_the_whole(made: Made) -> None:
    chance = random.Random(1)
    with opened(made.image) as tree:
        for name in (
            b"compressible",
            b"mixture",
            b"patchwork",
            b"torn",
            b"preallocated",
            b"inline/text 2047",
        ):
            node = walk(tree, name)
            whole = read_all(tree, node)
            for _ in range(30):
                start, size = chance.randrange(node.size), chance.choice([1, 100, 4096, 70_000, 300_000])
                assert tree.read(node, start, size) == whole[start : start + size]


def test_damaged_nodes_are_errors_of_ours(tmp_path: Path, copy: Path) -> None:
    image = simple(tmp_path)
    found = [place for places in nodes(image).values() for place in places]
    for place in found[:40]:
        run("cp", image, copy)
        damage(copy, place + 150)
        with contextlib.suppress(MountfsError), opened(copy) as tree:
            seen(tree)
