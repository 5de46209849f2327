"""The two checksums of journals: CRC-32C, and CRC-32 with the most significant bit first.

Neither inverts its result: both are states that go on with the next piece, as the kernel's ``crc32c`` and
``crc32_be``.
"""

from __future__ import annotations

import zlib

ALL_ONES = 0xFFFF_FFFF
_CASTAGNOLI = 0x82F6_3B78


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_CASTAGNOLI if byte & 1 else 0)
    return byte


_TABLE = tuple(map(_entry, range(256)))
_MIRROR = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def crc32c(state: int, data: bytes) -> int:
    """Go on from a state with Castagnoli's polynomial (RFC 3720, appendix B.4)."""
    table = _TABLE
    for byte in data:
        state = table[(state ^ byte) & 0xFF] ^ state >> 8
    return state


def crc32_be(state: int, data: bytes) -> int:
    """Go on from a state with the polynomial of Ethernet, most significant bit first.

    It is the mirror image of zlib's, which is fast.
    """
    mirrored = zlib.crc32(data.translate(_MIRROR), _mirrored(state) ^ ALL_ONES) ^ ALL_ONES
    return _mirrored(mirrored)


def _mirrored(word: int) -> int:
    return int.from_bytes(word.to_bytes(4, "big").translate(_MIRROR), "little")
