"""Superblocks that are met less often: of other systems, of clusters, and of volumes that hold volumes.

Layouts from the kernel's sources of each on-disk format as documentation, TN1150's successor for
CoreStorage (libfvde's description of the format) and the Linux-NTFS description of dynamic disks.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from mountfs.signatures.window import Signature, fixed
from mountfs.tree import FileSystemInfo

if TYPE_CHECKING:
    from mountfs.signatures.window import Window

_SUPER = 1024
_UFS_PLACES = (8192, 65536, 262144, 0)
_UFS_MAGIC = 1372
_UFS1, _UFS2 = (0x0001_1954, 0x0009_5014, 0x0019_5612, 0x0052_5612), (0x1954_0119,)
_OCFS2_PLACES = (1024, 2048, 4096, 8192)
_VMFS, _VMFS_MEMBER = 2 << 20, 1 << 20
_BCACHEFS = bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")


def _minix(window: Window) -> FileSystemInfo | None:
    """A magic number of 16 bits proves little; the bitmaps must be able to hold what is counted."""
    if window.number(_SUPER + 24, "<H") == 0x4D5A:
        inodes, zones = window.number(_SUPER, "<I"), window.number(_SUPER + 20, "<I")
        maps, block_size = (
            (window.number(_SUPER + at, "<H") for at in (6, 8)),
            window.number(_SUPER + 28, "<H"),
        )
        first = window.number(_SUPER + 10, "<H")
    else:
        inodes, block_size = window.number(_SUPER, "<H"), 1024
        old = window.number(_SUPER + 16, "<H") in {0x137F, 0x138F}
        zones = window.number(_SUPER + 2, "<H") if old else window.number(_SUPER + 20, "<I")
        maps = (window.number(_SUPER + at, "<H") for at in (4, 6))
        first = window.number(_SUPER + 8, "<H")
    inode_map, zone_map = maps
    bits = 8 * block_size
    if not inodes or inode_map * bits < inodes + 1 or not first < zones <= first + zone_map * bits:
        return None
    return FileSystemInfo("minix")


def _nilfs2(window: Window) -> FileSystemInfo | None:
    """The superblock proves itself by a CRC-32, computed as if its own field were zero."""
    size, seed = window.number(_SUPER + 8, "<H"), window.number(_SUPER + 12, "<I")
    raw = window.at(_SUPER, size) if 24 <= size <= 1024 else b""
    plain = raw[:16] + bytes(4) + raw[20:]
    if not raw or zlib.crc32(plain, seed ^ 0xFFFF_FFFF) ^ 0xFFFF_FFFF != window.number(_SUPER + 16, "<I"):
        return None
    return FileSystemInfo("nilfs2", window.text(_SUPER + 168, 80), window.uuid(_SUPER + 152))


def _ufs(window: Window) -> FileSystemInfo | None:
    for start in _UFS_PLACES:
        for order in "<>":
            magic = window.number(start + _UFS_MAGIC, order + "I")
            if magic not in {*_UFS1, *_UFS2}:
                continue
            label = window.text(start + 680, 32) if magic in _UFS2 else ""
            parts = [window.number(start + at, order + "I") for at in (144, 148)]
            uuid = "".join(f"{part:08x}" for part in parts) if any(parts) else ""
            return FileSystemInfo("ufs", label, uuid)
    return None


def _ocfs2(window: Window) -> FileSystemInfo | None:
    start = next(start for start in _OCFS2_PLACES if window.has(start, b"OCFSV2"))
    return FileSystemInfo("ocfs2", window.text(start + 272, 64), window.uuid(start + 336))


def _vmfs(window: Window) -> FileSystemInfo | None:
    return FileSystemInfo("vmfs", window.text(_VMFS + 29, 128), _vmfs_uuid(window.at(_VMFS + 9, 16)))


def _vmfs_member(window: Window) -> FileSystemInfo | None:
    return FileSystemInfo("vmfs-member", "", _vmfs_uuid(window.at(_VMFS_MEMBER + 130, 16)))


def _vmfs_uuid(raw: bytes) -> str:
    """Two numbers of 32 bits and one of 16, little-endian, and a hardware address."""
    if not any(raw):
        return ""
    parts = (raw[3::-1], raw[7:3:-1], raw[9:7:-1], raw[10:])
    return "-".join(part.hex() for part in parts)


def _core_storage(window: Window) -> FileSystemInfo | None:
    """Physical volume of CoreStorage; FileVault 2 before APFS is one, encrypted."""
    if window.number(8, "<H") != 1 or window.number(10, "<H") != 0x10:
        return None
    return FileSystemInfo("corestorage", "", window.uuid(304))


SIGNATURES = (
    Signature(
        (
            *((_SUPER + 16, magic) for magic in (b"\x7f\x13", b"\x8f\x13", b"\x68\x24", b"\x78\x24")),
            (_SUPER + 24, b"\x5a\x4d"),
        ),
        _minix,
    ),
    Signature(((_SUPER + 6, b"\x34\x34"),), _nilfs2),
    Signature((), _ufs),
    Signature(tuple((start, b"OCFSV2") for start in _OCFS2_PLACES), _ocfs2),
    Signature(((65536, b"ReIsEr4"),), fixed("reiser4", uuid=65536 + 20, label=(65536 + 36, 16))),
    Signature(((4096 + 24, _BCACHEFS),), fixed("bcachefs", uuid=4096 + 56, label=(4096 + 72, 32))),
    Signature(((512 + 32, b"1SFB"), (512 + 32, b"BFS1")), fixed("befs", label=(512, 32))),
    Signature(((0, b"\xce\xfa\xad\x1b"),), fixed("bfs")),
    Signature(((0, b"-rom1fs-"),), fixed("romfs", label=(16, 16))),
    Signature(((8192, b"\x49\xe8\x95\xf9"),), fixed("hpfs")),
    Signature(((_SUPER, b"\xf5\xfc\x01\xa5"), (8192, b"\xa5\x01\xfc\xf5")), fixed("vxfs")),
    Signature(((0, b"UBI#"),), fixed("ubi")),
    Signature(((0, b"\x31\x18\x10\x06"),), fixed("ubifs")),
)

CONTAINERS = (
    Signature(((_VMFS, b"\x5e\xf1\xab\x2f"),), _vmfs),
    Signature(((_VMFS_MEMBER, b"\x0d\xd0\x01\xc0"),), _vmfs_member),
    Signature(((88, b"CS"),), _core_storage),
    Signature(((512, b"TOCBLOCK"), (3072, b"PRIVHEAD")), fixed("ldm")),
    Signature(((0, b"SPACEDB"), (4096, b"SPACEDB")), fixed("storage-spaces")),
    Signature(((0, b"verity\0\0"),), fixed("verity", uuid=16)),
    Signature(((0, b"dmvdo001"),), fixed("vdo")),
    Signature(((516, b"!Stra0tis\x86\xff\x02^\x41rh"),), fixed("stratis")),
)
