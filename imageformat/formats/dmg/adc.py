"""Apple Data Compression, the oldest compression of disk images: runs of bytes, and copies of earlier ones.

Source: what Apple's "hdiutil" writes as UDCO, as it is described in public format notes.
"""

from __future__ import annotations

from imageformat.errors import CorruptImageError


def decode_adc(content: bytes, size: int) -> bytes:
    """Return exactly ``size`` bytes.

    Raises:
        CorruptImageError: the content is damaged; the caller adds the place.
    """
    found = bytearray()
    at = 0
    try:
        while at < len(content) and len(found) < size:
            code = content[at]
            if code & 0x80:
                length = (code & 0x7F) + 1
                if at + 1 + length > len(content):
                    raise CorruptImageError("ends within a run")
                found += content[at + 1 : at + 1 + length]
                at += 1 + length
                continue
            if code & 0x40:
                length, distance = (code & 0x3F) + 4, (content[at + 1] << 8 | content[at + 2]) + 1
                at += 3
            else:
                length, distance = (code >> 2) + 3, ((code & 3) << 8 | content[at + 1]) + 1
                at += 2
            if distance > len(found):
                raise CorruptImageError("copies what lies before its beginning")
            piece = found[-distance : len(found) - distance + length]
            found += (piece * (length // len(piece) + 1))[:length]
    except IndexError as error:
        raise CorruptImageError("ends within a copy") from error
    if len(found) != size:
        raise CorruptImageError(f"has {len(found)} bytes instead of {size}")
    return bytes(found)
