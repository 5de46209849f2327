"""Superblocks of Linux file systems, and swap.

Layouts from the kernel's documentation of each on-disk format; the choice between ext2, ext3 and ext4
by features is the one that libblkid prints.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.errors import MountfsError, VolumeError
from mountfs.drivers._btrfs_default import default_subvolume
from mountfs.drivers._xfs_log import SECTOR, Log
from mountfs.signatures.window import Signature, fixed, is_power_of_two
from mountfs.tree import FileSystemInfo

if TYPE_CHECKING:
    from mountfs.signatures.window import Window

_EXT = 1024
_EXT2_INCOMPAT = 0x02 | 0x10
_EXT3_INCOMPAT = _EXT2_INCOMPAT | 0x04
_EXT3_RO_COMPAT = 0x01 | 0x02 | 0x04
_EXT_RECOVER = 0x04
_EXT_JOURNAL_DEVICE = 0x08
_BTRFS = 65536
_BTRFS_DEFAULT_SUBVOLUME = 0x2
_BTRFS_TOP_LEVEL = 5
_BTRFS_DIRTY = "dirty: the log tree was not replayed; what was written in the last seconds may be missing"
_F2FS = 1024
_EROFS = 1024
_JFS = 32768
_SWAP = 1024
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_HIBERNATED = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001")
_XFS_NEEDS_REPAIR = 0x10
NOT_REPLAYED = "the journal was not replayed"
"""Of a volume by itself; a driver that replays says so in this place."""


def _ext(window: Window) -> FileSystemInfo | None:
    compat, incompat, ro_compat = (window.number(_EXT + at, "<I") for at in (92, 96, 100))
    inodes_per_group = window.number(_EXT + 40, "<I")
    if window.number(_EXT + 24, "<I") > 6 or not (inodes_per_group or incompat & _EXT_JOURNAL_DEVICE):
        return None
    if incompat & _EXT_JOURNAL_DEVICE:
        kind = "jbd"
    elif incompat & ~_EXT3_INCOMPAT or ro_compat & ~_EXT3_RO_COMPAT:
        kind = "ext4"
    elif compat & 0x04:
        kind = "ext3"
    else:
        kind = "ext2" if not incompat & _EXT_RECOVER else "ext4"
    state = window.number(_EXT + 58, "<H")
    notes = [f"dirty: {NOT_REPLAYED}"] if incompat & _EXT_RECOVER else []
    if state & 0x02:
        notes.append("the file system was marked as having errors")
    elif not notes and not state & 0x01 and kind != "jbd":
        notes.append("dirty: not cleanly unmounted")
    return FileSystemInfo(kind, window.text(_EXT + 120, 16), window.uuid(_EXT + 104), "; ".join(notes))


def _xfs(window: Window) -> FileSystemInfo | None:
    block_size, sector_size = window.number(4, ">I"), window.number(102, ">H")
    if not (is_power_of_two(block_size) and is_power_of_two(sector_size)):
        return None
    version, incompat = window.number(100, ">H") & 0xF, window.number(216, ">I")
    notes = [note] if (note := _xfs_journal(window, block_size)) else []
    if version == 5 and incompat & _XFS_NEEDS_REPAIR:
        notes.append("the file system was marked as having errors")
    return FileSystemInfo("xfs", window.text(108, 12), window.uuid(32), "; ".join(notes))


def _xfs_journal(window: Window, block_size: int) -> str:
    """Say what is in the journal, which lies at a block of an allocation group."""
    number, length = window.number(48, ">Q"), window.number(96, ">I") * block_size // SECTOR
    if not number:
        return "its journal is on another device: what was written last may be missing"
    bits = min(window.number(124, ">B"), 32)
    start = (number >> bits) * window.number(84, ">I") + (number & ((1 << bits) - 1))

    def read(offset: int, size: int) -> bytes:
        return window.at(start * block_size + offset, size)

    try:
        clean = length == 0 or Log(read, length, window.at(32, 16)).is_clean()
    except (VolumeError, struct.error, IndexError):
        clean = False
    return "" if clean else "dirty: the journal is replayed in memory when files are read"


def _btrfs(window: Window) -> FileSystemInfo | None:
    devices, log_root, incompat = (window.number(_BTRFS + at, "<Q") for at in (0x88, 0x60, 0xBC))
    notes = [f"one of {devices} devices"] if devices > 1 else []
    if log_root:
        notes.append(_BTRFS_DIRTY)
    if incompat & _BTRFS_DEFAULT_SUBVOLUME:
        notes.append(_btrfs_default(window))
    label, uuid = window.text(_BTRFS + 0x12B, 256), window.uuid(_BTRFS + 32)
    return FileSystemInfo("btrfs", label, uuid, "; ".join(filter(None, notes)))


def _btrfs_default(window: Window) -> str:
    """Say which subvolume the system mounts, where all of them are shown."""
    try:
        identity, name = default_subvolume(window.device)
    except MountfsError:
        return "mounted by default was perhaps a subvolume; all of it is shown"
    if identity == _BTRFS_TOP_LEVEL:
        return ""
    named = f" {name.decode('utf-8', 'replace')}" if name else ""
    return f"mounted by default was the subvolume {identity}{named}; all of it is shown"


def _f2fs(window: Window) -> FileSystemInfo | None:
    if (window.number(_F2FS + 4, "<H"), window.number(_F2FS + 6, "<H")) == (1, 0):
        return FileSystemInfo("f2fs")
    label = window.text(_F2FS + 124, 1024, "utf-16-le")
    return FileSystemInfo("f2fs", label, window.uuid(_F2FS + 108))


def _reiserfs(window: Window) -> FileSystemInfo | None:
    start = next(start for start in (65536, 8192) if window.has(start + 52, b"ReIsEr"))
    blocks = window.number(start + 44, "<H")
    if not is_power_of_two(blocks):
        return None
    if window.has(start + 52, b"ReIsErFs"):
        return FileSystemInfo("reiserfs")
    return FileSystemInfo("reiserfs", window.text(start + 100, 16), window.uuid(start + 84))


def _swap(window: Window) -> FileSystemInfo | None:
    for page_size in _PAGE_SIZES:
        if any(window.has(page_size - 10, magic[:10]) for magic in _HIBERNATED):
            note = "holds the memory of a hibernated system"
            break
        if window.has(page_size - 10, b"SWAPSPACE2") or window.has(page_size - 10, b"SWAP-SPACE"):
            note = ""
            break
    else:
        return None
    if window.has(page_size - 10, b"SWAP-SPACE"):
        return FileSystemInfo("swap")
    if not note and (window.number(_SWAP, "<I") != 1 or not window.number(_SWAP + 4, "<I")):
        return None
    return FileSystemInfo("swap", window.text(_SWAP + 28, 16), window.uuid(_SWAP + 12), note)


def _squashfs(window: Window) -> FileSystemInfo | None:
    big_endian = window.has(0, b"sqsh")
    major = window.number(28, ">H" if big_endian else "<H")
    if not 1 <= major <= 4:
        return None
    return FileSystemInfo("squashfs" if major == 4 else "squashfs3")


SIGNATURES = (
    Signature(
        tuple(
            (page_size - 10, magic)
            for page_size in _PAGE_SIZES
            for magic in (b"SWAPSPACE2", b"SWAP-SPACE", *_HIBERNATED)
        ),
        _swap,
    ),
    Signature(((0, b"XFSB"),), _xfs),
    Signature(((_EXT + 56, b"\x53\xef"),), _ext),
    Signature(tuple((start + 52, b"ReIsEr") for start in (65536, 8192)), _reiserfs),
    Signature(((_JFS, b"JFS1"),), fixed("jfs", uuid=_JFS + 136, label=(_JFS + 152, 16))),
    Signature(((0, b"hsqs"), (0, b"sqsh")), _squashfs),
    Signature(((0, b"\x45\x3d\xcd\x28"), (0, b"\x28\xcd\x3d\x45")), fixed("cramfs", label=(48, 16))),
    Signature(((_BTRFS + 64, b"_BHRfS_M"),), _btrfs),
    Signature(((_F2FS, b"\x10\x20\xf5\xf2"),), _f2fs),
    Signature(((_EROFS, b"\xe2\xe1\xf5\xe0"),), fixed("erofs", uuid=_EROFS + 48, label=(_EROFS + 64, 16))),
    Signature(((65536, b"\x01\x16\x19\x70"),), fixed("gfs2", uuid=65536 + 256)),
)
