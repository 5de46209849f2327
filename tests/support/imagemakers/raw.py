"""Raw images: the truth itself, whole and in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.content import mixture
from support.images import MadeImage

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (1 << 20) + 4096


def make_raw(folder: Path) -> MadeImage:
    """One file."""
    disk = mixture(1, SIZE)
    (folder / "disk.raw").write_bytes(disk)
    return MadeImage("raw", "disk.raw", (disk,), cut_is_noticed=False)


def make_split(folder: Path) -> MadeImage:
    """Four parts; a cut in the first is noticed."""
    disk = mixture(2, SIZE)
    for number in range(4):
        (folder / f"disk.{number + 1:03}").write_bytes(disk[number << 18 : min(SIZE, (number + 1) << 18)])
    (folder / "disk.004").write_bytes(disk[3 << 18 :])
    return MadeImage("raw", "disk.001", (disk,))


MAKERS = {"raw": make_raw, "raw-split": make_split}
