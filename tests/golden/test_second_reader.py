"""What the product writes is what docs/format.md says: a reader made from the document alone reads it."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from golden.chains import BLOCK, SET, add_point, change, files_of, make_chain, mixed_disk, repository_with
from golden.second_reader import UNUSED, ZERO, DamagedError, Folder, Image, rebuild
from imageformat.layer import ImageType
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage
from imageformat.storage.memory import MemoryStorage

sizes = st.one_of(
    st.sampled_from([0, 1, BLOCK, BLOCK + 1, 256 * BLOCK, 256 * BLOCK + 1, 257 * BLOCK]),
    st.integers(0, 300 * BLOCK),
)
writes = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 3 * BLOCK), st.integers(0, 3)), max_size=6)
points = st.lists(
    st.tuples(st.sampled_from(list(ImageType)), st.one_of(st.none(), sizes), writes, st.booleans()),
    min_size=1,
    max_size=5,
)


def apply(disk: bytearray, size: int | None, changes: list[tuple[float, int, int]]) -> None:
    if size is not None:
        disk.extend(bytes(max(0, size - len(disk))))
        del disk[size:]
    for where, length, value in changes:
        start = int(where * len(disk))
        stop = min(len(disk), start + length)
        disk[start:stop] = bytes((value * (1 + at % 251)) % 256 for at in range(stop - start))


@settings(max_examples=40)
@given(first=sizes, plan=points, sector=st.sampled_from([512, 4096]))
def test_random_chains_read_equal_in_the_second_reader(first: int, plan: list, sector: int) -> None:
    disk, disks, storage = bytearray(first), [], MemoryStorage()
    for kind, size, changes, holes in plan:
        apply(disk, size, changes)
        add_point(storage, bytes(disk), kind, holes=holes, sector=sector)
        disks.append(bytes(disk))
    check(files_of(storage), disks)


def check(files: dict[str, bytes], disks: list[bytes]) -> None:
    found = Folder(files).points()
    assert [point.image.number for point in found] == list(range(1, len(disks) + 1))
    with repository_with(files) as repository:
        roots = [point.info.root for point in repository.image_set(SET).points if point.info]
    for point, disk, root in zip(found, disks, roots, strict=True):
        assert point.read_all() == disk
        assert point.computed_root() == point.image.root == root
        point.check_digests()
        assert point.own_counts() == point.image.counts
        assert joined(point.image, rebuild(point.layers)) == disk


def joined(image: Image, blocks: list[int | bytes | None]) -> bytes:
    """The disk of a rebuilt point; no block may be unknown."""
    parts = []
    for number, block in enumerate(blocks):
        length = min(image.block, image.size - number * image.block)
        assert isinstance(block, bytes) or block in {ZERO, UNUSED}
        parts.append(block if isinstance(block, bytes) else bytes(length))
    return b"".join(parts)


def test_a_folder_of_files_reads_equal(tmp_path: Path) -> None:
    chance = random.Random(1)
    disk = bytes(mixed_disk(chance, 300, tail=100))
    storage = LocalStorage(tmp_path)
    disks = []
    for kind in (ImageType.FULL, ImageType.INCREMENTAL, ImageType.DIFFERENTIAL, ImageType.INCREMENTAL):
        add_point(storage, disk, kind)
        disks.append(disk)
        disk = change(chance, disk, chance.randrange(300), 3)
    with contextlib.closing(Repository(storage)) as repository:
        assert len(repository.image_set(SET).points) == 4
    found = Folder.open(tmp_path / SET).points()
    assert [point.read_all() for point in found] == disks
    assert [point.image.type for point in found] == [0, 2, 1, 2]
    assert [point.image.depth for point in found] == [0, 1, 1, 2]


def test_the_second_reader_can_fail() -> None:
    """It is worth nothing if it accepts anything: every flipped byte that it reads is refused or harmless."""
    chance = random.Random(2)
    disk = bytes(mixed_disk(chance, 20, tail=5))
    made = make_chain([(ImageType.FULL, disk), (ImageType.INCREMENTAL, change(chance, disk, 3))])
    key = made.keys[0]
    refused = 0
    for at in range(0, len(made.files[key]), 37):
        content = bytearray(made.files[key])
        content[at] ^= 1 << at % 8
        try:
            found = Folder({**made.files, key: bytes(content)}).points()
            assert [point.read_all() for point in found] == made.disks
        except DamagedError:
            refused += 1
    assert refused > len(made.files[key]) // 37 * 0.99
