"""Decompression of one stored block, bounded by the size that its place allows.

The packed file systems share these: each decoder takes what is stored and the most bytes that may come of
it, and never allocates more. None keeps state, so that any number of threads may call them.
"""

from __future__ import annotations

import lzma
import zlib
from typing import TYPE_CHECKING, TypeAlias

import zstandard

from imageformat.errors import UnsupportedVolumeError, VolumeError
from mountfs.drivers import _lzo

if TYPE_CHECKING:
    from collections.abc import Callable

    Decoder: TypeAlias = Callable[[bytes, int], bytes]
    """(stored, limit) to at most ``limit`` plain bytes; raises `VolumeError`."""

try:
    from lz4 import block as _lz4_block
except ImportError:
    _lz4_block = None

_XZ_MEMORY = 128 << 20
_ZSTD_WINDOW = 8 << 20
_LZ4_MISSING = "it is compressed by LZ4, and the library for that is not here: install mountfs[lz4]"


def require_lz4() -> None:
    """Raise `UnsupportedVolumeError` with what to install when LZ4 cannot be decoded here."""
    if _lz4_block is None:
        raise UnsupportedVolumeError(_LZ4_MISSING)


def inflate(stored: bytes, limit: int) -> bytes:
    """Decode a zlib stream (RFC 1950); what follows it is ignored."""
    return _inflate(stored, limit, zlib.MAX_WBITS)


def inflate_raw(stored: bytes, limit: int) -> bytes:
    """Decode a deflate stream without header (RFC 1951); what follows it is ignored."""
    return _inflate(stored, limit, -zlib.MAX_WBITS)


def _inflate(stored: bytes, limit: int, window_bits: int) -> bytes:
    decoder = zlib.decompressobj(window_bits)
    try:
        plain = decoder.decompress(stored, limit + 1)
    except zlib.error as error:
        raise _damaged("zlib", str(error)) from error
    if len(plain) > limit or not decoder.eof:
        raise _damaged("zlib", "its end is missing")
    return plain


def unxz(stored: bytes, limit: int) -> bytes:
    """Decode an xz stream."""
    return _unpack_lzma(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), stored, limit)


def unlzma(stored: bytes, limit: int) -> bytes:
    """Decode an LZMA stream with the header of ``.lzma`` files."""
    return _unpack_lzma(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_XZ_MEMORY), stored, limit)


def _unpack_lzma(decoder: lzma.LZMADecompressor, stored: bytes, limit: int) -> bytes:
    try:
        plain = decoder.decompress(stored, limit + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise _damaged("LZMA", str(error)) from error
    if len(plain) > limit or not decoder.eof:
        raise _damaged("LZMA", "its end is missing")
    return plain


def unzstd(stored: bytes, limit: int) -> bytes:
    """Decode a zstd frame."""
    try:
        # The library takes the size that the frame states before it looks at the limit.
        if zstandard.frame_content_size(stored) > limit:
            raise _damaged("zstd", "it states too many bytes")
        decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        return decoder.decompress(stored, max_output_size=limit)
    except zstandard.ZstdError as error:
        raise _damaged("zstd", str(error)) from error


def unlz4(stored: bytes, limit: int) -> bytes:
    """Decode an LZ4 block."""
    require_lz4()
    try:
        return bytes(_lz4_block.decompress(stored, uncompressed_size=limit))
    except (_lz4_block.LZ4BlockError, ValueError) as error:
        raise _damaged("LZ4", str(error)) from error


def unlzo(stored: bytes, limit: int) -> bytes:
    """Decode an LZO1X block."""
    return _lzo.decompress(stored, limit)


def _damaged(kind: str, reason: str) -> VolumeError:
    return VolumeError(f"a block compressed by {kind} is damaged: {reason}")
