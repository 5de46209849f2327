"""The list of disks to choose from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from engine.devices.inventory import BlockDeviceInfo, PartitionInfo, list_block_devices
from support.disks import MIB, Part, make_gpt_disk
from support.fakemachine import FakeMachine
from support.kernel import loop_device
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from pathlib import Path


def test_disks_partitions_and_mounts_are_listed_and_empty_drives_are_not(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    facts = {
        "removable": "1",
        "ro": "0",
        "queue/rotational": "1",
        "queue/logical_block_size": "4096",
        "serial": "S9",
    }
    machine.disk("sdb", "8:16", 100 * MIB, {**facts, "device/model": "Stick"})
    machine.partition("sdb", 1, "8:17", 10 * MIB, 3 * MIB)
    machine.disk("sda", "8:0", 50 * MIB, {"ro": "1"})
    machine.disk("sr0", "11:0", 0)
    machine.disk("zram0", "252:0")
    machine.mount("8:17", "/media/stick")
    first, second = list_block_devices(machine.roots)
    dev = machine.roots.dev
    assert (first.path, first.read_only, first.sector_size, first.partitions) == (f"{dev}/sda", True, 512, ())
    assert second == BlockDeviceInfo(
        path=f"{dev}/sdb",
        number="8:16",
        size=100 * MIB,
        sector_size=4096,
        model="Stick",
        serial="S9",
        wwn="",
        removable=True,
        rotational=True,
        read_only=False,
        partitions=(PartitionInfo(f"{dev}/sdb1", 1, 3 * MIB, 10 * MIB, ("/media/stick",)),),
        mounted_at=("/media/stick",),
    )


def test_a_machine_without_sysfs_has_no_disks(tmp_path: Path) -> None:
    assert list_block_devices(FakeMachine(tmp_path).roots) == ()


@pytest.mark.root
def test_lsblk_sees_the_same_loop_device(tmp_path: Path) -> None:
    require_tool("lsblk")
    make_gpt_disk(tmp_path / "disk", 32 * MIB, [Part(4 * MIB), Part(5 * MIB)], 4096)
    with loop_device(tmp_path / "disk", 4096, partscan=True) as device:
        (info,) = [info for info in list_block_devices() if info.path == device]
        columns = "NAME,PATH,SIZE,LOG-SEC,RO,RM,ROTA"
        (seen,) = json.loads(run("lsblk", "--json", "--bytes", "--output", columns, device))["blockdevices"]
        assert (info.size, info.sector_size) == (seen["size"], seen["log-sec"])
        assert (info.read_only, info.removable, info.rotational) == (seen["ro"], seen["rm"], seen["rota"])
        assert [(p.path, p.size) for p in info.partitions] == [
            (p["path"], p["size"]) for p in seen["children"]
        ]
        assert [p.offset for p in info.partitions] == [MIB, 5 * MIB]
