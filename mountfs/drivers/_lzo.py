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
    out = bytearray()
    at, state = 0, 0
    first = packed[0]
    if first > 17:
        at = 1 + first - 17
        out += _literals(packed, 1, first - 17)
        state = min(first - 17, _LONG_STATE)
    while True:
        code = packed[at]
        at += 1
        if code < 16 and state == 0:
            length, at = _length(packed, at, code, 15)
            out += _literals(packed, at, length + 3)
            at += length + 3
            state = _LONG_STATE
        else:
            if code >= 64:
                distance = (packed[at] << 3 | code >> 2 & 7) + 1
                length = (code >> 5) + 1
                after, at = code & 3, at + 1
            elif code < 16:
                distance = (packed[at] << 2 | code >> 2) + (1 if state != _LONG_STATE else 2049)
                length = 2 if state != _LONG_STATE else 3
                after, at = code & 3, at + 1
            else:
                near = code >= 32
                length, at = _length(packed, at, code & 31, 31) if near else _length(packed, at, code & 7, 7)
                low = packed[at] | packed[at + 1] << 8
                after, at = low & 3, at + 2
                distance = (low >> 2) + (1 if near else 16_384 + ((code & 8) << 11))
                if distance == 16_384 and not near:
                    return bytes(out)
                length += 2
            _copy(out, distance, length, limit)
            if after:
                out += _literals(packed, at, after)
                at += after
            state = after
        if len(out) > limit:
            raise VolumeError(f"LZO data is damaged: more than {limit} bytes")


def _length(packed: bytes, at: int, given: int, base: int) -> tuple[int, int]:
    """Return a length whose bits were too few if they are 0: each zero that follows stands for 255."""
    if given:
        return given, at
    length = base
    while packed[at] == 0:
        length += 255
        at += 1
    return length + packed[at], at + 1


def _literals(packed: bytes, at: int, count: int) -> bytes:
    found = packed[at : at + count]
    if len(found) < count:
        raise VolumeError("LZO data is damaged: it ends too early")
    return found


def _copy(out: bytearray, distance: int, length: int, limit: int) -> None:
    start = len(out) - distance
    if start < 0 or len(out) + length > limit:
        raise VolumeError("LZO data is damaged: a match outside of it")
    if distance >= length:
        out += out[start : start + length]
    else:
        repeated = out[start:]
        out += (repeated * (length // distance + 1))[:length]
