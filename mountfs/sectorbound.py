"""In which sectors does a file system count? On a disk with larger ones it cannot be used.

Asked before a disk is cloned to one with other sectors. What says nothing of it is not bound.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from mountfs.signatures import identify

if TYPE_CHECKING:
    from imageformat.device import BlockDevice

_BOOT_SECTOR = frozenset({"ntfs", "fat12", "fat16", "fat32", "vfat", "bitlocker"})
"""Bytes 11 and 12: Microsoft's FAT specification, section 3.1, and what NTFS took over from it."""


def bound_sector_size(volume: BlockDevice) -> tuple[str, int]:
    """Return the kind of a volume and the size of its sectors in bytes; 0 where it is not bound.

    Raises:
        MountfsError: the volume cannot be read.
    """
    info = identify(volume)
    if info is None or volume.size < 4096:
        return "", 0
    start = volume.pread(0, 4096)
    size = 0
    if info.type in _BOOT_SECTOR:
        (size,) = struct.unpack_from("<H", start, 11)
    elif info.type == "exfat" and start[108] <= 12:
        size = 1 << start[108]  # BytesPerSectorShift, exFAT specification, 3.1.14
    elif info.type == "xfs":
        (size,) = struct.unpack_from(">H", start, 102)  # sb_sectsize
    elif info.type in {"ext2", "ext3", "ext4"} and start[1048] <= 6:
        size = 1024 << start[1048]  # s_log_block_size: no block is smaller than a sector
    return info.type, size
