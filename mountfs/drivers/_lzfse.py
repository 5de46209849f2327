"""LZFSE, the thorough compression of Apple's file systems.

Source: the reference implementation that Apple published (BSD licence, ``lzfse_internal.h`` and
``lzfse_fse.h``), read as the description of the format. A stream is a series of blocks: stored, LZVN, or
literals and matches coded with finite state entropy, whose bits are read from the end backwards.
"""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import NamedTuple

from imageformat.errors import VolumeError
from mountfs.drivers._lzvn import copy_match, lzvn_decode

_END, _STORED, _LZVN, _CODED = b"bvx$", b"bvx-", b"bvxn", b"bvx2"
_HEADER = 32
_LITERAL_STATES = 1024
_SYMBOLS = (20, 20, 64, 256)
_STATES = (64, 64, 256, _LITERAL_STATES)

_BITS_L = (0,) * 16 + (2, 3, 5, 8)
_BITS_M = (0,) * 16 + (3, 5, 8, 11)
_BITS_D = tuple(bits for bits in range(16) for _ in range(4))

_FREQUENCY_WIDTHS = (2, 3, 2, 5, 2, 3, 2, 8, 2, 3, 2, 5, 2, 3, 2, 14) * 2
_FREQUENCIES = (
    *(0, 2, 1, 4, 0, 3, 1, -1, 0, 2, 1, 5, 0, 3, 1, -1),
    *(0, 2, 1, 6, 0, 3, 1, -1, 0, 2, 1, 7, 0, 3, 1, -1),
)


class _Entry(NamedTuple):
    """What a state means: a value, the bits that it takes, and how the next state comes of them."""

    width: int
    delta: int
    base: int
    extra: int


def lzfse_decode(packed: bytes, size: int) -> bytes:
    """Decode a stream to exactly ``size`` bytes.

    Raises:
        VolumeError: the stream is damaged, or decodes to another size.
    """
    out, at = bytearray(), 0
    try:
        while (magic := packed[at : at + 4]) != _END:
            (length,) = struct.unpack_from("<I", packed, at + 4)
            if len(out) + length > size:
                raise VolumeError("an LZFSE stream is damaged: it decodes to more than its size")
            at = _block(packed, at, magic, length, out)
    except (IndexError, struct.error) as error:
        raise VolumeError("an LZFSE stream is damaged: it ends too early") from error
    if len(out) != size:
        raise VolumeError("an LZFSE stream is damaged: it has another size")
    return bytes(out)


def _block(packed: bytes, at: int, magic: bytes, length: int, out: bytearray) -> int:
    """Decode one block; where the next one starts."""
    if magic == _STORED:
        out += packed[at + 8 : at + 8 + length]
        return at + 8 + length
    if magic == _LZVN:
        (payload,) = struct.unpack_from("<I", packed, at + 8)
        lzvn_decode(packed[at + 12 : at + 12 + payload], out, length)
        return at + 12 + int(payload)
    if magic == _CODED:
        return _coded_block(packed, at, length, out)
    raise VolumeError(f"an LZFSE stream is damaged: a block starts with {magic!r}")


def _coded_block(packed: bytes, at: int, length: int, out: bytearray) -> int:
    one, two, three = struct.unpack_from("<QQQ", packed, at + 8)
    literal_count, literal_size, matches = (one >> shift & 0xFFFFF for shift in (0, 20, 40))
    lmd_size = two >> 40 & 0xFFFFF
    header = three & 0xFFFF_FFFF
    if header < _HEADER or at + header + literal_size + lmd_size > len(packed) or literal_count % 4:
        raise VolumeError("an LZFSE stream is damaged: a block reaches behind its end")
    tables = _tables(packed[at + _HEADER : at + header])
    at += header
    states = [two >> shift & 0x3FF for shift in (0, 10, 20, 30)]
    bits = _Bits(packed[at : at + literal_size], (one >> 60 & 7) - 7)
    literals = _literals(tables[3], bits, states, literal_count)
    at += literal_size
    bits = _Bits(packed[at : at + lmd_size], (two >> 60 & 7) - 7)
    states = [three >> shift & 0x3FF for shift in (32, 42, 52)]
    _matches(tables, bits, states, literals, out, (matches, len(out) + length))
    return at + int(lmd_size)


class _Bits:
    """Bits that are taken from the end of some bytes; ``skip`` (not positive) of them are not used."""

    def __init__(self, raw: bytes, skip: int) -> None:
        self._raw = raw
        self._left = 8 * len(raw) + skip

    def pull(self, count: int) -> int:
        """Take some bits, at most 32."""
        self._left -= count
        left = self._left
        if left < 0:
            raise VolumeError("an LZFSE stream is damaged: it has too few bits")
        start = left >> 3
        return int.from_bytes(self._raw[start : start + 5], "little") >> (left & 7) & (1 << count) - 1


def _literals(table: list[_Entry], bits: _Bits, states: list[int], count: int) -> bytes:
    """Decode literals, four at a time, each with a state of its own."""
    out = bytearray(count)
    for index in range(count):
        entry = table[states[index & 3]]
        states[index & 3] = entry.delta + bits.pull(entry.width)
        out[index] = entry.base
    return bytes(out)


def _matches(
    tables: list[list[_Entry]],
    bits: _Bits,
    states: list[int],
    literals: bytes,
    out: bytearray,
    limits: tuple[int, int],
) -> None:
    matches, end = limits
    used, distance = 0, 0
    for _ in range(matches):
        count, length, new_distance = (_value(tables, bits, states, kind) for kind in range(3))
        distance = new_distance or distance
        if used + count > len(literals) or len(out) + count + length > end:
            raise VolumeError("an LZFSE stream is damaged: a block decodes to more than its size")
        out += literals[used : used + count]
        used += count
        if length:
            copy_match(out, distance, length)
    if len(out) != end:
        raise VolumeError("an LZFSE stream is damaged: a block has another size")


def _value(tables: list[list[_Entry]], bits: _Bits, states: list[int], kind: int) -> int:
    """Decode the number of literals (0), the length of a match (1) or its distance (2)."""
    entry = tables[kind][states[kind]]
    pulled = bits.pull(entry.width + entry.extra)
    states[kind] = entry.delta + (pulled >> entry.extra)
    return entry.base + (pulled & (1 << entry.extra) - 1)


def _tables(raw: bytes) -> list[list[_Entry]]:
    """Make the four tables from the frequencies in the header of a block."""
    frequencies = _frequencies(raw)
    tables, start = [], 0
    for symbols, states, extra in zip(_SYMBOLS, _STATES, (_BITS_L, _BITS_M, _BITS_D, ()), strict=True):
        bases = tuple(accumulate((1 << bits for bits in extra), initial=0)) if extra else range(symbols)
        own = frequencies[start : start + symbols]
        tables.append(_table(states, own, bases, extra or (0,) * symbols))
        start += symbols
    return tables


def _frequencies(raw: bytes) -> list[int]:
    count = sum(_SYMBOLS)
    if not raw:
        return [0] * count
    bits, left, found = int.from_bytes(raw, "little"), 8 * len(raw), []
    for _ in range(count):
        low = bits & 31
        width = _FREQUENCY_WIDTHS[low]
        value = _FREQUENCIES[low]
        if value < 0:
            value = 8 + (bits >> 4 & 0xF) if width == 8 else 24 + (bits >> 4 & 0x3FF)
        found.append(value)
        bits >>= width
        left -= width
    if not 0 <= left < 8:
        raise VolumeError("an LZFSE stream is damaged: a table of frequencies has another size")
    return found


def _table(
    states: int, frequencies: list[int], bases: tuple[int, ...] | range, extra: tuple[int, ...]
) -> list[_Entry]:
    if sum(frequencies) > states:
        raise VolumeError("an LZFSE stream is damaged: frequencies that do not fit")
    table: list[_Entry] = []
    for symbol, frequency in enumerate(frequencies):
        if not frequency:
            continue
        width = states.bit_length() - frequency.bit_length()
        first = (2 * states >> width) - frequency
        base, more = bases[symbol], extra[symbol]
        table += [
            _Entry(width, (frequency + index << width) - states, base, more)
            if index < first
            else _Entry(width - 1, index - first << width - 1, base, more)
            for index in range(frequency)
        ]
    return table
