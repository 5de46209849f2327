"""qcow2 images by qemu-img and qemu-io, and the raw disks that they were made from."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from support.content import mixture
from support.images import MadeImage
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (1 << 20) + 1024


def _tables(path: Path) -> tuple[tuple[int, int], ...]:
    """Where the header, the L1 table and the first entries of each L2 table are."""
    content = path.read_bytes()
    entries, start = struct.unpack_from(">IQ", content, 36)
    table = struct.unpack_from(f">{entries}Q", content, start)
    found = [(0, 112), (start, start + entries * 8)]
    for entry in table:
        place = entry & 0x00FF_FFFF_FFFF_FE00
        if place:
            found.append((place, place + 256))
    return tuple(found)


def _converted(folder: Path, *options: str) -> MadeImage:
    require_tool("qemu-img")
    disk = mixture(3, SIZE, unit=16 << 10)
    raw, path = folder / "source", folder / "disk.qcow2"
    raw.write_bytes(disk)
    run("qemu-img", "convert", "-O", "qcow2", *options, raw, path)
    raw.unlink()
    return MadeImage("qcow2", path.name, (disk,), structures=_tables(path))


def make_plain(folder: Path) -> MadeImage:
    """Clusters of 64 KiB."""
    return _converted(folder)


def make_small(folder: Path) -> MadeImage:
    """Compressed clusters of 4 KiB: many L2 tables."""
    return _converted(folder, "-c", "-o", "cluster_size=4k")


def make_zstd(folder: Path) -> MadeImage:
    """Compressed clusters that are larger than a block."""
    return _converted(folder, "-c", "-o", "cluster_size=256k,compression_type=zstd")


def make_chain(folder: Path) -> MadeImage:
    """An overlay with subclusters on a raw disk."""
    require_tool("qemu-img", "qemu-io")
    disk = bytearray(mixture(4, SIZE, unit=16 << 10))
    (folder / "base.raw").write_bytes(disk)
    path = folder / "top.qcow2"
    options = ("-o", "extended_l2=on", "-b", "base.raw", "-F", "raw")
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, path)
    commands = []
    for number, (offset, length) in enumerate([(0, 4096), (70_144, 9728), (300_032, 65_536)], 1):
        commands += ["-c", f"write -P {number} {offset} {length}"]
        disk[offset : offset + length] = bytes([number]) * length
    for offset, length in [(131_072, 4096), (400_384, 131_072)]:
        commands += ["-c", f"write -z {offset} {length}"]
        disk[offset : offset + length] = bytes(length)
    run("qemu-io", "-f", "qcow2", *commands, path)
    return MadeImage("qcow2", path.name, (bytes(disk),), structures=_tables(path))


MAKERS = {
    "qcow2": make_plain,
    "qcow2-small": make_small,
    "qcow2-zstd": make_zstd,
    "qcow2-chain": make_chain,
}
