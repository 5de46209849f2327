"""Sector by sector, as disk encryption works: ciphertext in, plain bytes out.

Every sector is enciphered for itself, with a vector that comes from its number. Modes and vectors are those
of dm-crypt (its documentation, and that of LUKS and BitLocker, use the same names); XTS is IEEE 1619.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from imageformat.device import check_range
from imageformat.errors import VolumeError
from imageformat.extent import Extent, ExtentKind, coalesce

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageformat.device import BlockDevice

BLOCK = 16
_ERRORS = frozenset({ExtentKind.BAD, ExtentKind.EXCLUDED})
_PIECE = 128 << 10
"""Bytes deciphered in one go: big enough to pay, small enough for the caches of a processor."""


class SectorCipher(Protocol):
    """Deciphers whole sectors. Any number of threads."""

    sector_size: int

    def decrypt(self, data: bytes, numbers: range) -> bytes:
        """Decipher consecutive sectors; ``numbers`` has the number of each, as the vectors count."""
        ...


class XtsSectors:
    """AES in XTS; ``vectors`` makes the tweaks of sectors, one after another.

    Raises:
        VolumeError: both halves of the key are the same, which the library refuses, as IEEE 1619 asks.
    """

    def __init__(self, key: bytes, sector_size: int, vectors: Callable[[range], bytes]) -> None:
        if key[: len(key) // 2] == key[len(key) // 2 :]:
            raise VolumeError("both halves of its key are the same, which makes no sense in XTS")
        self.sector_size = sector_size
        self._algorithm = algorithms.AES(key)
        self._vectors = vectors

    def decrypt(self, data: bytes, numbers: range) -> bytes:
        """See `SectorCipher.decrypt`."""
        algorithm, size, tweaks = self._algorithm, self.sector_size, self._vectors(numbers)
        return b"".join(
            Cipher(algorithm, modes.XTS(tweaks[BLOCK * index : BLOCK * (index + 1)]))
            .decryptor()
            .update(data[start : start + size])
            for index, start in enumerate(range(0, len(data), size))
        )


class CbcSectors:
    """AES in CBC; ``vectors`` makes the initialisation vectors of sectors, one after another.

    All blocks are deciphered at once, and what chains them is taken away afterwards: much faster than one
    context for each sector.
    """

    def __init__(self, key: bytes, sector_size: int, vectors: Callable[[range], bytes]) -> None:
        self.sector_size = sector_size
        self._cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 (the chaining is done here)
        self._vectors = vectors

    def decrypt(self, data: bytes, numbers: range) -> bytes:
        """See `SectorCipher.decrypt`."""
        chain = bytearray(BLOCK) + data[:-BLOCK]
        words, vectors = memoryview(chain).cast("Q"), memoryview(self._vectors(numbers)).cast("Q")
        for half in (0, 1):
            words[half :: self.sector_size // 8] = vectors[half::2]
        return xor(self._cipher.decryptor().update(data), bytes(chain))


class EcbSectors:
    """AES in ECB, in which the place of a block means nothing."""

    def __init__(self, key: bytes, sector_size: int) -> None:
        self.sector_size = sector_size
        self._cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 (this is what the volume uses)

    def decrypt(self, data: bytes, numbers: range) -> bytes:  # noqa: ARG002 (they mean nothing here)
        """See `SectorCipher.decrypt`."""
        return self._cipher.decryptor().update(data)


def counted_vectors(numbers: range) -> bytes:
    """Return the numbers themselves as vectors (``plain64``)."""
    words = [0] * (2 * len(numbers))
    words[::2] = numbers
    return struct.pack(f"<{len(words)}Q", *words)


def enciphered_vectors(
    key: bytes, vectors: Callable[[range], bytes] = counted_vectors
) -> Callable[[range], bytes]:
    """Return vectors that are other vectors enciphered with a key of their own (ESSIV, and BitLocker's)."""
    cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 (one block each)
    return lambda numbers: cipher.encryptor().update(vectors(numbers))


def xor(left: bytes, right: bytes) -> bytes:
    """Combine two strings of the same length."""
    return (int.from_bytes(left, "little") ^ int.from_bytes(right, "little")).to_bytes(len(left), "little")


class DecipheredDevice:
    """The plain bytes of an enciphered device, from its first sector to its last whole one.

    Zeros that are stored are ciphertext like anything else: all of it is DATA but what cannot be read.
    ``first_number`` is that of the first sector, ``step`` how far the numbers of neighbours lie apart.
    Closing it leaves the other device open. Any number of threads.
    """

    def __init__(
        self, device: BlockDevice, cipher: SectorCipher, *, first_number: int = 0, step: int = 1
    ) -> None:
        self._device = device
        self._cipher = cipher
        self._first_number = first_number
        self._step = step
        self.block_size = max(cipher.sector_size, device.block_size)
        self.size = device.size // cipher.sector_size * cipher.sector_size

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        if not size:
            return b""
        sector = self._cipher.sector_size
        start = offset // sector * sector
        end = -(-(offset + size) // sector) * sector
        plain = b"".join(self._decipher(at, min(_PIECE, end - at)) for at in range(start, end, _PIECE))
        return plain[offset - start : offset - start + size]

    def _decipher(self, start: int, size: int) -> bytes:
        sector = self._cipher.sector_size
        first = self._first_number + start // sector * self._step
        numbers = range(first, first + size // sector * self._step, self._step)
        return self._cipher.decrypt(self._device.pread(start, size), numbers)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`."""
        check_range(self.size, offset, size)
        return coalesce(
            Extent(
                extent.offset,
                extent.length,
                extent.kind if extent.kind in _ERRORS else ExtentKind.DATA,
            )
            for extent in self._device.extents(offset, size)
        )

    def close(self) -> None:
        """The owner of the underlying device closes it."""
