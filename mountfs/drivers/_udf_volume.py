"""Finds the logical volume of a UDF medium: anchors, the descriptor sequence and its copy, partitions.

Sources: ECMA-167 part 3 and OSTA UDF 2.60, chapter 2.2.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import UnsupportedVolumeError, VolumeError
from mountfs.drivers import _udf_descriptors as udf
from mountfs.drivers._content import read_at
from mountfs.drivers._udf_mapping import Files
from mountfs.drivers._udf_partitions import (
    MetadataPartition,
    PlainPartition,
    SparablePartition,
    VirtualPartition,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from mountfs.drivers._udf_partitions import Partition

_BLOCK_SIZES = (2048, 512, 4096, 1024, 8192, 16_384, 32_768)
_MAX_SEQUENCE = 4096
_MAX_POINTERS = 64
_MAX_MAPS = 64
_MAX_SPARED = 65_536
_MAX_TABLE = 64 << 20
_VAT_SEARCH = 640
"""Blocks from the end of the medium in which its last file entry, that of the table, is looked for."""

_VIRTUAL, _SPARABLE, _METADATA = (
    b"*UDF Virtual Partition",
    b"*UDF Sparable Partition",
    b"*UDF Metadata Partition",
)
_OLD_VAT = b"*UDF Virtual Alloc Tbl"
_SPARING = b"*UDF Sparing Table"


class _Sequence(NamedTuple):
    """What a volume descriptor sequence says."""

    logical: bytes
    partitions: dict[int, PlainPartition]


def open_files(device: BlockDevice) -> tuple[Files, udf.Place]:
    """Find the logical volume; return its files and the place of the root directory.

    Raises:
        VolumeError: there is none, or it is damaged.
        UnsupportedVolumeError: it needs something that is not read here.
    """
    anchor, block_size = _find_anchor(device)
    sequence = _read_sequence(device, anchor, block_size)
    files = Files(device, block_size)
    for partition in _partitions(device, files, sequence, block_size):
        files.partitions.append(partition)
    at = udf.long_extent(sequence.logical, 248).place
    raw = files.block(at)
    udf.expect(raw, udf.FILE_SET, "the file set", location=at.block)
    return files, udf.long_extent(raw, 400).place


def _find_anchor(device: BlockDevice) -> tuple[bytes, int]:
    for block_size in _BLOCK_SIZES:
        count = device.size // block_size
        for block in (256, count - 1, count - 257, 512):
            if not 0 <= block < count:
                continue
            raw = read_at(device, block * block_size, 512, "an anchor")
            if struct.unpack_from("<H10xI", raw) != (udf.ANCHOR, block):
                continue
            try:
                udf.expect(raw, udf.ANCHOR, "an anchor", location=block)
            except VolumeError:
                continue
            return raw, block_size
    raise VolumeError("no UDF volume: none of its anchors is there and intact")


def _read_sequence(device: BlockDevice, anchor: bytes, block_size: int) -> _Sequence:
    """Read the main sequence, or when that is damaged its reserve."""
    problem: VolumeError | None = None
    for at in (16, 24):
        length, block = struct.unpack_from("<II", anchor, at)
        try:
            return _collect(_descriptors(device, length, block, block_size), block_size)
        except VolumeError as error:
            problem = problem or error
    raise problem or VolumeError("no UDF volume descriptors")


def _descriptors(
    device: BlockDevice, length: int, block: int, block_size: int
) -> Iterator[tuple[int, bytes]]:
    for _ in range(_MAX_POINTERS):
        following: tuple[int, int] | None = None
        for number in range(block, block + min(length // block_size, _MAX_SEQUENCE)):
            raw = read_at(device, number * block_size, block_size, "a volume descriptor")
            if not any(raw[: udf.TAG]):
                break
            kind = udf.tag_of(raw, "a volume descriptor", location=number)
            if kind == udf.TERMINATOR:
                break
            if kind == udf.POINTER:
                following = struct.unpack_from("<II", raw, 20)
                break
            yield kind, raw
        if following is None:
            return
        length, block = following
    raise VolumeError("the volume descriptors go on without end")


def _collect(found: Iterator[tuple[int, bytes]], block_size: int) -> _Sequence:
    """Keep of each descriptor the one with the highest sequence number."""
    kept: dict[tuple[int, int], tuple[int, bytes]] = {}
    for kind, raw in found:
        (number,) = struct.unpack_from("<I", raw, 16)
        which = struct.unpack_from("<H", raw, 22)[0] if kind == udf.PARTITION else 0
        if (kind, which) not in kept or kept[kind, which][0] < number:
            kept[kind, which] = (number, raw)
    if (udf.LOGICAL_VOLUME, 0) not in kept:
        raise VolumeError("the volume descriptors name no logical volume")
    logical = kept[udf.LOGICAL_VOLUME, 0][1]
    (stated,) = struct.unpack_from("<I", logical, 212)
    if stated != block_size:
        raise VolumeError(f"the logical volume has blocks of {stated} bytes on a medium of {block_size}")
    partitions = {}
    for (kind, which), (_, raw) in kept.items():
        if kind == udf.PARTITION:
            start, count = struct.unpack_from("<II", raw, 188)
            partitions[which] = PlainPartition(start * block_size, count * block_size)
    return _Sequence(logical, partitions)


def _partitions(
    device: BlockDevice, files: Files, sequence: _Sequence, block_size: int
) -> Iterator[Partition]:
    """Open the partition of each map of the logical volume; metadata files may need those before them."""
    length, count = struct.unpack_from("<II", sequence.logical, 264)
    if count > _MAX_MAPS or 440 + length > len(sequence.logical):
        raise VolumeError(f"the logical volume is damaged: {count} partition maps of {length} bytes")
    at = 440
    for _ in range(count):
        kind, size = sequence.logical[at], sequence.logical[at + 1]
        one = sequence.logical[at : at + size]
        at += size
        if (kind, size) not in {(1, 6), (2, 64)}:
            raise UnsupportedVolumeError(f"a partition map of kind {kind} is not supported")
        (number,) = struct.unpack_from("<H", one, 4 if kind == 1 else 38)
        plain = sequence.partitions.get(number)
        if plain is None:
            raise VolumeError(f"the logical volume has partition {number}, which is not described")
        yield plain if kind == 1 else _special(device, files, one, plain, block_size)


def _special(
    device: BlockDevice, files: Files, one: bytes, plain: PlainPartition, block_size: int
) -> Partition:
    name = one[5:28].rstrip(b"\0")
    if name == _VIRTUAL:
        return VirtualPartition(_read_vat(device, files, plain, block_size), plain, block_size)
    if name == _SPARABLE:
        return _sparable(device, one, plain, block_size)
    if name == _METADATA:
        return _metadata(files, one, plain)
    raise UnsupportedVolumeError(f"a partition of the kind {name!r} is not supported")


def _metadata(files: Files, one: bytes, plain: PlainPartition) -> Partition:
    """Open the metadata file, or when its entry is damaged its mirror."""
    problem: VolumeError | None = None
    for at in (40, 44):
        (block,) = struct.unpack_from("<I", one, at)
        try:
            entry = files.entry(udf.Place(files.hidden(plain), block))
            if entry.kind in {udf.METADATA_FILE, udf.METADATA_MIRROR}:
                return MetadataPartition(files.runs(entry))
            problem = problem or VolumeError(f"the metadata file is a file of kind {entry.kind}")
        except VolumeError as error:
            problem = problem or error
    raise problem or VolumeError("no metadata file")


def _sparable(device: BlockDevice, one: bytes, plain: PlainPartition, block_size: int) -> Partition:
    packet, tables, size = struct.unpack_from("<HBxI", one, 40)
    if not packet or tables > 4 or size > _MAX_TABLE:
        raise VolumeError("a sparable partition is damaged: its map")
    newest, spared, problem = -1, {}, ""
    for place in struct.unpack_from(f"<{tables}I", one, 48):
        try:
            raw = read_at(device, place * block_size, size, "a sparing table")
            udf.expect(raw, 0, "a sparing table", location=place)
        except VolumeError as error:
            problem = str(error)
            continue
        count, number = struct.unpack_from("<H2xI", raw, 48)
        if raw[17:39].rstrip(b"\0") != _SPARING or count > _MAX_SPARED or 56 + 8 * count > size:
            problem = "a sparing table is damaged"
        elif number > newest:
            newest = number
            pairs = struct.iter_unpack("<II", raw[56 : 56 + 8 * count])
            # The highest numbers say that a spare packet is free, or bad itself.
            spared = {one * block_size: other * block_size for one, other in pairs if one < 0xFFFF_FFF0}
    if newest < 0:
        raise VolumeError(problem or "a sparable partition has no sparing table")
    return SparablePartition(plain, packet * block_size, spared)


def _read_vat(device: BlockDevice, files: Files, plain: PlainPartition, block_size: int) -> array[int]:
    """Find the virtual allocation table: its entry is the last block that was written."""
    last = device.size // block_size - 1
    first = plain.start // block_size
    for block in range(last, max(first, last - _VAT_SEARCH) - 1, -1):
        head = read_at(device, block * block_size, udf.TAG, "the end of the medium")
        kind, _, place = struct.unpack("<HH8xI", head)
        if kind not in {udf.FILE_ENTRY, udf.EXTENDED_ENTRY} or place != block - first:
            continue
        try:
            entry = files.entry(udf.Place(files.hidden(plain), place))
            table = _vat_entries(files, entry)
        except VolumeError:
            continue
        if table is not None:
            return table
    raise VolumeError("the table of virtual blocks is not at the end of the medium: was the image cut off?")


def _vat_entries(files: Files, entry: udf.Entry) -> array[int] | None:
    """Return the table, of UDF 2.00 or of 1.50; None when the file is none."""
    if entry.kind not in {0, udf.VAT_FILE} or not 36 <= entry.size <= _MAX_TABLE:
        return None
    content = files.content(entry)
    raw = content.read(0, entry.size)
    if entry.kind == udf.VAT_FILE:
        (start,) = struct.unpack_from("<H", raw)
        raw = raw[start:]
    elif raw[-35:-13].rstrip(b"\0") == _OLD_VAT:
        raw = raw[:-36]
    else:
        return None
    table = array("I", raw[: len(raw) // 4 * 4])
    if sys.byteorder == "big":
        table.byteswap()
    return table
