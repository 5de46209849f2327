"""Apple's disk images: every way of storing a chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.content import mixture
from support.images import MadeImage
from support.make_dmg import ADC, BZIP2, IGNORE, LZMA, RAW, ZERO, ZLIB, dmg

if TYPE_CHECKING:
    from pathlib import Path

_SIZE = 300 * 512


def _made(folder: Path, kinds: tuple[int, ...]) -> tuple[bytes, bytes]:
    contents = [
        bytes(_SIZE) if kind in (ZERO, IGNORE) else mixture(at, _SIZE, unit=512)
        for at, kind in enumerate(kinds)
    ]
    middle = len(kinds) // 2
    chunks = list(zip(kinds, contents, strict=True))
    made = dmg([("first", chunks[:middle]), ("second", chunks[middle:])])
    (folder / "disk.dmg").write_bytes(made)
    return made, b"".join(contents)


def make_packed(folder: Path) -> MadeImage:
    """With checksums in all that is stored."""
    made, disk = _made(folder, (ZLIB, ZERO, BZIP2, ZLIB, IGNORE, LZMA))
    start = int.from_bytes(made[-512 + 216 : -512 + 224], "big")
    return MadeImage("dmg", "disk.dmg", (disk,), ((0, start),), ((start, len(made)),))


def make_plain(folder: Path) -> MadeImage:
    """What has no checksum but that of its partition."""
    made, disk = _made(folder, (RAW, ADC, ZERO, RAW))
    return MadeImage("dmg", "disk.dmg", (disk,), structures=((len(made) - 512, len(made)),))


MAKERS = {"dmg": make_packed, "dmg-plain": make_plain}
