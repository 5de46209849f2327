"""What opens encrypted images and volumes: passwords and keys, as one value that is handed down.

Whoever meets something encrypted tries everything that was given; nobody says beforehand what opens what.
None of it is ever printed: the representation leaves it out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imageformat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_KEY_SIZE = 8 << 20
"""Bytes of one password or key; what cryptsetup takes at most."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """Passwords and keys that may be tried. A value: equal to another that holds the same.

    Raises:
        UsageError: one of them is longer than `MAX_KEY_SIZE`.
    """

    given_passwords: tuple[bytes, ...] = field(default=(), repr=False)
    """What a person types, as the bytes of UTF-8; recovery keys as well."""
    given_keys: tuple[bytes, ...] = field(default=(), repr=False)
    """Contents of key files, byte for byte."""

    def __post_init__(self) -> None:
        if any(len(secret) > MAX_KEY_SIZE for secret in (*self.given_passwords, *self.given_keys)):
            raise UsageError(f"a password or key is longer than {MAX_KEY_SIZE >> 20} MiB")

    def __bool__(self) -> bool:
        """Whether there is anything to try."""
        return bool(self.given_passwords or self.given_keys)

    def passwords(self) -> Iterator[bytes]:
        """Yield the passwords in order, each once."""
        yield from dict.fromkeys(self.given_passwords)

    def keys(self) -> Iterator[bytes]:
        """Yield the contents of the key files in order, each once."""
        yield from dict.fromkeys(self.given_keys)

    def with_password(self, password: bytes) -> Secrets:
        """Return these and one more password, which is tried first."""
        return dataclasses.replace(self, given_passwords=(password, *self.given_passwords))


NO_SECRETS = Secrets()
"""Nothing was given: what is encrypted stays locked."""
