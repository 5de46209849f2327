"""A chain that stands on a qcow2 image made by qemu-img: the disks it must equal are kept beside it."""

from __future__ import annotations

import random
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from golden.second_reader import Folder
from support.product import mountfs
from support.requirements import require_tool

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _tools() -> None:
    require_tool("qemu-img", "qemu-io")


class Adopted:
    """A base and two native points on it; ``disks[n]`` is what point n + 1 must be."""

    def __init__(self, place: Path, *options: str) -> None:
        self.place = place
        self.repo = place / "repo"
        self.base = place / "old.qcow2"
        chance = random.Random(8)
        disk = bytearray(chance.randbytes(5 * MIB + 512 * 7))
        disk[MIB : 2 * MIB] = bytes(MIB)
        self.disks = [bytes(disk)]
        source = place / "disk.img"
        source.write_bytes(disk)
        command = ["qemu-img", "convert", "-O", "qcow2", *options, str(source), str(self.base)]
        subprocess.run(command, check=True)
        disk[100_000:100_003] = b"abc"
        disk[MIB + 5 : MIB + 9] = b"date"
        disk[3 * MIB : 3 * MIB + 200_000] = bytes(200_000)
        self._back_up(source, disk, "--base", self.base)
        disk[70_000:70_010] = b"0123456789"
        disk += chance.randbytes(70_000)
        self._back_up(source, disk)

    def _back_up(self, source: Path, disk: bytearray, *more: object) -> None:
        source.write_bytes(disk)
        mountfs("backup", source, self.repo, "--set", "s", *more)
        self.disks.append(bytes(disk))

    def restored(self, number: int) -> bytes:
        target = self.place / "restored"
        target.unlink(missing_ok=True)
        mountfs("restore", f"{self.repo}/s@{number}", target, "--yes")
        return target.read_bytes()


@pytest.fixture(params=[(), ("-c",), ("-c", "-o", "compression_type=zstd,cluster_size=4096")], ids=str)
def adopted(request: pytest.FixtureRequest, tmp_path: Path) -> Adopted:
    return Adopted(tmp_path, *request.param)


def test_every_point_restores_and_verifies(adopted: Adopted) -> None:
    for number, disk in enumerate(adopted.disks, 1):
        assert adopted.restored(number) == disk
    mountfs("verify", adopted.repo)
    images = sorted(adopted.repo.glob("s/*.mfi"))
    assert sum(image.stat().st_size for image in images) < 400_000, "what did not change stays in the base"
    assert (adopted.repo / "s" / "old.qcow2").is_symlink()


def test_the_second_reader_reads_it_too(adopted: Adopted) -> None:
    files = {image.name: image.read_bytes() for image in adopted.repo.glob("s/*.mfi")}
    points = Folder(files, adopted.disks[0]).points()
    assert [point.read_all() for point in points] == adopted.disks[1:]
    for point in points:
        assert point.computed_root() == point.image.root
        assert point.own_counts() == point.image.counts


def test_a_copy_of_the_base_is_as_good_and_a_changed_one_is_found_out(tmp_path: Path) -> None:
    adopted = Adopted(tmp_path)
    shutil.copyfile(adopted.base, tmp_path / "copy")
    adopted.base.unlink()
    (tmp_path / "copy").rename(adopted.base)
    assert adopted.restored(3) == adopted.disks[2]
    command = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 4M 64k", str(adopted.base)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = mountfs("verify", adopted.repo, code=None)
    assert found.code == 13
    said = found.out.decode() + found.err
    assert "old.qcow2: block 64 is not what the image that stands on it knows" in said
    target = tmp_path / "out"
    failed = mountfs("restore", f"{adopted.repo}/s@3", target, "--yes", code=None)
    assert failed.code == 13
    assert not target.exists()


def test_a_missing_base_is_a_missing_parent(tmp_path: Path) -> None:
    adopted = Adopted(tmp_path)
    adopted.base.unlink()
    assert mountfs("restore", f"{adopted.repo}/s@2", tmp_path / "out", "--yes", code=None).code == 20


def test_a_base_in_the_set_is_used_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "repo" / "vm").mkdir(parents=True)
    disk = random.Random(1).randbytes(MIB)
    (tmp_path / "disk.img").write_bytes(disk)
    base = tmp_path / "repo" / "vm" / "base.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", tmp_path / "disk.img", base], check=True)
    mountfs("backup", tmp_path / "disk.img", tmp_path / "repo", "--set", "vm", "--base", base)
    assert not base.is_symlink()
    mountfs("verify", tmp_path / "repo")


def test_nothing_is_adopted_unasked(tmp_path: Path) -> None:
    (tmp_path / "repo" / "vm").mkdir(parents=True)
    (tmp_path / "disk.img").write_bytes(random.Random(1).randbytes(MIB))
    base = tmp_path / "repo" / "vm" / "base.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", tmp_path / "disk.img", base], check=True)
    mountfs("backup", tmp_path / "disk.img", tmp_path / "repo", "--set", "vm")
    (made,) = (tmp_path / "repo" / "vm").glob("*.mfi")
    assert "-full-" in made.name


@pytest.mark.parametrize("wrong", ["missing.qcow2", "disk.img", "other.qcow2"])
def test_what_cannot_be_a_base_leaves_nothing_behind(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    (tmp_path / "other.qcow2").write_bytes(b"QFI\xfb" + b"\xff" * 500)
    failed = mountfs(
        "backup", tmp_path / "disk.img", tmp_path / "repo", "--base", tmp_path / wrong, code=None
    )
    assert failed.code in {10, 11, 12, 13, 60}
    assert failed.err.count("\n") == 1
    assert not list((tmp_path / "repo").glob("**/*.qcow2"))
