"""DMG: Apple's disk images of the kind UDIF, compressed and not.

Compressed chunks are proven by the checksums inside them (zlib, bzip2, xz; ADC has none); what is stored
plainly only by the CRC-32 of its partition and of the whole file, which `verify` compares. Source: public
descriptions of the UDIF trailer, its property list and its "mish" tables; the format was never published.
"""

from __future__ import annotations

import hashlib
import plistlib
import struct
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from xml.parsers.expat import ExpatError

from imageformat.cache import BlockCache
from imageformat.errors import (
    CorruptImageError,
    IncompleteImageError,
    MountfsError,
    UnsupportedFeatureError,
)
from imageformat.foreign import ForeignDisk, ForeignImage, ForeignLayer
from imageformat.formats._stretches import StretchDevice
from imageformat.formats.dmg.chunks import IGNORED, SECTOR, UNITS_KEPT, ZERO, Chunk, Chunks
from imageformat.formats.dmg.zeros import crc32_of_zeros
from imageformat.layer import ImageFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from imageformat.layer import ImageLayer, Opening

_TRAILER = struct.Struct(">4sIII8xQQ8xQII16sII128sQQ")
_TRAILER_SIZE = 512
_MASTER = struct.Struct(">II128sIQ")
_MASTER_AT = 352
_TABLE = struct.Struct(">4sIQQQ32xII128sI")
_ENTRY = struct.Struct(">IIQQQQ")
_COMMENT, _END = 0x7FFF_FFFE, 0xFFFF_FFFF
_CRC32 = 2
_MAX_LIST = 32 << 20
_MAX_SECTORS = 1 << 41
_MIN_BLOCK, _MAX_BLOCK = 1 << 16, 1 << 20
_STEP = 1 << 20


class Trailer(NamedTuple):
    """The last 512 bytes."""

    data_offset: int
    data_size: int
    data_crc: int | None
    list_offset: int
    list_size: int
    master_crc: int | None
    sectors: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Table:
    """A run of chunks, mostly a partition: one "mish" block."""

    name: str
    crc: int | None
    first: int
    """Of its chunks."""
    stop: int


def probe(device: BlockDevice) -> bool:
    """Tell whether a file has Apple's trailer, or the marks of an encrypted image."""
    if device.size < _TRAILER_SIZE:
        return False
    tail = device.pread(device.size - _TRAILER_SIZE, _TRAILER_SIZE)
    return tail.startswith(b"koly") or tail.endswith(b"cdsaencr") or device.pread(0, 8) == b"encrcdsa"


def parse_trailer(name: str, block: bytes) -> Trailer:
    """Return the trailer.

    Raises:
        UnsupportedFeatureError: a version or kind that is not known.
        CorruptImageError: a number is out of its range.
    """
    (
        _,
        version,
        size,
        _,
        data_offset,
        data_size,
        resources,
        _,
        segments,
        _,
        data_kind,
        _,
        data_checksum,
        list_offset,
        list_size,
    ) = _TRAILER.unpack_from(block)
    master_kind, _, master, _, sectors = _MASTER.unpack_from(block, _MASTER_AT)
    if version != 4 or size != _TRAILER_SIZE:
        raise UnsupportedFeatureError(f"{name}: disk image of version {version}")
    if segments > 1:
        raise UnsupportedFeatureError(f"{name}: a disk image in {segments} parts, which cannot be read")
    if not list_size and resources:
        raise UnsupportedFeatureError(f"{name}: an old disk image whose tables lie in a resource fork")
    if not sectors or sectors > _MAX_SECTORS:
        raise CorruptImageError(f"{name}: a disk of {sectors} sectors")
    return Trailer(
        data_offset,
        data_size,
        int.from_bytes(data_checksum[:4], "big") if data_kind == _CRC32 else None,
        list_offset,
        list_size,
        int.from_bytes(master[:4], "big") if master_kind == _CRC32 else None,
        sectors,
        block,
    )


def _open(opening: Opening) -> ImageLayer:
    with ExitStack() as stack:
        stack.callback(opening.device.close)
        trailer = _read_trailer(opening.name, opening.device)
        content = _read_list(opening.name, opening.device, trailer)
        chunks = Chunks(opening.name, opening.device)
        tables = _fill(chunks, trailer, _table_blocks(opening.name, content))
        chunks.units = BlockCache(max(UNITS_KEPT, 2 * chunks.largest))
        block_size = min(_MAX_BLOCK, max(_MIN_BLOCK, 1 << (chunks.largest - 1).bit_length()))
        close = stack.pop_all().close
    device = StretchDevice(trailer.sectors * SECTOR, block_size, chunks.locate, close)
    return ForeignLayer(
        opening.name,
        ForeignImage(
            "dmg",
            (ForeignDisk(device),),
            trailer.content + hashlib.sha256(content).digest(),
            created_ns=opening.siblings.modified_ns,
            stored_size=opening.device.size,
            details={"partitions": [table.name for table in tables if table.name]},
            checks=lambda: _check(opening.name, trailer, tables, chunks, device),
        ),
    )


def _read_trailer(name: str, device: BlockDevice) -> Trailer:
    if device.size >= _TRAILER_SIZE:
        block = device.pread(device.size - _TRAILER_SIZE, _TRAILER_SIZE)
        if block.endswith(b"cdsaencr") or device.pread(0, 8) == b"encrcdsa":
            raise UnsupportedFeatureError(f"{name}: an encrypted disk image, which cannot be read")
        if block.startswith(b"koly"):
            return parse_trailer(name, block)
    raise IncompleteImageError(
        f"{name}: does not end as a disk image does; it was cut short, or is a plain disk (rename it to .img)"
    )


def _read_list(name: str, device: BlockDevice, trailer: Trailer) -> bytes:
    if not 0 < trailer.list_size <= _MAX_LIST:
        raise CorruptImageError(f"{name}: a property list of {trailer.list_size} bytes")
    if trailer.list_offset + trailer.list_size > device.size:
        raise IncompleteImageError(f"{name}: was cut short: its property list is not all there")
    return device.pread(trailer.list_offset, trailer.list_size)


def _table_blocks(name: str, content: bytes) -> list[tuple[str, bytes]]:
    """Return the tables in a property list with their names.

    Raises:
        CorruptImageError: it is damaged.
    """
    try:
        parsed = plistlib.loads(content, fmt=plistlib.FMT_XML)
        listed = [(entry.get("Name"), entry["Data"]) for entry in parsed["resource-fork"]["blkx"]]
    except (
        ExpatError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CorruptImageError(f"{name}: its property list is damaged: {error}") from error
    if not listed or not all(isinstance(data, bytes) for _, data in listed):
        raise CorruptImageError(f"{name}: its property list has no tables")
    return [(text if isinstance(text, str) else "", data) for text, data in listed]


class _Header(NamedTuple):
    """The head of a "mish" block."""

    first: int
    """Sector of the disk where it begins."""
    offset: int
    """What its chunks' places are relative to, within the stored data."""
    crc: int | None
    checksum: bytes
    name: str
    entries: bytes


def parse_table(name: str, text: str, block: bytes) -> _Header:
    """Return the head of the table called ``text``.

    Raises:
        CorruptImageError: it is damaged.
    """
    if len(block) >= _TABLE.size:
        signature, version, first, _, offset, kind, _, checksum, count = _TABLE.unpack_from(block)
        end = _TABLE.size + count * _ENTRY.size
        if signature == b"mish" and version == 1 and end <= len(block):
            crc = int.from_bytes(checksum[:4], "big") if kind == _CRC32 else None
            return _Header(first, offset, crc, checksum[:4], text, block[_TABLE.size : end])
    raise CorruptImageError(f"{name}: table {text!r} is damaged")


def _fill(chunks: Chunks, trailer: Trailer, blocks: list[tuple[str, bytes]]) -> list[Table]:
    """Add the chunks of all tables in order of the disk; the tables' checksums must be the trailer's.

    Raises:
        CorruptImageError, UnsupportedFeatureError
    """
    headers = [parse_table(chunks.name, text, block) for text, block in blocks]
    together = zlib.crc32(b"".join(header.checksum for header in headers))
    if trailer.master_crc not in (None, together):
        raise CorruptImageError(f"{chunks.name}: the checksums of its tables are damaged")
    tables = []
    for header in sorted(headers, key=lambda header: header.first):
        start = len(chunks.starts)
        for kind, _, sector, sectors, place, length in _ENTRY.iter_unpack(header.entries):
            if kind == _END:
                break
            if kind == _COMMENT or not sectors:
                continue
            where = trailer.data_offset + header.offset + place
            if header.first + sector + sectors > trailer.sectors or where + length >= 1 << 63:
                raise CorruptImageError(f"{chunks.name}: a chunk of {header.name!r} lies past the end")
            chunks.add(Chunk(header.first + sector, sectors, where, length, kind))
        tables.append(Table(header.name, header.crc, start, len(chunks.starts)))
    if not chunks.starts:
        raise CorruptImageError(f"{chunks.name}: its tables hold nothing")
    return tables


def _check(
    name: str, trailer: Trailer, tables: list[Table], chunks: Chunks, device: BlockDevice
) -> Iterator[str]:
    """Yield which recorded CRC-32 is not what the partitions and the file have. Reads everything."""
    for table in tables:
        if table.crc is None:
            continue
        try:
            held = _crc_of(chunks, table, device)
        except MountfsError as error:
            yield f"{name}: the checksum of {table.name!r} cannot be compared: {error}"
            continue
        if held != table.crc:
            yield f"{name}: the CRC-32 of {table.name!r} is {held:08x}, and {table.crc:08x} was recorded"
    if trailer.data_crc is None:
        return
    end = trailer.data_offset + trailer.data_size
    if end > chunks.file.size:
        yield f"{name}: was cut short: its data ends at {end}"
        return
    held = 0
    for offset in range(trailer.data_offset, end, _STEP):
        held = zlib.crc32(chunks.file.pread(offset, min(_STEP, end - offset)), held)
    if held != trailer.data_crc:
        yield f"{name}: the CRC-32 of the stored data is {held:08x}, and {trailer.data_crc:08x} was recorded"


def _crc_of(chunks: Chunks, table: Table, device: BlockDevice) -> int:
    """Return the CRC-32 of a table's content, of which what is ignored is no part."""
    held = 0
    for number in range(table.first, table.stop):
        chunk = chunks.chunk(number)
        if chunk.kind == IGNORED:
            continue
        if chunk.kind == ZERO:
            held = crc32_of_zeros(held, chunk.sectors * SECTOR)
            continue
        end = (chunk.start + chunk.sectors) * SECTOR
        for offset in range(chunk.start * SECTOR, end, _STEP):
            held = zlib.crc32(device.pread(offset, min(_STEP, end - offset)), held)
    return held


PLUGIN = ImageFormat("dmg", (".dmg",), probe, _open)
