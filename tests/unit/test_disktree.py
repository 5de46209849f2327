"""A disk as a tree: naming, laziness, raw fall-backs, inodes, and what is closed when."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError, NotFoundError, SourceReadError, UsageError, VolumeError
from imageformat.extent import Extent, ExtentKind, clip
from mountfs.disktree import DiskTree
from mountfs.tree import FileSystemDriver, FileSystemInfo, Node, NodeKind, Stream, walk
from mountfs.volumes import among, volume_name
from support.disks import Part, make_gpt_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imageformat.device import BlockDevice

MIB = 1 << 20


class Disk(MemoryDevice):
    """Knows whether it was closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


class FakeTree:
    """Two files, one of them a hard link of the other, read from the start of the volume."""

    def __init__(self, device: BlockDevice) -> None:
        self.device, self.closed = device, 0
        self.inode = 7

    def root(self) -> Node:
        return Node(b"", NodeKind.DIRECTORY, 2, inode=2)

    def child(self, parent: Node, name: bytes) -> Node | None:
        return next((node for node in self.children(parent) if node.name == name), None)

    def children(self, parent: Node) -> Iterator[Node]:
        assert parent == self.root()
        yield Node(b"a", NodeKind.FILE, 7, size=4, inode=self.inode, uid=5, mode=0o640)
        yield Node(b"b", NodeKind.FILE, 7, size=4, inode=self.inode)
        yield Node(b"link", NodeKind.SYMLINK, 8, inode=0)
        yield Node(b"huge", NodeKind.FILE, 9, inode=1 << 60)

    def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:
        assert node.key == 7
        return stream or self.device.pread(offset, min(size, 4 - offset))

    def extents(self, node: Node) -> Iterator[Extent]:
        yield Extent(0, node.size, ExtentKind.DATA)

    def readlink(self, node: Node) -> bytes:
        assert node.key == 8
        return b"a"

    def xattrs(self, node: Node) -> dict[str, bytes]:
        return {"user.key": str(node.key).encode()}

    def streams(self, node: Node) -> tuple[Stream, ...]:
        return (Stream(b"s", node.size),)

    def close(self) -> None:
        self.closed += 1


class Driver:
    """Counts how often it was asked, and fails on demand."""

    def __init__(self, *types: str, error: MountfsError | None = None) -> None:
        self.opened: list[FakeTree] = []
        self.asked = 0
        self.error = error
        self.lock = threading.Lock()
        self.plugin = FileSystemDriver("fake", frozenset(types), self.open)

    def open(self, device: BlockDevice, _: FileSystemInfo) -> FakeTree:
        with self.lock:
            self.asked += 1
        if self.error is not None:
            raise self.error
        self.opened.append(FakeTree(device))
        return self.opened[-1]


def ext(label: bytes, size: int = MIB) -> bytes:
    """Just enough of an ext2 superblock to be recognised."""
    block = bytearray(size)
    block[0:4] = label.ljust(4)[:4]
    struct.pack_into("<I", block, 1024 + 40, 8)
    block[1024 + 56 : 1024 + 60] = b"\x53\xef\x01\0"
    block[1024 + 120 : 1024 + 120 + len(label)] = label
    return bytes(block)


def swap() -> bytes:
    block = bytearray(MIB)
    block[4086:4096] = b"SWAPSPACE2"
    struct.pack_into("<II", block, 1024, 1, 200)
    return bytes(block)


def mbr(*volumes: bytes) -> bytes:
    """Up to four volumes under a table, each at a whole number of MiB."""
    sector = bytearray(512)
    start = MIB
    for slot, volume in enumerate(volumes):
        entry = struct.pack("<B3xB3xII", 0, 0x83, start // 512, len(volume) // 512)
        sector[446 + 16 * slot : 462 + 16 * slot] = entry
        start += len(volume)
    sector[510:512] = b"\x55\xaa"
    return bytes(sector) + bytes(MIB - 512) + b"".join(volumes)


DISK = mbr(ext(b"Data"), swap(), ext(b"sl/sh\x1b"), bytes(MIB))


def names(tree: DiskTree, path: bytes = b"") -> list[bytes]:
    return [node.name for node in tree.children(walk(tree, path))]


def test_a_disk_with_partitions() -> None:
    driver = Driver("ext2")
    tree = DiskTree(MemoryDevice(DISK), among(driver.plugin), time_ns=5)
    assert names(tree) == [b"disk.img", b"1-ext2-Data", b"2-swap", b"3-ext2-sl_sh_", b"4"]
    assert driver.asked == 0
    assert names(tree, b"1-ext2-Data") == [b"a", b"b", b"link", b"huge"]
    assert driver.asked == 1
    assert names(tree, b"2-swap") == names(tree, b"4") == [b"partition.img", b"README"]
    assert driver.asked == 1
    assert tree.root().mtime_ns == walk(tree, b"disk.img").mtime_ns == 5
    for node in tree.children(tree.root()):
        assert tree.child(tree.root(), node.name) == node


def test_a_file_of_a_volume() -> None:
    tree = DiskTree(MemoryDevice(DISK), among(Driver("ext2").plugin))
    first, second = walk(tree, b"1/a"), walk(tree, b"3/a")
    assert (tree.read(first, 0, 100), tree.read(second, 1, 2)) == (b"Data", b"l/")
    assert tree.read(first, 0, 9, b"s") == b"s"
    assert (first.uid, first.mode, first.size) == (5, 0o640, 4)
    assert tree.readlink(walk(tree, b"1/link")) == b"a"
    assert tree.xattrs(first) == {"user.key": b"7"}
    assert tree.xattrs(walk(tree, b"1")) == {"user.key": b"2"}
    assert tree.streams(first) == (Stream(b"s", 4),)
    assert list(tree.extents(first)) == [Extent(0, 4, ExtentKind.DATA)]
    assert tree.child(walk(tree, b"1"), b"nothing") is None


def test_inodes_are_distinct_but_for_hard_links() -> None:
    tree = DiskTree(MemoryDevice(DISK), among(Driver("ext2").plugin))
    nodes = {b"": tree.root()}
    for volume in tree.children(tree.root()):
        nodes[volume.name] = volume
        if volume.kind is NodeKind.DIRECTORY:
            nodes |= {volume.name + b"/" + node.name: node for node in tree.children(volume)}
    known = [node.inode for name, node in nodes.items() if not name.endswith((b"/link", b"/huge", b"/b"))]
    assert len(known) == len(set(known))
    assert 0 not in known
    assert max(known) < 1 << 63
    assert nodes[b"1-ext2-Data/a"].inode == nodes[b"1-ext2-Data/b"].inode != nodes[b"3-ext2-sl_sh_/a"].inode
    assert nodes[b"1-ext2-Data/link"].inode == 0
    huge = nodes[b"1-ext2-Data/huge"].inode, nodes[b"3-ext2-sl_sh_/huge"].inode
    assert len({*huge, *known}) == len(known) + 2
    assert all(0 < inode < 1 << 63 for inode in huge)


def test_lookup_by_number_gives_the_same_node() -> None:
    tree = DiskTree(MemoryDevice(DISK), among())
    assert walk(tree, b"2") == walk(tree, b"2-swap")
    assert walk(tree, b"1").name == b"1-ext2-Data"
    for name in (b"02", b"5", b"0", b"-1", b"2-", b"1-ext2", b"", b".", b"README"):
        assert tree.child(tree.root(), name) is None


def test_the_raw_disk_and_partition() -> None:
    tree = DiskTree(MemoryDevice(DISK), among(), image_name=b"sda.img")
    whole, part = walk(tree, b"sda.img"), walk(tree, b"2/partition.img")
    assert (whole.size, whole.mode, part.size, part.mode) == (len(DISK), 0o444, MIB, 0o444)
    assert tree.read(whole, 0, 1 << 30) == DISK
    assert tree.read(part, 4080, 20) == DISK[2 * MIB + 4080 : 2 * MIB + 4100]
    assert tree.read(part, MIB - 3, 100) == bytes(3)
    assert tree.read(part, MIB, 1) == tree.read(part, MIB + 5, 1) == b""
    with pytest.raises(UsageError):
        tree.read(part, -1, 1)
    with pytest.raises(NotFoundError):
        tree.read(part, 0, 1, b"stream")
    with pytest.raises(MountfsError):
        tree.read(tree.root(), 0, 1)
    with pytest.raises(MountfsError):
        list(tree.children(whole))
    assert (tree.xattrs(whole), tree.streams(whole)) == ({}, ())


class Mapped(Disk):
    """Has every kind of extent."""

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        kinds = [ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.UNUSED, ExtentKind.BAD]
        extents = [Extent(index * MIB, MIB, kind) for index, kind in enumerate(kinds)]
        extents.append(Extent(4 * MIB, self.size - 4 * MIB, ExtentKind.DATA))
        return clip(extents, offset, size)


def test_extents_of_the_raw_disk() -> None:
    tree = DiskTree(Mapped(DISK), among())
    assert list(tree.extents(walk(tree, b"disk.img"))) == [
        Extent(0, MIB, ExtentKind.DATA),
        Extent(MIB, 2 * MIB, ExtentKind.ZERO),
        Extent(3 * MIB, 2 * MIB, ExtentKind.DATA),
    ]
    assert list(tree.extents(walk(tree, b"2/partition.img"))) == [Extent(0, MIB, ExtentKind.ZERO)]


def readme(tree: DiskTree, path: bytes) -> str:
    node = walk(tree, path)
    text = tree.read(node, 0, 100_000)
    assert len(text) == node.size > 0
    return text.decode()


def test_notes_say_what_and_why_and_what_to_do() -> None:
    tree = DiskTree(MemoryDevice(DISK), among())
    assert "no driver here can read ext2" in readme(tree, b"1/README")
    assert "mount -o ro,loop partition.img" in readme(tree, b"1/README")
    assert "swap" in readme(tree, b"2/README")
    assert "mount" not in readme(tree, b"2/README")
    assert "no known file system" in readme(tree, b"4/README")
    assert "\x1b" not in readme(tree, b"3/README")


def test_a_driver_that_fails_is_asked_once_and_the_bytes_remain() -> None:
    driver = Driver("ext2", error=VolumeError("the inode table is gone"))
    tree = DiskTree(MemoryDevice(DISK), among(driver.plugin))
    for _ in range(3):
        assert names(tree, b"1") == [b"partition.img", b"README"]
    assert driver.asked == 1
    assert "the inode table is gone" in readme(tree, b"1/README")


def test_the_next_driver_gets_a_chance() -> None:
    broken, good = Driver("ext2", error=VolumeError("no")), Driver("ext2", "xfs")
    tree = DiskTree(MemoryDevice(DISK), among(Driver("xfs").plugin, broken.plugin, good.plugin))
    assert b"a" in names(tree, b"1")
    assert (broken.asked, good.asked) == (1, 1)


def test_a_tree_without_a_root_is_closed_and_shown_raw() -> None:
    driver = Driver("ext2")

    class Rootless(FakeTree):
        def root(self) -> Node:
            raise VolumeError("no root directory")

    trees: list[Rootless] = []

    def open_rootless(device: BlockDevice, _: FileSystemInfo) -> Rootless:
        trees.append(Rootless(device))
        return trees[-1]

    plugin = FileSystemDriver("rootless", driver.plugin.types, open_rootless)
    tree = DiskTree(MemoryDevice(DISK), among(plugin))
    assert "no root directory" in readme(tree, b"1/README")
    assert [inner.closed for inner in trees] == [1]


def test_a_bare_file_system() -> None:
    tree = DiskTree(MemoryDevice(ext(b"Bare")), among(Driver("ext2").plugin))
    assert names(tree) == [b"disk.img", b"0-ext2-Bare"]
    assert tree.read(walk(tree, b"0/a"), 0, 9) == b"Bare"
    assert tree.table.scheme == "none"
    assert [(volume.partition, volume.offset, volume.size) for volume in tree.volumes()] == [(None, 0, MIB)]


@pytest.mark.parametrize("size", [0, 100, MIB])
def test_an_unknown_disk(size: int) -> None:
    tree = DiskTree(MemoryDevice(bytes(size)), among(Driver("ext2").plugin))
    assert names(tree) == [b"disk.img", b"README"]
    assert "No volume" in readme(tree, b"README")
    assert tree.volumes() == ()
    assert tree.read(walk(tree, b"disk.img"), 0, 2 * MIB) == bytes(size)


class Broken(Disk):
    """Nothing of it can be read."""

    def pread(self, offset: int, size: int) -> bytes:
        raise SourceReadError(f"the disk is gone at {offset}+{size}")


def test_an_unreadable_disk_still_opens_and_says_why() -> None:
    tree = DiskTree(Broken(bytes(MIB)), among())
    assert names(tree) == [b"disk.img", b"README"]
    assert "the disk is gone" in readme(tree, b"README")
    with pytest.raises(SourceReadError):
        tree.read(walk(tree, b"disk.img"), 0, 1)


class PartlyBroken(Disk):
    """The first partition cannot be read."""

    def pread(self, offset: int, size: int) -> bytes:
        if offset < 2 * MIB and offset + size > MIB:
            raise SourceReadError("bad sectors")
        return super().pread(offset, size)


def test_an_unreadable_partition_is_a_volume_with_a_reason() -> None:
    tree = DiskTree(PartlyBroken(DISK), among(Driver("ext2").plugin))
    assert names(tree)[1:3] == [b"1", b"2-swap"]
    assert "bad sectors" in tree.volumes()[0].reason
    assert "bad sectors" in readme(tree, b"1/README")


def test_volumes_are_described_without_opening() -> None:
    driver = Driver("ext2")
    tree = DiskTree(MemoryDevice(DISK), among(driver.plugin))
    volumes = tree.volumes()
    assert [volume.number for volume in volumes] == [1, 2, 3, 4]
    assert [bool(volume.reason) for volume in volumes] == [False, True, False, True]
    assert volumes[0].info == FileSystemInfo("ext2", "Data")
    assert (volumes[1].offset, volumes[1].size) == (2 * MIB, MIB)
    assert tree.table.scheme == "mbr"
    assert driver.asked == 0


def test_the_volume_of_a_byte() -> None:
    tree = DiskTree(MemoryDevice(DISK), among())
    for offset, number in [
        (0, None),
        (MIB - 1, None),
        (MIB, 1),
        (2 * MIB - 1, 1),
        (2 * MIB, 2),
        (99 * MIB, None),
    ]:
        volume = tree.volume_at(offset)
        assert (volume.number if volume is not None else None) == number


def test_the_volume_of_a_byte_where_partitions_overlap() -> None:
    disk = bytearray(DISK)
    struct.pack_into("<I", disk, 446 + 12, 3 * MIB // 512)
    tree = DiskTree(MemoryDevice(bytes(disk)), among())
    assert any("overlap" in warning for warning in tree.table.warnings)
    found = [tree.volume_at(offset) for offset in (MIB, 2 * MIB, 3 * MIB)]
    assert [volume.number for volume in found if volume is not None] == [1, 2, 3]


def test_nodes_outlive_their_tree() -> None:
    driver = Driver("ext2")
    old = DiskTree(MemoryDevice(DISK), among(driver.plugin))
    kept = [walk(old, path) for path in (b"", b"disk.img", b"1", b"1/a", b"2", b"2/README")]
    old.close()
    new = DiskTree(MemoryDevice(DISK), among(driver.plugin))
    root, disk, volume, file, raw, note = kept
    assert new.read(file, 0, 4) == b"Data"
    assert new.read(disk, MIB, 4) == b"Data"
    assert b"a" in [node.name for node in new.children(volume)]
    assert [node.name for node in new.children(raw)] == [b"partition.img", b"README"]
    assert new.read(note, 0, 3) == b"The"
    assert len(list(new.children(root))) == 5
    assert len({hash(node) for node in kept}) == len(kept)


def test_nodes_of_a_volume_that_opens_differently_are_gone() -> None:
    readable = DiskTree(MemoryDevice(DISK), among(Driver("ext2").plugin))
    raw = DiskTree(MemoryDevice(DISK), among())
    empty = DiskTree(MemoryDevice(bytes(MIB)), among())
    for tree, node in [
        (raw, walk(readable, b"1/a")),
        (readable, walk(raw, b"1/README")),
        (empty, walk(raw, b"1/README")),
        (raw, walk(empty, b"README")),
        (raw, Node(b"x", NodeKind.FILE, 5)),
    ]:
        with pytest.raises(NotFoundError):
            tree.read(node, 0, 1)


def test_close_closes_everything_once() -> None:
    disk, driver = Disk(DISK), Driver("ext2")
    tree = DiskTree(disk, among(driver.plugin))
    names(tree, b"1")
    names(tree, b"2")
    tree.close()
    tree.close()
    assert ([inner.closed for inner in driver.opened], disk.closed) == ([1], 1)
    with pytest.raises(VolumeError):
        tree.read(Node(b"disk.img", NodeKind.FILE, tree.root().key), 0, 1)


def test_close_before_a_look_and_after_a_failure() -> None:
    disk = Disk(DISK)
    DiskTree(disk, among()).close()
    assert disk.closed == 1

    class Stubborn(FakeTree):
        def close(self) -> None:
            raise VolumeError("cannot close")

    disk = Disk(DISK)
    plugin = FileSystemDriver("stubborn", frozenset({"ext2"}), lambda device, _: Stubborn(device))
    tree = DiskTree(disk, among(plugin))
    names(tree, b"1")
    with pytest.raises(VolumeError):
        tree.close()
    assert disk.closed == 1


def test_many_threads_open_a_volume_once() -> None:
    driver = Driver("ext2")
    tree = DiskTree(MemoryDevice(DISK), among(driver.plugin))
    gate = threading.Barrier(16)

    def look(number: int) -> bytes:
        gate.wait()
        return tree.read(walk(tree, b"%d/a" % (1 + 2 * (number % 2))), 0, 4)

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(look, range(16))) == {b"Data", b"sl/s"}
    assert driver.asked == 2


@given(st.integers(1, 2000), st.text(max_size=120), st.text(max_size=120), st.booleans())
def test_names_are_safe(number: int, label: str, name: str, known: bool) -> None:
    raw = volume_name(number, FileSystemInfo("ext4", label) if known else None, name or label)
    text = raw.decode()
    assert raw.startswith(b"%d" % number)
    assert len(raw) <= 100
    assert text.isprintable()
    assert "/" not in text
    assert text == text.strip(" .")


def test_labels_win_over_partition_names(tmp_path: Path) -> None:
    def shown(label: bytes, name: str) -> bytes:
        content = ext(label)
        if name:
            (tmp_path / "volume").write_bytes(content)
            part = Part(MIB, name=name, content=tmp_path / "volume")
            make_gpt_disk(tmp_path / "disk", 4 * MIB, [part])
            content = (tmp_path / "disk").read_bytes()
        return DiskTree(MemoryDevice(content), among()).volumes()[0].name

    assert shown(b"My Data", "Basic data") == b"1-ext2-My Data"
    assert shown(b" . ", "Basic data") == b"1-ext2-Basic data"
    assert shown("Größe".encode(), "") == "0-ext2-Größe".encode()
    assert volume_name(2, None, "Basic data") == b"2-Basic data"


def test_a_real_disk(tmp_path: Path) -> None:
    tools = ["sfdisk", "mkfs.fat", "mkntfs", "mkfs.ext4", "mkswap"]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        if os.environ.get("CI"):
            pytest.fail(f"missing: {missing}")
        pytest.skip(f"missing: {missing}")
    volumes = {
        1: (["mkfs.fat", "-F", "32", "-n", "EFI"], 40),
        2: (["mkntfs", "-q", "-F", "-L", "Data é"], 8),
        3: (["mkfs.ext4", "-q", "-F", "-L", "root"], 16),
        4: (["mkswap"], 2),
        5: (None, 1),
    }
    path = tmp_path / "disk"
    path.write_bytes(b"")
    os.truncate(path, 72 * MIB)
    script = "label: gpt\n" + "".join(f'size={size}M, name="part {n}"\n' for n, (_, size) in volumes.items())
    subprocess.run(["sfdisk", "-q", path], input=script.encode(), check=True, capture_output=True)
    content = bytearray(path.read_bytes())
    start = MIB
    raw = {}
    for number, (command, size) in volumes.items():
        part = tmp_path / f"part{number}"
        part.write_bytes(b"")
        os.truncate(part, size * MIB)
        if command is not None:
            subprocess.run([*command, part], check=True, capture_output=True)
        raw[number] = part.read_bytes()
        content[start : start + size * MIB] = raw[number]
        start += size * MIB
    tree = DiskTree(MemoryDevice(bytes(content)), among())
    expected = ["disk.img", "1-fat32-EFI", "2-ntfs-Data é", "3-ext4-root", "4-swap-part 4", "5-part 5"]
    assert names(tree) == [name.encode() for name in expected]
    assert tree.table.warnings == ()
    for number, bytes_of in raw.items():
        node = walk(tree, b"%d/partition.img" % number)
        assert tree.read(node, 0, node.size) == bytes_of
