"""Structures of HFS+ and HFSX: volume header, forks, and the records of the catalogue.

Source: Apple's TN1150, "HFS Plus Volume Format". Times count seconds since 1904, in UTC.
"""

from __future__ import annotations

import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from imageformat.device import Slice
from imageformat.errors import VolumeError
from mountfs.drivers._content import read_at
from mountfs.tree import NodeKind

if TYPE_CHECKING:
    from imageformat.device import BlockDevice

FOLDER, FILE = 1, 2
FILE_LINK, FOLDER_LINK = b"hlnkhfs+", b"fdrpMACS"

_HEADER = 1024
_EPOCH = 2_082_844_800
_COMPRESSED = 0x20
_KINDS = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFDIR: NodeKind.DIRECTORY,
    stat.S_IFLNK: NodeKind.SYMLINK,
    stat.S_IFIFO: NodeKind.FIFO,
    stat.S_IFSOCK: NodeKind.SOCKET,
    stat.S_IFCHR: NodeKind.CHARACTER_DEVICE,
    stat.S_IFBLK: NodeKind.BLOCK_DEVICE,
}


class Fork(NamedTuple):
    """One fork of a file: its size, and its first extents as (first block, count)."""

    size: int
    blocks: int
    extents: tuple[tuple[int, int], ...]


class VolumeHeader(NamedTuple):
    """What the volume header says, checked."""

    block_size: int
    block_count: int
    extents: Fork
    catalogue: Fork
    attributes: Fork


def parse_fork(raw: bytes, at: int = 0) -> Fork:
    """Parse the 80 bytes that describe a fork."""
    size, _, blocks = struct.unpack_from(">QII", raw, at)
    return Fork(size, blocks, parse_extents(raw, at + 16))


def parse_extents(raw: bytes, at: int = 0) -> tuple[tuple[int, int], ...]:
    """Parse eight extents; unused ones are empty."""
    return tuple(
        (first, count)
        for first, count in struct.iter_unpack(">II", raw[at : at + 64].ljust(64, b"\0"))
        if count
    )


def unwrapped(device: BlockDevice) -> BlockDevice:
    """Return the part of a volume that is HFS+: all, unless it lies in a wrapper of HFS."""
    head = read_at(device, _HEADER, 512, "the volume header")
    if head[:2] != b"BD" or head[124:126] not in {b"H+", b"HX"}:
        return device
    (block_size,) = struct.unpack_from(">I", head, 20)
    (first,) = struct.unpack_from(">H", head, 28)
    embedded, count = struct.unpack_from(">HH", head, 126)
    start, size = first * 512 + embedded * block_size, count * block_size
    if start + size > device.size:
        raise VolumeError("the HFS wrapper is damaged: what it wraps lies outside the volume")
    return Slice(device, start, size)


def read_header(device: BlockDevice) -> VolumeHeader:
    """Read and check the volume header.

    Raises:
        VolumeError: it is not HFS+, or damaged.
    """
    raw = read_at(device, _HEADER, 512, "the volume header")
    if raw[:2] not in {b"H+", b"HX"}:
        raise VolumeError("not an HFS+ file system: it has no volume header")
    block_size, blocks = struct.unpack_from(">II", raw, 40)
    if not 512 <= block_size <= 1 << 24 or block_size & (block_size - 1) or not blocks:
        raise VolumeError(f"the HFS+ volume header is damaged: {blocks} blocks of {block_size} bytes")
    return VolumeHeader(block_size, blocks, parse_fork(raw, 192), parse_fork(raw, 272), parse_fork(raw, 352))


class Entry(NamedTuple):
    """A file or folder as the catalogue describes it."""

    is_folder: bool
    number: int
    kind: NodeKind
    mode: int
    uid: int
    gid: int
    special: int
    """Number of what a hard link means, or count of links, or number of a device."""
    type_and_creator: bytes
    times: tuple[int, int, int, int]
    """Of creation, of change of content, of change, of access; in nanoseconds since 1970, 0 for none."""
    is_compressed: bool
    data: Fork
    resource: Fork


def parse_entry(raw: bytes) -> Entry | None:
    """Parse a record of the catalogue; None when it is no file or folder.

    Raises:
        VolumeError: it is damaged.
    """
    (record,) = struct.unpack_from(">h", raw, 0)
    if record not in {FOLDER, FILE}:
        return None
    if len(raw) < (88 if record == FOLDER else 248):
        raise VolumeError("a record of the HFS+ catalogue is damaged")
    number, *dates = struct.unpack_from(">IIIII", raw, 8)
    uid, gid, _, flags, mode, special = struct.unpack_from(">IIBBHI", raw, 32)
    kind = NodeKind.DIRECTORY if record == FOLDER else _KINDS.get(stat.S_IFMT(mode), NodeKind.FILE)
    if not mode:
        mode = 0o755 if record == FOLDER else 0o644
    nothing = Fork(0, 0, ())
    return Entry(
        is_folder=record == FOLDER,
        number=number,
        kind=kind,
        mode=stat.S_IMODE(mode),
        uid=uid,
        gid=gid,
        special=special,
        type_and_creator=raw[48:56] if record == FILE else b"",
        times=(_time(dates[0]), _time(dates[1]), _time(dates[2]), _time(dates[3])),
        is_compressed=record == FILE and bool(flags & _COMPRESSED),
        data=parse_fork(raw, 88) if record == FILE else nothing,
        resource=parse_fork(raw, 168) if record == FILE else nothing,
    )


def _time(seconds: int) -> int:
    return (seconds - _EPOCH) * 1_000_000_000 if seconds else 0


def name_of(raw: bytes) -> bytes:
    """Return a name as macOS shows it: its slash is a colon there; NUL gets its symbol."""
    text = _text(raw)
    return text.replace("/", ":").replace("\0", "\u2400").encode("utf-8", "surrogatepass")


def attribute_name(raw: bytes) -> str:
    """Return the name of an extended attribute, as bytes of UTF-8 come to text."""
    return _text(raw).encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    (length,) = struct.unpack_from(">H", raw, 0)
    if 2 + 2 * length > len(raw):
        raise VolumeError("an HFS+ name is damaged: it is longer than its key")
    return raw[2 : 2 + 2 * length].decode("utf-16-be", "surrogatepass")
