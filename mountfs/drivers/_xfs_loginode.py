"""Inodes as the journal of an XFS has them: in the byte order of the machine, and in parts.

Source: "XFS Algorithms & Data Structures", sections Inode Updates and Inode Data Log Item.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mountfs.drivers._xfs_layout import Superblock

_FORMAT = struct.Struct("<HHIHHIQ16sqii")
_FORMAT_PACKED = struct.Struct("<HHIHHQ16sqii")
"""Of machines of 32 bits, without padding."""
_DATA_LOCAL, _DATA_EXTENTS, _DATA_ROOT, _DEVICE = 0x2, 0x4, 0x8, 0x10
_ATTRIBUTE_LOCAL, _ATTRIBUTE_EXTENTS, _ATTRIBUTE_ROOT = 0x40, 0x80, 0x100
_DATA = _DATA_LOCAL | _DATA_EXTENTS | _DATA_ROOT
_ATTRIBUTES = _ATTRIBUTE_LOCAL | _ATTRIBUTE_EXTENTS | _ATTRIBUTE_ROOT

_BEGIN = "HHBBHIIIHH"
_END = "QQIIHBBIHHI"
"""The fields from byte 0 to 24, and from 56 to 96, as `struct` names them."""
_CORE, _CORE_3 = 96, 176
_NEVER = {0, 0xFFFF_FFFF_FFFF_FFFF}
_LAST_FLUSH = 0xFFFF
_BIG_TIME = 0x8


@dataclass(frozen=True, slots=True)
class InodeFormat:
    """What the first region of an inode's item says."""

    number: int
    fields: int
    regions: int
    device: int
    buffer_block: int
    buffer_length: int
    """Place of the buffer that holds the inode, in sectors."""

    @classmethod
    def parse(cls, item: Sequence[bytes]) -> InodeFormat:
        """Read it.

        Raises:
            VolumeError: it is not one.
        """
        raw = item[0]
        if len(raw) >= _FORMAT.size:
            _, regions, fields, _, _, _, number, union, block, length, _ = _FORMAT.unpack_from(raw)
        elif len(raw) == _FORMAT_PACKED.size:
            _, regions, fields, _, _, number, union, block, length, _ = _FORMAT_PACKED.unpack_from(raw)
        else:
            raise VolumeError("the journal is damaged: an inode without a place")
        return cls(number, fields, regions, int.from_bytes(union[:4], "little"), block, length)


def apply_inode(
    raw: bytearray, form: InodeFormat, item: Sequence[bytes], place: int, layout: Superblock
) -> bool:
    """Bring an inode to what a transaction made of it; False when it is newer already.

    Raises:
        VolumeError: one of the two is damaged.
    """
    if raw[:2] != b"IN" or len(item) < 2:
        raise VolumeError(f"inode {form.number} is damaged: the journal changes what is none")
    core = item[1]
    start = _CORE_3 if layout.has_checksums else 100
    if len(core) < (_CORE_3 if layout.has_checksums else _CORE) or core[:2] != b"NI":
        raise VolumeError(f"inode {form.number} is damaged in the journal")
    if _is_newer(raw, core, place, has_checksums=layout.has_checksums):
        return False
    _write_core(raw, core, place, layout)
    if form.fields & _DEVICE:
        struct.pack_into(">I", raw, start, form.device)
    regions = iter(item[2:])
    middle = start + raw[82] * 8 if raw[82] else len(raw)
    for wanted, root, low, high in (
        (_DATA, _DATA_ROOT, start, middle),
        (_ATTRIBUTES, _ATTRIBUTE_ROOT, middle, len(raw)),
    ):
        region = next(regions, None) if form.fields & wanted else None
        if region is not None:
            fork = _root(region, high - low, layout) if form.fields & root else region
            if len(fork) > high - low:
                raise VolumeError(f"inode {form.number} is damaged in the journal: a fork does not fit")
            raw[low : low + len(fork)] = fork
    return True


def _is_newer(raw: bytearray, core: bytes, place: int, *, has_checksums: bool) -> bool:
    """Whether what is on the volume was written later; version 4 counts how often it was written."""
    if has_checksums:
        (found,) = struct.unpack_from(">Q", raw, 112)
        return found not in _NEVER and found > place
    (logged,) = struct.unpack_from("<H", core, 30)
    (flushed,) = struct.unpack_from(">H", raw, 30)
    return bool(logged < flushed and not (flushed == _LAST_FLUSH and logged < _LAST_FLUSH >> 1))


def _write_core(raw: bytearray, core: bytes, place: int, layout: Superblock) -> None:
    """Swap the bytes of every field; the next unlinked inode stays what it is."""
    raw[:24] = struct.pack(f">{_BEGIN}", *struct.unpack_from(f"<{_BEGIN}", core))
    if layout.has_checksums:
        struct.pack_into(">Q", raw, 24, *struct.unpack_from("<Q", core, 24))
        (flags2,) = struct.unpack_from("<Q", core, 120)
        (changes,) = struct.unpack_from("<Q", core, 104)
        (copied,) = struct.unpack_from("<I", core, 128)
        struct.pack_into(">QQQI12s", raw, 104, changes, place, flags2, copied, core[132:144])
        big_time = bool(flags2 & _BIG_TIME)
        _write_time(raw, core, 144, big_time=big_time)
        struct.pack_into(">Q16s", raw, 152, struct.unpack_from("<Q", core, 152)[0], core[160:176])
    else:
        raw[24:32] = core[24:30] + bytes(2)
        big_time = False
    for at in (32, 40, 48):
        _write_time(raw, core, at, big_time=big_time)
    struct.pack_into(f">{_END}", raw, 56, *struct.unpack_from(f"<{_END}", core, 56))


def _write_time(raw: bytearray, core: bytes, at: int, *, big_time: bool) -> None:
    layout = "Q" if big_time else "II"
    struct.pack_into(f">{layout}", raw, at, *struct.unpack_from(f"<{layout}", core, at))


def _root(region: bytes, room: int, layout: Superblock) -> bytes:
    """Bring the root of a tree from its form in memory, a block with a long header, to that in an inode."""
    header = 72 if layout.has_checksums else 24
    level, count = struct.unpack_from(">HH", region, 4)
    keys, pointers = header, header + (len(region) - header) // 16 * 8
    if len(region) < header + 16 * count or 4 + 16 * count > room:
        raise VolumeError("the journal is damaged: the root of a map does not fit")
    out = bytearray(room)
    struct.pack_into(">HH", out, 0, level, count)
    out[4 : 4 + 8 * count] = region[keys : keys + 8 * count]
    at = 4 + (room - 4) // 16 * 8
    out[at : at + 8 * count] = region[pointers : pointers + 8 * count]
    return bytes(out)
