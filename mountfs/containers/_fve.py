"""What a BitLocker volume says of itself: where its metadata lies, what protects its keys, its layout.

After "BitLocker Drive Encryption (BDE) format" of the libbde project: volume headers, FVE metadata block and
entries. All numbers are checked before they are used.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from imageformat.errors import MountfsError, VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

SECTOR = 512
SIGNATURE = b"-FVE-FS-"
VISTA = 1
_TO_GO = b"MSWIN4.1"
_GUIDS = frozenset(
    {
        UUID("4967d63b-2e29-4ad8-8399-f6a339e3d001").bytes_le,
        UUID("92a84d3b-dd80-4d0e-9e4e-b1e3284eaed8").bytes_le,
    }
)
_BLOCK = struct.Struct("<8sHHHHQII3QQ")
_HEADER = struct.Struct("<IIII16sII8x")
_ENTRY = struct.Struct("<HHHH")
_METADATA_SIZE = 64 << 10
_VISTA_METADATA_SIZE = 16 << 10
_MAX_ENTRIES = 512

KEY, STRETCH_KEY, CCM_KEY, VMK, EXTERNAL_KEY, PLACE = 1, 3, 5, 8, 9, 15
"""Types of values."""
ENTRY_FVEK, ENTRY_VOLUME_HEADER = 3, 15
"""Types of entries."""


class FveEntry(NamedTuple):
    """One piece of metadata."""

    type: int
    value_type: int
    data: bytes


@dataclass(frozen=True, slots=True)
class FveVolume:
    """A BitLocker volume, as its best metadata block describes it. Offsets are checked against the device."""

    version: int
    """`VISTA`, or 2 from Windows 7 on."""
    method: int
    encrypted_size: int
    """What lies behind it is not enciphered: the volume was being encrypted or decrypted."""
    header_offset: int
    """Where the first sectors are stored; 0 where they are not enciphered (Vista)."""
    header_size: int
    blocks: tuple[tuple[int, int], ...]
    """Offset and size of the areas of the metadata; they read as zeros."""
    mirror_cluster: int
    """Vista: what belongs into the boot sector of NTFS in place of the offset of the metadata."""
    entries: tuple[FveEntry, ...]


def read_volume(device: BlockDevice) -> FveVolume:
    """Read the first of the three metadata blocks that matches its checksum, else one that can be read.

    Raises:
        VolumeError: there is none.
    """
    boot = _piece(device, 0, SECTOR)
    candidates = [read_block(device, offset) for offset in _block_offsets(boot)]
    found = [candidate for candidate in candidates if candidate is not None]
    if not found:
        raise VolumeError("none of its three copies of the BitLocker metadata can be read")
    return next((volume for volume, proven in found if proven), found[0][0])


def _block_offsets(boot: bytes) -> tuple[int, ...]:
    """Return where the boot sector says that the metadata lies."""
    for at in (160, 424):
        if boot[at : at + 16] in _GUIDS:
            return struct.unpack_from("<3Q", boot, at + 16)
    sector, cluster = struct.unpack_from("<HB", boot, 11)
    return (int(struct.unpack_from("<Q", boot, 56)[0]) * sector * cluster,)


def read_block(device: BlockDevice, offset: int) -> tuple[FveVolume, bool] | None:
    """Read a metadata block, and whether its checksum is right; None when there is none."""
    try:
        raw = _piece(device, offset, min(_METADATA_SIZE, device.size - offset))
        return _parse_block(device, raw)
    except (MountfsError, struct.error):
        return None


def _parse_block(device: BlockDevice, raw: bytes) -> tuple[FveVolume, bool]:
    signature, size, version, _, _, encrypted, _, sectors, *offsets, last = _BLOCK.unpack_from(raw)
    if signature != SIGNATURE or version not in {1, 2}:
        raise VolumeError("no BitLocker metadata")
    vista = version == VISTA
    metadata_size, _, header_size, _, _, _, method = _HEADER.unpack_from(raw, _BLOCK.size)
    end = _BLOCK.size + metadata_size
    if header_size < _HEADER.size or not header_size <= metadata_size or end > len(raw):
        raise VolumeError("the BitLocker metadata contradicts itself")
    entries = tuple(parse_entries(raw[_BLOCK.size + header_size : end]))
    area = _VISTA_METADATA_SIZE if vista else _METADATA_SIZE
    header_offset, header_length = (0, 0) if vista else (last, sectors * SECTOR)
    for entry in entries:
        if (
            not vista
            and (entry.type, entry.value_type) == (ENTRY_VOLUME_HEADER, PLACE)
            and len(entry.data) >= 16
        ):
            header_offset, header_length = struct.unpack_from("<QQ", entry.data)
    if (
        not 0 <= header_offset <= device.size - header_length
        or header_length % SECTOR
        or header_offset % SECTOR
    ):
        raise VolumeError("the BitLocker metadata names a place outside of the volume")
    volume = FveVolume(
        version,
        method & 0xFFFF,
        device.size if vista or not 0 < encrypted < device.size else encrypted,
        header_offset,
        header_length,
        tuple((at, min(area, device.size - at)) for at in offsets if at < device.size),
        last if vista else 0,
        entries,
    )
    return volume, _is_proven(raw, size if vista else size * 16)


def _is_proven(raw: bytes, size: int) -> bool:
    """Whether the checksum behind the metadata is right: size and version (16 bits each), then CRC-32."""
    return size + 8 <= len(raw) and zlib.crc32(raw[:size]) == struct.unpack_from("<I", raw, size + 4)[0]


def parse_entries(raw: bytes) -> Iterator[FveEntry]:
    """Yield metadata entries up to the first that makes no sense, or the end."""
    position = 0
    for _ in range(_MAX_ENTRIES):
        if position + _ENTRY.size > len(raw):
            return
        size, kind, value_type, _ = _ENTRY.unpack_from(raw, position)
        if size < _ENTRY.size or position + size > len(raw):
            return
        yield FveEntry(kind, value_type, raw[position + _ENTRY.size : position + size])
        position += size


def startup_keys(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (identifier, key) of the external keys in a .BEK file; nothing when it is something else."""
    if len(content) < _HEADER.size:
        return
    size, version, header_size, copy, *_ = _HEADER.unpack_from(content)
    if version != 1 or size != copy or header_size < _HEADER.size or size > len(content):
        return
    for entry in parse_entries(content[header_size:size]):
        if entry.value_type == EXTERNAL_KEY and len(entry.data) > 24:
            for inner in parse_entries(entry.data[24:]):
                if inner.value_type == KEY and len(inner.data) == 36:
                    yield entry.data[:16], inner.data[4:]


def _piece(device: BlockDevice, offset: int, size: int) -> bytes:
    if offset < 0 or size < 0 or offset + size > device.size:
        raise VolumeError("the BitLocker volume is cut off")
    return device.pread(offset, size)
