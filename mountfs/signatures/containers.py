"""Volumes that hold no files themselves: RAID members, LVM, encryption, ZFS.

They come first, since their first bytes may look like what they contain.
"""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING
from uuid import UUID

from mountfs.signatures.window import Signature, uuid_text
from mountfs.tree import FileSystemInfo

if TYPE_CHECKING:
    from mountfs.signatures.window import Window

_MD_MAGIC = 0xA92B4EFC
_LUKS = b"LUKS\xba\xbe"
_LUKS_BACKUP = b"SKUL\xba\xbe"
_LUKS_BACKUP_OFFSETS = (0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000, 0x200000, 0x400000)
_BITLOCKER = b"-FVE-FS-"
_BITLOCKER_TO_GO = UUID("4967d63b-2e29-4ad8-8399-f6a339e3d001").bytes_le
_ZFS_MAGIC = 0x00BAB10C
_ZFS_LABEL = 256 << 10
_BCACHE_MAGIC = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")


def _mdraid(window: Window) -> FileSystemInfo | None:
    end = (window.size & ~0x1FF) - 8192
    for start in (0, 4096, end & ~4095):
        if (
            window.number(start, "<I") == _MD_MAGIC
            and window.number(start + 4, "<I") == 1
            and window.number(start + 144, "<Q") * 512 == start
        ):
            return FileSystemInfo("mdraid", window.text(start + 32, 32), window.uuid(start + 16))
    return _mdraid_old(window)


def _mdraid_old(window: Window) -> FileSystemInfo | None:
    """Version 0.90: in the last whole 64 KiB, in the byte order of the machine that wrote it."""
    start = (window.size & ~0xFFFF) - 0x10000
    for order in "<>":
        used = window.number(start + 32, order + "I") * 1024
        if (
            window.number(start, order + "I") == _MD_MAGIC
            and not window.number(start + 4, order + "I")
            and used <= start
        ):
            words = (window.number(start + at, order + "I") for at in (20, 52, 56, 60))
            return FileSystemInfo("mdraid", "", uuid_text(struct.pack(">4I", *words)))
    return None


def _lvm2(window: Window) -> FileSystemInfo | None:
    for sector in range(4):
        start = 512 * sector
        if not (window.has(start, b"LABELONE") and window.number(start + 8, "<Q") == sector):
            continue
        if not window.has(start + 24, b"LVM2 001"):
            continue
        raw = window.text(start + window.number(start + 20, "<I"), 32, "latin-1")
        ends = (0, 6, 10, 14, 18, 22, 26, 32)
        uuid = "-".join(raw[first:last] for first, last in itertools.pairwise(ends))
        return FileSystemInfo("lvm2", "", uuid if len(raw) == 32 else "")
    return None


def _luks(window: Window) -> FileSystemInfo | None:
    start = 0
    if not window.has(0, _LUKS):
        found = [at for at in _LUKS_BACKUP_OFFSETS if window.has(at, _LUKS_BACKUP)]
        if not found:
            return None
        start = found[0]
    version = window.number(start + 6, ">H")
    if version not in {1, 2}:
        return None
    label = window.text(start + 24, 48) if version == 2 else ""
    note = "the primary LUKS header is damaged" if start else ""
    return FileSystemInfo(f"luks{version}", label, window.text(start + 168, 40), note)


def _bitlocker(window: Window) -> FileSystemInfo | None:
    if window.has(3, _BITLOCKER) or (window.has(3, b"MSWIN4.1") and window.has(424, _BITLOCKER_TO_GO)):
        return FileSystemInfo("bitlocker")
    return None


def _zfs(window: Window) -> FileSystemInfo | None:
    """Four uberblocks in one label are what libblkid asks for, too."""
    for label in (0, _ZFS_LABEL):
        ring = window.at(label + _ZFS_LABEL // 2, _ZFS_LABEL // 2)
        firsts = [ring[at : at + 8] for at in range(0, len(ring), 1024)]
        for order in ("<Q", ">Q"):
            if firsts.count(struct.pack(order, _ZFS_MAGIC)) >= 4:
                return FileSystemInfo("zfs")
    return None


def _bcache(window: Window) -> FileSystemInfo | None:
    return FileSystemInfo("bcache", window.text(4096 + 72, 32), window.uuid(4096 + 40))


SIGNATURES = (
    Signature((), _mdraid),
    Signature(tuple((512 * sector, b"LABELONE") for sector in range(4)), _lvm2),
    Signature(((3, _BITLOCKER), (3, b"MSWIN4.1")), _bitlocker),
    Signature(((0, _LUKS), *((at, _LUKS_BACKUP) for at in _LUKS_BACKUP_OFFSETS)), _luks),
    Signature(((4096 + 24, _BCACHE_MAGIC),), _bcache),
)

LATE_SIGNATURES = (Signature((), _zfs),)
"""Asked last: they read most."""
