"""Evidence files: proven byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.content import mixture
from support.images import MadeImage
from support.make_ewf import version1, version2

if TYPE_CHECKING:
    from pathlib import Path

_SIZE = (1 << 20) + 512 * 9


def _made(folder: Path, segments: list[bytes], suffix: str, disk: bytes) -> MadeImage:
    for number, content in enumerate(segments, 1):
        (folder / f"disk.{suffix}{number:02}").write_bytes(content)
    whole = ((0, len(segments[0])),)
    return MadeImage(
        "ewf", f"disk.{suffix}01", (disk,), whole, ((0, 2000), (len(segments[0]) - 1500, whole[0][1]))
    )


def make_e01(folder: Path) -> MadeImage:
    """One segment."""
    disk = mixture(1, _SIZE)
    return _made(folder, version1(disk, per_table=10), "E", disk)


def make_plain(folder: Path) -> MadeImage:
    """Three segments, nothing compressed, large chunks."""
    disk = mixture(2, _SIZE)
    return _made(folder, version1(disk, compress=False, segments=3, chunk_sectors=256), "E", disk)


def make_ex01(folder: Path) -> MadeImage:
    """Version 2 in two segments."""
    disk = mixture(3, _SIZE)
    return _made(folder, version2(disk, segments=2), "Ex", disk)


MAKERS = {"ewf": make_e01, "ewf-plain": make_plain, "ewf-ex01": make_ex01}
