"""Clusters as raw deflate streams, followed by whatever fills the rest of their place."""

from __future__ import annotations

import zlib

from imageformat.errors import CorruptImageError


def inflate_cluster(stored: bytes, size: int) -> bytes:
    """Return exactly ``size`` bytes; never allocates more. What follows the stream is ignored. Thread-safe.

    Raises:
        CorruptImageError: the bytes are no such stream, or one of another length; the caller adds the place.
    """
    try:
        plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, size)
    except zlib.error as error:
        raise CorruptImageError(f"compressed cluster cannot be decoded: {error}") from error
    if len(plain) != size:
        raise CorruptImageError(f"compressed cluster has {len(plain)} bytes instead of {size}")
    return plain
