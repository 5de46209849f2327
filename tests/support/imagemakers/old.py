"""Images of the older formats that qemu-img still writes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from support.content import mixture
from support.images import MadeImage
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (1 << 20) + 1024
NAMES = {"qed": "qed", "qcow1": "qcow", "parallels": "parallels"}
"""What qemu-img calls our formats."""


def _make(name: str, options: tuple[str, ...], folder: Path) -> MadeImage:
    require_tool("qemu-img")
    disk = mixture(11, SIZE // 2, unit=16 << 10) + bytes(100_000) + mixture(12, SIZE, unit=16 << 10)
    disk = disk[:SIZE]
    raw, path = folder / "source", folder / f"disk.{NAMES[name]}"
    raw.write_bytes(disk)
    run("qemu-img", "convert", "-O", NAMES[name], *options, raw, path)
    raw.unlink()
    return MadeImage(name, path.name, (disk,), structures=((0, 72), (0, 2048)))


def make_packed(folder: Path) -> MadeImage:
    """Compressed clusters of 4 KiB beside plain ones and none; qemu-img itself fails to convert to these."""
    require_tool("qemu-img", "qemu-io")
    path = folder / "disk.qcow"
    run("qemu-img", "create", "-q", "-f", "qcow", path, str(SIZE))
    disk = bytearray(SIZE)
    commands = []
    for number in range(SIZE // 4096):
        if number % 5:
            flag = "-c " if number % 5 < 4 else ""
            commands += ["-c", f"write {flag}-P {number % 251 + 1} {number * 4096} 4096"]
            disk[number * 4096 : (number + 1) * 4096] = bytes([number % 251 + 1]) * 4096
    run("qemu-io", "-f", "qcow", *commands, path)
    return MadeImage("qcow1", path.name, (bytes(disk),), structures=((0, 72), (0, 8192)))


MAKERS = {
    "qed": partial(_make, "qed", ()),
    "qcow1": partial(_make, "qcow1", ()),
    "qcow1-packed": make_packed,
    "parallels": partial(_make, "parallels", ()),
}
