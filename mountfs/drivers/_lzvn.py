"""LZVN, the fast compression of Apple's file systems.

Source: the reference implementation that Apple published (BSD licence, ``lzvn_decode_base.c``), read as
the description of the format. An opcode says how many literal bytes follow it, how many bytes to copy of
what was decoded, and how far back; what it leaves out is as before.
"""

from __future__ import annotations

from imageformat.errors import VolumeError

_END = 0x06
_NOTHING = frozenset({0x0E, 0x16})
_END_LENGTH = 8


def lzvn_decode(packed: bytes, out: bytearray, size: int) -> None:
    """Append to ``out`` what a stream decodes to: exactly ``size`` bytes. Matches may reach into ``out``.

    Raises:
        VolumeError: the stream is damaged, or decodes to another size.
    """
    end, at, distance = len(out) + size, 0, 0
    try:
        while (opcode := packed[at]) != _END:
            if opcode in _NOTHING:
                at += 1
                continue
            literals, length, new_distance, width = _opcode(packed, at)
            at += width
            distance = new_distance or distance
            if at + literals > len(packed) or len(out) + literals + length > end:
                raise VolumeError("an LZVN stream is damaged: it does not fit")
            out += packed[at : at + literals]
            at += literals
            if length:
                copy_match(out, distance, length)
    except IndexError as error:
        raise VolumeError("an LZVN stream is damaged: it ends too early") from error
    if len(out) != end or at + _END_LENGTH > len(packed):
        raise VolumeError("an LZVN stream is damaged: it has another size")


def _opcode(packed: bytes, at: int) -> tuple[int, int, int, int]:
    """Return literals, length of the match, distance (0: as before) and width of an opcode."""
    first = packed[at]
    high = first >> 4
    if high == 0xE:
        return (first & 15, 0, 0, 1) if first & 15 else (packed[at + 1] + 16, 0, 0, 2)
    if high == 0xF:
        return (0, first & 15, 0, 1) if first & 15 else (0, packed[at + 1] + 16, 0, 2)
    if high in {0x7, 0xD}:
        raise VolumeError(f"an LZVN stream is damaged: {first:#x} is no opcode")
    if high in {0xA, 0xB}:
        word = packed[at + 1] | packed[at + 2] << 8
        return first >> 3 & 3, ((first & 7) << 2 | word & 3) + 3, _used(word >> 2), 3
    literals, length, low = first >> 6, (first >> 3 & 7) + 3, first & 7
    if low == 7:
        return literals, length, _used(packed[at + 1] | packed[at + 2] << 8), 3
    if low == 6:
        if first < 0x40:
            raise VolumeError(f"an LZVN stream is damaged: {first:#x} is no opcode")
        return literals, length, 0, 1
    return literals, length, _used(low << 8 | packed[at + 1]), 2


def _used(distance: int) -> int:
    if not distance:
        raise VolumeError("an LZVN stream is damaged: a match of distance 0")
    return distance


def copy_match(out: bytearray, distance: int, length: int) -> None:
    """Append ``length`` bytes from ``distance`` back; the two may overlap.

    Raises:
        VolumeError: there is nothing so far back.
    """
    start = len(out) - distance
    if distance <= 0 or start < 0:
        raise VolumeError("a compressed stream is damaged: a match before its start")
    if distance >= length:
        out += out[start : start + length]
    else:
        pattern = bytes(out[start:])
        out += (pattern * (length // distance + 1))[:length]
