"""Bytes and folders that are the same in every run, and the damage done to them."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from pathlib import Path

_WORDS = b"block extent frame image layer page piece point chain set disk volume".split()


def noise(seed: int, size: int) -> bytes:
    """``size`` bytes that no compressor can shrink."""
    return random.Random(seed).randbytes(size)


def text(seed: int, size: int) -> bytes:
    """``size`` bytes that compress well, as documents do."""
    source = random.Random(seed)
    words = b" ".join(source.choice(_WORDS) for _ in range(size // 4 + 1))
    return words[:size]


def mixture(seed: int, size: int, *, unit: int = 4096) -> bytes:
    """``size`` bytes of zeros, text and noise in units, as a disk holds them."""
    source = random.Random(seed)
    parts: list[bytes] = []
    for number in range(-(-size // unit)):
        kind = source.randrange(3)
        parts.append(bytes(unit) if not kind else (text, noise)[kind - 1](seed * 1_000_003 + number, unit))
    return b"".join(parts)[:size]


def make_tree(folder: Path, seed: int = 1, *, symlinks: bool = True) -> dict[str, str]:
    """Fill a folder with files as people have them; the SHA-256 of each by its path.

    Empty, tiny, compressible, larger than a block, a deep folder, a name with a blank, one that is not
    ASCII, and a link.
    """
    contents = {
        "empty": b"",
        "hello.txt": b"hello, world\n",
        "notes with blanks.txt": text(seed, 10_000),
        "résumé.txt": text(seed + 1, 3000),
        "photo.jpg": noise(seed + 2, 300_000),
        "etc/motd": b"welcome back\n",
        "deep/er/and/deeper/still.bin": noise(seed + 3, 70_001),
        **{f"many/file-{number:03}": text(seed + 10 + number, 100 + number) for number in range(40)},
    }
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if symlinks:
        (folder / "link").symlink_to("hello.txt")
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def tree_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every regular file below a folder by its path."""
    digests: dict[str, str] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if stat.S_ISREG(path.lstat().st_mode):
                digests[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def damage(path: Path, offset: int, *, mask: int = 0x01) -> None:
    """Flip bits of one byte of a file; a negative offset counts from the end."""
    if not 0 < mask < 256:
        raise ValueError("a mask of no bits would damage nothing")
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        position = file.tell()
        value = file.read(1)
        if not value:
            raise ValueError(f"{path} has no byte at {offset}")
        file.seek(position)
        file.write(bytes([value[0] ^ mask]))
