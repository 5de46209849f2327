"""Containers inside containers, with made-up kinds: naming, inodes, places, secrets, and bounds."""

from __future__ import annotations

import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from imageformat.device import Concat, MemoryDevice, Slice
from imageformat.errors import (
    LockedError,
    NotFoundError,
    SourceReadError,
    UnsupportedVolumeError,
    VolumeError,
)
from imageformat.secrets import NO_SECRETS, Secrets
from mountfs.containers import InnerVolume, OpenedContainer, Place, VolumeContainer, straight
from mountfs.damage import name_ranges
from mountfs.disktree import DiskTree
from mountfs.tree import FileSystemDriver, FileSystemInfo, Node, NodeKind, Stream, walk
from mountfs.volumes import among
from mountfs.volumeslot import MAX_DEPTH, MAX_INNER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from imageformat.extent import Extent

MIB = 1 << 20
HEAD = 1 << 16


def ext(label: bytes, size: int = MIB) -> bytes:
    """Just enough of an ext2 superblock to be recognised."""
    block = bytearray(size)
    struct.pack_into("<I", block, 1024 + 40, 8)
    block[1024 + 56 : 1024 + 60] = b"\x53\xef\x01\0"
    block[1024 + 120 : 1024 + 120 + len(label)] = label
    return bytes(block)


def luks(*inner: bytes) -> bytes:
    """What is taken for LUKS1: behind the header its volumes, as the made-up kind has it."""
    head = bytearray(HEAD)
    head[:8] = b"LUKS\xba\xbe\0\1"
    struct.pack_into("<I", head, 1024, len(inner))
    for index, content in enumerate(inner):
        struct.pack_into("<I", head, 1028 + 4 * index, len(content))
    return bytes(head) + b"".join(inner)


def lvm(name: bytes, inner: bytes) -> bytes:
    """What is taken for LVM2: a part of something that lies in all parts with the same name."""
    head = bytearray(HEAD)
    head[512:544] = struct.pack("<8sQII8s", b"LABELONE", 1, 0, 32, b"LVM2 001")
    head[1024 : 1024 + len(name)] = name
    return bytes(head) + inner


def mbr(*volumes: bytes) -> bytes:
    sector = bytearray(512)
    start = MIB
    for slot, volume in enumerate(volumes):
        entry = struct.pack("<B3xB3xII", 0, 0x83, start // 512, len(volume) // 512)
        sector[446 + 16 * slot : 462 + 16 * slot] = entry
        start += len(volume)
    sector[510:512] = b"\x55\xaa"
    return bytes(sector) + bytes(MIB - 512) + b"".join(volumes)


class Tree:
    """One file that lies in the second KiB of its volume."""

    def __init__(self, device: BlockDevice) -> None:
        self.device = device

    def root(self) -> Node:
        return Node(b"", NodeKind.DIRECTORY, 2, inode=2)

    def child(self, parent: Node, name: bytes) -> Node | None:
        return next((node for node in self.children(parent) if node.name == name), None)

    def children(self, parent: Node) -> Iterator[Node]:
        assert parent == self.root()
        yield Node(b"file", NodeKind.FILE, 7, size=1024, inode=7)
        yield Node(b"same", NodeKind.FILE, 7, size=1024, inode=7)

    def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:
        assert (node.key, stream) == (7, None)
        return self.device.pread(1024 + offset, min(size, 1024 - offset))

    def extents(self, node: Node) -> Iterator[Extent]:
        return self.device.extents(0, node.size)

    def placements(self, node: Node) -> Iterator[tuple[int, int]]:
        if node.key == 7:
            yield 1024, 1024

    def readlink(self, node: Node) -> bytes:  # noqa: ARG002
        return b""

    def xattrs(self, node: Node) -> dict[str, bytes]:  # noqa: ARG002
        return {}

    def streams(self, node: Node) -> tuple[Stream, ...]:  # noqa: ARG002
        return ()

    def close(self) -> None:
        pass


DRIVER = FileSystemDriver("fake", frozenset({"ext2"}), lambda device, _: Tree(device))


class Kinds:
    """The made-up containers; counts how often they were opened."""

    def __init__(self, password: bytes = b"", error: Exception | None = None) -> None:
        self.password = password
        self.error = error
        self.asked = 0
        self.opened = 0
        self.lock = threading.Lock()

    def find(self) -> tuple[VolumeContainer, ...]:
        with self.lock:
            self.asked += 1
        return (
            VolumeContainer("luks", frozenset({"luks1"}), self.open_luks),
            VolumeContainer("lvm", frozenset({"lvm2"}), self.open_lvm, spans=True),
        )

    def open_luks(
        self, devices: Iterator[BlockDevice], _: FileSystemInfo, secrets: Secrets
    ) -> OpenedContainer:
        device = next(devices)
        with self.lock:
            self.opened += 1
        if self.error is not None:
            raise self.error
        if self.password and self.password not in secrets.passwords():
            raise LockedError("wrong" if secrets else "give a password")
        sizes = struct.unpack_from("<I100I", device.pread(1024, 404))
        volumes, start = [], HEAD
        for size in sizes[1 : 1 + sizes[0]]:
            volumes.append(InnerVolume("", size, Slice(device, start, size), straight(start)))
            start += size
        return OpenedContainer(tuple(volumes))

    def open_lvm(self, devices: Iterator[BlockDevice], _: FileSystemInfo, __: Secrets) -> OpenedContainer:
        own = next(devices)
        name = own.pread(1024, 8)
        members = [(0, own)]
        members += [(index, other) for index, other in enumerate(devices, 1) if other.pread(1024, 8) == name]
        bodies = [Slice(device, HEAD, device.size - HEAD) for _, device in sorted(members, key=order)]

        def places(offset: int, length: int) -> Iterator[Place]:
            start = 0
            for index, device in sorted(members, key=order):
                size = device.size - HEAD
                first, last = max(offset, start), min(offset + length, start + size)
                if first < last:
                    yield Place(index, HEAD + first - start, last - first)
                start += size

        device = Concat(bodies)
        volume = InnerVolume("Root", device.size, device, places)
        return OpenedContainer((volume,), tuple(index for index, _ in members))


def order(member: tuple[int, BlockDevice]) -> bytes:
    """The place of a member in its group: the byte behind the name."""
    return member[1].pread(1032, 1)


def tree_of(disk: bytes, kinds: Kinds | None = None, secrets: Secrets = NO_SECRETS) -> DiskTree:
    return DiskTree(
        MemoryDevice(disk), among(DRIVER), containers=(kinds or Kinds()).find, secrets=secrets, time_ns=5
    )


def names(tree: DiskTree, path: bytes = b"") -> list[bytes]:
    return [node.name for node in tree.children(walk(tree, path))]


def everything(tree: DiskTree) -> dict[bytes, Node]:
    found: dict[bytes, Node] = {}

    def visit(path: bytes, node: Node) -> None:
        found[path] = node
        if node.kind is NodeKind.DIRECTORY:
            for child in tree.children(node):
                visit(path + b"/" + child.name, child)

    visit(b"", tree.root())
    return found


NESTED = mbr(
    ext(b"plain"),
    luks(luks(ext(b"deep")), mbr(ext(b"in"), bytes(MIB)), bytes(MIB)),
)


def test_everything_is_found_by_names_and_by_numbers() -> None:
    tree = tree_of(NESTED)
    assert names(tree) == [b"disk.img", b"1-ext2-plain", b"2-luks1"]
    assert names(tree, b"2") == [b"1-luks1", b"2-mbr", b"3"]
    assert names(tree, b"2/1/1-ext2-deep") == [b"file", b"same"]
    assert names(tree, b"2-luks1/2-mbr") == [b"1-ext2-in", b"2"]
    assert names(tree, b"2/2/2") == names(tree, b"2/3") == [b"partition.img", b"README"]
    assert walk(tree, b"2/1/1/file") == walk(tree, b"2-luks1/1-luks1/1-ext2-deep/file")
    assert tree.child(walk(tree, b"2"), b"9") is None
    assert tree.failures() == tree.layout_failures() == ()


def test_nothing_is_opened_before_it_is_looked_into() -> None:
    kinds = Kinds()
    tree = tree_of(NESTED, kinds)
    names(tree)
    assert (kinds.opened, tree.volumes()[1].reason) == (0, "")
    names(tree, b"2")
    assert kinds.opened == 1
    names(tree, b"2/1")
    names(tree, b"2/1")
    assert kinds.opened == 2
    plain = Kinds()
    names(tree_of(mbr(ext(b"a"), bytes(MIB)), plain), b"1")
    assert plain.asked == 0


def test_inodes_are_distinct_but_for_hard_links() -> None:
    found = everything(tree_of(NESTED))
    links = {path for path in found if path.endswith(b"/same")}
    for path in links:
        assert found[path].inode == found[path.removesuffix(b"same") + b"file"].inode
    known = [node.inode for path, node in found.items() if path not in links]
    assert len(set(known)) == len(known) == 17
    assert all(0 < inode < 1 << 63 for inode in known)
    again = everything(tree_of(NESTED))
    assert {path: node.inode for path, node in again.items()} == {p: n.inode for p, n in found.items()}


def test_nodes_outlive_their_tree() -> None:
    kept = everything(tree_of(NESTED))
    new = tree_of(NESTED)
    for path, node in kept.items():
        assert walk(new, path) == node
        if node.kind is NodeKind.FILE:
            assert len(new.read(node, 0, 10)) == 10
    locked = tree_of(NESTED, Kinds(b"secret"))
    with pytest.raises(NotFoundError):
        locked.read(kept[b"/2-luks1/1-luks1/1-ext2-deep/file"], 0, 1)
    with pytest.raises(NotFoundError):
        new.read(walk(locked, b"2/README"), 0, 1)


def test_files_are_placed_on_the_disk() -> None:
    tree = tree_of(NESTED)
    second = 2 * MIB
    expected = {
        b"1/file": MIB + 1024,
        b"2/1/1/file": second + HEAD + HEAD + 1024,
        b"2/2/1/file": second + HEAD + (HEAD + MIB) + MIB + 1024,
    }
    for path, start in expected.items():
        node = walk(tree, path)
        assert list(tree.placements(node)) == [(start, 1024)]
        assert tree.read(node, 0, 1024) == NESTED[start : start + 1024]
    everything(tree)
    for offset, path in [
        (second + 5, b"2-luks1"),
        (second + HEAD + 5, b"2-luks1/1-luks1"),
        (second + 2 * HEAD + 1024, b"2-luks1/1-luks1/1-ext2-deep"),
        (second + HEAD + HEAD + MIB + 5, b"2-luks1/2-mbr"),
        (second + HEAD + HEAD + MIB + MIB, b"2-luks1/2-mbr/1-ext2-in"),
        (MIB, b"1-ext2-plain"),
    ]:
        volume = tree.volume_at(offset)
        assert volume is not None
        assert volume.path == path
        if volume.parents and offset % MIB == 0:
            assert volume.offset is not None


def test_damage_is_named_through_containers() -> None:
    start = 2 * MIB + 2 * HEAD + 1024
    ranges = [(start, 512), (2 * MIB + 5, 1), (MIB + 1024, 1), (10, 1)]
    named = name_ranges(tree_of(NESTED), ranges)
    inside = "2-luks1/1-luks1/1-ext2-deep/"
    assert named[ranges[0]] == (inside + "file", inside + "same")
    assert named[ranges[1]] == ("no file: metadata or free space of 2-luks1",)
    assert named[ranges[2]] == ("1-ext2-plain/file", "1-ext2-plain/same")
    assert "partition table" in named[ranges[3]][0]
    locked = name_ranges(tree_of(NESTED, Kinds(b"secret")), ranges[:1])
    assert locked[ranges[0]] == ("not known: 2-luks1 is locked",)


def test_all_volumes() -> None:
    found = [(volume.path, failure) for volume, failure in tree_of(NESTED).all_volumes()]
    assert found == [
        (b"1-ext2-plain", None),
        (b"2-luks1", None),
        (b"2-luks1/1-luks1", None),
        (b"2-luks1/1-luks1/1-ext2-deep", None),
        (b"2-luks1/2-mbr", None),
        (b"2-luks1/2-mbr/1-ext2-in", None),
        (b"2-luks1/2-mbr/2", None),
        (b"2-luks1/3", None),
    ]


def test_a_locked_volume_shows_its_bytes_and_can_be_unlocked() -> None:
    tree = tree_of(NESTED, Kinds(b"secret"))
    folder = walk(tree, b"2")
    locked = tree.locked(folder)
    assert str(locked) == "2-luks1 is locked: give a password"
    assert names(tree, b"2") == [b"partition.img", b"README"]
    note = walk(tree, b"2/README")
    assert b"mountfs ls IMAGE:2 --password-file FILE" in tree.read(note, 0, note.size)
    image = walk(tree, b"2/partition.img")
    assert tree.read(image, 0, 10) == NESTED[2 * MIB :][:10]
    assert tree.failures() == ()
    assert tree.locked(walk(tree, b"1")) is tree.locked(image) is tree.locked(tree.root()) is None
    with pytest.raises(LockedError, match="wrong"):
        tree.unlock(folder, Secrets((b"no",)))
    assert tree.locked(folder) is not None
    tree.unlock(folder, Secrets((b"no", b"secret")))
    assert tree.locked(folder) is None
    assert names(tree, b"2") == [b"1-luks1", b"2-mbr", b"3"]
    inner = walk(tree, b"2/1")
    assert tree.locked(inner) is not None
    tree.unlock(inner, Secrets((b"secret",)))
    assert names(tree, b"2/1/1") == [b"file", b"same"]
    with pytest.raises(NotFoundError):
        tree.unlock(tree.root(), Secrets((b"x",)))


def test_a_wrong_secret_is_a_failure() -> None:
    tree = tree_of(NESTED, Kinds(b"secret"), Secrets((b"no",)))
    assert tree.failures() == ()
    names(tree, b"2")
    (failure,) = tree.failures()
    assert isinstance(failure, LockedError)
    assert names(tree_of(NESTED, Kinds(b"secret"), Secrets((b"secret",))), b"2/1/1") == [b"file", b"same"]


@pytest.mark.parametrize(
    ("error", "failures"),
    [(VolumeError("broken"), 1), (UnsupportedVolumeError("odd"), 0), (SourceReadError("io"), 1)],
)
def test_a_container_that_cannot_be_opened(error: Exception, failures: int) -> None:
    tree = tree_of(NESTED, Kinds(error=error))
    assert names(tree, b"2") == [b"partition.img", b"README"]
    note = walk(tree, b"2/README")
    assert str(error) in tree.read(note, 0, note.size).decode()
    assert len(tree.failures()) == failures


def test_without_its_library_it_says_what_to_install() -> None:
    tree = DiskTree(MemoryDevice(NESTED), among(DRIVER))
    assert "install mountfs[volumes]" in tree.volumes()[1].reason
    note = walk(tree, b"2/README")
    assert b"install mountfs[volumes]" in tree.read(note, 0, note.size)


def part(name: bytes, number: int, content: bytes) -> bytes:
    block = bytearray(lvm(name, content))
    block[1032] = number
    return bytes(block)


def test_one_container_in_several_volumes() -> None:
    content = ext(b"label", 2 * MIB)
    halves = content[:1024], content[1024:]
    disk = mbr(
        part(b"other", 0, ext(b"x")),
        part(b"group", 1, halves[0].ljust(1024, b"\0")),
        bytes(MIB),
        part(b"group", 2, halves[1]),
    )
    tree = tree_of(disk)
    assert names(tree) == [b"disk.img", b"1-lvm2", b"2-lvm2", b"3", b"4-lvm2"]
    assert names(tree, b"2") == [b"1-ext2-Root"]
    assert names(tree, b"4") == [b"partition.img", b"README"]
    note = walk(tree, b"4/README")
    assert b"shown in 2-lvm2" in tree.read(note, 0, note.size)
    file = walk(tree, b"2/1/file")
    (place,) = tree.placements(file)
    assert tree.read(file, 0, 1024) == disk[place[0] : place[0] + 1024]
    last = tree.volumes()[-1]
    assert last.offset is not None
    assert last.offset + HEAD == place[0]
    named = name_ranges(tree_of(disk), [place])
    assert named[place][0] == "2-lvm2/1-ext2-Root/file"


def test_members_in_different_containers() -> None:
    content = ext(b"label", 2 * MIB)
    first, second = part(b"group", 1, content[:1024]), part(b"group", 2, content[1024:])
    disk = mbr(luks(first), luks(second))
    tree = tree_of(disk)
    assert names(tree, b"1/1") == [b"1-ext2-Root"]
    assert names(tree, b"2/1") == [b"partition.img", b"README"]
    (place,) = tree.placements(walk(tree, b"1/1/1/file"))
    assert place[0] > MIB + 2 * HEAD + 1024
    named = name_ranges(tree_of(disk), [place])
    assert named[place][0] == "1-luks1/1-lvm2/1-ext2-Root/file"


def test_depth_is_bounded() -> None:
    content = ext(b"bottom")
    for _ in range(MAX_DEPTH + 2):
        content = luks(content)
    tree = tree_of(mbr(content))
    path = b"1" + b"/1" * MAX_DEPTH
    assert names(tree, path) == [b"partition.img", b"README"]
    note = walk(tree, path + b"/README")
    assert b"deeper than" in tree.read(note, 0, note.size)


def test_what_multiplies_is_bounded() -> None:
    """A container that holds itself, a hundred times."""
    kinds = Kinds()
    itself = luks(bytes(HEAD))

    def open_many(devices: Iterator[BlockDevice], _: FileSystemInfo, __: Secrets) -> OpenedContainer:
        device = next(devices)
        kinds.opened += 1
        return OpenedContainer(tuple(InnerVolume("", device.size, device, straight(0)) for _ in range(100)))

    many = VolumeContainer("many", frozenset({"luks1"}), open_many)
    tree = DiskTree(MemoryDevice(mbr(itself)), among(), containers=lambda: (many,))
    assert MAX_INNER - 100 < sum(1 for _ in tree.all_volumes()) <= MAX_INNER + 1
    assert kinds.opened > MAX_INNER // 100


def test_many_threads_open_a_container_once() -> None:
    kinds = Kinds()
    content = ext(b"label", 2 * MIB)
    disk = mbr(luks(part(b"group", 1, content[:1024])), luks(part(b"group", 2, content[1024:])))
    tree = tree_of(disk, kinds)
    gate = threading.Barrier(16)

    def look(number: int) -> list[bytes]:
        gate.wait(30)
        return names(tree, b"%d/1" % (1 + number % 2))

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(look, range(16)))
    assert found[0::2] == [[b"1-ext2-Root"]] * 8
    assert found[1::2] == [[b"partition.img", b"README"]] * 8
    assert kinds.opened == 2


def test_close_closes_everything_once() -> None:
    closed: list[str] = []

    class Closing(Tree):
        def close(self) -> None:
            closed.append("tree")

    class Disk(MemoryDevice):
        def close(self) -> None:
            closed.append("disk")

    driver = FileSystemDriver("closing", frozenset({"ext2"}), lambda device, _: Closing(device))
    tree = DiskTree(Disk(NESTED), among(driver), containers=Kinds().find)
    everything(tree)
    tree.close()
    tree.close()
    assert closed == ["tree", "tree", "tree", "disk"]
    with pytest.raises(VolumeError):
        names(tree)


def test_a_partition_table_that_is_not_beyond_doubt_is_none() -> None:
    odd = bytearray(mbr(ext(b"in")))
    struct.pack_into("<I", odd, 446 + 12, 1 << 30)
    assert names(tree_of(mbr(bytes(odd)))) == [b"disk.img", b"1"]
