"""Directories of XFS: inside the inode, and the data blocks of all larger forms.

A larger directory has an index of hashes behind its data (leaf, node and free blocks); it is not needed to
list every name, so damage in it hides nothing here.

Source: "XFS Algorithms & Data Structures", section Directories.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from imageformat.extent import ExtentKind
from mountfs.drivers._content import RunContent
from mountfs.drivers._xfs_layout import BlockHeader
from mountfs.drivers._xfs_mapping import map_fork

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from mountfs.drivers._tree import ListingBuilder
    from mountfs.drivers._xfs_inode import Inode
    from mountfs.drivers._xfs_layout import Superblock

_DATA_END = 32 << 30
"""Where the index begins, as an offset in the directory."""
_MAGIC_ONE, _MAGIC_DATA = {4: b"XD2B", 5: b"XDB3"}, {4: b"XD2D", 5: b"XDD3"}
"""Of a directory's only block, whose index stands at its end, and of any other."""
_HEADER, _HEADER_5 = 16, 64
_PROOF = BlockHeader(checksum=4, address=8, uuid=24, owner=40)
_UNUSED = b"\xff\xff"
_ENTRY = struct.Struct(">QB")
_TAG = struct.Struct(">H")
_READ_UNIT = 1 << 20


def short_entries(raw: bytes, *, has_type: bool) -> Iterator[tuple[int, bytes]]:
    """Yield inode number and name of the entries of a directory that fits into its inode.

    Raises:
        VolumeError: it does not.
    """
    count, wide = raw[0], bool(raw[1])
    width = 8 if wide else 4
    at = 2 + width
    for _ in range(count):
        length = raw[at]
        name = raw[at + 3 : at + 3 + length]
        at += 3 + length + has_type
        number = raw[at : at + width]
        if not length or len(number) < width:
            raise VolumeError("a directory is damaged: an entry does not fit into the inode")
        yield int.from_bytes(number, "big"), name
        at += width


def block_entries(
    device: BlockDevice, layout: Superblock, inode: Inode, found: ListingBuilder
) -> Iterator[tuple[int, bytes]]:
    """Yield inode number and name of the entries of a directory that has blocks.

    What is damaged is told to ``found``, block by block; the rest is read.

    Raises:
        VolumeError: the map of the directory is damaged.
    """
    for raw, offset in _blocks(device, layout, inode):
        try:
            start, end = _used(raw, offset, layout, inode.number)
        except VolumeError as error:
            found.damaged(str(error))
        else:
            yield from _entries(raw, start, end, found, has_type=layout.has_file_type)


def _blocks(device: BlockDevice, layout: Superblock, inode: Inode) -> Iterator[tuple[bytes, int]]:
    """Yield each data block of a directory and where its first byte lies on the volume."""
    runs = map_fork(device, layout, inode.number, inode.data_fork, _DATA_END)
    content, size = RunContent(device, runs, _DATA_END), layout.directory_block_size
    extents = [extent for extent in content.extents() if extent.kind is ExtentKind.DATA]
    if sum(extent.length for extent in extents) > device.size:
        raise VolumeError(f"inode {inode.number} is damaged: a directory larger than the volume")
    for extent in extents:
        if extent.offset % size or extent.length % size:
            raise VolumeError(f"inode {inode.number} is damaged: a part of a directory block is missing")
        for start in range(extent.offset, extent.end, _READ_UNIT):
            piece = content.read(start, min(_READ_UNIT, extent.end - start))
            for run in runs.between(start, len(piece)):
                first = -(-run.offset // size) * size
                for at in range(first, run.offset + run.length, size):
                    yield piece[at - start : at - start + size], run.source + at - run.offset


def _used(raw: bytes, offset: int, layout: Superblock, owner: int) -> tuple[int, int]:
    """Return where the entries of a block begin and end."""
    what = f"a directory block of inode {owner}"
    if layout.has_checksums:
        layout.prove_block(raw, _PROOF, owner, offset, what)
    start = _HEADER_5 if layout.has_checksums else _HEADER
    if raw[:4] == _MAGIC_DATA[layout.version]:
        return start, len(raw)
    if raw[:4] != _MAGIC_ONE[layout.version]:
        raise VolumeError(f"{what} is damaged: it is none")
    (indexed,) = struct.unpack_from(">I", raw, len(raw) - 8)
    end = len(raw) - 8 - indexed * 8
    if end < start:
        raise VolumeError(f"{what} is damaged: an index of {indexed} entries")
    return start, end


def _entries(
    raw: bytes, at: int, end: int, found: ListingBuilder, *, has_type: bool
) -> Iterator[tuple[int, bytes]]:
    """Yield the entries between two offsets; each ends with a tag, its own offset."""
    around = 8 + 1 + 2 + has_type + 7
    while at < end:
        if raw[at : at + 2] == _UNUSED:
            (length,) = _TAG.unpack_from(raw, at + 2)
            if length < 8 or length % 8 or at + length > end:
                found.damaged(f"a directory is damaged: bad free space at byte {at} of a block")
                return
            at += length
            continue
        number, name_length = _ENTRY.unpack_from(raw, at)
        length = (around + name_length) & ~7
        if not name_length or at + length > end or _TAG.unpack_from(raw, at + length - 2)[0] != at:
            found.damaged(f"a directory is damaged: a bad entry at byte {at} of a block")
            return
        name = raw[at + 9 : at + 9 + name_length]
        if name not in {b".", b".."}:
            yield number, name
        at += length
