"""What a compressed cluster of qcow2 is: where it lies, and how it decodes.

Source: "docs/interop/qcow2" of QEMU, section Cluster mapping.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import zstandard

from imageformat.errors import CorruptImageError
from imageformat.formats._deflated import inflate_cluster
from imageformat.formats._packed import PackedClusters
from imageformat.formats.qcow2.structs import ZSTD

if TYPE_CHECKING:
    from imageformat.cache import BlockCache
    from imageformat.device import BlockDevice
    from imageformat.formats.qcow2.structs import Header

_SECTOR = 512


class _ThreadState(threading.local):
    """zstandard's objects must not be shared between threads."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()


_state = _ThreadState()


def packed_clusters(
    device: BlockDevice, header: Header, cache: BlockCache, name: str, block_size: int
) -> PackedClusters:
    """Return the compressed clusters of an image whose disk is read in blocks of ``block_size``."""
    shift = 62 - (header.cluster_bits - 8)
    mask = (1 << shift) - 1

    def locate(place: int) -> tuple[int, int]:
        begin = place & mask
        return begin, begin - begin % _SECTOR + ((place >> shift) + 1) * _SECTOR

    def decode(stored: bytes) -> bytes:
        return unpack_cluster(header.compression, stored, header.cluster_size)

    return PackedClusters(device, cache, name, header.cluster_size, locate, decode, block_size)


def unpack_cluster(compression: int, stored: bytes, size: int) -> bytes:
    """Return exactly ``size`` bytes; never allocates more. Thread-safe.

    What follows the end of the stream is ignored: how long it is, is only known in sectors.

    Raises:
        CorruptImageError: the bytes are no such stream, or one of another length.
    """
    if compression != ZSTD:
        return inflate_cluster(stored, size)
    try:
        plain = _zstd(stored, size)
    except zstandard.ZstdError as error:
        raise CorruptImageError(f"compressed cluster cannot be decoded: {error}") from error
    if len(plain) != size:
        raise CorruptImageError(f"compressed cluster has {len(plain)} bytes instead of {size}")
    return plain


def _zstd(stored: bytes, size: int) -> bytes:
    if zstandard.frame_content_size(stored) == size:
        return _state.decompressor.decompress(stored)
    # A frame need not state its length, and a cluster may be made of several.
    with _state.decompressor.stream_reader(stored, read_across_frames=True) as reader:
        parts: list[bytes] = []
        missing = size
        while missing and (part := reader.read(missing)):
            parts.append(part)
            missing -= len(part)
    return b"".join(parts)
