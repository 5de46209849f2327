"""What tells one file of a format without ids from another: its name, its time, its length, and a digest."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imageformat.layer import Opening


def file_identity(opening: Opening, *content: bytes) -> bytes:
    """Return the identity of a stored file of which ``content`` was read.

    The name and the time are part of it: two states of one disk, kept in two files, often agree in all that
    is cheap to look at, and a cache that took one for the other would serve wrong bytes.
    """
    name = opening.name.rsplit("/", 1)[-1]
    facts = f"{name}\0{opening.siblings.modified_ns}\0{opening.device.size}"
    found = hashlib.blake2b(facts.encode("utf-8", "surrogateescape"))
    for part in content:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()
