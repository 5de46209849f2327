"""Write the golden images with BAD sectors and a void frame: ``python -m golden.make_bad_sectors``.

Format 0.3. As with all golden files: never again once a version with it is released.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from engine.backup import BackupOptions, backup
from golden.chains import BLOCK, SET, MemorySource
from imageformat.errors import BadSectorError
from imageformat.layer import ImageType
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage
from support.interrupted import Killed, killed_at

FOLDER = Path(__file__).parent / "bad_sectors"
UNIT = 512


def points() -> list[tuple[bytes, set[int]]]:
    """The disk at each point, and its units of 512 bytes that could not be read."""
    chance = random.Random(20261125)
    first = chance.randbytes(3 * BLOCK) + bytes(2 * BLOCK) + chance.randbytes(700)
    second = first[:BLOCK] + chance.randbytes(BLOCK) + first[2 * BLOCK :]
    return [(first, {3, 4, *range(16, 24), 41}), (second, {3, 9, 16})]


class Faulty(MemorySource):
    """A disk of which some units cannot be read."""

    smallest_read = UNIT

    def __init__(self, content: bytes, bad: set[int]) -> None:
        super().__init__(content)
        self.bad = bad

    def pread(self, offset: int, size: int) -> bytes:
        """Fail where a bad unit is touched."""
        if not self.bad.isdisjoint(range(offset // UNIT, -(-(offset + size) // UNIT))):
            raise BadSectorError(f"byte {offset}")
        return super().pread(offset, size)

    read_sectors = pread


def main() -> None:
    """Write the images; the second is gone on with after its first block had changed."""
    storage = LocalStorage(FOLDER)
    for number, (disk, bad) in enumerate(points()):
        kind = ImageType.INCREMENTAL if number else ImageType.FULL
        if number:
            with killed_at(2, flushed=1), contextlib.suppress(Killed):
                make(storage, Faulty(bytes(reversed(disk)), set()), kind)
        make(storage, Faulty(disk, bad), kind)
    for name in (".catalog.json", ".lock"):
        (FOLDER / SET / name).unlink()


def make(storage: LocalStorage, source: Faulty, kind: ImageType) -> None:
    """Image a disk as the next point."""
    with contextlib.closing(Repository(storage)) as repository:
        options = BackupOptions(type=kind, block_size=BLOCK, threads=1)
        backup(source, repository, SET, options, origin={"source": "/dev/fake"})


if __name__ == "__main__":
    main()
