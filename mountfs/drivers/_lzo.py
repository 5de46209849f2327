"""LZO1X, decoded without a library: SquashFS may use it, and no maintained package offers it.

Source: "LZO stream format as understood by Linux's LZO decompressor" of the kernel's documentation,
version 0 of the stream.
"""

from __future__ import annotations


class _Stream:
    """The stored bytes and what became of them."""

    def __init__(self, stored: bytes, limit: int) -> None:
        self._stored = stored
        self._limit = limit
        self.at = 0
        self.plain = bytearray()

    def byte(self) -> int:
        value = self._stored[self.at]
        self.at += 1
        return value

    def short(self) -> int:
        return self.byte() | self.byte() << 8

    def length(self, given: int, bits: int) -> int:
        """Return a length whose ``bits`` low bits were given, or which goes on in the bytes that follow."""
        if given:
            return given
        total = (1 << bits) - 1
        while not (following := self.byte()):
            total += 255
            if total > self._limit:
                raise ValueError("a length without end")
        return total + following

    def literals(self, count: int) -> None:
        piece = self._stored[self.at : self.at + count]
        if len(piece) != count:
            raise ValueError("it ends too early")
        self.at += count
        self._room(count)
        self.plain += piece

    def copy(self, distance: int, count: int) -> None:
        start = len(self.plain) - distance
        if start < 0:
            raise ValueError("it refers to what is before its start")
        self._room(count)
        piece = bytes(self.plain[start : start + count])
        if len(piece) < count:
            piece = (piece * (count // len(piece) + 1))[:count]
        self.plain += piece

    def _room(self, count: int) -> None:
        if len(self.plain) + count > self._limit:
            raise ValueError("it holds too many bytes")


def lzo1x(stored: bytes, limit: int) -> bytes:
    """Decode one block of at most ``limit`` plain bytes.

    Raises:
        ValueError, IndexError: it is damaged.
    """
    stream = _Stream(stored, limit)
    state = 0
    if stored[0] > 17:
        state = stream.byte() - 17
        stream.literals(state)
        state = min(state, 4)
    while True:
        code = stream.byte()
        if code < 16 and not state:
            stream.literals(3 + stream.length(code, 4))
            state = 4
            continue
        distance, count, state = _match(stream, code, state)
        if not distance:
            return bytes(stream.plain)
        stream.copy(distance, count)
        stream.literals(state)


def _match(stream: _Stream, code: int, state: int) -> tuple[int, int, int]:
    """Return distance, length, and how many literals follow; distance 0 is the end of the stream."""
    if code < 16:
        distance = (stream.byte() << 2) + (code >> 2) + 1
        return (distance + 2048, 3, code & 3) if state == 4 else (distance, 2, code & 3)
    if code < 32:
        count = 2 + stream.length(code & 7, 3)
        operand = stream.short()
        distance = (code & 8) << 11 | operand >> 2
        return (distance + 16_384 if distance else 0), count, operand & 3
    if code < 64:
        count = 2 + stream.length(code & 31, 5)
        operand = stream.short()
        return (operand >> 2) + 1, count, operand & 3
    count = 3 + (code >> 5 & 1) if code < 128 else 5 + (code >> 5 & 3)
    return (stream.byte() << 3) + (code >> 2 & 7) + 1, count, code & 3
