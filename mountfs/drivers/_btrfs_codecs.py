"""What btrfs compresses with: zlib, LZO in segments, zstd. Never more than the stated size comes out.

An extent that decodes to less than it states ends in zeros: so the documentation of encoded writes has it
("btrfs", BTRFS_IOC_ENCODED_WRITE). One that breaks off is damage.

Source: the btrfs documentation, "Compression" and "On-disk Format", EXTENT_DATA; for the segments of LZO the
description in "Compression".
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import zstandard

from imageformat.errors import VolumeError
from mountfs.drivers import _lzo

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_EXTENT = 131_072
"""No compressed extent is larger, packed or not."""
_MAX_WINDOW = 1 << 17
_STEP = 1024
_LENGTH = 4


def decode(compression: int, packed: bytes, size: int, sector_size: int) -> bytes:
    """Return exactly ``size`` bytes.

    Raises:
        VolumeError: it is damaged, or compressed in a way that is not known.
    """
    decoder = _DECODERS.get(compression)
    if decoder is None:
        raise VolumeError(f"an extent is compressed in a way that is not known ({compression})")
    # zlib takes a limit of 0 for none.
    if not 0 < size <= MAX_EXTENT or len(packed) > MAX_EXTENT:
        raise VolumeError(f"a compressed extent is damaged: {len(packed)} bytes for {size}")
    return decoder(packed, size, sector_size).ljust(size, b"\0")


def _zlib(packed: bytes, size: int, _: int) -> bytes:
    decoder = zlib.decompressobj()
    try:
        raw = decoder.decompress(packed, size)
    except zlib.error as error:
        raise VolumeError(f"a compressed extent is damaged: {error}") from error
    if len(raw) < size and not decoder.eof:
        raise VolumeError("a compressed extent is damaged: it breaks off")
    return raw


def _zstd(packed: bytes, size: int, _: int) -> bytes:
    """Decode one frame, in steps: a few bytes can stand for a block of 128 KiB."""
    raw = bytearray()
    try:
        if zstandard.get_frame_parameters(packed).window_size > _MAX_WINDOW:
            raise VolumeError("a compressed extent is damaged: its window is too large")
        decoder = zstandard.ZstdDecompressor().decompressobj()
        for at in range(0, len(packed), _STEP):
            raw += decoder.decompress(packed[at : at + _STEP])
            if decoder.eof or len(raw) >= size:
                return bytes(raw[:size])
    except zstandard.ZstdError as error:
        raise VolumeError(f"a compressed extent is damaged: {error}") from error
    raise VolumeError("a compressed extent is damaged: it breaks off")


def _lzo_segments(packed: bytes, size: int, sector_size: int) -> bytes:
    """Decode segments of one sector each; the length before a segment never crosses a sector."""
    total, at, out = int.from_bytes(packed[:_LENGTH], "little"), _LENGTH, bytearray()
    if not _LENGTH < total <= len(packed):
        raise VolumeError(f"a compressed extent is damaged: {total} bytes of LZO in {len(packed)}")
    while at < total and len(out) < size:
        left = sector_size - at % sector_size
        if left < _LENGTH:
            at += left
        length = int.from_bytes(packed[at : at + _LENGTH], "little")
        at += _LENGTH
        if not length or at + length > total:
            raise VolumeError(f"a compressed extent is damaged: a segment of {length} bytes")
        out += _lzo.decompress(packed[at : at + length], sector_size)
        at += length
    return bytes(out[:size])


_DECODERS: dict[int, Callable[[bytes, int, int], bytes]] = {1: _zlib, 2: _lzo_segments, 3: _zstd}
