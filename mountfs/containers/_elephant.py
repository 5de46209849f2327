"""AES-CBC with the Elephant diffuser, as BitLocker used it up to Windows 7.

N. Ferguson, "AES-CBC + Elephant diffuser", 2006, section 4. A diffuser walks over the 32-bit words of a
sector one after another, and does so in all sectors of a piece at once here: equal words of all sectors lie
side by side in one long integer, each with 32 bits of room for what an addition carries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mountfs.containers._sectors import CbcSectors, counted_vectors, enciphered_vectors, xor

if TYPE_CHECKING:
    from collections.abc import Sequence

_A_ROTATIONS, _A_CYCLES = (9, 0, 13, 0), 5
_B_ROTATIONS, _B_CYCLES = (0, 10, 0, 25), 3
_HIGHEST = b"\x80"


class ElephantSectors:
    """Deciphers sectors in CBC, undoes both diffusers, and takes the sector key away."""

    def __init__(self, key: bytes, tweak_key: bytes, sector_size: int) -> None:
        self.sector_size = sector_size
        self._cbc = CbcSectors(key, sector_size, enciphered_vectors(key))
        self._lower = enciphered_vectors(tweak_key)
        self._upper = enciphered_vectors(tweak_key, _marked_vectors)

    def decrypt(self, data: bytes, numbers: range) -> bytes:
        """See `SectorCipher.decrypt`."""
        plain = undo_diffusers(self._cbc.decrypt(data, numbers), self.sector_size)
        lower, upper = self._lower(numbers), self._upper(numbers)
        keys = b"".join(
            (lower[at : at + 16] + upper[at : at + 16]) * (self.sector_size // 32)
            for at in range(0, len(lower), 16)
        )
        return xor(plain, keys)


def _marked_vectors(numbers: range) -> bytes:
    """Return the numbers as vectors whose last byte is 80."""
    plain = bytearray(counted_vectors(numbers))
    plain[15::16] = _HIGHEST * len(numbers)
    return bytes(plain)


def undo_diffusers(data: bytes, sector_size: int) -> bytes:
    """Undo diffuser B, then A, in every sector."""
    count, words = len(data) // sector_size, sector_size // 4
    lanes = _spread(data, count, words)
    mask = int.from_bytes((b"\xff" * 4 + bytes(4)) * count, "little")
    _diffuse(lanes, mask, _B_ROTATIONS, _B_CYCLES, 2, 5)
    _diffuse(lanes, mask, _A_ROTATIONS, _A_CYCLES, -2, -5)
    return _gather(lanes, count, words)


def _diffuse(lanes: list[int], mask: int, rotations: Sequence[int], cycles: int, near: int, far: int) -> None:
    """Run one diffuser as decryption does; ``near`` and ``far`` are the words that go into one."""
    words = len(lanes)
    for _ in range(cycles):
        for index in range(words):
            turned, turns = lanes[(index + far) % words], rotations[index % 4]
            if turns:
                turned = (turned << turns | turned >> (32 - turns)) & mask
            lanes[index] = (lanes[index] + (lanes[(index + near) % words] ^ turned)) & mask


def _spread(data: bytes, count: int, words: int) -> list[int]:
    """Return for each word of a sector those of all sectors, 64 bits apart."""
    source = memoryview(data).cast("I")
    lanes = []
    for index in range(words):
        lane = bytearray(8 * count)
        memoryview(lane).cast("I")[::2] = source[index::words]
        lanes.append(int.from_bytes(lane, "little"))
    return lanes


def _gather(lanes: list[int], count: int, words: int) -> bytes:
    """Undo `_spread`."""
    gathered = bytearray(4 * count * words)
    target = memoryview(gathered).cast("I")
    for index, lane in enumerate(lanes):
        target[index::words] = memoryview(lane.to_bytes(8 * count, "little")).cast("I")[::2]
    return bytes(gathered)
