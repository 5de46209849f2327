"""What the journal of an XFS would change, kept in memory over the volume.

As the kernel does when it mounts: first all buffers that were given up are noted, then the items of each
transaction are applied in order, unless the volume holds something newer. Nothing is written anywhere. What
the kernel finishes afterwards is left: freed space and files without a name are invisible here, and a file
whose map, or whose attributes, were half changed is remembered as unfinished.

Source: "XFS Algorithms & Data Structures", sections Journaling Log and Self-Describing Metadata.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from imageformat.crc32c import crc32c
from imageformat.errors import VolumeError
from mountfs.drivers._content import read_at
from mountfs.drivers._xfs_log import SECTOR, Log
from mountfs.drivers._xfs_loginode import InodeFormat, apply_inode
from mountfs.drivers._xfs_overlay import Overlay

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from imageformat.device import BlockDevice
    from mountfs.drivers._xfs_layout import Superblock
    from mountfs.drivers._xfs_log import Transaction
    from mountfs.drivers._xfs_overlay import OverlayDevice

_INODE, _BUFFER, _CREATE = 0x123B, 0x123C, 0x123F
_MAP_INTENT, _MAP_DONE = 0x1244, 0x1245
_ATTRIBUTE_INTENT, _ATTRIBUTE_DONE = 0x1246, 0x1247
_EXCHANGE_INTENT, _EXCHANGE_DONE = 0x1248, 0x1249
_INTENTS = {_MAP_INTENT: (16, 32), _ATTRIBUTE_INTENT: (16, 0), _EXCHANGE_INTENT: (16, 8)}
"""Where the numbers of the inodes begin that an intent is about, and in which steps; 0: there is one."""
_DONE = {_MAP_DONE, _ATTRIBUTE_DONE, _EXCHANGE_DONE}

_BUFFER_FORMAT = struct.Struct("<HHHHqI")
_OF_INODES, _CANCEL = 0x1, 0x2
_QUOTA = 0x4 | 0x8 | 0x10
_CHUNK = 128
_MAX_MAP = 64
_LONGEST_BUFFER = 1 << 20
_LARGEST_LOG = 1 << 31
_CREATE_NUMBERS = struct.Struct(">IIIIII")
_NEVER = {0, 0xFFFF_FFFF_FFFF_FFFF}


class _Place(NamedTuple):
    """Where a kind of v5 block, told by its magic, keeps its checksum, place in the journal, and uuid."""

    checksum: int
    lsn: int
    uuid: int


_BLOCKS = {
    **dict.fromkeys((b"XDB3", b"XDD3", b"XDF3"), _Place(4, 16, 24)),
    b"BMA3": _Place(64, 32, 40),
    b"XSLM": _Place(12, 48, 16),
    b"XFSB": _Place(224, 240, 32),
}
_TREES = dict.fromkeys((0x3BEE, 0x3EBE, 0x3DF1, 0x3DFF), _Place(12, 24, 32))
"""Told by the magic number at byte 8: attributes, and the index of directories."""


def replay(device: BlockDevice, layout: Superblock) -> tuple[OverlayDevice, frozenset[int]] | None:
    """Return the volume as its journal says, and the inodes that were half changed.

    None: there is nothing to replay, or the journal is on another device.

    Raises:
        VolumeError: the journal is damaged, or too large to be held.
    """
    if not layout.log_start:
        return None
    log = open_log(device, layout)
    records = log.needed()
    if not records:
        return None
    player = _Player(device, layout)
    for transaction in log.transactions(records):
        player.note(transaction)
    for transaction in log.transactions(records):
        player.play(transaction)
    return player.overlay.finished(), frozenset(
        inode for inodes in player.unfinished.values() for inode in inodes
    )


def open_log(device: BlockDevice, layout: Superblock) -> Log:
    """Return the journal inside the volume."""
    size = layout.log_blocks * layout.block_size
    if size > _LARGEST_LOG:
        raise VolumeError(f"the journal is damaged: it has {size} bytes")
    start = layout.block_offset(layout.log_start, layout.log_blocks, "the journal")
    return Log(
        lambda offset, length: read_at(device, start + offset, length, "the journal"),
        size // SECTOR,
        layout.uuid,
    )


class _Player:
    """Applies transactions to an overlay."""

    def __init__(self, device: BlockDevice, layout: Superblock) -> None:
        self._layout = layout
        self._cancelled: Counter[tuple[int, int]] = Counter()
        """How often a buffer, as sector and sectors, is given up from here on."""
        self._starts: Counter[int] = Counter()
        self.overlay = Overlay(device)
        self.unfinished: dict[int, list[int]] = {}
        """Inodes by the number of an intent."""

    def note(self, transaction: Transaction) -> None:
        """First round: note which buffers are given up later, so that they are not brought back."""
        for item in transaction.items:
            if _kind(item) == _BUFFER:
                self._count(item, 1)

    def _count(self, item: Sequence[bytes], change: int) -> None:
        flags, block, length, _ = _buffer(item)
        if flags & _CANCEL:
            self._cancelled[block, length] += change
            self._starts[block] += change

    def play(self, transaction: Transaction) -> None:
        """Second round: buffers, then inodes, then what is given up from here on."""
        place = transaction.place
        kinds = [(_kind(item), item) for item in transaction.items]
        for kind, item in kinds:
            if kind == _BUFFER:
                self._buffer(item, place)
            elif kind == _CREATE:
                self._create(item[0])
        for kind, item in kinds:
            if kind == _INODE:
                self._inode(item, place)
            else:
                self._intent(kind, item[0])
        for kind, item in kinds:
            if kind == _BUFFER:
                self._count(item, -1)

    def _buffer(self, item: Sequence[bytes], place: int) -> None:
        """Apply the parts that a map of bits names; buffers of inodes hold only lists of unlinked ones."""
        flags, block, length, dirty = _buffer(item)
        if flags & (_CANCEL | _OF_INODES | _QUOTA) or self._cancelled[block, length] > 0:
            return
        raw = self.overlay.read(block * SECTOR, length * SECTOR)
        if self._is_newer(raw, place):
            return
        regions = iter(item[1:])
        for first, end in _runs(dirty):
            at = first * _CHUNK
            while at < end * _CHUNK:
                part = next(regions, b"")[: end * _CHUNK - at]
                if not part or len(part) % _CHUNK or at + len(part) > len(raw):
                    raise VolumeError("the journal is damaged: a part of a buffer does not fit")
                raw[at : at + len(part)] = part
                at += len(part)
        self._seal(raw)
        self.overlay.write(block * SECTOR, raw)

    def _is_newer(self, raw: bytes | bytearray, place: int) -> bool:
        """Whether a block was written after the transaction; only version 5 can tell."""
        if not self._layout.has_checksums:
            return False
        where = _describe(raw)
        owners = (self._layout.metadata_uuid, self._layout.uuid)
        if where is None or raw[where.uuid : where.uuid + 16] not in owners:
            return False
        (found,) = struct.unpack_from(">Q", raw, where.lsn)
        return found not in _NEVER and found >= place

    def _seal(self, raw: bytearray) -> None:
        """Give a block the checksum that it would get when it is written."""
        where = _describe(raw) if self._layout.has_checksums else None
        if where is not None:
            end = self._layout.sector_size if raw[:4] == b"XFSB" else len(raw)
            raw[where.checksum : where.checksum + 4] = bytes(4)
            struct.pack_into("<I", raw, where.checksum, crc32c(bytes(raw[:end])))

    def _create(self, raw: bytes) -> None:
        """Make fresh inodes, as the kernel does wherever it finds this."""
        layout = self._layout
        if len(raw) < 28:
            raise VolumeError("the journal is damaged: new inodes without a place")
        group, block, count, size, length, generation = _CREATE_NUMBERS.unpack_from(raw, 4)
        if size != layout.inode_size or not 0 < length * layout.block_size == count * size <= _LONGEST_BUFFER:
            raise VolumeError(f"the journal is damaged: {count} new inodes in {length} blocks")
        number = group << layout.group_bits | block
        start = layout.block_offset(number, length, "a chunk of new inodes")
        sectors = range(
            start // SECTOR, (start + length * layout.block_size) // SECTOR, layout.block_size // SECTOR
        )
        if any(self._starts[sector] > 0 for sector in sectors):
            return
        version = 3 if layout.has_checksums else 2
        fresh = bytearray(size)
        struct.pack_into(">2sHBB", fresh, 0, b"IN", 0, version, 2)
        struct.pack_into(">II", fresh, 92, generation, 0xFFFF_FFFF)
        inodes = []
        for index in range(count):
            inode = bytearray(fresh)
            if version == 3:
                struct.pack_into(
                    ">Q16s", inode, 152, (number << layout.inode_bits) + index, layout.metadata_uuid
                )
                struct.pack_into("<I", inode, 100, crc32c(bytes(inode)))
            inodes.append(inode)
        self.overlay.write(start, b"".join(inodes))

    def _inode(self, item: Sequence[bytes], place: int) -> None:
        form = InodeFormat.parse(item)
        if self._cancelled[form.buffer_block, form.buffer_length] > 0:
            return
        layout = self._layout
        offset = layout.inode_offset(form.number)
        raw = self.overlay.read(offset, layout.inode_size)
        if apply_inode(raw, form, item, place, layout):
            if layout.has_checksums:
                raw[100:104] = bytes(4)
                struct.pack_into("<I", raw, 100, crc32c(bytes(raw)))
            self.overlay.write(offset, raw)

    def _intent(self, kind: int, raw: bytes) -> None:
        """Remember whose map or attributes are going to change, until it is done."""
        if kind in _DONE:
            self.unfinished.pop(int.from_bytes(raw[8:16], "little"), None)
        if kind not in _INTENTS:
            return
        start, step = _INTENTS[kind]
        count = struct.unpack_from("<I", raw, 4)[0] if kind == _MAP_INTENT else 2 if step else 1
        if len(raw) < start + max(count - 1, 0) * step + 8:
            raise VolumeError("the journal is damaged: an intent does not fit")
        (identity,) = struct.unpack_from("<Q", raw, 8)
        self.unfinished[identity] = [
            struct.unpack_from("<Q", raw, start + number * step)[0] for number in range(count)
        ]


def _kind(item: Sequence[bytes]) -> int:
    if len(item[0]) < 4:
        raise VolumeError("the journal is damaged: an item without a type")
    return int.from_bytes(item[0][:2], "little")


def _buffer(item: Sequence[bytes]) -> tuple[int, int, int, int]:
    """Return flags, sector, sectors, and a bit for each 128 bytes that are there."""
    raw = item[0]
    if len(raw) < _BUFFER_FORMAT.size:
        raise VolumeError("the journal is damaged: a buffer without a place")
    _, _, flags, length, block, words = _BUFFER_FORMAT.unpack_from(raw)
    bits = raw[_BUFFER_FORMAT.size : _BUFFER_FORMAT.size + words * 4]
    if block < 0 or words > _MAX_MAP or len(bits) < words * 4:
        raise VolumeError("the journal is damaged: a buffer without a map")
    return flags, block, length, int.from_bytes(bits, "little")


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """Yield where runs of ones begin and end."""
    first = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        ones = (~bits & (bits + 1)).bit_length() - 1
        yield first + zeros, first + zeros + ones
        first, bits = first + zeros + ones, bits >> ones


def _describe(raw: bytes | bytearray) -> _Place | None:
    found = _BLOCKS.get(bytes(raw[:4])) or _TREES.get(int.from_bytes(raw[8:10], "big"))
    return found if found is not None and len(raw) >= SECTOR else None
