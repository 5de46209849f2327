"""From a password to the cipher of a set. Works without `cryptography` up to the cipher itself.

Source: ENCRYPTION.md of mrimgx_file_layout; the salt is the hash of the image id.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
from functools import lru_cache
from typing import TYPE_CHECKING

from imageformat.errors import LockedError, UnsupportedFeatureError

if TYPE_CHECKING:
    from imageformat.formats.mrimgx.crypto import Cryptor
    from imageformat.formats.mrimgx.model import Encryption
    from imageformat.secrets import Secrets

KEY_SIZE = 32
MAX_ITERATIONS = 10_000_000
"""Some seconds of work for each password; real files have 600,000."""


def unlock(encryption: Encryption, image_id: bytes, secrets: Secrets, name: str) -> Cryptor:
    """Return the cipher of a set that one of the passwords opens.

    Raises:
        LockedError: no password was given, or none is right.
        UnsupportedFeatureError: `cryptography` is not installed, or the derivation asks too much.
    """
    if not 0 < encryption.iterations <= MAX_ITERATIONS:
        raise UnsupportedFeatureError(
            f"{name}: its password is derived in {encryption.iterations} rounds; "
            f"1 to {MAX_ITERATIONS} are supported"
        )
    if not secrets.given_passwords:
        raise LockedError(f"{name}: is encrypted; give its password with --password-file")
    for password in secrets.passwords():
        key = derive_key(password, image_id, encryption.iterations)
        if hmac.compare_digest(key_check(key), encryption.hmac):
            return make_cryptor(image_id, key, encryption.key_length, name)
    raise LockedError(f"{name}: is encrypted, and no password that was given is right")


@lru_cache(maxsize=16)
def derive_key(password: bytes, image_id: bytes, iterations: int) -> bytes:
    """Return the 32 bytes that a password stands for in a set; slow on purpose, so once for all its files."""
    salt = hashlib.sha256(image_id).digest()
    return hashlib.pbkdf2_hmac("sha256", password.split(b"\0", 1)[0], salt, iterations, KEY_SIZE)


def key_check(key: bytes) -> bytes:
    """Return what a file stores so that a wrong password is told from the right one."""
    return hmac.digest(key, b"", "sha256")


def make_cryptor(image_id: bytes, key: bytes, key_length: int, name: str) -> Cryptor:
    """Return the cipher for a derived key.

    Raises:
        UnsupportedFeatureError: `cryptography` is not installed.
    """
    try:
        # Loaded for encrypted images only: it is optional, and slow to load.
        module = importlib.import_module("imageformat.formats.mrimgx.crypto")
    except ImportError as error:
        raise UnsupportedFeatureError(
            f"{name}: encrypted images need the library cryptography; install mountfs[foreign]"
        ) from error
    cryptor: Cryptor = module.Cryptor(image_id, key, key_length)
    return cryptor
