"""Damaged copies of XFS volumes: no crash, no hang, no other error, no memory without bound.

The volumes are made by mkfs.xfs from a list of files. Checksums are put right after the damage, so that it
gets past them; without that only the first check would be tested.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageformat.errors import MountfsError
from mountfs.drivers._tree import ChunkReader
from mountfs.drivers._xfs_inode import read_inode
from mountfs.drivers._xfs_layout import read_superblock
from mountfs.drivers._xfs_mapping import map_fork
from support.requirements import require_tool, run
from support.xfsvolume import EDGES, LIMITS, Damaged, bounded, checksum_at, open_tree, repair, visit

if TYPE_CHECKING:
    pass

KINDS = {"version 5": (), "version 4": ("-m", "crc=0")}


@pytest.fixture(scope="module", params=KINDS)
def sound(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[int, int]]]:
    """A volume, and (offset, length) of every structure in it that a reader may look at."""
    require_tool("mkfs.xfs", "xfs_db")
    folder = tmp_path_factory.mktemp("xfs")
    (folder / "data").write_bytes(random.Random(1).randbytes(30_000))
    many = [f"{'n' * (number % 40)}{number} ---600 0 0 {folder}/data" for number in range(120)]
    few = [
        "block d--755 0 0",
        *many[:20],
        "$",
        "short d--755 0 0",
        *many[:3],
        "$",
        "many d--755 0 0",
        *many,
        "$",
    ]
    links = [
        "link l--777 0 0 data",
        f"long l--777 0 0 {'x' * 900}",
        "fifo p--644 0 0",
        "node b--644 0 0 8 17",
    ]
    lines = ["boot 0 0", "d--755 0 0", *few, *links, f"data ---644 0 0 {folder}/data", "$", "$"]
    (folder / "content").write_text("\n".join(lines) + "\n")
    path = folder / "volume"
    path.touch()
    os.truncate(path, 320 << 20)
    run("mkfs.xfs", "-q", *KINDS[request.param], "-p", folder / "content", path)
    inode = next(
        node.inode
        for node in open_tree(Damaged(path)).children(open_tree(Damaged(path)).root())
        if node.name == b"data"
    )
    sets = [f"attr_set -u -v {size} name{size}" for size in (1, 20, 200, 3000, 9000)]
    steps = [f"inode {inode}", *sets, *(f"attr_set -{'rsu'[n % 3]} -v 40 number{n}" for n in range(90))]
    run("xfs_db", "-x", *(part for step in steps for part in ("-c", step)), path)
    if request.param == "version 5":
        give_the_link_its_header(path)
    return path, structures(path)


def give_the_link_its_header(path: Path) -> None:
    """mkfs.xfs 6.1 forgets it."""
    device = Damaged(path)
    layout, tree = read_superblock(device), open_tree(device)
    (link,) = (node for node in tree.children(tree.root()) if node.name == b"long")
    inode = read_inode(ChunkReader(device), layout, link.inode)
    (run,) = map_fork(device, layout, link.inode, inode.data_fork)
    unit = bytearray(layout.block_size)
    struct.pack_into(">4sIII16sQQ", unit, 0, b"XSLM", 0, 900, 0, layout.uuid, link.inode, run.source // 512)
    unit[56:956] = b"x" * 900
    repair(unit)
    with path.open("r+b") as file:
        file.seek(run.source)
        file.write(unit)
    assert tree.readlink(link) == b"x" * 900


def structures(path: Path) -> list[tuple[int, int]]:
    """Every sector, block or inode that is in use, by its magic."""
    device = Damaged(path)
    layout = read_superblock(device)
    found = [(0, layout.sector_size)]
    magics = {b"XD2B", b"XD2D", b"XDB3", b"XDD3", b"BMAP", b"BMA3", b"XARM", b"XSLM"}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for offset in range(layout.block_size, len(content), layout.block_size):
            head = content[offset : offset + 10]
            if head[:4] in magics or head[8:10] in {b"\x3b\xee", b"\x3e\xbe", b"\xfb\xee", b"\xfe\xbe"}:
                found.append((offset, layout.block_size))
            elif head[:2] == b"IN":
                inodes = range(offset, offset + layout.block_size, layout.inode_size)
                found += [(at, layout.inode_size) for at in inodes if any(content[at + 2 : at + 4])]
    return found


def read_all(device: Damaged, *, repaired: bool) -> None:
    if repaired:
        for unit in device.units.values():
            repair(unit)
    with bounded(), suppress(MountfsError):
        visit(open_tree(device))


@LIMITS
@given(data=st.data())
def test_fields_with_hostile_values(sound: tuple[Path, list[tuple[int, int]]], data: st.DataObject) -> None:
    path, places = sound
    device = Damaged(path)
    for _ in range(data.draw(st.integers(1, 8))):
        offset, size = data.draw(st.sampled_from(places))
        unit = device.unit(offset, size)
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        limit = min(size, 300) if data.draw(st.booleans()) else size
        at = data.draw(st.integers(0, (limit - width) // width)) * width
        value = data.draw(st.sampled_from(EDGES) | st.integers(0, 2**64 - 1)) % 256**width
        unit[at : at + width] = value.to_bytes(width, "big")
    read_all(device, repaired=data.draw(st.integers(0, 9)) > 0)


@LIMITS
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 60))
def test_any_bytes_anywhere(sound: tuple[Path, list[tuple[int, int]]], seed: int, changes: int) -> None:
    path, places = sound
    device, rng = Damaged(path), random.Random(seed)
    for _ in range(changes):
        offset, size = rng.choice(places)
        unit = device.unit(offset, size)
        unit[rng.randrange(size)] = rng.randrange(256)
    read_all(device, repaired=bool(seed % 5))


@LIMITS
@given(seed=st.integers(0, 2**32))
def test_structures_in_each_others_places(sound: tuple[Path, list[tuple[int, int]]], seed: int) -> None:
    """A sound block where another belongs makes loops, and trees that share their branches."""
    path, places = sound
    device, rng = Damaged(path), random.Random(seed)
    for _ in range(rng.randint(1, 6)):
        (offset, size), (other, other_size) = rng.choice(places[1:]), rng.choice(places[1:])
        if size == other_size:
            unit, copied = device.unit(offset, size), Damaged(path).unit(other, size)
            unit[:] = copied
            if checksum_at(unit) == 100:
                unit[152:160] = Damaged(path).pread(offset + 152, 8)
    read_all(device, repaired=True)


def test_the_volumes_hold_what_is_damaged(sound: tuple[Path, list[tuple[int, int]]]) -> None:
    path, places = sound
    assert len(places) > 150
    with path.open("rb") as file:
        magics = set()
        for offset, _ in places:
            file.seek(offset)
            head = file.read(10)
            magics |= {head[:4], head[:2], head[8:10]}
    five = b"XDB3" in magics
    wanted = (
        {b"XDB3", b"XDD3", b"XARM", b"XSLM", b"\x3b\xee", b"\x3e\xbe"}
        if five
        else {b"XD2B", b"XD2D", b"\xfb\xee", b"\xfe\xbe"}
    )
    assert wanted | {b"IN"} <= magics
