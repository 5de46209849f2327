"""BitLocker: a volume that Windows made, and volumes of every method and layout written for the test."""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
from typing import TYPE_CHECKING, Any

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import LockedError, MountfsError, UnsupportedVolumeError, VolumeError
from imageformat.secrets import NO_SECRETS, Secrets
from mountfs.containers.bitlocker import open_bitlocker
from mountfs.disktree import DiskTree
from mountfs.session import drivers_of, volume_containers
from mountfs.signatures import identify
from mountfs.tree import walk
from support.bitlocker import (
    BLOCKS,
    HEADER_SIZE,
    HEADER_STORE,
    KIB,
    METHODS,
    SIZE,
    make_volume,
    metadata,
    startup_key,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mountfs.containers import InnerVolume


def opened(content: bytes, secrets: Secrets = NO_SECRETS) -> InnerVolume:
    device = MemoryDevice(content)
    info = identify(device)
    assert info is not None
    assert info.type == "bitlocker"
    (volume,) = open_bitlocker(iter([device]), info, secrets).volumes
    return volume


def plain_of(content: bytes, secrets: Secrets = NO_SECRETS) -> bytes:
    device = opened(content, secrets).device
    assert device is not None
    return device.pread(0, device.size)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> tuple[bytes, dict[str, Any]]:
    folder = shared_data / "fs-images"
    cases = json.loads((folder / "expectations.json").read_text())["good"]
    case = next(case for case in cases if case["id"] == "bitlk-aes-xts-128")
    return lzma.decompress((folder / case["packed"]["disk.img"]).read_bytes()), case


def test_a_volume_that_windows_made(real: tuple[bytes, dict[str, Any]]) -> None:
    content, case = real
    volume = opened(content, Secrets((b"wrong", case["recovery"].encode())))
    device = volume.device
    assert device is not None
    digest = hashlib.sha256()
    for at in range(0, device.size, 1 << 20):
        digest.update(device.pread(at, min(1 << 20, device.size - at)))
    assert (device.size, digest.hexdigest()) == (len(content), case["plain_sha256"])


def test_its_password(real: tuple[bytes, dict[str, Any]]) -> None:
    content, case = real
    device = opened(content, Secrets((case["passphrase"].encode(),))).device
    assert device is not None
    assert device.pread(3, 8) == b"NTFS    "


def test_it_is_shown_as_a_volume(real: tuple[bytes, dict[str, Any]]) -> None:
    """Its file system was left damaged by those who published it: ntfs-3g refuses it for the same record."""
    content, case = real
    secrets = Secrets((case["recovery"].encode(),))
    tree = DiskTree(MemoryDevice(content), drivers_of, containers=volume_containers, secrets=secrets)
    assert [node.name for node in tree.children(walk(tree, b"0"))] == [b"1-ntfs"]
    image = walk(tree, b"0/1/partition.img")
    assert (image.size, tree.read(image, 3, 8)) == (len(content), b"NTFS    ")
    tree.close()


def test_what_does_not_open_it(real: tuple[bytes, dict[str, Any]]) -> None:
    content, case = real
    with pytest.raises(LockedError, match="recovery key"):
        opened(content)
    other = case["recovery"].replace("235818", "235829").encode()
    misspelt = case["recovery"].replace("235818", "235819").encode()
    with pytest.raises(LockedError, match="none of"):
        opened(content, Secrets((other, misspelt, b"\xff\xff"), (startup_key(), b"", bytes(200))))


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str) -> None:
    made = make_volume(method)
    assert plain_of(made.stored) == made.plain
    device = opened(made.stored).device
    assert device is not None
    for offset, size in [
        (0, 1),
        (511, 2),
        (HEADER_SIZE - 1, 2),
        (BLOCKS[0] - 1, 66 * KIB),
        (77_777, 100_000),
    ]:
        assert device.pread(offset, size) == made.plain[offset : offset + size]


@pytest.mark.parametrize("method", ["aes-cbc-128-elephant", "aes-cbc-256"])
def test_vista(method: str) -> None:
    made = make_volume(method, vista=True)
    assert plain_of(made.stored) == made.plain


def test_to_go_and_a_startup_key() -> None:
    made = make_volume(to_go=True, clear=False)
    with pytest.raises(LockedError):
        opened(made.stored)
    other = bytearray(startup_key())
    other[56 + 3] ^= 1
    with pytest.raises(LockedError):
        opened(made.stored, Secrets((), (bytes(other),)))
    assert plain_of(made.stored, Secrets((b"x",), (b"y", startup_key()))) == made.plain


@pytest.mark.parametrize("encrypted", [300 * KIB, 64 * KIB + 512])
def test_encryption_that_was_paused(encrypted: int) -> None:
    made = make_volume(encrypted=encrypted)
    assert plain_of(made.stored) == made.plain


def test_any_one_copy_of_the_metadata_is_enough() -> None:
    made = make_volume()
    for kept in BLOCKS:
        damaged = bytearray(made.stored)
        for at in BLOCKS:
            if at != kept:
                damaged[at : at + 8] = bytes(8)
        assert plain_of(bytes(damaged)) == made.plain
    damaged[kept : kept + 8] = bytes(8)
    with pytest.raises(VolumeError, match="three copies"):
        opened(bytes(damaged))


def test_a_copy_that_matches_its_checksum_is_better() -> None:
    made = make_volume()
    damaged = bytearray(made.stored)
    damaged[BLOCKS[0] + 64 + 36 : BLOCKS[0] + 64 + 40] = struct.pack("<I", 0x8003)
    assert plain_of(bytes(damaged)) == made.plain


def test_places() -> None:
    volume = opened(make_volume().stored)
    assert list(volume.places(100 * KIB, 4096)) == [(0, 100 * KIB, 4096)]
    assert list(volume.places(512, 1024)) == [(0, HEADER_STORE + 512, 1024)]
    assert list(volume.places(BLOCKS[0] - 512, 65 * KIB)) == [
        (0, BLOCKS[0] - 512, 512),
        (0, BLOCKS[0] + 64 * KIB, 512),
    ]


def with_block(block: bytes) -> bytes:
    content = bytearray(make_volume().stored)
    for at in BLOCKS:
        content[at : at + 64 * KIB] = block.ljust(64 * KIB, b"\0")
    return bytes(content)


def test_a_method_that_is_not_known() -> None:
    with pytest.raises(UnsupportedVolumeError, match="0x8006"):
        opened(with_block(metadata(0x8006, clear=True, vista=False, encrypted=SIZE)))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (64, 0xFFFFFFFF),
        (72, 0xFFFFFFFF),
        (72, 1),
        (64, 47),
        (10, 9),
        (112, 1),
        (114, 0xFFFF),
        (28, 0xFFFFFFFF),
    ],
)
def test_metadata_that_makes_no_sense(at: int, value: int) -> None:
    block = bytearray(metadata(0x8004, clear=True, vista=False, encrypted=SIZE))
    struct.pack_into("<I", block, at, value)
    try:
        plain_of(with_block(bytes(block)))
    except MountfsError:
        return


@pytest.mark.parametrize("size", [512, 1024, BLOCKS[0], BLOCKS[0] + 100, BLOCKS[0] + 4096])
def test_a_volume_that_is_cut_off(size: int) -> None:
    with pytest.raises(MountfsError):
        plain_of(make_volume().stored[:size])
