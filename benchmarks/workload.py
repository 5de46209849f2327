"""A seeded disk image with what real disks hold: text, half-random data, random data, holes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def make_disk(path: Path, size_mib: int, seed: int = 1) -> None:
    """Write a disk image: of four mebibytes one is random, one text, one repetitive, one a hole."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        for number in range(size_mib):
            kind = number % 4
            if kind == 0:
                file.write(chance.randbytes(MIB))
            elif kind == 1:
                file.write(_text(chance))
            elif kind == 2:
                file.write(chance.randbytes(4096) * (MIB // 4096))
            else:
                file.seek(MIB, 1)
        file.truncate(size_mib * MIB)


def _text(chance: random.Random) -> bytes:
    lines = (
        b"%08x %s request %d\n" % (n * 977, b"ok" * (n % 5), chance.getrandbits(30)) for n in range(32_000)
    )
    return b"".join(lines)[:MIB].ljust(MIB, b"\n")


def change_blocks(path: Path, share: float, seed: int) -> None:
    """Overwrite a share of the 4 KiB blocks, scattered, with random bytes."""
    chance = random.Random(seed)
    blocks = path.stat().st_size // 4096
    with path.open("r+b") as file:
        for block in sorted(chance.sample(range(blocks), int(blocks * share))):
            file.seek(block * 4096)
            file.write(chance.randbytes(4096))
