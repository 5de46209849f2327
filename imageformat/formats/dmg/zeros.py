"""The CRC-32 of very many zeros, without making them: a sparse disk has terabytes of them.

What a zero byte does to the register is linear over GF(2): a matrix, of which a power does it many times.
"""

from __future__ import annotations

import zlib

_ONES = 0xFFFF_FFFF
_SHORT = 1 << 16


def crc32_of_zeros(start: int, count: int) -> int:
    """Return the CRC-32 of what ``start`` is the CRC-32 of and ``count`` zero bytes."""
    if count <= _SHORT:
        return zlib.crc32(bytes(count), start)
    step = [zlib.crc32(b"\0", (1 << bit) ^ _ONES) ^ _ONES for bit in range(32)]
    register = start ^ _ONES
    while count:
        if count & 1:
            register = _applied(step, register)
        step = [_applied(step, column) for column in step]
        count >>= 1
    return register ^ _ONES


def _applied(matrix: list[int], vector: int) -> int:
    found = 0
    for column in matrix:
        if vector & 1:
            found ^= column
        vector >>= 1
    return found
