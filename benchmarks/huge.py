"""A disk of 16 TiB that holds little: pieces of data from its beginning to its end."""

from __future__ import annotations

import random
import subprocess
from typing import TYPE_CHECKING

from benchmarks import machine, product

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.runner import Bench

HUGE = (16 << 40) - (1 << 20)
"""A mebibyte less than 16 TiB: ext4, where the file may lie, ends there."""
_PATIENCE = 120.0


def huge_disk(bench: Bench, path: Path) -> Path | None:
    """A sparse file with data all over it; None where the file system cannot hold it."""
    size = 64 << 30 if bench.quick else HUGE
    pieces = 10 if bench.quick else 500
    step = size // pieces // 2 >> 20 << 20
    chance = random.Random(3)
    try:
        with path.open("wb") as file:
            file.truncate(size)
            for number in range(pieces):
                file.seek(2 * step * number)
                file.write(chance.randbytes(64 << 10))
    except OSError as error:
        bench.left_out.append(f"16 TiB: {error}")
        return None
    return path


def huge_image(bench: Bench, folder: Path) -> str | None:
    """An image of such a disk; None when it takes longer than anybody waits."""
    folder.mkdir()
    disk = huge_disk(bench, folder / "huge.img")
    if disk is None:
        return None
    repo = folder / "repo"
    try:
        command, _environment = product.backup(disk, repo), machine.environment()
        subprocess.run(
            command, check=True, timeout=_PATIENCE, stdout=subprocess.DEVNULL, env=machine.environment()
        )
    except subprocess.TimeoutExpired:
        bench.left_out.append(f"16 TiB: no image after {_PATIENCE:.0f} s")
        return None
    return f"{repo}/disk@1"
