"""LZO1X: the decoder, bounded by the size that the caller expects.

Source: the kernel's documentation "LZO stream format as understood by Linux's LZO decompressor"; of it the
instructions of the first version, which is what file systems store.
"""

from __future__ import annotations

from imageformat.errors import VolumeError

_LONG_STATE = 4
"""After a run of four literals or more."""


def decompress(packed: bytes, limit: int) -> bytes:
    """Decode one stream; at most ``limit`` bytes come out.

    Raises:
        VolumeError: it is damaged, has no end, or holds more.
    """
    try:
        return _decode(packed, limit)
    except IndexError as error:
        raise VolumeError("LZO data is damaged: it ends too early") from error


def _decode(packed: bytes, limit: int) -> bytes:
    """Follow the instructions: each is a run of literals, or a match and up to three literals.

    A slice that is cut short leaves ``at`` behind the end, where the next instruction is missing.
    """
    count = max(0, packed[0] - 17)
    at, state = count + (count > 0), min(count, _LONG_STATE)
    out = bytearray(packed[1:at])
    while True:
        code = packed[at]
        at += 1
        if code >= 64:
            distance = (packed[at] << 3 | code >> 2 & 7) + 1
            length = (code >> 5) + 1
            state = code & 3
            at += 1
        elif code >= 16:
            distance, length, state, at = _far_match(packed, at, code)
            if not distance:
                break
        elif state == 0:
            length, at = _length(packed, at, code, 15)
            out += packed[at : at + length + 3]
            at += length + 3
            state = _LONG_STATE
            continue
        else:
            is_long = state == _LONG_STATE
            distance = (packed[at] << 2 | code >> 2) + (2049 if is_long else 1)
            length = 3 if is_long else 2
            state = code & 3
            at += 1
        start = len(out) - distance
        if start < 0 or len(out) + length > limit:
            raise VolumeError("LZO data is damaged: a match outside of it")
        if distance >= length:
            out += out[start : start + length]
        else:
            out += (out[start:] * (length // distance + 1))[:length]
        if state:
            out += packed[at : at + state]
            at += state
    if len(out) > limit:
        raise VolumeError(f"LZO data is damaged: more than {limit} bytes")
    return bytes(out)


def _far_match(packed: bytes, at: int, code: int) -> tuple[int, int, int, int]:
    """Return distance, length, literals that follow, and place; a distance of 0 is the end."""
    if code >= 32:
        length, at = _length(packed, at, code & 31, 31)
        distance = 1
    else:
        length, at = _length(packed, at, code & 7, 7)
        distance = 16_384 + ((code & 8) << 11)
    low = packed[at] | packed[at + 1] << 8
    distance += low >> 2
    return 0 if code < 32 and distance == 16_384 else distance, length + 2, low & 3, at + 2


def _length(packed: bytes, at: int, given: int, base: int) -> tuple[int, int]:
    """Return a length whose bits were too few if they are 0: each zero that follows stands for 255."""
    if given:
        return given, at
    length = base
    while packed[at] == 0:
        length += 255
        at += 1
    return length + packed[at], at + 1
