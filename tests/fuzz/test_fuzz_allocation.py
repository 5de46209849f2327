"""Damaged volumes of every kind: free space is a doubt or a map inside the volume, never anything else.

Where checksums do not stand in the way, the damage goes into the structures that say what is free.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageformat.crc32c import crc32c
from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from imageformat.plugins import discover
from mountfs import allocation
from mountfs.allocation.disk import read_allocation
from support.disks import MIB
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from pathlib import Path

    from mountfs.allocation import AllocationReader

READERS: list[AllocationReader] = list(discover(allocation).available)
PLAIN_EXT = ("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^metadata_csum,^uninit_bg", "-b", "1024")
MADE = {
    "ext4": (PLAIN_EXT, 12, ((1024, 1024), (2048, 400), (60_000, 20_000))),
    "ext4 proven": (("mke2fs", "-q", "-F", "-t", "ext4"), 8, ((1024, 1024), (4096, 256))),
    "ext4 bigalloc": (
        ("mke2fs", "-q", "-F", "-t", "ext4", "-O", "bigalloc,^metadata_csum", "-C", "16384"),
        16,
        ((1024, 1024), (4096, 512)),
    ),
    "ntfs": (("mkfs.ntfs", "-q", "-F", "-f"), 4, ((0, 90), (16_384, 8192))),
    "fat32": (("mkfs.fat", "-F", "32", "-s", "1"), 36, ((0, 90), (512, 512), (16_384, 200))),
    "fat12": (("mkfs.fat", "-F", "12"), 2, ((0, 90), (512, 2000))),
    "exfat": (("mkfs.exfat",), 4, ((64, 60), (1 << 20, 200), (2 << 20, 16_384))),
    "xfs": (
        ("mkfs.xfs", "-q", "-f", "--unsupported", "-m", "crc=0"),
        24,
        ((0, 264), (512, 100), (4096, 300)),
    ),
    "btrfs": (("mkfs.btrfs", "-q", "-f", "--mixed"), 18, ((65536 + 32, 1200),)),
    "swap": (("mkswap",), 1, ((1024, 30), (4080, 16))),
}
changes = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8)), max_size=5
)


@pytest.fixture(scope="module", params=MADE)
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    command, size, _ = MADE[request.param]
    require_tool(command[0])
    path: Path = tmp_path_factory.mktemp("volume") / "volume"
    with path.open("wb") as file:
        file.truncate(size * MIB)
    run(*command, path)
    return request.param, path.read_bytes()


@given(changes=changes)
def test_damage_gives_a_doubt_or_a_map_inside_the_volume(
    volume: tuple[str, bytes], changes: list[tuple[int, int, bytes]]
) -> None:
    name, sound = volume
    areas = MADE[name][2]
    raw = bytearray(sound)
    for area, inside, piece in changes:
        start, length = areas[area % len(areas)]
        at = start + inside % (length - len(piece))
        raw[at : at + len(piece)] = piece
    if name == "btrfs":
        struct.pack_into("<I", raw, 65536, crc32c(bytes(raw[65536 + 32 : 65536 + 4096])))
    device = MemoryDevice(bytes(raw))
    for reader in READERS:
        try:
            found = reader.unused(device)
        except VolumeError:
            continue
        assert not found.meets(len(raw), 1 << 62)
        assert 0 <= found.total <= len(raw)
    disk = read_allocation(device)
    assert disk.unused.total <= len(raw)


@given(raw=st.binary(max_size=3000))
def test_noise_has_no_free_space(raw: bytes) -> None:
    device = MemoryDevice(raw)
    for reader in READERS:
        with pytest.raises(VolumeError):
            reader.unused(device)
    assert read_allocation(device).unused.total == 0
