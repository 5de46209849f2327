"""LZX as WIM archives and CompactOS have it: chunks of 32 KiB, each on its own.

Source: [MS-PATCH] (LZX DELTA) and "LZX" in the Cabinet SDK, with the changes of WIM: a block says in one bit
that it is as large as the window, and calls (opcode E8) are translated as for a file of 12 000 000 bytes.
"""

from __future__ import annotations

import struct

from imageformat.errors import VolumeError
from mountfs.drivers._bitwords import BitWords, PrefixCode
from mountfs.drivers._lzvn import copy_match

_WINDOW = 32_768
_SLOTS = 30
_VERBATIM, _ALIGNED, _STORED = 1, 2, 3
_LENGTHS = 249
_LONGEST, _LONGEST_PRE, _LONGEST_ALIGNED = 16, 15, 7
_CALL = 0xE8
_MAGIC_SIZE = 12_000_000

_EXTRA = tuple(max(0, (slot >> 1) - 1) for slot in range(_SLOTS))
_BASES = tuple(sum(1 << bits for bits in _EXTRA[:slot]) for slot in range(_SLOTS))


def lzx_decode(packed: bytes, size: int) -> bytes:
    """Decode a chunk to exactly ``size`` bytes.

    Raises:
        VolumeError: it is damaged.
    """
    chunk = _Chunk(packed, size)
    while len(chunk.out) < size:
        chunk.block()
    chunk.finish()
    _untranslate(chunk.out)
    return bytes(chunk.out)


class _Chunk:
    """What is kept from block to block: the last distances, and the lengths of the codes."""

    def __init__(self, packed: bytes, size: int) -> None:
        self._bits = BitWords(packed)
        self._size = size
        self._recent = [1, 1, 1]
        self._main = [0] * (256 + 8 * _SLOTS)
        self._length = [0] * _LENGTHS
        self.out = bytearray()

    def finish(self) -> None:
        """Check that the chunk held all that was taken from it."""
        self._bits.finish()

    def block(self) -> None:
        """Decode one block."""
        bits = self._bits
        kind = bits.take(3)
        size = _WINDOW if bits.take(1) else bits.take(16)
        end = len(self.out) + size
        if not size or end > self._size:
            raise VolumeError("an LZX chunk is damaged: a block of another size")
        if kind == _STORED:
            bits.align()
            self._recent = list(struct.unpack("<III", bits.bytes(12)))
            self.out += bits.bytes(size)
            bits.at += size % 2
        elif kind in {_VERBATIM, _ALIGNED}:
            aligned = None
            if kind == _ALIGNED:
                aligned = PrefixCode([bits.take(3) for _ in range(8)], _LONGEST_ALIGNED)
            self._read_lengths(self._main, 0, 256)
            self._read_lengths(self._main, 256, len(self._main))
            self._read_lengths(self._length, 0, _LENGTHS)
            main, length = PrefixCode(self._main, _LONGEST), PrefixCode(self._length, _LONGEST)
            self._symbols(end, main, length, aligned)
        else:
            raise VolumeError(f"an LZX chunk is damaged: a block of the kind {kind}")

    def _read_lengths(self, lengths: list[int], at: int, end: int) -> None:
        """Read code lengths, as differences from those of the block before."""
        bits = self._bits
        code = PrefixCode([bits.take(4) for _ in range(20)], _LONGEST_PRE)
        while at < end:
            symbol = bits.symbol(code)
            if symbol < 17:
                lengths[at] = (lengths[at] - symbol) % 17
                at += 1
                continue
            value = 0
            if symbol == 17:
                count = 4 + bits.take(4)
            elif symbol == 18:
                count = 20 + bits.take(5)
            else:
                count, symbol = 4 + bits.take(1), bits.symbol(code)
                if symbol > 16:
                    raise VolumeError("an LZX chunk is damaged: a bad code length")
                value = (lengths[at] - symbol) % 17
            if at + count > end:
                raise VolumeError("an LZX chunk is damaged: too many code lengths")
            lengths[at : at + count] = [value] * count
            at += count

    def _symbols(self, end: int, main: PrefixCode, length: PrefixCode, aligned: PrefixCode | None) -> None:
        bits, out = self._bits, self.out
        while len(out) < end:
            symbol = bits.symbol(main)
            if symbol < 256:
                out.append(symbol)
                continue
            count = (symbol & 7) + 2
            if count == 9:
                count += bits.symbol(length)
            distance = self._distance(symbol - 256 >> 3, aligned)
            if len(out) + count > end:
                raise VolumeError("an LZX chunk is damaged: a block decodes to more than its size")
            copy_match(out, distance, count)

    def _distance(self, slot: int, aligned: PrefixCode | None) -> int:
        recent = self._recent
        if slot < 3:
            recent[0], recent[slot] = recent[slot], recent[0]
            return recent[0]
        extra = _EXTRA[slot]
        if aligned is not None and extra >= 3:
            more = self._bits.take(extra - 3) << 3
            more += self._bits.symbol(aligned)
        else:
            more = self._bits.take(extra)
        self._recent = [_BASES[slot] + more - 2, recent[0], recent[1]]
        return self._recent[0]


def _untranslate(out: bytearray) -> None:
    """Make targets of calls relative again; the encoder made them absolute, as they are then often equal."""
    at = out.find(_CALL)
    while 0 <= at < len(out) - 10:
        (target,) = struct.unpack_from("<i", out, at + 1)
        if 0 <= target < _MAGIC_SIZE:
            struct.pack_into("<i", out, at + 1, target - at)
        elif -at <= target < 0:
            struct.pack_into("<i", out, at + 1, target + _MAGIC_SIZE)
        at = out.find(_CALL, at + 5)
