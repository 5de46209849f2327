"""On-disk structures of SquashFS 4.0: superblock, metadata blocks, tables and inodes.

Metadata is a stream of blocks of up to 8 KiB, each compressed alone; a reference names where a block lies
and a byte of what it decodes to. Source: the kernel's documentation of the format
(filesystems/squashfs) and "Squashfs Binary Format" of the squashfs-tools-ng project.
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import UnsupportedVolumeError, VolumeError
from mountfs.drivers import _decoders as decoders
from mountfs.drivers._content import MAX_FILE_SIZE, MAX_RUNS, read_at
from mountfs.drivers._tree import MAX_TARGET, SharedCache
from mountfs.tree import Node, NodeKind

if TYPE_CHECKING:
    from imageformat.device import BlockDevice
    from mountfs.drivers._decoders import Decoder

NOTHING = 0xFFFF_FFFF
"""No fragment, no attributes."""
NO_TABLE = 0xFFFF_FFFF_FFFF_FFFF
PLAIN_BLOCK = 1 << 24
"""In the stored size of a data block: it is not compressed."""

_SUPERBLOCK = struct.Struct("<IIIIIHHHHHHQQQQQQQQ")
_METADATA = 8192
_PLAIN_METADATA = 0x8000
_CACHED_METADATA = 1024
_MAX_SPAN = 64 << 20
"""Longest run of metadata read at once: the block list of a file of 2 TiB in blocks of 128 KiB."""

_COMPRESSORS: dict[int, Decoder] = {
    1: decoders.inflate,
    2: decoders.unlzma,
    3: decoders.unlzo,
    4: decoders.unxz,
    5: decoders.unlz4,
    6: decoders.unzstd,
}
_LZ4 = 5

_KINDS = (
    NodeKind.DIRECTORY,
    NodeKind.FILE,
    NodeKind.SYMLINK,
    NodeKind.BLOCK_DEVICE,
    NodeKind.CHARACTER_DEVICE,
    NodeKind.FIFO,
    NodeKind.SOCKET,
)
_EXTENDED = 7


class Superblock(NamedTuple):
    """What the start of the volume says; offsets are bytes from there."""

    block_size: int
    fragments: int
    ids: int
    root: int
    size: int
    id_table: int
    xattr_table: int
    inode_table: int
    directory_table: int
    fragment_table: int
    decode: Decoder


def read_superblock(device: BlockDevice) -> Superblock:
    """Read and check the superblock.

    Raises:
        VolumeError: it is not one, or damaged.
        UnsupportedVolumeError: another version, or a compressor that is not here; the message says which.
    """
    raw = read_at(device, 0, _SUPERBLOCK.size, "the SquashFS superblock")
    if raw[:4] == b"sqsh":
        raise UnsupportedVolumeError("a big-endian SquashFS, of a version before 4.0, is not supported")
    (magic, _, _, block_size, fragments, compressor, log, _, ids, major, minor, root, size, *tables) = (
        _SUPERBLOCK.unpack(raw)
    )
    if magic != 0x73717368:
        raise VolumeError("not a SquashFS: no magic")
    if (major, minor) != (4, 0):
        raise UnsupportedVolumeError(f"SquashFS {major}.{minor} is not supported; only 4.0 is")
    if not 12 <= log <= 20 or block_size != 1 << log:
        raise VolumeError(f"the SquashFS superblock is damaged: blocks of {block_size} bytes")
    if size > device.size or not ids:
        raise VolumeError(f"the SquashFS superblock is damaged: {size} bytes used of {device.size}")
    if compressor not in _COMPRESSORS:
        raise UnsupportedVolumeError(f"SquashFS with compressor {compressor} is not supported")
    if compressor == _LZ4:
        decoders.require_lz4()
    id_table, xattr_table, inode_table, directory_table, fragment_table, _ = tables
    return Superblock(
        block_size,
        fragments,
        ids,
        root,
        size,
        id_table,
        xattr_table,
        inode_table,
        directory_table,
        fragment_table,
        _COMPRESSORS[compressor],
    )


class _Block(NamedTuple):
    plain: bytes
    next: int


class Metadata:
    """Reads runs of metadata through a bounded cache of decoded blocks. Any number of threads."""

    def __init__(self, device: BlockDevice, superblock: Superblock) -> None:
        self._device = device
        self._superblock = superblock
        self._blocks: SharedCache[int, _Block] = SharedCache(_CACHED_METADATA, lambda _: 1)

    def read(self, start: int, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from byte ``offset`` on, counted from the block at ``start``.

        Raises:
            VolumeError: a block is damaged, or there are not so many bytes.
        """
        if size > _MAX_SPAN:
            raise VolumeError(f"the metadata claims {size} bytes for one thing")
        parts: list[bytes] = []
        while size > 0:
            block = self._block(start)
            piece = block.plain[offset : offset + size]
            if piece:
                parts.append(piece)
            size -= len(piece)
            start, offset = block.next, max(0, offset - len(block.plain))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def item(self, table: int, index: int, size: int, what: str) -> bytes:
        """Return one item of a table whose blocks are found through an array of places."""
        block, offset = divmod(index * size, _METADATA)
        (start,) = struct.unpack("<Q", read_at(self._device, table + 8 * block, 8, what))
        return self.read(start, offset, size)

    def _block(self, start: int) -> _Block:
        return self._blocks.get_or_make(start, lambda: self._decode(start))

    def _decode(self, start: int) -> _Block:
        if start + 2 > self._superblock.size:
            raise VolumeError(f"a metadata block at byte {start} lies outside the file system")
        (header,) = struct.unpack("<H", read_at(self._device, start, 2, "a metadata block"))
        length = header & ~_PLAIN_METADATA
        if not 0 < length <= _METADATA:
            raise VolumeError(f"the metadata block at byte {start} is damaged: {length} bytes")
        stored = read_at(self._device, start + 2, length, "a metadata block")
        plain = stored if header & _PLAIN_METADATA else self._superblock.decode(stored, _METADATA)
        if not plain:
            raise VolumeError(f"the metadata block at byte {start} is damaged: it is empty")
        return _Block(plain, start + 2 + length)


class Head(NamedTuple):
    """What every inode starts with."""

    reference: int
    kind: NodeKind
    mode: int
    uid: int
    gid: int
    mtime: int
    number: int


@dataclass(frozen=True, slots=True)
class Inode:
    """One inode; which fields mean something depends on its kind."""

    head: Head
    links: int
    size: int = 0
    xattrs: int = NOTHING
    start: int = 0
    """Of a file's first block on the volume; of a directory's first block in its table."""
    offset: int = 0
    """Of a file's tail in its fragment; of a directory in its block."""
    fragment: int = NOTHING
    blocks: array[int] = field(default_factory=lambda: array("I"))
    """Stored size of each data block."""
    target: bytes = b""
    device: tuple[int, int] = (0, 0)

    def to_node(self, name: bytes) -> Node:
        """Describe it under a name."""
        head, time_ns = self.head, self.head.mtime * 1_000_000_000
        return Node(
            name=name,
            kind=head.kind,
            key=head.reference,
            size=self.size if head.kind in {NodeKind.FILE, NodeKind.SYMLINK} else 0,
            mode=head.mode & 0o7777,
            uid=head.uid,
            gid=head.gid,
            links=max(1, self.links),
            inode=head.number,
            atime_ns=time_ns,
            mtime_ns=time_ns,
            ctime_ns=time_ns,
            device=self.device,
        )


class _Cursor:
    """Takes what follows in the metadata, piece by piece."""

    def __init__(self, metadata: Metadata, start: int, offset: int) -> None:
        self._metadata = metadata
        self._start = start
        self._offset = offset

    def numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.bytes(struct.calcsize(layout)))

    def bytes(self, size: int) -> bytes:
        raw = self._metadata.read(self._start, self._offset, size)
        self._offset += size
        return raw


def read_inode(metadata: Metadata, superblock: Superblock, reference: int) -> Inode:
    """Read the inode that a reference names: 48 bits of block, 16 of byte.

    Raises:
        VolumeError: there is none, or it is damaged.
    """
    cursor = _Cursor(metadata, superblock.inode_table + (reference >> 16), reference & 0xFFFF)
    form, mode, uid, gid, mtime, number = cursor.numbers("<HHHHII")
    if not 1 <= form <= 2 * _EXTENDED:
        raise VolumeError(f"the inode {reference:#x} is damaged: of type {form}")
    kind = _KINDS[(form - 1) % _EXTENDED]
    owners = [_id(metadata, superblock, index) for index in (uid, gid)]
    head = Head(reference, kind, mode, owners[0], owners[1], mtime, number)
    extended = form > _EXTENDED
    if kind is NodeKind.DIRECTORY:
        return _directory(cursor, head, extended=extended)
    if kind is NodeKind.FILE:
        return _file(cursor, head, superblock, extended=extended)
    if kind is NodeKind.SYMLINK:
        return _symlink(cursor, head, extended=extended)
    return _special(cursor, head, extended=extended)


def _id(metadata: Metadata, superblock: Superblock, index: int) -> int:
    if index >= superblock.ids:
        raise VolumeError(f"an inode is damaged: its owner is number {index} of {superblock.ids}")
    return int.from_bytes(metadata.item(superblock.id_table, index, 4, "the table of owners"), "little")


def _directory(cursor: _Cursor, head: Head, *, extended: bool) -> Inode:
    if extended:
        links, size, start, _, _, offset, xattrs = cursor.numbers("<IIIIHHI")
    else:
        (start, links, size, offset, _), xattrs = cursor.numbers("<IIHHI"), NOTHING
    # Three bytes are counted for "." and "..", which are not stored.
    return Inode(head, links, max(0, size - 3), xattrs, start, offset)


def _file(cursor: _Cursor, head: Head, superblock: Superblock, *, extended: bool) -> Inode:
    if extended:
        start, size, _, links, fragment, offset, xattrs = cursor.numbers("<QQQIIII")
    else:
        (start, fragment, offset, size), links, xattrs = cursor.numbers("<IIII"), 1, NOTHING
    count = size // superblock.block_size
    if fragment == NOTHING and size % superblock.block_size:
        count += 1
    if size > MAX_FILE_SIZE or count > MAX_RUNS:
        raise VolumeError(f"the inode {head.reference:#x} is damaged: a file of {size} bytes")
    blocks = array("I", cursor.bytes(4 * count))
    if sys.byteorder == "big":
        blocks.byteswap()
    return Inode(head, links, size, xattrs, start, offset, fragment, blocks)


def _symlink(cursor: _Cursor, head: Head, *, extended: bool) -> Inode:
    links, size = cursor.numbers("<II")
    if size > MAX_TARGET:
        raise VolumeError(f"the inode {head.reference:#x} is damaged: a symbolic link of {size} bytes")
    target = cursor.bytes(size)
    xattrs = cursor.numbers("<I")[0] if extended else NOTHING
    return Inode(head, links, size, xattrs, target=target)


def _special(cursor: _Cursor, head: Head, *, extended: bool) -> Inode:
    (links,) = cursor.numbers("<I")
    device = (0, 0)
    if head.kind in {NodeKind.BLOCK_DEVICE, NodeKind.CHARACTER_DEVICE}:
        (raw,) = cursor.numbers("<I")
        device = (raw >> 8 & 0xFFF, raw & 0xFF | raw >> 12 & 0xF_FF00)
    xattrs = cursor.numbers("<I")[0] if extended else NOTHING
    return Inode(head, links, xattrs=xattrs, device=device)
