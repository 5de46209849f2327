"""CRC-32C (Castagnoli): the checksum of metadata in XFS v5, ext4 and btrfs, fast without a library.

A checksum of a byte at a time costs 30 microseconds for an inode; a directory of inodes would take longer to
prove than to read. The rule used here: a message is a polynomial over GF(2), and its front can be folded onto
what follows, because x^k is congruent to a polynomial of less than 32 terms. Python's integers do that with
shifts and XORs of thousands of bits at once. Each step about halves the message.

Source: RFC 3720, section 12.1 and appendix B.4 (polynomial 0x1EDC6F41, bits reflected).
"""

from __future__ import annotations

_POLYNOMIAL = 0x82F6_3B78
_MASK = 0xFFFF_FFFF
_PIECE = 65_536

_FOLDS = (
    (302_494, (0, 3, 18, 25, 31)),
    (196_112, (8, 14, 20, 22, 24, 25, 31)),
    (125_107, (0, 4, 7, 9, 10, 16, 31)),
    (73_444, (0, 3, 20, 25, 27)),
    (45_117, (4, 5, 6, 8, 24, 27, 31)),
    (22_864, (1, 4, 7, 19, 20, 27, 31)),
    (13_664, (0, 3, 4, 18, 22, 25, 29)),
    (7363, (0, 9, 16, 20, 21, 22, 25)),
    (4889, (7, 15, 17, 22, 23, 24, 25, 29, 31)),
    (2801, (3, 8, 11, 17, 21, 24, 25, 26, 28)),
    (1704, (9, 14, 18, 19, 23, 25, 26, 28, 29)),
    (1266, (0, 3, 6, 7, 9, 16, 17, 18, 30)),
    (685, (0, 3, 11, 15, 19, 23, 25, 26, 31)),
    (434, (2, 3, 4, 5, 8, 14, 19, 27, 29, 30, 31)),
    (256, (1, 3, 7, 12, 14, 16, 17, 21, 23, 24, 27, 28, 30)),
)
"""(k, exponents whose powers of x sum up to x^k modulo the polynomial): chosen for few terms, and each
k at least half of the one before, so that the folded part never reaches below x^0."""


def _table() -> tuple[int, ...]:
    entries = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (_POLYNOMIAL if entry & 1 else 0)  # noqa: PLW2901 (the register)
        entries.append(entry)
    return tuple(entries)


_TABLE = _table()


def crc32c(data: bytes, start: int = 0) -> int:
    """Return the checksum of ``data``; ``start`` is that of what comes before it."""
    checksum = start
    for at in range(0, len(data), _PIECE):
        checksum = _crc32c(data[at : at + _PIECE], checksum)
    return checksum


def _crc32c(data: bytes, start: int) -> int:
    """Bit 0 of ``message`` is the highest power of x; the 32 zero bits after the data are its end."""
    bits = len(data) * 8 + 32
    message = int.from_bytes(data, "little") ^ (start ^ _MASK)
    for kept, exponents in _FOLDS:
        if bits <= kept:
            continue
        front = message & ((1 << bits - kept) - 1)
        message >>= bits - kept
        for exponent in exponents:
            message ^= front << (2 * kept - bits - exponent)
        bits = kept
    register = 0
    for byte in (message & ((1 << bits - 32) - 1)).to_bytes((bits - 32) // 8, "little"):
        register = register >> 8 ^ _TABLE[(register ^ byte) & 0xFF]
    return register ^ message >> (bits - 32) ^ _MASK
