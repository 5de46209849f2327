"""What the XFS driver refuses, and what it says; the volumes are made without root."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import VolumeError
from mountfs.drivers._tree import ChunkReader
from mountfs.drivers._xfs_inode import read_inode
from mountfs.drivers._xfs_layout import Superblock, read_superblock
from mountfs.drivers._xfs_mapping import map_fork
from mountfs.signatures import identify
from support.requirements import require_tool, run
from support.xfsvolume import Damaged, open_tree, repair

if TYPE_CHECKING:
    from pathlib import Path

    from mountfs.tree import FileTree, Node


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_tool("mkfs.xfs")
    return tmp_path_factory.mktemp("xfs")


def make(folder: Path, name: str, *options: str) -> Path:
    (folder / "data").write_bytes(b"content of a file" * 100)
    names = [f"{'n' * 40}{number} ---600 0 0 {folder}/data" for number in range(150)]
    lines = ["boot 0 0", "d--755 0 0", "many d--755 0 0", *names, "$"]
    lines += [f"one ---644 0 0 {folder}/data", f"two ---644 0 0 {folder}/data", "$", "$"]
    (folder / "content").write_text("\n".join(lines) + "\n")
    path = folder / name
    path.touch()
    os.truncate(path, 320 << 20)
    run("mkfs.xfs", "-q", *options, "-p", folder / "content", path)
    return path


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return make(folder, "volume")


@pytest.fixture
def device(path: Path) -> Damaged:
    return Damaged(path)


@pytest.fixture
def layout(device: Damaged) -> Superblock:
    return read_superblock(device)


def child(tree: FileTree, name: bytes) -> Node:
    found = tree.child(tree.root(), name)
    assert found is not None
    return found


def inode_unit(device: Damaged, layout: Superblock, number: int) -> bytearray:
    return device.unit(layout.inode_offset(number), layout.inode_size)


def superblock(device: Damaged) -> bytearray:
    return device.unit(0, 512)


def refusal(device: Damaged) -> str:
    with pytest.raises(VolumeError) as caught:
        open_tree(device)
    return str(caught.value)


def test_an_inode_with_a_wrong_checksum_is_an_error_and_the_rest_is_shown(
    device: Damaged, layout: Superblock
) -> None:
    number = child(open_tree(device), b"one").inode
    inode_unit(device, layout, number)[8] ^= 1
    tree = open_tree(device)
    found = []
    with pytest.raises(VolumeError, match=r"b'one' cannot be read.*checksum"):
        found.extend(node.name for node in tree.children(tree.root()))
    assert tree.child(tree.root(), b"two")
    assert tree.child(tree.root(), b"many")


def test_an_inode_of_another_number_is_an_error(device: Damaged, layout: Superblock) -> None:
    tree = open_tree(device)
    one, two = child(tree, b"one").inode, child(tree, b"two").inode
    inode_unit(device, layout, one)[:] = bytes(inode_unit(device, layout, two))
    tree = open_tree(device)
    with pytest.raises(VolumeError, match="another one"):
        list(tree.children(tree.root()))


@pytest.mark.parametrize("what", ["checksum", "another place", "another inode", "another volume"])
def test_a_directory_block_that_is_not_right_is_an_error(
    device: Damaged, layout: Superblock, what: str
) -> None:
    number = child(open_tree(device), b"many").inode
    inode = read_inode(ChunkReader(device), layout, number)
    first = next(iter(map_fork(device, layout, number, inode.data_fork)))
    unit = device.unit(first.source, layout.directory_block_size)
    at = {"checksum": 100, "another place": 15, "another inode": 47, "another volume": 24}[what]
    unit[at] ^= 1
    if what != "checksum":
        repair(unit)
    tree = open_tree(device)
    names = []
    with pytest.raises(VolumeError, match=what):
        names.extend(node.name for node in tree.children(child(tree, b"many")))
    found = open_tree(device)
    rest = found.children(child(found, b"many"))
    assert len(next(rest).name) > 40


def test_the_content_of_a_file_on_a_realtime_device_is_refused(device: Damaged, layout: Superblock) -> None:
    unit = inode_unit(device, layout, child(open_tree(device), b"one").inode)
    unit[91] |= 1
    repair(unit)
    tree = open_tree(device)
    assert child(tree, b"one").size == 1700
    with pytest.raises(VolumeError, match="realtime device"):
        tree.read(child(tree, b"one"), 0, 10)
    assert tree.read(child(tree, b"two"), 0, 7) == b"content"


@pytest.mark.parametrize(
    ("at", "layout_", "value", "said"),
    [
        (0, ">4s", b"XFSC", "no magic number"),
        (4, ">I", 5000, "block size 5000"),
        (84, ">I", 0, "groups of 0 blocks"),
        (88, ">I", 1 << 30, "groups"),
        (100, ">H", 0x3003, "version 3"),
        (100, ">H", 0x1005, "version 1"),
        (104, ">H", 128, "inode size 128"),
        (126, ">B", 1, "not finished"),
        (192, ">B", 9, "directory block size"),
        (216, ">I", 0x103, "not supported: metadir"),
        (216, ">I", 0x8000_0003, "0x80000000"),
    ],
)
def test_superblocks_that_are_refused(
    device: Damaged, at: int, layout_: str, value: bytes | int, said: str
) -> None:
    struct.pack_into(layout_, superblock(device), at, value)
    repair(superblock(device))
    assert said in refusal(device)


def test_a_superblock_with_a_wrong_checksum_is_refused(device: Damaged) -> None:
    superblock(device)[110] ^= 1
    assert "checksum" in refusal(device)


def test_the_notes_of_a_volume(device: Damaged, path: Path, folder: Path) -> None:
    info = identify(device)
    assert info is not None
    assert info.note == ""
    superblock(device)[219] |= 0x10
    repair(superblock(device))
    info = identify(device)
    assert info is not None
    assert "errors" in info.note
    assert open_tree(device).root()


def test_a_journal_on_another_device_is_told(folder: Path) -> None:
    log = folder / "journal"
    log.touch()
    os.truncate(log, 80 << 20)
    device = Damaged(make(folder, "external", "-l", f"logdev={log},size=64m"))
    info = identify(device)
    assert info is not None
    assert "on another device" in info.note
    tree = open_tree(device)
    assert len(list(tree.children(child(tree, b"many")))) == 150


def test_version_4_without_a_magic_number_in_a_block(folder: Path) -> None:
    device = Damaged(make(folder, "four", "-m", "crc=0"))
    layout = read_superblock(device)
    number = child(open_tree(device), b"many").inode
    inode = read_inode(ChunkReader(device), layout, number)
    first = next(iter(map_fork(device, layout, number, inode.data_fork)))
    device.unit(first.source, layout.directory_block_size)[0] ^= 1
    tree = open_tree(device)
    with pytest.raises(VolumeError, match="it is none"):
        list(tree.children(child(tree, b"many")))
