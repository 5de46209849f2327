"""`mountfs convert`: qemu-img judges what it wrote, and reads of it what the source holds."""

from __future__ import annotations

import json
import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.product import mountfs
from support.requirements import require_tool

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def sparse(path: Path, size: int, places: list[tuple[int, int]], seed: int = 1) -> Path:
    """A disk with data at some places and nothing elsewhere."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in places:
            file.seek(offset)
            file.write(chance.randbytes(length))
    return path


DISKS = {
    "empty": (MIB, []),
    "one sector": (512, [(0, 512)]),
    "odd end": (3 * MIB + 512 * 13, [(0, 70_000), (MIB + 4096, 10), (3 * MIB, 512 * 13)]),
    "full": (5 * MIB, [(0, 5 * MIB)]),
    "far apart": ((20 << 30) + 4096, [(0, 4096), (5 << 30, 100_000), ((20 << 30) - 4096, 8192)]),
    "over a table": (1 << 30, [((512 << 20) - 200_000, 400_000)]),
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.nightly] if kind in {"far apart", "over a table"} else [])
        for kind in DISKS
    ],
)
@pytest.mark.parametrize("target", ["qcow2", "vhdx"])
def test_qemu_reads_what_was_written(tmp_path: Path, kind: str, target: str) -> None:
    require_tool("qemu-img")
    size, places = DISKS[kind]
    source = sparse(tmp_path / "disk.img", size, places)
    made = tmp_path / f"made.{target}"
    mountfs("backup", source, tmp_path / "repo", "--set", "s")
    mountfs("convert", tmp_path / "repo" / "s", made)
    compare = ["qemu-img", "compare", "-f", target, "-F", "raw", made, source]
    assert b"Images are identical" in subprocess.run(compare, check=True, stdout=subprocess.PIPE).stdout
    if target == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", made], check=True)
    said = json.loads(
        subprocess.run(["qemu-img", "info", "--output=json", made], check=True, stdout=-1).stdout
    )
    assert said["virtual-size"] == size
    assert made.stat().st_size < sum(length for _, length in places) + 8 * MIB, "holes take no room"
    mountfs("verify", made)
    mountfs("convert", made, tmp_path / "back.img")
    subprocess.run(["cmp", source, tmp_path / "back.img"], check=True)
    touched = sum(length + 2 * MIB for _, length in places)
    assert (tmp_path / "back.img").stat().st_blocks * 512 <= touched, "it is sparse"


@pytest.mark.parametrize("target", ["made.qcow2", "made.vhdx", "made.img"])
def test_nothing_is_replaced(tmp_path: Path, target: str) -> None:
    source = sparse(tmp_path / "disk.img", MIB, [(0, 5000)])
    mountfs("backup", source, tmp_path / "repo", "--set", "s")
    (tmp_path / target).write_bytes(b"precious")
    failed = mountfs("convert", tmp_path / "repo" / "s", tmp_path / target, code=None)
    assert failed.code == 40
    assert (tmp_path / target).read_bytes() == b"precious"
    assert not list(tmp_path.glob(".*.part"))


def test_what_cannot_be_read_leaves_no_file(tmp_path: Path) -> None:
    source = sparse(tmp_path / "disk.img", 4 * MIB, [(0, 4 * MIB)])
    mountfs("backup", source, tmp_path / "repo", "--set", "s")
    (image,) = (tmp_path / "repo" / "s").glob("*.mfi")
    content = bytearray(image.read_bytes())
    content[2 * MIB] ^= 1
    image.write_bytes(content)
    for target in ("made.qcow2", "made.vhdx", "made.img", "other"):
        failed = mountfs("convert", image, tmp_path / target, code=None)
        assert failed.code == 13
        assert failed.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"disk.img", "repo", "other"}
    assert not list(tmp_path.rglob("other/*/*.mfi"))


class Chain:
    """Three points of a native set, and the disks that they must be."""

    def __init__(self, place: Path) -> None:
        self.disks = []
        disk = bytearray(random.Random(3).randbytes(2 * MIB))
        for number in range(3):
            disk[number * 100_000 : number * 100_000 + 9] = b"changed %d" % number
            disk += bytes(4096 * number)
            (place / "disk.img").write_bytes(disk)
            kind = "diff" if number == 2 else "inc"
            mountfs("backup", place / "disk.img", place / "repo", "--set", "s", "--type", kind)
            self.disks.append(bytes(disk))


def points(place: Path) -> list[dict[str, object]]:
    return mountfs("list", place, "--json").facts["sets"][0]["points"]


def test_a_set_becomes_a_chain_with_every_point_and_its_time(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    mountfs("convert", tmp_path / "repo" / "s", tmp_path / "new", "--set", "t")
    old, new = points(tmp_path / "repo"), points(tmp_path / "new")
    assert [point["created"] for point in new] == [point["created"] for point in old]
    assert [point["kind"] for point in new] == ["full", "inc", "inc"]
    for number, disk in enumerate(chain.disks, 1):
        target = tmp_path / f"out{number}"
        mountfs("restore", f"{tmp_path}/new/t@{number}", target)
        assert target.read_bytes() == disk
    mountfs("verify", tmp_path / "new")


def test_an_interrupted_conversion_goes_on(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    mountfs("convert", tmp_path / "repo" / "s@1", tmp_path / "new", "--set", "s")
    said = mountfs("convert", tmp_path / "repo" / "s", tmp_path / "new", "--json").facts
    assert said["converted"] == 2
    assert mountfs("convert", tmp_path / "repo" / "s", tmp_path / "new", "--json").facts["converted"] == 0
    target = tmp_path / "out"
    mountfs("restore", f"{tmp_path}/new/s@3", target)
    assert target.read_bytes() == chain.disks[2]


def test_a_foreign_chain_becomes_a_native_one(tmp_path: Path) -> None:
    """Three overlays, each a state of one disk; their files are the points."""
    require_tool("qemu-img", "qemu-io")
    place = tmp_path / "vm"
    place.mkdir()
    source = sparse(tmp_path / "disk.img", 4 * MIB, [(0, 2 * MIB)])
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", source, place / "1.qcow2"], check=True)
    for number in (2, 3):
        base, overlay = f"{number - 1}.qcow2", place / f"{number}.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay], check=True
        )
        write = f"write -q -P {number} {number * 65536} 4096"
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", write, overlay], check=True)
        os.utime(overlay, (number * 1000, number * 1000))
    os.utime(place / "1.qcow2", (1000, 1000))
    mountfs("convert", place, tmp_path / "new", "--set", "vm")
    for number in (1, 2, 3):
        raw, target = tmp_path / "raw", tmp_path / f"out{number}"
        command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", place / f"{number}.qcow2", raw]
        subprocess.run(command, check=True)
        mountfs("restore", f"{tmp_path}/new/vm@{number}", target)
        assert target.read_bytes() == raw.read_bytes()
    assert [point["created"] for point in points(tmp_path / "new")] == sorted(
        point["created"] for point in points(tmp_path / "new")
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("s", "x.img", "--to", "floppy"), 2),
        (("s", "x.qcow2", "--set", "t"), 2),
        (("s", "x.qcow2", "--disk", "1"), 60),
        (("s", "disk.img", "--to", "mfi"), 2),
        (("nothing", "x.qcow2"), 60),
    ],
)
def test_bad_input(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    mountfs("backup", sparse(tmp_path / "disk.img", MIB, [(0, 100)]), tmp_path / "repo", "--set", "s")
    image, target, *options = arguments
    failed = mountfs("convert", tmp_path / "repo" / image, tmp_path / target, *options, code=None)
    assert failed.code == code
    assert failed.err.count("\n") == 1
