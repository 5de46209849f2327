"""Security descriptors of NTFS: one stream, ``$SDS`` of the file ``$Secure``, holds those of all files.

Source: the Linux-NTFS project's documentation, file $Secure. The stream is made of blocks of 256 KiB, each
followed by its copy. An entry starts with the hash of its descriptor, its number, its own place and length.
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.drivers._content import Content

_BLOCK = 256 << 10
_HEADER = 20
_MAX_STREAM = 1 << 30
_MAX_DESCRIPTOR = 64 << 10


class SecurityStream:
    """Finds descriptors by number. Any number of threads."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._lock = threading.Lock()
        self._places: dict[int, tuple[int, int]] | None = None

    def descriptor(self, number: int) -> bytes:
        """Return a descriptor as it is stored: self-relative.

        Raises:
            VolumeError: there is none of that number, or both of its copies are damaged.
        """
        with self._lock:
            if self._places is None:
                self._places = dict(self._scan())
        place = self._places.get(number)
        if place is None:
            raise VolumeError(f"the security descriptor {number} does not exist")
        offset, length = place
        for at in (offset, offset + _BLOCK):
            if at + length <= self._content.size:
                raw = self._content.read(at, length)
                if struct.unpack_from("<II", raw, 0) == (_hash(raw[_HEADER:]), number):
                    return raw[_HEADER:]
        raise VolumeError(f"the security descriptor {number} is damaged")

    def _scan(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield number, place and length of each entry, from the first of the two blocks that has it."""
        size = min(self._content.size, _MAX_STREAM)
        for start in range(0, size, 2 * _BLOCK):
            blocks = [
                self._content.read(at, min(_BLOCK, size - at)) for at in (start, start + _BLOCK) if at < size
            ]
            at = 0
            while at + _HEADER <= len(blocks[0]):
                found = next((entry for raw in blocks if (entry := _entry(raw, at, start + at))), None)
                if found is None:
                    break
                number, length = found
                yield number, (start + at, length)
                at += -(-length // 16) * 16


def _entry(raw: bytes, at: int, place: int) -> tuple[int, int] | None:
    if at + _HEADER > len(raw):
        return None
    _, number, offset, length = struct.unpack_from("<IIQI", raw, at)
    fits = offset == place and _HEADER < length <= _MAX_DESCRIPTOR and at + length <= len(raw)
    return (number, length) if fits and number else None


def _hash(descriptor: bytes) -> int:
    """Rotate by three bits and add, word by word."""
    total = 0
    for (word,) in struct.iter_unpack("<I", descriptor[: len(descriptor) & ~3]):
        total = (total << 3 | total >> 29) + word & 0xFFFF_FFFF
    return total
