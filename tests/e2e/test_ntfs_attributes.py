"""What NTFS keeps beside the content of files, and where its links lead, against ntfs-3g."""

from __future__ import annotations

import mmap
import os
import stat
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from mountfs.copyout import CopyOptions, copy_out
from mountfs.drivers import ntfs
from mountfs.drivers._ntfs_security import SecurityStream
from mountfs.posixview import PosixView
from mountfs.tree import FileSystemInfo, NodeKind, walk
from support.content import noise
from support.disks import MIB, make_ntfs
from support.kernel import kernel_mount, loop_device
from support.requirements import require_tool

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mountfs.tree import FileTree, Node

pytestmark = [pytest.mark.root, pytest.mark.fuse]

NAMES = (
    "system.ntfs_acl",
    "system.ntfs_attrib",
    "system.ntfs_crtime",
    "system.ntfs_reparse_data",
    "system.ntfs_ea",
)


def descriptor(owner: int, *, entries: int = 1) -> bytes:
    """Everyone may do everything; the group are the administrators."""
    rights = struct.pack("<BBHI", 0, 3, 20, 0x1F01FF) + b"\1\1\0\0\0\0\0\1\0\0\0\0"
    rules = struct.pack("<BBHHH", 2, 0, 8 + 20 * entries, entries, 0) + rights * entries
    sids = [b"\1\2\0\0\0\0\0\5\x20\0\0\0" + struct.pack("<I", number) for number in (owner, 544)]
    places = (20 + len(rules), 36 + len(rules), 0, 20)
    return struct.pack("<BBHIIII", 1, 0, 0x8004, *places) + rules + b"".join(sids)


EVERYONE = descriptor(500)
GUID = "Volume{12345678-9abc-4def-8123-456789abcdef}"


def junction(target: str) -> bytes:
    name, shown = f"\\??\\{target}".encode("utf-16-le"), target.encode("utf-16-le")
    data = struct.pack("<HHHH", 0, len(name), len(name) + 2, len(shown)) + name + b"\0\0" + shown + b"\0\0"
    return struct.pack("<IHH", 0xA000_0003, len(data), 0) + data


def link(target: str, *, relative: bool) -> bytes:
    name = (target if relative else f"\\??\\{target}").encode("utf-16-le")
    shown = target.encode("utf-16-le")
    data = struct.pack("<HHHHI", len(shown), len(name), 0, len(shown), int(relative)) + shown + name
    return struct.pack("<IHH", 0xA000_000C, len(data), 0) + data


def wsl(kind: int, data: bytes = b"") -> bytes:
    return struct.pack("<IHH", kind, len(data), 0) + data


def os2(**values: bytes) -> bytes:
    out = b""
    for name, value in values.items():
        entry = struct.pack("<BBH", 0, len(name), len(value)) + name.encode() + b"\0" + value
        padded = entry + bytes(-(4 + len(entry)) % 4)
        out += struct.pack("<I", 4 + len(padded)) + padded
    return out


LINKS = {
    "same volume": junction("C:\\Folder\\deep"),
    "other case": junction("c:\\fOLDER\\DEEP"),
    "other drive": junction("D:\\Elsewhere\\deep"),
    "whole drive": junction("D:\\"),
    "other volume": junction(f"{GUID}\\"),
    "relative": link("Folder\\DEEP\\notes.txt", relative=True),
    "rooted": link("\\Folder\\deep\\notes.txt", relative=True),
    "absolute": link("C:\\folder\\deep\\notes.txt", relative=False),
    "nowhere": link("..\\nowhere\\at all", relative=True),
    "share": link("UNC\\server\\share\\file", relative=False),
}
WANTED = {
    "same volume": b"Folder/deep",
    "other case": b"Folder/deep",
    "other drive": b"D:/Elsewhere/deep",
    "whole drive": b"D:/",
    "other volume": f"{GUID}/".encode(),
    "relative": b"Folder/deep/notes.txt",
    "rooted": b"Folder/deep/notes.txt",
    "absolute": b"Folder/deep/notes.txt",
    "nowhere": b"../nowhere/at all",
    "share": b"UNC/server/share/file",
}
FOLDERS = {"same volume", "other case", "other drive", "whole drive", "other volume"}


def populate(top: Path) -> None:
    (top / "Folder" / "deep" / "er").mkdir(parents=True)
    (top / "Folder" / "deep" / "notes.txt").write_bytes(noise(1, 300))
    for number in range(300):
        (top / f"file {number}").write_bytes(b"x" * number)
        os.setxattr(top / f"file {number}", "system.ntfs_acl", descriptor(number))
    (top / "own").write_bytes(b"own")
    os.setxattr(top / "own", "system.ntfs_acl", EVERYONE)
    for number in range(100):  # the stream of descriptors gets more than one block
        (top / f"long {number}").write_bytes(b"l")
        os.setxattr(top / f"long {number}", "system.ntfs_acl", descriptor(number, entries=300))
    for name, value in (("hidden", 0x22), ("read-only", 0x21), ("system", 0x4)):
        (top / name).write_bytes(b"content")
        os.setxattr(top / name, "system.ntfs_attrib", struct.pack("<I", value))
    (top / "older").write_bytes(b"o")
    os.setxattr(top / "older", "system.ntfs_crtime", struct.pack("<Q", 123_456_789_012_345_678))
    (top / "os2").write_bytes(b"2")
    os.setxattr(top / "os2", "system.ntfs_ea", os2(FIRST=b"value", SECOND=noise(2, 900)))
    for name, data in LINKS.items():
        for place in (top / name, top / "Folder" / "deep" / "er" / name):
            if name in FOLDERS:
                place.mkdir()
            else:
                place.touch()
            os.setxattr(place, "system.ntfs_reparse_data", data)
    for name, data in {
        "wsl link": wsl(0xA000_001D, struct.pack("<I", 2) + "Folder/ü".encode()),
        "app": wsl(0x8000_001B, noise(3, 50)),
        "unknown": wsl(0x8000_0FFE, noise(4, 20)),
    }.items():
        (top / name).touch()
        os.setxattr(top / name, "system.ntfs_reparse_data", data)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_tool("ntfs-3g", "mkfs.ntfs", "getfattr")
    path = make_ntfs(tmp_path_factory.mktemp("ntfs") / "image", 32 * MIB, "Data")
    with (
        loop_device(path) as device,
        kernel_mount(device, "ntfs-3g", read_only=False, options=("permissions",)) as top,
    ):
        populate(top)
    with (
        loop_device(path) as device,
        kernel_mount(device, "ntfs-3g", read_only=False, options=("special_files=wsl",)) as top,
    ):
        os.mkfifo(top / "wsl fifo")
        os.mknod(top / "wsl socket", stat.S_IFSOCK | 0o600)
        os.mknod(top / "wsl device", stat.S_IFCHR | 0o600, os.makedev(300, 70_000))
    return path


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


def asked(top: Path, names: Iterable[str]) -> dict[str, dict[str, bytes]]:
    """What ntfs-3g answers, by file and attribute.

    Python's own call asks with a buffer of 128 bytes at first, which ntfs-3g answers with a failure.
    """
    found: dict[str, dict[str, bytes]] = {name: {} for name in names}
    for attribute in NAMES:
        command = ["getfattr", "-h", "-e", "hex", "-n", attribute, "--", *found]
        done = subprocess.run(command, cwd=top, capture_output=True, text=True, check=False)
        file = ""
        for line in done.stdout.splitlines():
            if line.startswith("# file: "):
                file = line.removeprefix("# file: ")
            elif line:
                found[file][attribute] = bytes.fromhex(line.partition("=0x")[2])
    return found


def test_attributes_are_as_ntfs3g_gives_them(image: Path) -> None:
    tree = open_tree(image)
    nodes = all_nodes(tree)
    with (
        loop_device(image, read_only=True) as device,
        kernel_mount(device, "ntfs-3g", options=("permissions",)) as top,
    ):
        truth = asked(top, nodes)
    assert {name for held in truth.values() for name in held} == set(NAMES)
    assert len({held.get("system.ntfs_acl") for held in truth.values()}) > 250
    assert truth["own"]["system.ntfs_acl"] == EVERYONE
    ours = {name: dict(tree.xattrs(node)) for name, node in nodes.items()}
    assert [name for name in nodes if ours[name] != truth[name]] == []


def test_links_lead_where_windows_would_go(image: Path) -> None:
    tree = open_tree(image)
    nodes = all_nodes(tree)
    deep = "Folder/deep/er/"
    for name, target in WANTED.items():
        assert nodes[name].kind is NodeKind.SYMLINK
        assert (name, tree.readlink(nodes[name])) == (name, target)
        assert nodes[name].size == len(target)
        moved = tree.readlink(nodes[deep + name])
        is_here = name in {"same volume", "other case", "rooted", "absolute"}
        wanted = {"relative": b"Folder/DEEP/notes.txt"}.get(name, target)
        assert (name, moved) == (name, b"../../../" + target if is_here else wanted)


def test_ntfs3g_follows_to_the_same_files(image: Path) -> None:
    tree = open_tree(image)
    with loop_device(image, read_only=True) as device, kernel_mount(device, "ntfs-3g") as top:
        for name in ("same volume", "other case", "relative", "rooted", "absolute"):
            number = (top / name).stat().st_ino
            followed = walk(tree, tree.readlink(walk(tree, name.encode())))
            assert (name, followed.inode) == (name, number)


def test_files_of_wsl(image: Path) -> None:
    tree = open_tree(image)
    nodes = all_nodes(tree)
    assert tree.readlink(nodes["wsl link"]) == "Folder/ü".encode()
    assert nodes["wsl fifo"].kind is NodeKind.FIFO
    assert nodes["wsl socket"].kind is NodeKind.SOCKET
    assert nodes["wsl device"].kind is NodeKind.CHARACTER_DEVICE
    assert nodes["wsl device"].device == (300, 70_000)


@pytest.mark.parametrize(("name", "reason"), [("app", "alias of an app"), ("unknown", "kind 0x80000ffe")])
def test_what_lies_elsewhere_is_not_an_empty_file(image: Path, name: str, reason: str) -> None:
    tree = open_tree(image)
    with pytest.raises(VolumeError, match=reason):
        tree.read(walk(tree, name.encode()), 0, 100)


def test_a_mount_answers_for_them_and_does_not_list_them(image: Path) -> None:
    """As with ntfs-3g: programs that copy all attributes would fail on every other file system."""
    view = PosixView(open_tree(image))
    assert view.xattr_names(b"/own") == ()
    assert view.xattrs(b"/own")[b"system.ntfs_acl"] == EVERYONE


def test_a_copy_to_another_ntfs_keeps_them_and_one_to_linux_loses_nothing(
    image: Path, tmp_path: Path
) -> None:
    tree = open_tree(image)
    sources = [(name, walk(tree, name)) for name in (b"own", b"hidden", b"older", b"os2", b"relative")]
    other = make_ntfs(tmp_path / "other", 16 * MIB, "Copy")
    with (
        loop_device(other) as device,
        kernel_mount(device, "ntfs-3g", read_only=False, options=("permissions",)) as top,
    ):
        copy_out(tree, sources, top, CopyOptions(), lambda _: None)
        names = [name.decode() for name, _ in sources]
        found = asked(top, names)
    for name, node in sources[:4]:
        assert found[name.decode()] == dict(tree.xattrs(node))
    (tmp_path / "linux").mkdir()
    done = copy_out(tree, sources, tmp_path / "linux", CopyOptions(), lambda _: None)
    assert (done.losses, done.failures) == ((), ())


def descriptors(*, damage_first: bool = False, damage_copy: bool = False) -> SecurityStream:
    """A stream with two descriptors, and its copy, in the layout of the documentation."""

    class Held:
        size, weight = 2 * (256 << 10), 1

        def __init__(self, raw: bytes) -> None:
            self._raw = raw

        def read(self, offset: int, size: int) -> bytes:
            return self._raw[offset : offset + size]

    def entry(number: int, place: int, body: bytes) -> bytes:
        total = 0
        for (word,) in struct.iter_unpack("<I", body):
            total = ((total << 3 | total >> 29) + word) & 0xFFFF_FFFF
        return struct.pack("<IIQI", total, number, place, 20 + len(body)) + body

    block = entry(256, 0, EVERYONE).ljust(0x70, b"\0") + entry(257, 0x70, EVERYONE[::-1])
    first, copy = bytearray(block), bytearray(block)
    first[0x70 + 40] ^= damage_first
    copy[0x70 + 40] ^= damage_copy
    return SecurityStream(Held(bytes(first).ljust(256 << 10, b"\0") + bytes(copy).ljust(256 << 10, b"\0")))  # type: ignore[arg-type]


def test_the_copy_stands_in_for_a_damaged_descriptor() -> None:
    assert descriptors().descriptor(257) == EVERYONE[::-1]
    assert descriptors(damage_first=True).descriptor(257) == EVERYONE[::-1]
    with pytest.raises(VolumeError, match="damaged"):
        descriptors(damage_first=True, damage_copy=True).descriptor(257)
    with pytest.raises(VolumeError, match="does not exist"):
        descriptors().descriptor(258)
