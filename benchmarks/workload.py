"""A seeded disk as people have them, on three days: GPT, ext4 and NTFS, full of what real disks hold.

Made once and kept below the work folder, because making it takes longer than most figures. System files
come from this machine, so two machines measure slightly different disks; the results name its digest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import filling

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
BLOCK = 4096
CHANGED = 0.027
"""Share of the 4 KiB blocks that differ from one day to the next."""
VERSION = 5
"""Counted up when the content changes, so that nobody measures a disk of before."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The three days, and what the figures have to know about them."""

    folder: Path
    size: int
    ext4: tuple[int, int]
    """Offset and size of the partition."""
    ntfs: tuple[int, int]
    changeable: list[tuple[int, int]]
    """Where file contents lie: what changes from day to day leaves the file systems whole."""
    digest: str

    @property
    def days(self) -> tuple[Path, Path, Path]:
        """The disk images."""
        first, second, third = (self.folder / f"day{number}.img" for number in range(3))
        return first, second, third

    @property
    def ntfs_image(self) -> Path:
        """The NTFS partition of the first day, alone: what ntfs-3g mounts."""
        return self.folder / "ntfs.img"

    @property
    def ext4_image(self) -> Path:
        """The ext4 partition of the first day, alone: what partclone reads."""
        return self.folder / "ext4.img"


def prepare(work: Path, size: int) -> Workload:
    """Return the workload of a size, made now if it is not there."""
    folder = work / f"disk-{size // MIB}MiB-v{VERSION}"
    facts = folder / "facts.json"
    if not facts.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = _make(folder, size)
        facts.write_text(json.dumps(made), "utf-8")
    known = json.loads(facts.read_text("utf-8"))
    return Workload(
        folder,
        size,
        (known["ext4"][0], known["ext4"][1]),
        (known["ntfs"][0], known["ntfs"][1]),
        [(offset, length) for offset, length in known["changeable"]],
        known["digest"],
    )


def _make(folder: Path, size: int) -> dict[str, object]:
    total = size // MIB - 2
    ext4 = (MIB, total * 3 // 4 * MIB)
    ntfs = (ext4[0] + ext4[1], (total - total * 3 // 4) * MIB)
    disk = folder / "day0.img"
    places = filling.make_ext4(folder / "ext4.img", ext4[1])
    filling.make_ntfs(folder / "ntfs.img", ntfs[1])
    with disk.open("wb") as file:
        file.truncate(size)
    _partition(disk, ext4, ntfs)
    for part, (offset, _) in ((folder / "ext4.img", ext4), (folder / "ntfs.img", ntfs)):
        where = [f"if={part}", f"of={disk}", "bs=1M", f"seek={offset // MIB}"]
        subprocess.run(["dd", *where, "conv=sparse,notrunc", "status=none"], check=True)
    changeable = [(ext4[0] + offset, length) for offset, length in places]
    for number in (1, 2):
        before, after = folder / f"day{number - 1}.img", folder / f"day{number}.img"
        subprocess.run(["cp", "--sparse=always", str(before), str(after)], check=True)
        change(after, changeable, CHANGED, seed=number)
    with disk.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"ext4": ext4, "ntfs": ntfs, "changeable": changeable, "digest": digest}


def _partition(disk: Path, *parts: tuple[int, int]) -> None:
    """Write a GPT with sfdisk."""
    lines = ["label: gpt"]
    for (offset, length), kind in zip(parts, ("linux", "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"), strict=True):
        lines.append(f"start={offset // 512}, size={length // 512}, type={kind}")
    command = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(disk)]
    subprocess.run(command, input="\n".join(lines), text=True, check=True, stdout=subprocess.DEVNULL)


def change(disk: Path, places: list[tuple[int, int]], share: float, seed: int) -> int:
    """Change a share of all 4 KiB blocks, in short runs scattered over the file contents; return how many."""
    chance = random.Random(seed)
    wanted = max(1, int(disk.stat().st_size // BLOCK * share))
    weights = list(itertools.accumulate(length for _, length in places))
    done: set[int] = set()
    with disk.open("r+b") as file:
        while len(done) < wanted:
            offset, length = chance.choices(places, cum_weights=weights)[0]
            first = offset + chance.randrange(length // BLOCK) * BLOCK
            for _ in range(min(chance.randint(1, 10), wanted - len(done))):
                if first in done or first >= offset + length:
                    break
                done.add(first)
                os.pwrite(file.fileno(), _changed(os.pread(file.fileno(), BLOCK, first), chance), first)
                first += BLOCK
    return len(done)


def _changed(block: bytes, chance: random.Random) -> bytes:
    """New random data, a database page, lines of a log, or a small edit."""
    kind = chance.random()
    if kind < 0.2:
        return chance.randbytes(BLOCK)
    if kind < 0.5:
        return filling.page(chance, BLOCK)
    if kind < 0.8:
        return filling.text(chance, BLOCK)
    start = chance.randrange(BLOCK - 64)
    return block[:start] + chance.randbytes(64) + block[start + 64 :]
