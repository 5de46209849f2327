"""A machine made of files: what the kernel would publish of disks that are not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.devices.sysfs import SystemRoots

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MIB = 1 << 20


@dataclass
class FakeMachine:
    """Lays out ``sys``, ``proc``, ``dev`` and the records of udev below a folder."""

    folder: Path
    _lines: list[str] = field(default_factory=list)

    @property
    def roots(self) -> SystemRoots:
        base = self.folder
        return SystemRoots(sys=base / "sys", proc=base / "proc", dev=base / "dev", udev=base / "udev")

    def disk(
        self, name: str, number: str, size: int = 64 * MIB, attributes: Mapping[str, str] | None = None
    ) -> Path:
        """A whole disk, or what behaves as one; its folder."""
        place = self.folder / "sys" / "devices" / "virtual" / "block" / name
        self._describe(place, name, number, size)
        self._link(self.folder / "sys" / "block" / name, place)
        for key, value in (attributes or {}).items():
            write(place / key, value)
        return place

    def partition(self, disk: str, index: int, number: str, size: int = 8 * MIB, start: int = MIB) -> Path:
        """A partition of a disk; its folder."""
        name = f"{disk}{index}"
        place = self.folder / "sys" / "devices" / "virtual" / "block" / disk / name
        self._describe(place, name, number, size)
        write(place / "partition", str(index))
        write(place / "start", str(start // 512))
        return place

    def stack(self, upper: Path, *lower: Path) -> None:
        """Put a device (RAID, logical volume) upon others."""
        for below in lower:
            self._link(upper / "slaves" / below.name, below)
            self._link(below / "holders" / upper.name, upper)

    def btrfs(self, *members: Path) -> None:
        """One btrfs on several devices."""
        for member in members:
            self._link(self.folder / "sys" / "fs" / "btrfs" / "uuid" / "devices" / member.name, member)

    def udev(self, number: str, properties: Mapping[str, str]) -> None:
        """What udev recorded of a device."""
        write(
            self.folder / "udev" / f"b{number}",
            "".join(f"E:{key}={value}\n" for key, value in properties.items()),
        )

    def mount(
        self, number: str, point: str, kind: str = "ext4", source: str = "none", options: str = "rw"
    ) -> None:
        """Mount a file system; the point is taken as it stands in mountinfo."""
        if self.folder in Path(point).parents:
            Path(point).mkdir(parents=True, exist_ok=True)
        self._lines.append(f"{len(self._lines) + 20} 1 {number} / {point} rw - {kind} {source} {options}")
        write(self.folder / "proc" / "self" / "mountinfo", "\n".join(self._lines) + "\n")

    def swap(self, paths: Iterable[str]) -> None:
        """Use devices or files as swap."""
        lines = ["Filename Type Size Used Priority", *(f"{path} partition 100 0 -2" for path in paths)]
        write(self.folder / "proc" / "swaps", "\n".join(lines) + "\n")

    def _describe(self, place: Path, name: str, number: str, size: int) -> None:
        write(place / "dev", number + "\n")
        write(place / "size", f"{size // 512}\n")
        write(place / "uevent", f"MAJOR={number.partition(':')[0]}\nDEVNAME={name}\n")
        self._link(self.folder / "sys" / "class" / "block" / name, place)
        self._link(self.folder / "sys" / "dev" / "block" / number, place)

    @staticmethod
    def _link(link: Path, place: Path) -> None:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place)


def write(path: Path, text: str) -> None:
    """Write a file and make its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
