"""Bits and prefix codes as Microsoft's compressions have them: words of 16 bits, from the top bit down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Sequence


class BitWords:
    """Reads bits from little-endian words of 16 bits, and whole bytes from between the words.

    What lies behind the end reads as zeros, for as many bits as a code may look ahead; `finish` tells whether
    any of them were taken.
    """

    def __init__(self, raw: bytes, at: int = 0) -> None:
        self._raw = raw
        self._held = 0
        self._count = 0
        self.at = at
        """Where the next word, or the next byte, is."""

    def _ensure(self, count: int) -> None:
        while self._count < count:
            if self.at > len(self._raw) + 4:
                raise VolumeError("a compressed block is damaged: it ends too early")
            word = int.from_bytes(self._raw[self.at : self.at + 2], "little")
            self._held = self._held << 16 | word
            self._count += 16
            self.at += 2

    def take(self, count: int) -> int:
        """Take up to 32 bits."""
        self._ensure(count)
        self._count -= count
        found = self._held >> self._count
        self._held &= (1 << self._count) - 1
        return found

    def symbol(self, code: PrefixCode) -> int:
        """Take one symbol of a prefix code."""
        self._ensure(code.longest)
        entry = code.table[self._held >> self._count - code.longest]
        if entry < 0:
            raise VolumeError("a compressed block is damaged: bits that are no code")
        self._count -= entry & 15
        self._held &= (1 << self._count) - 1
        return entry >> 4

    def prefetch(self, count: int) -> None:
        """Hold at least so many bits, as an encoder counted on that places bytes between the words."""
        self._ensure(count)

    def align(self) -> None:
        """Drop what is left of the word, at least one bit."""
        self._ensure(1)
        self._held = self._count = 0

    def finish(self) -> None:
        """Check that nothing was taken from behind the end."""
        if 8 * self.at - self._count > 8 * len(self._raw):
            raise VolumeError("a compressed block is damaged: it ends too early")

    def bytes(self, count: int) -> bytes:
        """Take whole bytes from where the next word would be."""
        found = self._raw[self.at : self.at + count]
        if len(found) != count:
            raise VolumeError("a compressed block is damaged: it ends too early")
        self.at += count
        return found


class PrefixCode:
    """A canonical code, from the length of each symbol's code word; 0 for symbols that do not occur."""

    def __init__(self, lengths: Sequence[int], longest: int) -> None:
        self.longest = longest
        table: list[int] = []
        by_length = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
        for length, symbol in by_length:
            table += [symbol << 4 | length] * (1 << longest - length)
            if len(table) > 1 << longest:
                raise VolumeError("a compressed block is damaged: a code with too many words")
        self.table = table + [-1] * ((1 << longest) - len(table))
