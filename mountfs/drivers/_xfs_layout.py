"""The geometry of an XFS: superblock, addresses of blocks and inodes, proof of self-describing metadata.

Source: "XFS Algorithms & Data Structures", 3rd edition, sections Superblocks, Inode Numbers, Self-Describing
Metadata; the feature bits as the kernel's on-disk format names them. All numbers are big-endian but for the
checksums.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.crc32c import crc32c
from imageformat.errors import VolumeError
from mountfs.drivers._content import read_at

if TYPE_CHECKING:
    from imageformat.device import BlockDevice

_MAGIC = b"XFSB"
_SUPERBLOCK = 512
_SECTOR = 512
"""What disk addresses inside metadata count in, whatever the sector size is."""

_V_DIRECTORIES_2 = 0x2000
_V_CASE_INSENSITIVE = 0x4000
_V_MORE_BITS = 0x8000
_V_FORBIDDEN = 0x0200
"""Shared read-only volumes, which were never finished."""
_FEATURES2_FILE_TYPE = 0x200
_FEATURES2_CHECKSUMS = 0x100

_INCOMPAT_FILE_TYPE = 0x1
_INCOMPAT_META_UUID = 0x4
_INCOMPAT_KNOWN = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80
_INCOMPAT_NAMES = {0x100: "metadir", 0x200: "zoned", 0x400: "zone gaps"}


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the superblock says, checked."""

    version: int
    """4, or 5 with checksums."""
    block_size: int
    block_count: int
    group_blocks: int
    group_count: int
    group_bits: int
    """Bits of a block number inside its group."""
    inode_size: int
    inode_bits: int
    """Bits of an inode's index inside its block."""
    sector_size: int
    directory_block_size: int
    root_inode: int
    has_file_type: bool
    uuid: bytes
    """Of the volume, as its journal has it."""
    metadata_uuid: bytes
    """As the metadata has it: the uuid that the volume was made with."""
    log_start: int
    """Number of the journal's first block; 0: the journal lies on another device."""
    log_blocks: int
    log_sector_size: int

    @property
    def has_checksums(self) -> bool:
        """Whether metadata describes and proves itself."""
        return self.version == 5

    def block_offset(self, number: int, count: int, what: str) -> int:
        """Return the byte where ``count`` blocks begin; their numbers hold a group and a place in it.

        Raises:
            VolumeError: they lie outside of their group or of the volume.
        """
        group, inside = number >> self.group_bits, number & ((1 << self.group_bits) - 1)
        linear = group * self.group_blocks + inside
        if group >= self.group_count or not 0 < count <= self.group_blocks - inside:
            raise VolumeError(f"{what} lies at block {number:#x}, which does not exist")
        if linear + count > self.block_count:
            raise VolumeError(f"{what} lies behind the end of the volume")
        return linear * self.block_size

    def inode_offset(self, number: int) -> int:
        """Return the byte where an inode begins.

        Raises:
            VolumeError: there is no such inode.
        """
        if not 0 < number < 1 << 64:
            raise VolumeError(f"inode {number} does not exist")
        index = number & ((1 << self.inode_bits) - 1)
        return self.block_offset(number >> self.inode_bits, 1, f"inode {number}") + index * self.inode_size

    def prove(self, raw: bytes, checksum_at: int, what: str) -> None:
        """Check the checksum of a v5 structure that is all of ``raw``.

        Raises:
            VolumeError: it is not right.
        """
        if not checksum_fits(raw, checksum_at):
            raise VolumeError(f"{what} is damaged: its checksum is wrong")

    def prove_block(self, raw: bytes, header: BlockHeader, owner: int | None, offset: int, what: str) -> None:
        """Check that a v5 block is sound, of this volume, of its owner, and where it was written to.

        Raises:
            VolumeError: it is not.
        """
        self.prove(raw, header.checksum, what)
        if raw[header.uuid : header.uuid + 16] != self.metadata_uuid:
            raise VolumeError(f"{what} is damaged: it belongs to another volume")
        found = struct.unpack_from(">Q", raw, header.address)[0] * _SECTOR
        if found != offset:
            raise VolumeError(f"{what} is damaged: it was written for another place")
        if owner is not None and struct.unpack_from(">Q", raw, header.owner)[0] != owner:
            raise VolumeError(f"{what} is damaged: it belongs to another inode")


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """Where a kind of v5 block keeps what describes it, as offsets."""

    checksum: int
    address: int
    uuid: int
    owner: int


def checksum_fits(raw: bytes, at: int) -> bool:
    """Check the CRC-32C of ``raw``, which stands in it at ``at`` and counts as zeros itself."""
    (stored,) = struct.unpack_from("<I", raw, at)
    return crc32c(b"".join((raw[:at], bytes(4), raw[at + 4 :]))) == int(stored)


def read_superblock(device: BlockDevice) -> Superblock:
    """Read and check the primary superblock.

    Raises:
        VolumeError: it is not XFS, is damaged, or needs a feature that is not known here.
    """
    raw = read_at(device, 0, _SUPERBLOCK, "the XFS superblock")
    if raw[:4] != _MAGIC:
        raise VolumeError("not an XFS file system: the superblock has no magic number")
    (version_bits, sector_size) = struct.unpack_from(">HH", raw, 100)
    version = version_bits & 0xF
    features2, incompat = 0, 0
    if version == 5:
        _prove_superblock(device, sector_size)
        (incompat,) = struct.unpack_from(">I", raw, 216)
    elif version == 4:
        features2 = struct.unpack_from(">I", raw, 200)[0] if version_bits & _V_MORE_BITS else 0
    _check_features(version, version_bits, features2, incompat)
    found = _geometry(
        raw,
        version,
        has_file_type=bool(
            incompat & _INCOMPAT_FILE_TYPE if version == 5 else features2 & _FEATURES2_FILE_TYPE
        ),
        moved=bool(incompat & _INCOMPAT_META_UUID),
    )
    _check_geometry(raw, found)
    return found


def _geometry(raw: bytes, version: int, *, has_file_type: bool, moved: bool) -> Superblock:
    (block_size, block_count) = struct.unpack_from(">IQ", raw, 4)
    log_start, root_inode = struct.unpack_from(">QQ", raw, 48)
    group_blocks, group_count, _, log_blocks = struct.unpack_from(">IIII", raw, 84)
    _, sector_size, inode_size, _ = struct.unpack_from(">HHHH", raw, 100)
    _, _, _, inode_bits, group_bits = raw[120:125]
    directory_log, _, log_sector_size = struct.unpack_from(">BBH", raw, 192)
    uuid = raw[32:48]
    return Superblock(
        version=version,
        block_size=block_size,
        block_count=block_count,
        group_blocks=group_blocks,
        group_count=group_count,
        group_bits=group_bits,
        inode_size=inode_size,
        inode_bits=inode_bits,
        sector_size=sector_size,
        directory_block_size=block_size << min(directory_log, 16),
        root_inode=root_inode,
        has_file_type=has_file_type,
        uuid=uuid,
        metadata_uuid=raw[248:264] if moved else uuid,
        log_start=log_start,
        log_blocks=log_blocks,
        log_sector_size=max(log_sector_size, _SECTOR),
    )


def _prove_superblock(device: BlockDevice, sector_size: int) -> None:
    if not _is_power(sector_size, 512, 32_768):
        raise VolumeError(f"the XFS superblock is damaged: sector size {sector_size}")
    if not checksum_fits(read_at(device, 0, sector_size, "the XFS superblock"), 224):
        raise VolumeError("the XFS superblock is damaged: its checksum is wrong")


def _check_features(version: int, version_bits: int, features2: int, incompat: int) -> None:
    if version not in {4, 5}:
        raise VolumeError(f"XFS version {version} is not supported; 4 and 5 are")
    if not version_bits & _V_DIRECTORIES_2:
        raise VolumeError("the XFS file system has directories of version 1, which are not supported")
    if version_bits & _V_FORBIDDEN or (version == 4 and features2 & _FEATURES2_CHECKSUMS):
        raise VolumeError("the XFS superblock is damaged: features that exclude each other")
    unknown = incompat & ~_INCOMPAT_KNOWN
    if unknown:
        names = [_INCOMPAT_NAMES.get(1 << bit, f"{1 << bit:#x}") for bit in range(32) if unknown >> bit & 1]
        raise VolumeError(f"the XFS file system uses features that are not supported: {', '.join(names)}")


def _check_geometry(raw: bytes, found: Superblock) -> None:
    sizes = {
        "block size": (found.block_size, 512, 65_536),
        "sector size": (found.sector_size, 512, 32_768),
        "inode size": (found.inode_size, 256, 2048),
        "directory block size": (found.directory_block_size, found.block_size, 65_536),
    }
    for what, (value, least, most) in sizes.items():
        if not _is_power(value, least, most):
            raise VolumeError(f"the XFS superblock is damaged: {what} {value}")
    if raw[126]:
        raise VolumeError("the XFS file system was not finished when it was made")
    if found.inode_size << found.inode_bits != found.block_size:
        raise VolumeError("the XFS superblock is damaged: inodes do not fill a block")
    if not 0 < found.group_blocks <= 1 << min(found.group_bits, 32):
        raise VolumeError(f"the XFS superblock is damaged: groups of {found.group_blocks} blocks")
    last = (found.group_count - 1) * found.group_blocks
    if not found.group_count or not last < found.block_count <= last + found.group_blocks:
        raise VolumeError(f"the XFS superblock is damaged: {found.group_count} groups")


def _is_power(value: int, least: int, most: int) -> bool:
    return least <= value <= most and not value & (value - 1)
