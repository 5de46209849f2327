"""What Linux says of its block devices under ``/sys``, ``/dev`` and in the records of udev.

A block device is named by its number, "major:minor", because names move when disks come and go. The
roots are values, so that a test can bring a machine of its own.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from imageformat import system


@dataclass(frozen=True, slots=True)
class SystemRoots:
    """Where the kernel and udev publish what they know."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    udev: Path = Path("/run/udev/data")


LOCAL = SystemRoots()


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a disk says of itself; empty where it says nothing."""

    model: str = ""
    serial: str = ""
    wwn: str = ""


def device_number(path: str, roots: SystemRoots = LOCAL) -> str | None:
    """Number of the block device at ``path`` (symlinks followed), or None when it is none.

    A device that has no file, as in a container, is found by its name.
    """
    name = Path(path)
    try:
        status = name.stat()
        if stat.S_ISBLK(status.st_mode):
            return system.device_number(status)
    except OSError:
        if roots.dev in name.parents:
            return attribute(roots.sys / "class" / "block" / name.name, "dev") or None
    return None


def block_folder(number: str, roots: SystemRoots = LOCAL) -> Path | None:
    """The folder that describes the block device, or None when the kernel shows none."""
    folder = (roots.sys / "dev" / "block" / number).resolve()
    return folder if folder.is_dir() else None


def attribute(folder: Path, *names: str) -> str:
    """Text of the first of the named files that exists and is not empty, on one line; else ""."""
    for name in names:
        try:
            text = (folder / name).read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if line := " ".join(text.replace("\0", " ").split()):
            return line
    return ""


def number_attribute(folder: Path, name: str) -> int:
    """A decimal number from a file of the folder; 0 when there is none."""
    text = attribute(folder, name)
    return int(text) if text.isdecimal() else 0


def is_partition(folder: Path) -> bool:
    """Whether the folder describes a partition."""
    return (folder / "partition").exists()


def disk_folder(folder: Path) -> Path:
    """The folder of the disk that a partition is on; a disk's own."""
    return folder.parent if is_partition(folder) else folder


def partition_folders(folder: Path) -> tuple[Path, ...]:
    """The folders of a disk's partitions in order of number."""
    found = (child for child in folder.iterdir() if is_partition(child))
    return tuple(sorted(found, key=lambda child: number_attribute(child, "partition")))


def related_numbers(folder: Path, relation: str) -> tuple[str, ...]:
    """Numbers of the devices named in a folder of links: "slaves" below, "holders" above."""
    links = folder / relation
    if not links.is_dir():
        return ()
    numbers = (attribute(link, "dev") for link in sorted(links.iterdir()))
    return tuple(number for number in numbers if number)


def device_path(folder: Path, roots: SystemRoots = LOCAL) -> str:
    """Path of the device file."""
    for line in _lines(folder / "uevent"):
        if line.startswith("DEVNAME="):
            return str(roots.dev / line.removeprefix("DEVNAME="))
    return str(roots.dev / folder.name.replace("!", "/"))


def size_of(folder: Path) -> int:
    """Length in bytes; the kernel counts in units of 512 whatever the sector size."""
    return number_attribute(folder, "size") * 512


def hardware(folder: Path, roots: SystemRoots = LOCAL) -> Hardware:
    """Model, serial number and world-wide name of the disk; of a partition: of its disk.

    What the kernel says goes before what udev recorded, so that a rescue system without udev sees the
    same disk under the same serial number.
    """
    disk = disk_folder(folder)
    recorded = _udev_record(roots, attribute(disk, "dev"))
    vendor, model = attribute(disk, "device/vendor"), attribute(disk, "device/model")
    if vendor and not vendor.startswith("0x") and model and vendor != "ATA":
        model = f"{vendor} {model}"
    return Hardware(
        model=model or recorded.get("ID_MODEL", ""),
        serial=attribute(disk, "serial", "device/serial", "dm/uuid")
        or _unit_serial(disk)
        or recorded.get("ID_SERIAL_SHORT", ""),
        wwn=attribute(disk, "wwid", "device/wwid") or recorded.get("ID_WWN", ""),
    )


def _unit_serial(disk: Path) -> str:
    """SCSI and SATA: vital product data page 0x80 (SPC-4, 7.8.17), length in bytes 2 and 3."""
    try:
        page = (disk / "device" / "vpd_pg80").read_bytes()
    except OSError:
        return ""
    length = int.from_bytes(page[2:4], "big")
    return " ".join(page[4 : 4 + length].decode("ascii", "replace").replace("\0", " ").split())


def _udev_record(roots: SystemRoots, number: str) -> dict[str, str]:
    """The properties ("E:" lines) that udev keeps of a block device."""
    record: dict[str, str] = {}
    for line in _lines(roots.udev / f"b{number}"):
        if line.startswith("E:"):
            key, _, value = line.removeprefix("E:").partition("=")
            record[key] = value.strip()
    return record


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
