"""What tells one file of a format without ids from another: its length and a digest of some of it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imageformat.layer import Opening


def file_identity(opening: Opening, *content: bytes) -> bytes:
    """Return the identity of a stored file of which ``content`` was read.

    Name and time are no part of it: a chain that stands on the file goes on when it was copied or moved. Two
    states of one disk may agree in all that is cheap to look at; what stands on one of them knows the
    checksum of each block.
    """
    found = hashlib.blake2b(opening.device.size.to_bytes(8, "little"))
    for part in content:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()
