"""The chunks of an Apple disk image: found by their sectors, decoded and proven as well as they can be."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from imageformat.cache import BlockCache
from imageformat.errors import CorruptImageError, UnsupportedFeatureError
from imageformat.extent import ExtentKind
from imageformat.formats._stretches import Stretch, Unit
from imageformat.formats.dmg.adc import decode_adc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

SECTOR = 512
ZERO, IGNORED = 0, 2
_RAW = 1
_ADC, _ZLIB, _BZIP2, _LZFSE, _LZMA = range(0x8000_0004, 0x8000_0009)
_PACKED = (_ADC, _ZLIB, _BZIP2, _LZMA)
_REFUSED = {_LZFSE: "LZFSE"}
_CHUNK = struct.Struct("<QQQQI")
_MAX_UNIT = 64 << 20
_MAX_XZ_MEMORY = 256 << 20
UNITS_KEPT = 4 << 20


class Chunk(NamedTuple):
    """A run of sectors. ``place`` and ``length`` are where its bytes are stored."""

    start: int
    sectors: int
    place: int
    length: int
    kind: int


@dataclass(slots=True)
class Chunks:
    """All chunks of a disk, packed, ascending; see `StretchDevice`. Thread-safe once it is filled."""

    name: str
    file: BlockDevice
    starts: array[int] = field(default_factory=lambda: array("Q"))
    packed: bytearray = field(default_factory=bytearray)
    largest: int = SECTOR
    """Bytes of the largest compressed chunk."""
    units: BlockCache = field(default_factory=lambda: BlockCache(UNITS_KEPT))

    def add(self, chunk: Chunk) -> None:
        """Append a chunk.

        Raises:
            CorruptImageError: it lies over the one before, or is too large.
            UnsupportedFeatureError: it is stored in a way that is not known.
        """
        if self.starts:
            last = self.chunk(len(self.starts) - 1)
            if chunk.start < last.start + last.sectors:
                raise CorruptImageError(f"{self.name}: two chunks hold sector {chunk.start}")
        if chunk.kind in _PACKED:
            if chunk.sectors * SECTOR > _MAX_UNIT:
                raise CorruptImageError(f"{self.name}: a compressed chunk of {chunk.sectors} sectors")
            self.largest = max(self.largest, chunk.sectors * SECTOR)
        elif chunk.kind not in (ZERO, _RAW, IGNORED):
            what = _REFUSED.get(chunk.kind, f"the unknown method {chunk.kind:#x}")
            raise UnsupportedFeatureError(f"{self.name}: is compressed with {what}, which cannot be read")
        self.starts.append(chunk.start)
        self.packed += _CHUNK.pack(*chunk)

    def chunk(self, number: int) -> Chunk:
        """Return one chunk."""
        return Chunk(*_CHUNK.unpack_from(self.packed, number * _CHUNK.size))

    def locate(self, offset: int, size: int) -> Iterator[Stretch]:
        """Describe a range of the disk; what no chunk holds is an error of its range."""
        end = offset + size
        number = max(0, bisect_right(self.starts, offset // SECTOR) - 1)
        while offset < end:
            following = self.starts[number + 1] * SECTOR if number + 1 < len(self.starts) else end
            chunk = self.chunk(number)
            start = chunk.start * SECTOR
            stop = min(end, start + chunk.sectors * SECTOR)
            if start <= offset < stop:
                yield self._inside(number, chunk, offset - start, stop - offset)
                offset = stop
            gap_end = min(end, following if offset >= start else start)
            if offset < gap_end:
                yield Stretch(
                    gap_end - offset,
                    CorruptImageError(f"{self.name}: no chunk holds the disk from {offset} to {gap_end}"),
                )
                offset = gap_end
            if offset >= following:
                number += 1

    def _inside(self, number: int, chunk: Chunk, inner: int, length: int) -> Stretch:
        if chunk.kind == ZERO:
            return Stretch(length, ExtentKind.ZERO)
        if chunk.kind == IGNORED:
            return Stretch(length, ExtentKind.UNUSED)
        held = chunk.sectors * SECTOR
        needed = held if chunk.kind == _RAW else chunk.length
        if needed > chunk.length or chunk.place + needed > self.file.size:
            error = CorruptImageError(
                f"{self.name}: the chunk of sector {chunk.start} is to be past the end, at {chunk.place}"
            )
            return Stretch(length, error)
        if chunk.kind == _RAW:
            return Stretch(length, self.file, chunk.place + inner)
        unit = Unit(held, partial(self._decode, chunk, held), partial(self.units.get, number))
        return Stretch(length, unit, inner)

    def _decode(self, chunk: Chunk, size: int) -> bytes:
        """Decode a compressed chunk to exactly ``size`` bytes; never makes more.

        Raises:
            CorruptImageError
        """
        place = f"{self.name}: the chunk of sector {chunk.start} at {chunk.place}"
        if chunk.length > 2 * size + 65536:
            raise CorruptImageError(f"{place} has {chunk.length} bytes for {size}")
        content = self.file.pread(chunk.place, chunk.length)
        try:
            if chunk.kind == _ADC:
                return decode_adc(content, size)
            if chunk.kind == _ZLIB:
                inflater = zlib.decompressobj()
                found, is_whole = inflater.decompress(content, size + 1), inflater.eof
            elif chunk.kind == _BZIP2:
                unpacker = bz2.BZ2Decompressor()
                found, is_whole = unpacker.decompress(content, size + 1), unpacker.eof
            else:
                opener = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_XZ_MEMORY)
                found, is_whole = opener.decompress(content, size + 1), opener.eof
        except CorruptImageError as error:
            raise CorruptImageError(f"{place} {error}") from error
        except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
            raise CorruptImageError(f"{place} is damaged: {error}") from error
        if not is_whole or len(found) != size:
            raise CorruptImageError(f"{place} has not the {size} bytes that it should have")
        return found
