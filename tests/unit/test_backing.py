"""On which devices a file lies: machines of RAID, logical volumes and loops that are not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.devices.backing import BackingWalk, holds
from engine.devices.inventory import mounted_at
from support.fakemachine import FakeMachine, write

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    machine = FakeMachine(tmp_path)
    machine.disk("sda", "8:0")
    machine.partition("sda", 1, "8:1")
    machine.partition("sda", 2, "8:2")
    machine.disk("sdb", "8:16")
    return machine


def _holds(machine: FakeMachine, device: str, path: Path) -> bool:
    return holds(str(machine.roots.dev / device), str(path), machine.roots)


def test_a_file_lies_on_its_partition_and_its_disk_but_not_on_the_neighbour(machine: FakeMachine) -> None:
    point = machine.folder / "data"
    machine.mount("8:1", str(point))
    for path in (point, point / "repo" / "not made yet"):
        found = {name: _holds(machine, name, path) for name in ("sda", "sda1", "sda2", "sdb")}
        assert found == {"sda": True, "sda1": True, "sda2": False, "sdb": False}


def test_a_logical_volume_on_a_raid_lies_on_every_member(machine: FakeMachine) -> None:
    raid, volume = machine.disk("md0", "9:0"), machine.disk("dm-0", "253:0")
    block = machine.folder / "sys" / "class" / "block"
    machine.stack(raid, (block / "sda2").resolve(), (block / "sdb").resolve())
    machine.stack(volume, raid)
    machine.mount("253:0", str(machine.folder / "data"))
    found = {
        name: _holds(machine, name, machine.folder / "data" / "x")
        for name in ("sda", "sda1", "sda2", "sdb", "md0", "dm-0")
    }
    assert found == {"sda": True, "sda1": False, "sda2": True, "sdb": True, "md0": True, "dm-0": True}


def test_a_loop_device_lies_where_its_file_lies_even_when_the_file_is_deleted(machine: FakeMachine) -> None:
    machine.mount("8:16", str(machine.folder / "usb"))
    for suffix in ("", " (deleted)"):
        machine_loop = machine.folder / "sys" / "devices" / "virtual" / "block" / "loop0"
        if not machine_loop.exists():
            machine.disk("loop0", "7:0")
            machine.mount("7:0", str(machine.folder / "inner"))
        write(machine_loop / "loop" / "backing_file", f"{machine.folder}/usb/image.img{suffix}\n")
        assert _holds(machine, "sdb", machine.folder / "inner" / "file")
        assert not _holds(machine, "sda", machine.folder / "inner" / "file")


def test_the_image_file_of_a_loop_device_is_held_by_that_device(machine: FakeMachine) -> None:
    """Writing to the loop device would overwrite the file under it."""
    image = machine.folder / "usb" / "image.img"
    write(image, "image")
    machine.mount("8:16", str(image.parent))
    loop = machine.disk("loop0", "7:0")
    write(loop / "loop" / "backing_file", str(image))
    assert _holds(machine, "loop0", image)
    write(machine.folder / "usb" / "other.img", "other")
    assert not _holds(machine, "loop0", machine.folder / "usb" / "other.img")
    assert holds(str(image), str(image), machine.roots)


def test_btrfs_has_no_number_of_its_own_and_lies_on_every_member(machine: FakeMachine) -> None:
    block = machine.folder / "sys" / "class" / "block"
    machine.btrfs((block / "sda1").resolve(), (block / "sdb").resolve())
    machine.mount("0:44", str(machine.folder / "pool"), "btrfs", str(machine.roots.dev / "sda1"))
    found = {
        name: _holds(machine, name, machine.folder / "pool" / "x") for name in ("sda", "sda1", "sda2", "sdb")
    }
    assert found == {"sda": True, "sda1": True, "sda2": False, "sdb": True}


def test_an_overlay_lies_where_its_folders_lie_and_circles_end(machine: FakeMachine) -> None:
    upper, merged = machine.folder / "upper", machine.folder / "merged"
    machine.mount("8:1", str(upper))
    machine.mount("8:16", str(machine.folder / "lower"))
    machine.mount(
        "0:50",
        str(merged),
        "overlay",
        "overlay",
        f"rw,lowerdir={merged}/again:{machine.folder}/lower,upperdir={upper}/u,workdir=w",
    )
    assert _holds(machine, "sda1", merged / "x")
    assert _holds(machine, "sdb", merged / "x")
    assert not _holds(machine, "sda2", merged / "x")


def test_a_mounted_image_file_and_network_and_memory(machine: FakeMachine) -> None:
    image = machine.folder / "usb" / "image.ext4"
    write(image, "image")
    machine.mount("8:16", str(image.parent))
    machine.mount("0:60", str(machine.folder / "fuse"), "fuse.fuse2fs", str(image))
    machine.mount("0:61", str(machine.folder / "net"), "nfs", "server:/export")
    machine.mount("0:62", str(machine.folder / "mem"), "tmpfs", "tmpfs")
    assert _holds(machine, "sdb", machine.folder / "fuse" / "x")
    assert holds(str(image), str(machine.folder / "fuse" / "x"), machine.roots)
    assert not any(
        _holds(machine, name, machine.folder / place) for name in ("sda", "sdb") for place in ("net", "mem")
    )


def test_what_is_no_device_and_no_file_holds_nothing(machine: FakeMachine) -> None:
    machine.mount("8:1", "/")
    assert not _holds(machine, "sdz", machine.folder)
    assert not holds(str(machine.folder), str(machine.folder / "x"), machine.roots)


def test_a_disk_is_mounted_where_anything_upon_it_is(machine: FakeMachine) -> None:
    volume = machine.disk("dm-0", "253:0")
    machine.stack(volume, (machine.folder / "sys" / "class" / "block" / "sda2").resolve())
    machine.mount("253:0", "/srv")
    machine.mount("8:1", "/boot")
    machine.mount("8:1", "/boot")
    walk = BackingWalk(machine.roots)
    assert mounted_at("8:0", walk) == ("/srv", "/boot")
    assert mounted_at("8:2", walk) == ("/srv",)
    assert mounted_at("8:16", walk) == ()
