"""What a disk says of itself, from files as the kernel and udev write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.devices import sysfs
from engine.devices.sysfs import Hardware
from support.fakemachine import FakeMachine

if TYPE_CHECKING:
    from pathlib import Path


def test_a_sata_disk_tells_model_serial_and_wwn(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    disk = machine.disk(
        "sda",
        "8:0",
        attributes={
            "device/vendor": "ATA     \n",
            "device/model": "Samsung SSD 870 \n",
            "device/wwid": "naa.5002\n",
        },
    )
    (disk / "device" / "vpd_pg80").write_bytes(b"\x00\x80\x00\x10S5Y1NX0R  12345\x00garbage")
    assert sysfs.hardware(disk, machine.roots) == Hardware("Samsung SSD 870", "S5Y1NX0R 12345", "naa.5002")


def test_a_usb_disk_shows_its_vendor_and_nvme_its_own_serial(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    usb = machine.disk("sdb", "8:16", attributes={"device/vendor": "WD", "device/model": "Elements"})
    nvme = machine.disk(
        "nvme0n1", "259:0", attributes={"device/model": "X1", "device/serial": "N7", "wwid": "eui.1"}
    )
    assert sysfs.hardware(usb, machine.roots).model == "WD Elements"
    assert sysfs.hardware(nvme, machine.roots) == Hardware("X1", "N7", "eui.1")


def test_a_partition_tells_of_its_disk_and_udev_fills_gaps_only(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    machine.disk("sda", "8:0", attributes={"device/model": "Kernel"})
    part = machine.partition("sda", 1, "8:1")
    machine.udev("8:0", {"ID_MODEL": "Udev", "ID_SERIAL_SHORT": "S1", "ID_WWN": "0x5"})
    assert sysfs.hardware(part, machine.roots) == Hardware("Kernel", "S1", "0x5")


def test_missing_and_odd_files_are_empty_not_errors(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    disk = machine.disk("sda", "8:0", attributes={"size": "many", "device/model": "a\0b\n c"})
    (disk / "device" / "vpd_pg80").write_bytes(b"\x00")
    (disk / "device" / "serial").mkdir()
    assert sysfs.size_of(disk) == 0
    assert sysfs.hardware(disk, machine.roots) == Hardware("a b c")
    assert sysfs.block_folder("8:77", machine.roots) is None
    assert sysfs.related_numbers(disk, "slaves") == ()


def test_partitions_come_in_order_of_number_and_names_may_hold_slashes(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    disk = machine.disk("sda", "8:0")
    parts = [machine.partition("sda", index, f"8:{index}") for index in (10, 2, 1)]
    assert sysfs.partition_folders(disk) == tuple(reversed(parts))
    smart_array = machine.disk("cciss!c0d0", "104:0")
    (smart_array / "uevent").unlink()
    assert sysfs.device_path(smart_array, machine.roots) == str(tmp_path / "dev" / "cciss" / "c0d0")
