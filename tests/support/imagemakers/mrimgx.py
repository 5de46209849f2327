"""Macrium sets: one file, a chain with changes and a merged file, a split and encrypted one."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.secrets import Secrets
from support.content import mixture, noise
from support.images import MadeImage
from support.mrimgx import Disk, MacriumSet, Part

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1024
HEADER = 32


def disks() -> tuple[Disk, ...]:
    """One disk with a FAT whose blocks are out of step with those of the disk, and one with odd blocks."""
    fat = Part(17408, 300 * KIB, 0, 16 * KIB, reserved=5 * 512, file_system="FAT16")
    ntfs = Part(512 * KIB, 700 * KIB, 1, 64 * KIB)
    odd = Part(32256, 199 * 512, 4, 12 * KIB)
    second = Disk(bytearray(mixture(2, 200 * KIB)), (odd,), 3, "mbr", (180 * KIB,))
    return Disk(bytearray(mixture(1, 1300 * KIB)), (fat, ntfs), 1), second


def change(made: MacriumSet, seed: int) -> None:
    """Write something to each disk, and clear what follows."""
    for disk in made.disks:
        start = seed * 25 * KIB
        disk.content[start : start + 20 * KIB] = noise(seed, 20 * KIB)
        disk.content[start + 20 * KIB : start + 100 * KIB] = bytes(80 * KIB)


def stored(made: MacriumSet, folder: Path, password: bytes = b"") -> MadeImage:
    for name, content in made.files.items():
        (folder / name).write_bytes(content)
    point = made.points[-1]
    proven, structures = ranges(made.files[point.name])
    secrets = Secrets((password,)) if password else Secrets()
    truth = tuple(point.truth)
    return MadeImage("mrimgx", point.name, truth, tuple(proven), tuple(structures), secrets=secrets)


def ranges(content: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Payloads, which have checksums, and the headers and the trailer, which have none."""
    end = len(content) - 20
    payloads, headers = [(0, content.find(b"$TRACK0 "))], [(end, len(content))]
    position = payloads[0][1]
    while position < end:
        (length,) = struct.unpack_from("<I", content, position + 8)
        headers.append((position, position + HEADER))
        position += HEADER + length
        if length:
            payloads.append((position - length, position))
    return payloads, headers


def make_full(folder: Path) -> MadeImage:
    made = MacriumSet(disks())
    made.full(shuffle=True)
    return stored(made, folder)


def make_chain(folder: Path) -> MadeImage:
    """Full, two increments merged into one, a differential, and a changes-only file that is opened."""
    made = MacriumSet(disks(), compression="none")
    made.full()
    for seed in (1, 2):
        change(made, seed)
        made.incremental()
    made.merge_deltas(1, 2, keep_first=False)
    change(made, 3)
    made.incremental()
    return stored(made, folder)


def make_encrypted(folder: Path) -> MadeImage:
    """In three parts, the last of which is opened."""
    made = MacriumSet(disks(), aes="aes-192")
    made.full(parts=3)
    return stored(made, folder, b"geheim")


def make_differential(folder: Path) -> MadeImage:
    made = MacriumSet(disks(), compression="high", aes="aes-256", suffix=".mrbakx")
    made.full()
    change(made, 1)
    made.incremental()
    change(made, 2)
    made.differential()
    change(made, 3)
    made.incremental(delta=False)
    return stored(made, folder, b"geheim")


MAKERS = {
    "mrimgx-full": make_full,
    "mrimgx-chain": make_chain,
    "mrimgx-encrypted": make_encrypted,
    "mrimgx-differential": make_differential,
}
