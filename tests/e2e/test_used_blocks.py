"""Backups of used blocks only, on volumes whose free space is full of noise.

What is restored is the source with zeros in every block that the tools of the file system call free, and
those tools and the kernel find it sound and whole.
"""

from __future__ import annotations

import random
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.disks import MIB, Part, make_gpt_disk
from support.entries import read_entries
from support.freespace import ORACLES
from support.kernel import kernel_mount, loop_device
from support.product import mounted, mountfs
from support.requirements import require_root, require_tool, run

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 64 << 10


@dataclass(frozen=True)
class Kind:
    """A file system: how it is made, which driver mounts it, what finds it sound."""

    make: tuple[str, ...]
    size: int
    driver: str
    check: tuple[str, ...]
    oracle: str


KINDS = {
    "ext4": Kind(
        ("mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard"), 48, "ext4", ("e2fsck", "-fn"), "ext"
    ),
    "xfs": Kind(("mkfs.xfs", "-q", "-f", "-K", "--unsupported"), 64, "xfs", ("xfs_repair", "-n"), "xfs"),
    "btrfs": Kind(
        ("mkfs.btrfs", "-q", "-f", "-K", "--mixed"), 64, "btrfs", ("btrfs", "check", "--readonly"), "btrfs"
    ),
    "ntfs": Kind(("mkfs.ntfs", "-q", "-F", "-f"), 40, "ntfs-3g", ("ntfsfix", "-n"), "ntfs"),
    "fat32": Kind(("mkfs.fat", "-F", "32"), 48, "", ("fsck.fat", "-n"), "fat"),
    "exfat": Kind(("mkfs.exfat",), 32, "exfat-fuse", ("fsck.exfat", "-n"), "exfat"),
}


def noisy(path: Path, size: int) -> Path:
    path.write_bytes(random.Random(size).randbytes(size))
    return path


def make(path: Path, kind: Kind) -> None:
    require_root()
    require_tool(kind.make[0], kind.check[0])
    noisy(path, kind.size * MIB)
    with path.open("r+b") as file:
        file.write(bytes(MIB))  # no marks of anything else
    run(*kind.make, path)


def change(path: Path, kind: Kind, seed: int, folder: Path) -> None:
    """Add files, and take away half of those that an earlier call added."""
    chance = random.Random(seed)
    made = {f"file{seed}-{number}": chance.randbytes(chance.randrange(200_000)) for number in range(24)}
    gone = [f"file{seed - 1}-{number}" for number in range(0, 24, 2)] if seed > 1 else []
    if not kind.driver:
        for name, content in made.items():
            (folder / name).write_bytes(content)
        run("mcopy", "-Q", "-i", path, *(folder / name for name in made), "::")
        run(*(("mdel", "-i", path, *(f"::{name}" for name in gone)) if gone else ("true",)))
        return
    with loop_device(path) as device, kernel_mount(device, kind.driver, read_only=False) as top:
        for name, content in made.items():
            (top / name).write_bytes(content)
        for name in gone:
            (top / name).unlink()


@contextmanager
def entries_of(path: Path, kind: Kind, folder: Path) -> Iterator[object]:
    if not kind.driver:
        copied = folder / f"copied from {path.name}"
        copied.mkdir()
        run("mcopy", "-Q", "-n", "-s", "-m", "-i", path, "::*", copied)
        yield {file.name: file.read_bytes() for file in copied.iterdir()}
        return
    with loop_device(path, read_only=True) as device, kernel_mount(device, kind.driver) as top:
        yield read_entries(top)


def without_free_blocks(path: Path, oracle: str) -> bytes:
    """The bytes of a volume, with zeros in the blocks that lie in free space."""
    content = bytearray(path.read_bytes())
    for start, length in ORACLES[oracle](path):
        first = -(-start // BLOCK) * BLOCK
        end = len(content) if start + length == len(content) else (start + length) // BLOCK * BLOCK
        content[first : max(first, end)] = bytes(max(0, end - first))
    return bytes(content)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_restored_is_sound_and_has_every_file(name: str, tmp_path: Path) -> None:
    kind, repo, source = KINDS[name], tmp_path / "repo", tmp_path / "volume"
    make(source, kind)
    wanted = {}
    for point in (1, 2):
        change(source, kind, point, tmp_path)
        wanted[point] = without_free_blocks(source, kind.oracle)
        shutil.copy(source, tmp_path / f"source{point}")
        done = mountfs("backup", source, repo)
        assert "imaged whole" not in done.err
    mountfs("verify", repo)
    (first, *_) = sorted((repo / "volume").glob("*.mfi"))
    assert first.stat().st_size < kind.size * MIB // 2
    for point in (1, 2):
        target = tmp_path / "restored"
        target.unlink(missing_ok=True)
        mountfs("restore", f"{repo}/volume@{point}", target)
        assert target.read_bytes() == wanted[point], f"point {point}"
        run(*kind.check, target)
        with entries_of(tmp_path / f"source{point}", kind, tmp_path) as before:
            held = before
        with entries_of(target, kind, tmp_path) as after:
            assert after == held
        shutil.rmtree(tmp_path / f"copied from {target.name}", ignore_errors=True)
    assert mountfs("info", repo / "volume", "--json").facts["volumes"][0]["left_out"] == sum(
        length for _, length in ORACLES[kind.oracle](source)
    )


def test_raw_images_everything_and_a_set_may_change_between_both(tmp_path: Path) -> None:
    kind, source, repo = KINDS["ext4"], tmp_path / "volume", tmp_path / "repo"
    make(source, kind)
    change(source, kind, 1, tmp_path)
    wanted = [source.read_bytes(), without_free_blocks(source, "ext"), source.read_bytes()]
    for options in (["--raw"], [], ["--raw"]):
        mountfs("backup", source, repo, *options)
    for point, content in enumerate(wanted, 1):
        mountfs("restore", f"{repo}/volume@{point}", tmp_path / "restored", "--yes")
        assert (tmp_path / "restored").read_bytes() == content, f"point {point}"
    told = [mountfs("info", f"{repo}/volume@{point}").out.decode() for point in (2, 3)]
    assert "of free space in 0-ext4; it reads as zeros" in told[0]
    assert "Left out" not in told[1]


def test_the_mounted_disk_shows_zeros_and_the_kernel_takes_it(tmp_path: Path) -> None:
    kind, source, repo = KINDS["ext4"], tmp_path / "volume", tmp_path / "repo"
    make(source, kind)
    change(source, kind, 1, tmp_path)
    mountfs("backup", source, repo)
    with mounted(repo / "volume") as shown:
        (disk,) = shown.glob("0001-*/disk.img")
        assert disk.read_bytes() == without_free_blocks(source, "ext")
        run("e2fsck", "-fn", disk)


def test_of_a_disk_only_what_is_known_to_be_free_is_left_out(tmp_path: Path) -> None:
    kind, disk, repo = KINDS["ext4"], tmp_path / "disk.img", tmp_path / "repo"
    volume, area, unknown = (tmp_path / name for name in ("volume", "swap", "unknown"))
    make(volume, kind)
    change(volume, kind, 1, tmp_path)
    run("mkswap", noisy(area, 4 * MIB))
    noisy(unknown, 3 * MIB)
    parts = [Part(path.stat().st_size, content=path) for path in (volume, area, unknown)]
    make_gpt_disk(disk, 64 * MIB, parts)
    with disk.open("r+b") as file:
        for gap in (40_000, 57 * MIB):
            file.seek(gap)
            file.write(random.Random(gap).randbytes(70_000))
    done = mountfs("backup", disk, repo)
    assert "imaged whole" not in done.err
    mountfs("restore", repo / "disk", tmp_path / "restored")
    wanted, first = bytearray(disk.read_bytes()), MIB
    wanted[first : first + 48 * MIB] = without_free_blocks(volume, "ext")
    swap_from = first + 48 * MIB + BLOCK
    wanted[swap_from : swap_from + 4 * MIB - BLOCK] = bytes(4 * MIB - BLOCK)
    assert (tmp_path / "restored").read_bytes() == wanted
    rows = mountfs("info", repo / "disk", "--json").facts["volumes"]
    assert [bool(row["left_out"]) for row in rows] == [True, True, False]


def test_while_it_is_mounted_to_be_written_all_of_it_is_imaged(tmp_path: Path) -> None:
    kind, source, repo = KINDS["ext4"], tmp_path / "volume", tmp_path / "repo"
    make(source, kind)
    change(source, kind, 1, tmp_path)
    with loop_device(source) as device:
        with kernel_mount(device, "ext4", read_only=False):
            done = mountfs("backup", device, repo, "--set", "s")
            same = mountfs("backup", source, repo, "--set", "file")
        assert "it is imaged whole, free space included" in done.err
        assert "it is imaged whole, free space included" in same.err
        run("sync", source)
        with kernel_mount(device, "ext4", options=("noload",)):
            assert "imaged whole" not in mountfs("backup", device, repo, "--set", "s").err
    rows = [mountfs("info", f"{repo}/s@{point}", "--json").facts["volumes"][0] for point in (1, 2)]
    assert [bool(row["left_out"]) for row in rows] == [False, True]


def test_a_volume_that_was_in_use_is_imaged_whole(tmp_path: Path) -> None:
    kind, source, repo = KINDS["ext4"], tmp_path / "volume", tmp_path / "repo"
    make(source, kind)
    with loop_device(source) as device, kernel_mount(device, "ext4", read_only=False) as top:
        (top / "file").write_bytes(b"x" * 100_000)
        run("sync", "-f", top)
        shutil.copy(source, tmp_path / "copy")
    done = mountfs("backup", tmp_path / "copy", repo)
    assert "the volume (ext4) is imaged whole, free space included: its journal was not replayed" in done.err
    mountfs("restore", repo / "copy", tmp_path / "restored")
    assert (tmp_path / "restored").read_bytes() == (tmp_path / "copy").read_bytes()
