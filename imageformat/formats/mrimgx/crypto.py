"""The ciphers of encrypted Macrium images. The only module that needs `cryptography`.

Source: ENCRYPTION.md of mrimgx_file_layout, corrected by the publisher's code: the numbers of disk and
partition go into the nonce as 16 bits each.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from imageformat.errors import CorruptImageError

BLOCK = 16
_NONCE = struct.Struct("<8sHHI")


@dataclass(frozen=True, slots=True)
class Cryptor:
    """Encrypts and decrypts what belongs to one set. Any number of threads may call it at once."""

    image_id: bytes = field(repr=False)
    key: bytes = field(repr=False)
    """The whole derived key, 32 bytes."""
    key_length: int
    """How much of it encrypts data: 16, 24 or 32 bytes."""

    def decrypt_block(self, stored: bytes, disk: int, partition: int, index: int) -> bytes:
        """Return a block and the fill after it; ``index`` is its number in the whole partition.

        Raises:
            CorruptImageError: the stored length is no multiple of 16.
        """
        if len(stored) % BLOCK:
            raise CorruptImageError(f"{len(stored)} encrypted bytes are no multiple of {BLOCK}")
        decryptor = self._cbc(disk, partition, index).decryptor()
        return decryptor.update(stored) + decryptor.finalize()

    def encrypt_block(self, plain: bytes, disk: int, partition: int, index: int) -> bytes:
        """Return what is stored of a block: it is filled with zeros to a multiple of 16 first."""
        encryptor = self._cbc(disk, partition, index).encryptor()
        return encryptor.update(plain + bytes(-len(plain) % BLOCK)) + encryptor.finalize()

    def decrypt_metadata(self, stored: bytes) -> bytes:
        """Return the payload of an encrypted metadata block.

        Raises:
            CorruptImageError: the stored length is no multiple of 16.
        """
        if len(stored) % BLOCK:
            raise CorruptImageError(f"has {len(stored)} encrypted bytes, no multiple of {BLOCK}")
        # ECB is what the format prescribes here.
        decryptor = Cipher(algorithms.AES(self.key[: self.key_length]), modes.ECB()).decryptor()  # noqa: S305
        return decryptor.update(stored) + decryptor.finalize()

    def _cbc(self, disk: int, partition: int, index: int) -> Cipher[modes.CBC]:
        nonce = _NONCE.pack(self.image_id, disk & 0xFFFF, partition & 0xFFFF, index & 0xFFFFFFFF)
        # One block of ECB turns the nonce into the vector.
        vector = Cipher(algorithms.AES(hashlib.sha256(self.key).digest()), modes.ECB()).encryptor()  # noqa: S305
        return Cipher(algorithms.AES(self.key[: self.key_length]), modes.CBC(vector.update(nonce)))
