"""The catalogue: what the image files of a set say of themselves, remembered between runs.

It is a cache. Every entry is bound to the fingerprint of its file; when it is missing, damaged or out of
date, the files themselves are read again. Nothing is ever decided on it that the files do not prove.
"""

from __future__ import annotations

import msgspec

from imageformat.errors import ImageError, MountfsError, error_classes
from imageformat.layer import ImageInfo

_VERSION = 1


class Problem(msgspec.Struct, frozen=True):
    """Why an image file cannot be opened."""

    error: str
    """Name of the error class."""
    message: str

    @classmethod
    def of(cls, error: MountfsError) -> Problem:
        """Remember an error."""
        return cls(type(error).__name__, str(error))

    def to_error(self) -> MountfsError:
        """Return the error again, of the same class."""
        kinds = {kind.__name__: kind for kind in error_classes()}
        return kinds.get(self.error, ImageError)(self.message)


class Proof(msgspec.Struct, frozen=True):
    """The outcome of the last verification of an image file."""

    verified_ns: int
    damaged_blocks: int


class CatalogEntry(msgspec.Struct, frozen=True):
    """One image file."""

    key: str
    fingerprint: str
    info: ImageInfo | None
    problem: Problem | None = None
    """Never remembered: the next look may be by another user, with another version, on a better day."""
    proof: Proof | None = None


class _File(msgspec.Struct, frozen=True):
    version: int
    entries: list[CatalogEntry]


def decode_catalog(data: bytes | None) -> dict[str, CatalogEntry]:
    """Return entries by key; empty when the catalogue is missing, damaged, or of another version."""
    if data is None:
        return {}
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
    return {entry.key: entry for entry in file.entries} if file.version == _VERSION else {}


def encode_catalog(entries: list[CatalogEntry]) -> bytes:
    """Return the bytes of a catalogue; a file whose name is no text is left out, and looked at each time."""
    try:
        return msgspec.json.encode(_File(_VERSION, entries))
    except UnicodeEncodeError:
        return msgspec.json.encode(_File(_VERSION, [entry for entry in entries if _can_be_kept(entry)]))


def _can_be_kept(entry: CatalogEntry) -> bool:
    """Tell whether an entry is text throughout; a file name on disk need not be."""
    try:
        msgspec.json.encode(entry)
    except UnicodeEncodeError:
        return False
    return True
