"""Xpress with Huffman codes, one chunk at a time. Source: [MS-XCA] 2.2."""

from __future__ import annotations

from imageformat.errors import VolumeError
from mountfs.drivers._bitwords import BitWords, PrefixCode
from mountfs.drivers._lzvn import copy_match

_CODE = 256
_LONGEST = 15


def xpress_decode(packed: bytes, size: int) -> bytes:
    """Decode a chunk to exactly ``size`` bytes.

    Raises:
        VolumeError: it is damaged.
    """
    if len(packed) < _CODE:
        raise VolumeError("an Xpress chunk is damaged: it has no code")
    code = PrefixCode([byte >> shift & 15 for byte in packed[:_CODE] for shift in (0, 4)], _LONGEST)
    bits, out = BitWords(packed, _CODE), bytearray()
    # The register of an encoder always holds more than 15 bits; bytes of lengths lie behind those.
    bits.prefetch(17)
    while len(out) < size:
        symbol = bits.symbol(code)
        bits.prefetch(16)
        if symbol < 256:
            out.append(symbol)
            continue
        length, width = symbol & 15, symbol - 256 >> 4
        if length == 15:
            length = _long_length(bits)
        distance = (1 << width) + bits.take(width)
        bits.prefetch(16)
        if len(out) + length + 3 > size:
            raise VolumeError("an Xpress chunk is damaged: it decodes to more than its size")
        copy_match(out, distance, length + 3)
    bits.finish()
    return bytes(out)


def _long_length(bits: BitWords) -> int:
    (length,) = bits.bytes(1)
    if length < 255:
        return length + 15
    length = int.from_bytes(bits.bytes(2), "little")
    if length < 15:
        raise VolumeError("an Xpress chunk is damaged: a bad length")
    return length
