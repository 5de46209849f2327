"""From a password to the key of a volume, as LUKS does it: stretch, decipher a key slot, merge its stripes.

LUKS1 On-Disk Format Specification 1.2.3, sections 2 and 4; LUKS2 On-Disk Format Specification 1.1.1. How much
a derivation may cost is bounded: the numbers come from the volume.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf import argon2

from imageformat import system
from imageformat.device import Slice
from imageformat.errors import UnsupportedVolumeError, VolumeError
from mountfs.containers._sectors import (
    CbcSectors,
    DecipheredDevice,
    EcbSectors,
    XtsSectors,
    counted_vectors,
    enciphered_vectors,
    xor,
)
from mountfs.names import safe_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageformat.device import BlockDevice
    from mountfs.containers._sectors import SectorCipher

MAX_KEY = 512
MAX_STRIPES = 16_384
_SECTOR = 512
_MAX_ITERATIONS = 1 << 25
_MAX_MEMORY_KIB = 2 << 20
_MAX_MEMORY_PASSES_KIB = 32 << 20
_MAX_LANES = 16
_AES_KEYS = frozenset({16, 24, 32})
_XTS_KEYS = frozenset({32, 64})


@dataclass(frozen=True, slots=True)
class Pbkdf2:
    """PBKDF2 with an HMAC."""

    hash_name: str
    iterations: int
    salt: bytes

    def derive(self, secret: bytes, size: int) -> bytes:
        """Return ``size`` bytes made from a secret."""
        if not 1 <= self.iterations <= _MAX_ITERATIONS:
            raise VolumeError(f"deriving its key takes {self.iterations} rounds, more than is allowed here")
        check_hash(self.hash_name)
        try:
            return hashlib.pbkdf2_hmac(self.hash_name, secret, self.salt, self.iterations, size)
        except ValueError as error:
            raise UnsupportedVolumeError(
                f"PBKDF2 with {safe_text(self.hash_name)} is not known here"
            ) from error


@dataclass(frozen=True, slots=True)
class Argon2:
    """Argon2i or Argon2id, version 1.3."""

    variant: str
    """"argon2i" or "argon2id"."""
    passes: int
    memory_kib: int
    lanes: int
    salt: bytes

    def derive(self, secret: bytes, size: int) -> bytes:
        """Return ``size`` bytes made from a secret."""
        if (
            not 1 <= self.lanes <= _MAX_LANES
            or not 8 * self.lanes <= self.memory_kib <= min(_MAX_MEMORY_KIB, _machine_kib())
            or not 1 <= self.passes <= _MAX_MEMORY_PASSES_KIB // self.memory_kib
            or len(self.salt) < 8
        ):
            raise VolumeError(
                f"deriving its key takes {self.passes} x {self.memory_kib} KiB in {self.lanes} lanes: "
                "more than is allowed here, or nonsense"
            )
        kind = getattr(argon2, self.variant.capitalize(), None)
        if kind is None:
            raise UnsupportedVolumeError(f"the installed cryptography library is too old for {self.variant}")
        try:
            made: bytes = kind(
                salt=self.salt,
                length=size,
                iterations=self.passes,
                lanes=self.lanes,
                memory_cost=self.memory_kib,
            ).derive(secret)
        except UnsupportedAlgorithm as error:
            raise UnsupportedVolumeError(
                f"the installed cryptography library has no {self.variant}"
            ) from error
        except ValueError as error:
            raise VolumeError(f"deriving its key is not possible: {error}") from error
        except MemoryError as error:
            raise VolumeError(
                f"deriving its key takes {self.memory_kib} KiB of memory, which is not there"
            ) from error
        return made


def _machine_kib() -> int:
    """Return the memory of this machine."""
    return system.memory_size() >> 10


Derivation: TypeAlias = Pbkdf2 | Argon2


@dataclass(frozen=True, slots=True)
class Digest:
    """What the key of a volume is recognised by."""

    derivation: Pbkdf2
    expected: bytes

    def fits(self, key: bytes) -> bool:
        """Whether this is the key."""
        return hmac.compare_digest(self.derivation.derive(key, len(self.expected)), self.expected)


@dataclass(frozen=True, slots=True)
class Keyslot:
    """A key, enciphered with what is derived from one password, and spread over stripes."""

    name: str
    derivation: Derivation
    offset: int
    """Of its area on the device."""
    encryption: str
    """Of its area: "aes-xts-plain64"."""
    area_key_size: int
    key_size: int
    stripes: int
    hash_name: str
    """Of the stripes."""

    def open(self, device: BlockDevice, secret: bytes) -> bytes:
        """Return what may be the key: a wrong secret gives wrong bytes.

        Raises:
            VolumeError: the slot makes no sense, or needs what is not there.
        """
        size = self.key_size * self.stripes
        area = -(-size // _SECTOR) * _SECTOR
        if not 1 <= self.key_size <= MAX_KEY or not 1 <= self.stripes <= MAX_STRIPES:
            raise VolumeError(f"key slot {self.name} claims {self.stripes} stripes of {self.key_size} bytes")
        if self.offset + area > device.size:
            raise VolumeError(f"key slot {self.name} lies behind the end of the volume")
        check_hash(self.hash_name)
        make_cipher = cipher_maker(self.encryption, self.area_key_size, _SECTOR)
        cipher = make_cipher(self.derivation.derive(secret, self.area_key_size))
        plain = DecipheredDevice(Slice(device, self.offset, area), cipher).pread(0, size)
        return merge_stripes(plain, self.stripes, self.hash_name)


def merge_stripes(material: bytes, stripes: int, hash_name: str) -> bytes:
    """Undo the anti-forensic splitter (LUKS1 specification, section 2.4)."""
    size = len(material) // stripes
    merged = bytes(size)
    for start in range(0, size * (stripes - 1), size):
        merged = _diffuse(xor(merged, material[start : start + size]), hash_name)
    return xor(merged, material[size * (stripes - 1) :])


def _diffuse(block: bytes, hash_name: str) -> bytes:
    unit = hashlib.new(hash_name).digest_size
    pieces = (
        hashlib.new(hash_name, index.to_bytes(4, "big") + block[start : start + unit]).digest()
        for index, start in enumerate(range(0, len(block), unit))
    )
    return b"".join(pieces)[: len(block)]


def check_hash(name: str) -> None:
    """Refuse a hash function that is not here."""
    try:
        size = hashlib.new(name).digest_size
    except ValueError:
        size = 0
    if not size:
        raise UnsupportedVolumeError(f"it uses the hash function {safe_text(name)}, which is not known here")


def cipher_maker(encryption: str, key_size: int, sector_size: int) -> Callable[[bytes], SectorCipher]:
    """Return what makes the cipher that a volume names, such as "aes-xts-plain64", from a key of that size.

    Raises:
        UnsupportedVolumeError: it is not known here, or does not take such a key.
    """
    name, _, mode = encryption.partition("-")
    chaining, _, vectors = mode.partition("-")
    refusal = UnsupportedVolumeError(
        f"it is encrypted with {safe_text(encryption)}, {key_size * 8} bits of key, which is not known here"
    )
    if name != "aes":
        raise refusal
    if chaining == "xts" and vectors in _COUNTED and key_size in _XTS_KEYS:
        return lambda key: XtsSectors(key, sector_size, _COUNTED[vectors])
    if chaining == "ecb" and not vectors and key_size in _AES_KEYS:
        return lambda key: EcbSectors(key, sector_size)
    if chaining != "cbc" or key_size not in _AES_KEYS:
        raise refusal
    if vectors in _COUNTED:
        return lambda key: CbcSectors(key, sector_size, _COUNTED[vectors])
    kind, _, hash_name = vectors.partition(":")
    if kind != "essiv":
        raise refusal
    check_hash(hash_name)
    if hashlib.new(hash_name).digest_size not in _AES_KEYS:
        raise refusal
    return lambda key: CbcSectors(key, sector_size, enciphered_vectors(hashlib.new(hash_name, key).digest()))


def _short_vectors(numbers: range) -> bytes:
    """Return the numbers modulo 2^32 (``plain``)."""
    return b"".join((number & 0xFFFFFFFF).to_bytes(16, "little") for number in numbers)


def _big_endian_vectors(numbers: range) -> bytes:
    """Return the numbers in big-endian order (``plain64be``)."""
    return b"".join(number.to_bytes(16, "big") for number in numbers)


def _no_vectors(numbers: range) -> bytes:
    return bytes(16 * len(numbers))


_COUNTED = {
    "plain64": counted_vectors,
    "plain": _short_vectors,
    "plain64be": _big_endian_vectors,
    "null": _no_vectors,
}
