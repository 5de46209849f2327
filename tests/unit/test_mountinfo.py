"""Reading the kernel's list of mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.devices import mountinfo
from support.disks import MIB, make_ext4
from support.fakemachine import FakeMachine, write
from support.kernel import kernel_mount, loop_device, mounted_at


def test_names_are_unescaped_and_broken_lines_left_out(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    lines = [
        r"36 35 98:0 /mnt1 /a\040b\011c\134d rw,noatime master:1 - ext3 /dev/my\040disk rw,errors=continue",
        "37 35 0:5 / /x rw - tmpfs tmpfs",
        "garbage",
        "x 35 0:5 / /y rw - tmpfs tmpfs rw",
        "38 35 0:5 / /z rw",
        "",
    ]
    write(machine.roots.proc / "self" / "mountinfo", "\n".join(lines))
    first, second = mountinfo.mounts(machine.roots)
    assert (first.id, first.device, first.mount_point) == (36, "98:0", "/a b\tc\\d")
    assert (first.file_system, first.source, first.options) == (
        "ext3",
        "/dev/my disk",
        ("rw", "errors=continue"),
    )
    assert second.options == ()


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    assert mountinfo.mounts(machine.roots) == ()
    assert mountinfo.swap_areas(machine.roots) == ()
    assert mountinfo.mount_holding(tmp_path, (), machine.roots) is None


def test_the_longest_mount_point_holds_a_path_and_the_later_one_covers(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    for number, point in (("8:1", "/"), ("8:2", "/data"), ("8:3", "/data"), ("8:4", "/dat")):
        machine.mount(number, point)
    entries = mountinfo.mounts(machine.roots)

    def holder(path: str) -> str:
        entry = mountinfo.mount_holding(Path(path), entries, machine.roots)
        assert entry is not None
        return entry.device

    assert holder("/data/not-there/x") == "8:3"
    assert holder("/database") == "8:1"
    assert holder("/dat") == "8:4"


def test_this_process_agrees_with_the_kernel_on_where_files_lie(tmp_path: Path) -> None:
    entries = mountinfo.mounts()
    for path in (tmp_path, Path("/proc/self/stat"), Path("/dev/null"), Path("/")):
        entry = mountinfo.mount_holding(path, entries)
        assert entry is not None
        device = path.stat().st_dev
        assert entry.device == f"{os.major(device)}:{os.minor(device)}"


@pytest.mark.root
def test_a_mount_that_covers_another_is_told_apart_by_its_id(tmp_path: Path) -> None:
    """By name alone, a file in the covering mount would lie on the covered one."""
    inner, outer = (make_ext4(tmp_path / name, 2 * MIB) for name in ("inner", "outer"))
    with loop_device(inner) as low, loop_device(outer) as high:
        with kernel_mount(high, "ext4", read_only=False) as folder:
            (folder / "sub").mkdir()
        place = tmp_path / "place"
        (place / "sub").mkdir(parents=True)
        with mounted_at(low, place / "sub"), mounted_at(high, place):
            found = mountinfo.mount_holding(place / "sub", mountinfo.mounts())
            assert found is not None
            assert found.source == high
