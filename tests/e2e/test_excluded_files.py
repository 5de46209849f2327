"""Backups that leave out files: what is restored is sound, all other files are equal, and nothing lies.

The judges are the tools and drivers of the file systems; every file holds noise, so that zeros are missed.
"""

from __future__ import annotations

import random
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENODATA
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.disks import MIB, Part, make_gpt_disk
from support.kernel import kernel_mount, loop_device
from support.product import mounted, mountfs
from support.requirements import require_root, require_tool, run

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 64 << 10
EXCLUDED_EXIT = 16


@dataclass(frozen=True)
class Kind:
    """A file system: how it is made, which driver mounts it, what finds it sound."""

    make: tuple[str, ...]
    driver: str
    check: tuple[str, ...]


KINDS = {
    "ext4": Kind(("mke2fs", "-q", "-F", "-t", "ext4"), "ext4", ("e2fsck", "-fn")),
    "xfs": Kind(("mkfs.xfs", "-q", "-f", "--unsupported", "-mreflink=1"), "xfs", ("xfs_repair", "-n")),
    "ntfs": Kind(("mkfs.ntfs", "-q", "-F", "-f"), "ntfs-3g", ("ntfsfix", "-n")),
    "exfat": Kind(("mkfs.exfat",), "exfat-fuse", ("fsck.exfat", "-n")),
}


def content(name: str, size: int) -> bytes:
    return random.Random(name).randbytes(size)


FILES = {
    "keep/one.bin": 700_000,
    "keep/disk.iso.txt": 90_000,
    "keep/small": 100,
    "big.iso": 3 * MIB,
    "keep/deep/other.ISO": 2 * MIB,
    "work/Temp/a/b": MIB,
    "work/Temp/c": 200_000,
    "after": 300_000,
}
PATTERNS = ("*.iso", "Temp/**")
LOWER_CASE_ONLY = {"ext4", "xfs"}


def left_out(kind: str, name: str) -> bool:
    """Said again without patterns: what the two above mean for the files above."""
    is_iso = name == "big.iso" or (name == "keep/deep/other.ISO" and kind not in LOWER_CASE_ONLY)
    return is_iso or name.startswith("work/Temp/")


def make(path: Path, kind: str, size: int = 64, files: dict[str, bytes] | None = None) -> None:
    require_root()
    require_tool(KINDS[kind].make[0], KINDS[kind].check[0])
    with path.open("wb") as file:
        file.truncate(size * MIB)
    run(*KINDS[kind].make, path)
    with opened(path, kind, read_only=False) as top:
        for name, held in (files or {name: content(name, size) for name, size in FILES.items()}).items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_bytes(held)


@contextmanager
def opened(path: Path, kind: str, *, read_only: bool = True) -> Iterator[Path]:
    with (
        loop_device(path, read_only=read_only) as device,
        kernel_mount(device, KINDS[kind].driver, read_only=read_only) as top,
    ):
        yield top


def read_files(path: Path, kind: str) -> dict[str, bytes]:
    with opened(path, kind) as top:
        return {str(file.relative_to(top)): file.read_bytes() for file in top.rglob("*") if file.is_file()}


def missing(before: bytes, after: bytes) -> int:
    """Count the bytes that became zeros; every other byte must be what it was."""
    assert len(before) == len(after)
    lost = 0
    for at in range(0, len(before), 512):
        piece, found = before[at : at + 512], after[at : at + 512]
        if piece != found:
            assert not any(found), f"other bytes at {at}"
            lost += len(piece)
    return lost


@pytest.mark.parametrize(
    "kind", ["ntfs", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("ext4", "xfs", "exfat"))]
)
def test_the_rest_is_restored_and_what_is_missing_is_an_error(kind: str, tmp_path: Path) -> None:
    source, repo, target = (tmp_path / name for name in ("volume", "repo", "restored"))
    make(source, kind)
    options = [word for pattern in PATTERNS for word in ("--exclude", pattern)]
    told = mountfs("backup", source, repo / "a", *options)
    assert "warning" not in told.err
    mountfs("backup", source, repo / "b")
    sizes = [next((repo / name / "volume").glob("*.mfi")).stat().st_size for name in "ab"]
    gone = sum(size for name, size in FILES.items() if left_out(kind, name))
    edges = 2 * BLOCK * sum(left_out(kind, name) for name in FILES)
    assert gone - edges < sizes[1] - sizes[0] <= gone
    mountfs("verify", repo / "a")
    mountfs("restore", repo / "a/volume", target)
    run(*KINDS[kind].check, target)
    before, after = read_files(source, kind), read_files(target, kind)
    assert before.keys() == after.keys()
    lost = 0
    for name in before:
        if left_out(kind, name):
            lost += missing(before[name], after[name])
        else:
            assert before[name] == after[name], name
    assert gone - edges <= lost <= gone
    inside = f"{repo}/a/volume@1:0"
    read = mountfs("cat", f"{inside}/big.iso", code=EXCLUDED_EXIT)
    assert "left out of the image by --exclude *.iso" in read.err
    assert mountfs("cat", f"{inside}/keep/one.bin").out == content("keep/one.bin", FILES["keep/one.bin"])
    facts = mountfs("info", repo / "a/volume", "--json").facts
    rows = {row[1]: (row[2], row[3]) for row in facts["details"]["excluded"]}
    assert set(rows) == set(PATTERNS)
    assert sum(count for count, _ in rows.values()) == sum(left_out(kind, name) for name in FILES)
    assert gone <= sum(size for _, size in rows.values()) <= gone + 5 * 4096
    assert ", by --exclude Temp/**" in mountfs("info", repo / "a/volume").out.decode()


def test_reading_through_a_mount_says_that_there_is_no_data(tmp_path: Path) -> None:
    make(tmp_path / "volume", "ext4")
    mountfs("backup", tmp_path / "volume", tmp_path / "repo", "--exclude", "/0-ext4/big.iso")
    with mounted(tmp_path / "repo/volume") as shown:
        (top,) = shown.glob("0001-*/0-ext4")
        assert (top / "big.iso").stat().st_size == FILES["big.iso"]
        with pytest.raises(OSError, match="data") as caught:
            (top / "big.iso").read_bytes()
        assert caught.value.errno == ENODATA
        assert (top / "after").read_bytes() == content("after", FILES["after"])
        run("e2fsck", "-fn", top.parent / "disk.img")


def test_page_files_go_unless_windows_sleeps_and_swap_files_unless_the_system_does(tmp_path: Path) -> None:
    page, noise = "pagefile.sys", content("page", 3 * MIB)
    windows, linux, disk, repo = (tmp_path / name for name in ("windows", "linux", "disk.img", "repo"))
    swap = tmp_path / "area"
    swap.write_bytes(content("swap", 4 * MIB))
    run("mkswap", "-q", swap) if shutil.which("mkswap") else pytest.fail("mkswap is missing")
    for mark in (b"wake", b"hibr"):
        sleeping = mark == b"hibr"
        make(
            windows,
            "ntfs",
            24,
            {page: noise, "hiberfil.sys": mark + noise[:MIB], "sub/pagefile.sys": noise[:MIB], "x": noise},
        )
        area = swap.read_bytes()
        if sleeping:
            area = area[:4086] + b"S1SUSPEND\0" + area[4096:]
        make(linux, "ext4", 24, {"swapfile": area, "swap.img": noise, "keep": noise})
        parts = [Part(path.stat().st_size, content=path) for path in (windows, linux)]
        make_gpt_disk(disk, 52 * MIB, parts)
        set_name = mark.decode()
        mountfs("backup", disk, repo, "--set", set_name)
        volumes = [f"{repo}/{set_name}@1:{number}" for number in (1, 2)]
        assert mountfs("cat", f"{volumes[0]}/sub/pagefile.sys").out == noise[:MIB]
        assert mountfs("cat", f"{volumes[1]}/swap.img").out == noise, "it is no swap file"
        code = 0 if sleeping else EXCLUDED_EXIT
        for place in (f"{volumes[0]}/{page}", f"{volumes[0]}/hiberfil.sys", f"{volumes[1]}/swapfile"):
            read = mountfs("cat", place, code=code)
            assert sleeping or "left out of the image by default (" in read.err
        assert (mountfs("cat", f"{volumes[1]}/swapfile", code=code).out[:4096] == area[:4096]) or not sleeping
        mountfs("backup", disk, repo, "--set", f"raw-{set_name}", "--raw")
        assert mountfs("cat", f"{repo}/raw-{set_name}@1:1/{page}").out == noise


def test_a_file_with_another_name_or_shared_blocks_stays(tmp_path: Path) -> None:
    for kind in ("ext4", "xfs"):
        source, repo = tmp_path / kind, tmp_path / "repo"
        make(source, kind, files={"a/one.iso": content("1", MIB), "b/two.iso": content("2", MIB)})
        with opened(source, kind, read_only=False) as top:
            (top / "other.bin").hardlink_to(top / "a/one.iso")
            (top / "same.iso").hardlink_to(top / "b/two.iso")
            if kind == "xfs":
                (top / "three.iso").write_bytes(content("3", MIB))
                run("cp", "--reflink=always", top / "three.iso", top / "copy.bin")
        mountfs("backup", source, repo, "--exclude", "*.iso")
        assert mountfs("cat", f"{repo}/{kind}:0/other.bin").out == content("1", MIB)
        mountfs("cat", f"{repo}/{kind}:0/same.iso", code=EXCLUDED_EXIT)
        if kind == "xfs":
            assert mountfs("cat", f"{repo}/{kind}:0/copy.bin").out == content("3", MIB)


@pytest.mark.nightly
def test_it_lives_through_increments_merging_and_conversion(tmp_path: Path) -> None:
    source, repo = tmp_path / "volume", tmp_path / "repo"
    make(source, "ext4")
    restored = {}
    for point, patterns in enumerate((["*.iso"], ["*.iso"], [], ["Temp/**"]), 1):
        with opened(source, "ext4", read_only=False) as top:
            (top / f"new{point}").write_bytes(content(f"new{point}", 150_000))
        mountfs("backup", source, repo, *(word for pattern in patterns for word in ("--exclude", pattern)))
        mountfs("restore", f"{repo}/volume@{point}", tmp_path / f"restored{point}")
        restored[point] = (tmp_path / f"restored{point}").read_bytes()
    mountfs("delete", f"{repo}/volume@1", "--yes")
    mountfs("verify", repo)
    mountfs("convert", repo / "volume", tmp_path / "other")
    (name,) = (entry.name for entry in (tmp_path / "other").iterdir() if entry.is_dir())
    mountfs("verify", tmp_path / "other")
    roots = []
    for place, points in ((f"{repo}/volume", (2, 3, 4)), (f"{tmp_path}/other/{name}", (1, 2, 3))):
        roots.append([mountfs("info", f"{place}@{point}", "--json").facts["root"] for point in points])
        for original, point in zip((2, 3, 4), points, strict=True):
            mountfs("restore", f"{place}@{point}", tmp_path / "again", "--yes")
            assert (tmp_path / "again").read_bytes() == restored[original]
        codes = (EXCLUDED_EXIT, 0, 0)
        for point, code in zip(points, codes, strict=True):
            mountfs("cat", f"{place}@{point}:0/big.iso", code=code)
        mountfs("cat", f"{place}@{points[2]}:0/work/Temp/a/b", code=EXCLUDED_EXIT)
    assert roots[0] == roots[1]


def test_in_doubt_every_file_is_imaged_and_it_says_so(tmp_path: Path) -> None:
    source, repo = tmp_path / "volume", tmp_path / "repo"
    make(source, "ext4")
    with loop_device(source) as device, kernel_mount(device, "ext4", read_only=False) as top:
        done = mountfs("backup", device, repo, "--set", "live", "--exclude", "*.iso")
        assert "no file is left out by --exclude: the source can change" in done.err
        (top / "file").write_bytes(b"x" * 100_000)
        run("sync", "-f", top)
        shutil.copy(source, tmp_path / "copy")
    done = mountfs("backup", tmp_path / "copy", repo, "--exclude", "*.iso")
    assert "no file of the volume (ext4) is left out: its journal was not replayed" in done.err
    mountfs("restore", f"{repo}/copy", tmp_path / "restored")
    assert (tmp_path / "restored").read_bytes() == (tmp_path / "copy").read_bytes()
    assert "leave out --raw" in mountfs("backup", source, repo, "--raw", "--exclude", "x", code=2).err
    assert "cannot be a pattern" in mountfs("backup", source, repo, "--exclude", "/", code=2).err
