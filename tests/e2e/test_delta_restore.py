"""Restores that write only what differs, onto real devices and files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.writing import HEAD, MARK, TAIL
from support.content import make_tree, noise, tree_digests
from support.disks import MIB, make_ext4
from support.kernel import kernel_mount, loop_device
from support.product import Ran, mountfs
from support.requirements import run

pytestmark = pytest.mark.root


def restored(*arguments: str | Path) -> Ran:
    return mountfs("restore", *arguments, "--delta", "--json")


def test_a_disk_goes_back_to_an_earlier_point(tmp_path: Path) -> None:
    disk, repo, files = tmp_path / "disk.img", tmp_path / "repo", tmp_path / "files"
    files.mkdir()
    wanted = make_tree(files, symlinks=False)
    (files / "large").write_bytes(noise(7, 16 * MIB))
    make_ext4(disk, 32 * MIB, "d", files)
    wanted = tree_digests(files)
    with loop_device(disk) as device:
        mountfs("backup", device, repo, "--set", "s")
        with kernel_mount(device, "ext4", read_only=False) as top:
            (top / "hello.txt").write_bytes(b"changed")
            (top / "new").write_bytes(noise(8, MIB))
            (top / "photo.jpg").unlink()
        told = restored(f"{repo}/s@1", device, "--target-serial", device).facts
        assert 0 < told["written"] + told["zeroed"] < 2 * MIB
        assert told["skipped"] > 16 * MIB
        assert told["verified"]
        run("e2fsck", "-fn", device)
        with kernel_mount(device, "ext4") as top:
            assert tree_digests(top) == wanted
        nothing = restored(f"{repo}/s@1", device, "--target-serial", device).facts
        assert nothing["written"] == nothing["zeroed"] == 0


def test_a_file_is_changed_in_place_and_never_seen_half(tmp_path: Path) -> None:
    disk, repo, target = tmp_path / "disk.img", tmp_path / "repo", tmp_path / "target.img"
    disk.write_bytes(noise(1, 4 * MIB))
    mountfs("backup", disk, repo)
    changed = bytearray(disk.read_bytes())
    changed[MIB : MIB + 4096] = noise(2, 4096)
    target.write_bytes(changed)
    target.chmod(0o640)
    inode = target.stat().st_ino
    told = restored(repo / "disk", target, "--yes").facts
    assert (told["written"], told["zeroed"]) == (4096 + 2 * HEAD + TAIL, TAIL)
    assert target.read_bytes() == disk.read_bytes()
    assert (target.stat().st_ino, target.stat().st_mode & 0o777) == (inode, 0o640)
    # It is larger, and the file system is full of other things: the file gets the size of the disk.
    os.truncate(target, 9 * MIB)
    restored(repo / "disk", target, "--yes")
    assert target.read_bytes() == disk.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.img", "repo", "target.img"]


def test_a_damaged_image_leaves_a_disk_that_says_what_it_is(tmp_path: Path) -> None:
    disk, repo = tmp_path / "disk.img", tmp_path / "repo"
    disk.write_bytes(noise(1, 4 * MIB))
    mountfs("backup", disk, repo)
    (image,) = (repo / "disk").glob("*.mfi")
    content = bytearray(image.read_bytes())
    content[2 * MIB] ^= 1
    image.write_bytes(content)
    target = tmp_path / "target"
    target.write_bytes(bytes(4 * MIB))
    with loop_device(target) as device:
        mountfs("restore", repo / "disk", device, "--target-serial", device, code=13)
        with Path(device).open("rb") as opened:
            assert opened.read(len(MARK)) == MARK
