"""Damaged volumes whose files are to be left out: none of it raises, and no metadata goes with a file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageformat.device import MemoryDevice
from mountfs.allocation.disk import read_allocation
from mountfs.allocation.excluded import find_excluded
from mountfs.allocation.ext import structures
from mountfs.excludes import parse_pattern
from mountfs.session import drivers_of
from support.disks import MIB
from support.requirements import require_tool, run

SIZE = 4 * MIB
PATTERNS = (parse_pattern("*.iso"), parse_pattern("folder/**"))
changes = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8)), max_size=5
)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    require_tool("mke2fs")
    folder: Path = tmp_path_factory.mktemp("fuzz")
    chance = random.Random(1)
    for name in ("a.iso", "b.iso", "folder/c", "folder/d/e", "kept", "swapfile"):
        (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "files" / name).write_bytes(chance.randbytes(chance.randrange(1000, 200_000)))
    with (folder / "volume").open("wb") as file:
        file.truncate(SIZE)
    options = ("-b", "1024", "-O", "^metadata_csum,^uninit_bg", "-d", folder / "files")
    run("mke2fs", "-q", "-F", "-t", "ext4", *options, folder / "volume")
    return (folder / "volume").read_bytes()


@given(changes=changes)
def test_damage_leaves_out_files_or_nothing(volume: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    raw = bytearray(volume)
    known = structures(MemoryDevice(volume))
    start, length = max(known, key=lambda place: place[1])
    inode = int.from_bytes(volume[1024 + 0x58 : 1024 + 0x5A], "little")
    areas = ((start + 10 * inode, 12 * inode), (start, length), (1024, 1024), (0, SIZE))
    for area, inside, piece in changes:
        begin, size = areas[area]
        at = begin + inside % (size - len(piece))
        raw[at : at + len(piece)] = piece
    device = MemoryDevice(bytes(raw))
    free = read_allocation(device)
    found = find_excluded(device, free, PATTERNS, drivers_of)
    assert sum(entry.size for entry in found.found) == found.extents.total
    if not changes:
        assert sum(entry.files for entry in found.found) == 4
    for extent in found.extents:
        assert 0 <= extent.offset < extent.end <= SIZE
        assert not free.unused.meets(extent.offset, extent.length)
        assert all(extent.end <= at or at + size <= extent.offset for at, size in known)
