"""Write the golden images of format version 0.2: ``python -m golden.make_v0_2`` in the folder of the tests.

Golden files of a released version are never written again. Until the format is declared 1.0 it may change,
and these files with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from pathlib import Path
from uuid import UUID

from golden.chains import BLOCK, SET, add_point, change, mixed_disk
from imageformat.codec import digest
from imageformat.formats.native.structs import Header, State
from imageformat.formats.native.writer import NativeWriter, encode_block
from imageformat.layer import ImageType
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage

FOLDER = Path(__file__).parent / "v0.2"


def main() -> None:
    """Write the images and what their points must be."""
    chance = random.Random(20261123)
    storage = LocalStorage(FOLDER)
    disks: list[bytes] = [first_disk(chance)]
    add_point(storage, disks[0], ImageType.FULL)
    for kind, disk in (
        (ImageType.INCREMENTAL, change(chance, disks[0], 7, 3)),
        (ImageType.DIFFERENTIAL, change(chance, disks[0], 299)),
        (ImageType.INCREMENTAL, disks[0][: 5 * BLOCK + 1]),
        (ImageType.INCREMENTAL, disks[0][: 5 * BLOCK + 1] + bytes(10 * BLOCK)),
        (ImageType.FULL, b""),
        (ImageType.INCREMENTAL, bytes(mixed_disk(chance, 2))),
        (ImageType.FULL, disks[0]),
        (ImageType.INCREMENTAL, touched(disks[0], b"once")),
        (ImageType.INCREMENTAL, touched(disks[0], b"and again")),
    ):
        add_point(storage, disk, kind, sector=4096 if len(disks) > 3 else 512)
        disks.append(disk)
    expected = {str(number): hashlib.sha256(disk).hexdigest() for number, disk in enumerate(disks, 1)}
    every_state(storage)
    for name in (".catalog.json", ".lock"):
        (FOLDER / SET / name).unlink()
    with contextlib.closing(Repository(storage)) as repository:
        roots = {
            point.file_name: point.info.root.hex() for point in repository.image_set(SET).points if point.info
        }
    facts = {"sha256": expected, "roots": roots}
    (FOLDER / "expected.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def first_disk(chance: random.Random) -> bytes:
    """Return a disk of two index levels whose image is small: few blocks do not compress."""
    kinds = (chance.randbytes(16) * (BLOCK // 16), bytes(BLOCK), b"%d" % BLOCK * (BLOCK // 4))
    blocks = (chance.randbytes(BLOCK) if number % 60 == 0 else kinds[number % 3] for number in range(300))
    return b"".join(blocks) + chance.randbytes(100)


def touched(disk: bytes, word: bytes) -> bytes:
    """Return the disk with a word written into a block that does not compress: stored as a difference."""
    return disk[:100] + word + disk[100 + len(word) :]


def every_state(storage: LocalStorage) -> None:
    """Write an image with blocks of every state; its set is its own."""
    header = Header(
        image_id=UUID(int=1),
        set_id=UUID(int=2),
        type=ImageType.FULL,
        number=1,
        created_ns=1_700_000_000_000_000_000,
        disk_size=8 * BLOCK,
        sector_size=512,
        block_size=BLOCK,
    )
    target = storage.create("states/0001-full.mfi")
    writer = NativeWriter(target, header)
    raw = b"data" * (BLOCK // 4)
    writer.write(encode_block(writer.image_id, 0, raw, digest(raw), 3))
    writer.fill(1, 2, State.ZERO)
    writer.fill(3, 4, State.UNUSED)
    writer.fill(7, 1, State.BAD)
    writer.commit()
    target.abort()


if __name__ == "__main__":
    main()
