"""A second writer of Apple's disk images: all ways of storing a chunk, in tables as "hdiutil" writes them."""

from __future__ import annotations

import bz2
import lzma
import plistlib
import struct
import zlib

SECTOR = 512
ZERO, RAW, IGNORE = 0, 1, 2
ADC, ZLIB, BZIP2, LZFSE, LZMA = range(0x80000004, 0x80000009)


def adc(content: bytes) -> bytes:
    """Literal runs, and copies of the last byte or the last 300 bytes where that fits."""
    found, at = b"", 0
    while at < len(content):
        if at and content[at : at + 67] == content[at - 1 : at] * 67:
            found, at = found + bytes([0x40 | 63, 0, 0]), at + 67
        elif at and content[at : at + 18] == content[at - 1 : at] * 18:
            found, at = found + bytes([15 << 2, 0]), at + 18
        elif at >= 300 and content[at : at + 60] == content[at - 300 : at - 240]:
            found, at = found + bytes([0x40 | 56]) + struct.pack(">H", 299), at + 60
        else:
            piece = content[at : at + 20]
            found, at = found + bytes([0x80 | len(piece) - 1]) + piece, at + len(piece)
    return found


PACKERS = {
    RAW: lambda content: content,
    ADC: adc,
    ZLIB: zlib.compress,
    BZIP2: bz2.compress,
    LZMA: lambda content: lzma.compress(content, lzma.FORMAT_XZ),
    LZFSE: lambda content: b"bvx$" + content,
}


def dmg(
    parts: list[tuple[str, list[tuple[int, bytes]]]],
    *,
    front: bytes = b"",
    segments: int = 1,
    spoil: int = 0,
) -> bytes:
    """An image of parts, each of which is a table of chunks: how it is stored, and what it holds."""
    data, tables, sector, sums = b"", [], 0, b""
    for name, chunks in parts:
        first, entries, crc = sector, b"", spoil
        for kind, content in chunks:
            count = len(content) // SECTOR
            stored = PACKERS[kind](content) if kind not in (ZERO, IGNORE) else b""
            entries += struct.pack(">IIQQQQ", kind, 0, sector - first, count, len(data), len(stored))
            entries += struct.pack(">IIQQQQ", 0x7FFFFFFE, 0, 0, 0, 0, 0)
            crc = zlib.crc32(content, crc) if kind != IGNORE else crc
            data, sector = data + stored, sector + count
        entries += struct.pack(">IIQQQQ", 0xFFFFFFFF, 0, sector - first, 0, len(data), 0)
        checksum = struct.pack(">I", crc)
        sums += checksum
        head = struct.pack(">4sIQQQII24x", b"mish", 1, first, sector - first, 0, 2056, 0)
        head += struct.pack(">II", 2, 32) + checksum.ljust(128, b"\0") + struct.pack(">I", len(entries) // 40)
        tables.append({"Name": name, "Attributes": "0x0050", "ID": "0", "Data": head + entries})
    listed = plistlib.dumps({"resource-fork": {"blkx": tables, "plst": []}})
    found = front + data
    trailer = struct.pack(">4sIIIQQQQQII16x", b"koly", 4, 512, 1, 0, len(front), len(data), 0, 0, 1, segments)
    trailer += struct.pack(">II", 2, 32) + struct.pack(">I", zlib.crc32(data)).ljust(128, b"\0")
    trailer += struct.pack(">QQ", len(found), len(listed)).ljust(136, b"\0")
    trailer += struct.pack(">II", 2, 32) + struct.pack(">I", zlib.crc32(sums)).ljust(128, b"\0")
    trailer += struct.pack(">IQ", 1, sector)
    return found + listed + trailer.ljust(512, b"\0")
