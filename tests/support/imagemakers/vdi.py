"""VDI images by qemu-img, and a differencing one made from two of them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from support.content import mixture, noise
from support.images import MadeImage
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 3 * MIB + 1024
STRUCTURES = ((0, 456), (512, 512 + 4 * 4))


def converted(folder: Path, name: str, disk: bytes, *options: str) -> Path:
    """A VDI of a disk; the map of qemu-img's lies at offset 512."""
    require_tool("qemu-img")
    raw, path = folder / "source", folder / name
    raw.write_bytes(disk)
    run("qemu-img", "convert", "-O", "vdi", *options, raw, path)
    raw.unlink()
    return path


def make_differencing(path: Path, parent: Path, absent: list[int]) -> None:
    """Turn a VDI into one that stands on another: blocks in ``absent`` show the parent's."""
    content = bytearray(path.read_bytes())
    identity = parent.read_bytes()[392:424]
    struct.pack_into("<I", content, 76, 4)
    content[424:440] = identity[:16]
    content[440:456] = identity[16:]
    (table,) = struct.unpack_from("<I", content, 340)
    for number in absent:
        struct.pack_into("<I", content, table + number * 4, 0xFFFF_FFFF)
    path.write_bytes(content)


def make_dynamic(folder: Path) -> MadeImage:
    """With a block of zeros in the middle."""
    disk = mixture(5, MIB) + bytes(MIB) + mixture(6, SIZE - 2 * MIB)
    path = converted(folder, "disk.vdi", disk)
    return MadeImage("vdi", path.name, (disk,), structures=STRUCTURES)


def make_fixed(folder: Path) -> MadeImage:
    """All blocks are there."""
    disk = mixture(7, SIZE)
    path = converted(folder, "disk.vdi", disk, "-o", "static=on")
    return MadeImage("vdi", path.name, (disk,), structures=STRUCTURES)


def make_child(folder: Path) -> MadeImage:
    """A differencing image on a dynamic one."""
    below, above = mixture(8, SIZE), noise(9, SIZE)
    parent = converted(folder, "parent.vdi", below)
    path = converted(folder, "child.vdi", above)
    make_differencing(path, parent, [1, 3])
    disk = above[:MIB] + below[MIB : 2 * MIB] + above[2 * MIB : 3 * MIB] + below[3 * MIB :]
    return MadeImage("vdi", path.name, (disk,), structures=STRUCTURES)


MAKERS = {"vdi": make_dynamic, "vdi-static": make_fixed, "vdi-child": make_child}
