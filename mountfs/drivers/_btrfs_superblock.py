"""The superblock of btrfs: which of its copies counts, what it says, and whether that can be read here.

Source: the btrfs documentation, "On-disk Format" (sections Superblock, Checksum Algorithms) and
"btrfs-man5", filesystem features.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from imageformat.crc32c import crc32c
from imageformat.errors import MountfsError, VolumeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageformat.device import BlockDevice

SUPERBLOCK_SIZE = 4096
_PLACES = (0x1_0000, 0x400_0000, 0x40_0000_0000)
_MAGIC = b"_BHRfS_M"
_SYSTEM_CHUNKS = 0x32B
_MAX_SYSTEM_CHUNKS = 2048
_MAX_UNIT = 65_536
_MAX_LEVEL = 7

_INCOMPAT_KNOWN = 0x1_0FFF & ~0x1000
"""Up to raid1c34, without zoned; simple_quota. The names of the others are told when they are met."""
_INCOMPAT_METADATA_UUID = 0x400
_INCOMPAT_NAMES = {
    0x1000: "zoned",
    0x2000: "extent_tree_v2",
    0x4000: "raid_stripe_tree",
    0x2_0000: "remap_tree",
}


class ChecksumKind(NamedTuple):
    """One of the algorithms; ``size`` bytes of its digest are stored."""

    name: str
    size: int
    digest: Callable[[bytes], bytes]


CHECKSUMS = {
    0: ChecksumKind("crc32c", 4, lambda data: crc32c(data).to_bytes(4, "little")),
    1: ChecksumKind("xxhash64", 8, lambda data: xxhash.xxh64_digest(data)[::-1]),
    2: ChecksumKind("sha256", 32, lambda data: hashlib.sha256(data).digest()),
    3: ChecksumKind("blake2b", 32, lambda data: hashlib.blake2b(data, digest_size=32).digest()),
}


class Root(NamedTuple):
    """Where a tree begins: logical address, generation and level of its root node."""

    address: int
    generation: int
    level: int


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the superblock says, checked."""

    generation: int
    sector_size: int
    node_size: int
    checksum: ChecksumKind
    devices: int
    device_id: int
    """Of this device among those of the file system."""
    metadata_id: bytes
    """The file system's identity as the nodes of its trees have it."""
    chunk_root: Root
    root_tree: Root
    log_address: int
    """Not 0: something was fsynced after the last commit."""
    root_directory: int
    bytes_used: int
    """Of all extents together, each once."""
    device_size: int
    """Of this device, as far as the file system uses it."""
    system_chunks: bytes
    """Packed pairs of key and chunk: where the chunk tree lies."""


def read_superblocks(device: BlockDevice) -> list[Superblock]:
    """Read the intact copies of the superblock, the newest first.

    They differ when the device was copied while in use. The first copy decides which file system this is;
    one of a former file system does not count, however new it claims to be.

    Raises:
        VolumeError: there is none, or it is damaged, or needs a feature that is not known here.
        MountfsError: the device failed where the copies are.
    """
    found: list[bytes] = []
    failure: MountfsError | None = None
    for place in _PLACES:
        if place + SUPERBLOCK_SIZE > device.size:
            break
        try:
            raw = device.pread(place, SUPERBLOCK_SIZE)
        except MountfsError as error:
            failure = failure or error
            continue
        if _is_intact(raw, place):
            found.append(raw)
    if not found:
        raise failure or VolumeError(
            "no copy of the btrfs superblock is intact, or its checksum is of no known kind"
        )
    same = {_number(raw, 0x48): raw for raw in reversed(found) if raw[0x20:0x30] == found[0][0x20:0x30]}
    return [_parse(same[generation]) for generation in sorted(same, reverse=True)]


def _number(raw: bytes, at: int) -> int:
    return int(struct.unpack_from("<Q", raw, at)[0])


def _is_intact(raw: bytes, place: int) -> bool:
    (kind,) = struct.unpack_from("<H", raw, 0xC4)
    if raw[0x40:0x48] != _MAGIC or _number(raw, 0x30) != place or kind not in CHECKSUMS:
        return False
    checksum = CHECKSUMS[kind]
    return checksum.digest(raw[0x20:]) == raw[: checksum.size]


def _parse(raw: bytes) -> Superblock:
    incompat = _number(raw, 0xBC)
    _check_features(incompat)
    generation, root, chunk_root, log_root = struct.unpack_from("<4Q", raw, 0x48)
    bytes_used, root_directory, devices, sector_size, node_size = struct.unpack_from("<QQQII", raw, 0x78)
    system_size, chunk_generation = struct.unpack_from("<IQ", raw, 0xA0)
    kind, root_level, chunk_level = struct.unpack_from("<HBB", raw, 0xC4)
    sizes = {"sector size": (sector_size, 512), "node size": (node_size, max(sector_size, 4096))}
    for what, (value, least) in sizes.items():
        if not least <= value <= _MAX_UNIT or value & (value - 1):
            raise VolumeError(f"the btrfs superblock is damaged: {what} {value}")
    if max(root_level, chunk_level) > _MAX_LEVEL or system_size > _MAX_SYSTEM_CHUNKS or not devices:
        raise VolumeError("the btrfs superblock is damaged: a value is out of range")
    identity = 0x23B if incompat & _INCOMPAT_METADATA_UUID else 0x20
    return Superblock(
        generation=generation,
        sector_size=sector_size,
        node_size=node_size,
        checksum=CHECKSUMS[kind],
        devices=devices,
        device_id=_number(raw, 0xC9),
        metadata_id=raw[identity : identity + 16],
        chunk_root=Root(chunk_root, chunk_generation, chunk_level),
        root_tree=Root(root, generation, root_level),
        log_address=log_root,
        root_directory=root_directory,
        bytes_used=bytes_used,
        device_size=_number(raw, 0xD1),
        system_chunks=raw[_SYSTEM_CHUNKS : _SYSTEM_CHUNKS + system_size],
    )


def _check_features(incompat: int) -> None:
    unknown = incompat & ~_INCOMPAT_KNOWN
    if unknown:
        names = [_INCOMPAT_NAMES.get(1 << bit, f"{1 << bit:#x}") for bit in range(64) if unknown >> bit & 1]
        raise VolumeError(f"btrfs uses features that are not supported: {', '.join(names)}")
