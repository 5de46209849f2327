"""Blocks to stored bytes and back: zstd or stored as they are, and the checksums of both.

Decoding is bounded: `zstandard` ignores ``max_output_size`` when a frame states its own size, so the
stated size is compared with the expected one before anything is allocated.
"""

from __future__ import annotations

import enum
import threading
from functools import cache

import xxhash
import zstandard

from imageformat.errors import CorruptImageError

DEFAULT_LEVEL = 3
"""zstd level: the best time on two cores; level 1 is slower to write because it is bigger."""

_DELTA_TABLE_LOG = 13
MIN_DELTA_LENGTH = 4096
"""Blocks shorter than this, and so odd ends of disks, are stored plainly."""
_MIN_SAVING = 32
"""Store a block as it is unless compression saves at least 1/32 of it."""


class Codec(enum.IntEnum):
    """How a payload is stored. The numbers are part of the format."""

    STORED = 0
    ZSTD = 1
    DELTA = 2
    """zstd with an older version of the block as its dictionary; see `encode_delta`."""
    PARTIAL = 3
    """A map of unreadable sectors, and zstd; see `imageformat.formats.native.partial`."""


class _ThreadState(threading.local):
    """zstandard's objects must not be shared between threads."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}


_state = _ThreadState()


def encode(raw: bytes | memoryview, level: int = DEFAULT_LEVEL) -> tuple[Codec, bytes | memoryview]:
    """Compress ``raw``, or return it as it is when that saves too little. Thread-safe."""
    packed = encode_whole(raw, level)
    if len(packed) > len(raw) - len(raw) // _MIN_SAVING:
        return Codec.STORED, raw
    return Codec.ZSTD, packed


def encode_whole(raw: bytes | memoryview, level: int = DEFAULT_LEVEL) -> bytes:
    """Compress ``raw``, whatever that saves. Thread-safe."""
    compressor = _state.compressors.get(level)
    if compressor is None:
        compressor = zstandard.ZstdCompressor(level=level, write_dict_id=False)
        _state.compressors[level] = compressor
    return compressor.compress(raw)


def encode_delta(raw: bytes | memoryview, reference: bytes) -> bytes:
    """Compress ``raw`` against ``reference``, an older version of it. Thread-safe.

    Small tables and the fast double-hash search: what differs is little, and a level of zstd that searches
    longer finds no more. Measured on blocks of 64 KiB: cheaper than compressing them plainly.
    """
    window_log = max(10, (len(raw) + len(reference) - 1).bit_length())
    table_log = max(_DELTA_TABLE_LOG, window_log - 4)
    parameters = zstandard.ZstdCompressionParameters(
        window_log=window_log,
        hash_log=table_log,
        chain_log=table_log,
        strategy=zstandard.STRATEGY_DFAST,
        write_dict_id=False,
    )
    return zstandard.ZstdCompressor(dict_data=_dictionary(reference), compression_params=parameters).compress(
        raw
    )


def decode_delta(payload: bytes | memoryview, raw_length: int, reference: bytes) -> bytes:
    """Return exactly the ``raw_length`` bytes that `encode_delta` took. Thread-safe.

    Raises:
        CorruptImageError: the payload is not a frame of that length; the caller adds the place.
    """
    return _decompress(zstandard.ZstdDecompressor(dict_data=_dictionary(reference)), payload, raw_length)


def _dictionary(reference: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(reference, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def decode(codec: int, payload: bytes | memoryview, raw_length: int) -> bytes:
    """Return exactly ``raw_length`` bytes. Never allocates more than that. Thread-safe.

    Raises:
        CorruptImageError: the payload is not a frame of that length; the caller adds the place.
    """
    if codec == Codec.STORED:
        if len(payload) != raw_length:
            raise CorruptImageError(f"stored block has {len(payload)} bytes instead of {raw_length}")
        return bytes(payload)
    if codec != Codec.ZSTD:
        raise CorruptImageError(f"unknown codec {codec}")
    return _decompress(_state.decompressor, payload, raw_length)


def _decompress(
    decompressor: zstandard.ZstdDecompressor, payload: bytes | memoryview, raw_length: int
) -> bytes:
    try:
        stated = zstandard.frame_content_size(payload)
        if stated != raw_length:
            raise CorruptImageError(f"compressed block states {stated} bytes instead of {raw_length}")
        raw = decompressor.decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptImageError(f"compressed block cannot be decoded: {error}") from error
    if len(raw) != raw_length:
        raise CorruptImageError(f"compressed block has {len(raw)} bytes instead of {raw_length}")
    return raw


def digest(raw: bytes | memoryview) -> bytes:
    """XXH3-128 of a plain block, 16 bytes, canonical (big-endian) order."""
    return xxhash.xxh3_128_digest(raw)


def check64(*parts: bytes | memoryview) -> bytes:
    """XXH3-64 over the parts joined, 8 bytes, canonical order."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.digest()


@cache
def zero_digest(length: int) -> bytes:
    """XXH3-128 of ``length`` zero bytes."""
    return digest(bytes(length))
