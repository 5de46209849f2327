"""Blocks of which some sectors were unreadable at the source: the map that says which.

One bit for each 512 bytes of the block, the first in the lowest bit of the first byte; set: BAD. It is stored
before the block, and the checksum of the block covers it. docs/format.md, section 3.2.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from imageformat.codec import Codec, decode, digest, encode_whole
from imageformat.errors import CorruptImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

UNIT = 512


class Stretch(NamedTuple):
    """Bytes of a block that are all BAD, or all there."""

    start: int
    length: int
    bad: bool


def map_length(raw_length: int) -> int:
    """Return the bytes of the map of a block."""
    return -(-_units(raw_length) // 8)


def _units(raw_length: int) -> int:
    return -(-raw_length // UNIT)


def make_map(bad: Iterable[tuple[int, int]], raw_length: int) -> bytes:
    """Return the map of a block of which the ranges ``bad`` (offset in the block, length) are BAD.

    A unit that is touched by one is BAD.
    """
    bits = 0
    for start, length in bad:
        first, end = max(0, start) // UNIT, _units(min(raw_length, start + length))
        if first < end:
            bits |= (1 << end) - (1 << first)
    return bits.to_bytes(map_length(raw_length), "little")


def is_all_bad(bad_map: bytes, raw_length: int) -> bool:
    """Tell whether nothing of a block could be read."""
    return int.from_bytes(bad_map, "little") == (1 << _units(raw_length)) - 1


def stretches(bad_map: bytes, raw_length: int) -> Iterator[Stretch]:
    """Describe a whole block, in order."""
    bits = int.from_bytes(bad_map, "little")
    start = 0
    for bad, units in groupby(range(_units(raw_length)), lambda unit: bool(bits >> unit & 1)):
        end = min(raw_length, start + sum(1 for _ in units) * UNIT)
        yield Stretch(start, end - start, bad)
        start = end


def blank(raw: memoryview, bad_map: bytes) -> bytes:
    """Return a block with zeros where it is BAD."""
    blanked = bytearray(raw)
    for start, length, bad in stretches(bad_map, len(raw)):
        if bad:
            blanked[start : start + length] = bytes(length)
    return bytes(blanked)


def partial_digest(raw: bytes, bad_map: bytes) -> bytes:
    """Return the checksum that names a block and what of it is BAD."""
    return digest(bad_map + raw)


def pack_partial(raw: bytes, bad_map: bytes, level: int) -> tuple[Codec, bytes]:
    """Return how a block with BAD sectors is stored."""
    return Codec.PARTIAL, bad_map + encode_whole(raw, level)


def unpack_partial(payload: memoryview, raw_length: int, raw_digest: bytes) -> tuple[bytes, bytes]:
    """Return the map and the bytes of a block with BAD sectors, proven.

    Raises:
        CorruptImageError: it is none, or not what its checksum says; the caller adds the place.
    """
    size = map_length(raw_length)
    bad_map = bytes(payload[:size])
    bits = int.from_bytes(bad_map, "little")
    if len(bad_map) < size or not 0 < bits < (1 << _units(raw_length)) - 1:
        raise CorruptImageError("the map of unreadable sectors is not one")
    raw = decode(Codec.ZSTD, payload[size:], raw_length)
    if partial_digest(raw, bad_map) != raw_digest:
        raise CorruptImageError("the decoded bytes do not match their checksum")
    if blank(memoryview(raw), bad_map) != raw:
        raise CorruptImageError("an unreadable sector has bytes")
    return bad_map, raw
