"""zisofs: files of an ISO 9660 volume that are compressed in blocks, each of which decodes alone.

Sources: "Description of the zisofs Format" (H. Peter Anvin's tools) and "Description of the zisofs2
Format", both as libisofs documents them. A block of no stored bytes is zeros.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from mountfs.drivers._content import MAX_FILE_SIZE, RunContent
from mountfs.drivers._decoders import inflate
from mountfs.drivers._packed import PackedContent, check_block_count

if TYPE_CHECKING:
    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content, RunList
    from mountfs.drivers._packed import PlainBlocks

_LOGS = range(15, 21)


class Zisofs(NamedTuple):
    """What Rock Ridge's ZF entry says of a compressed file."""

    version: int
    header_size: int
    block_log: int
    size: int
    """Plain bytes."""


_MAGICS = {1: bytes.fromhex("37e45396c9dbd607"), 2: bytes.fromhex("ef2255a1bc1b95a0")}
_POINTERS = {1: "I", 2: "Q"}
_ZLIB = 1
_HEADER = 24
"""Bytes that both versions of the file header fit in."""


def parse_zf(entry: bytes) -> Zisofs | str:
    """Parse a ZF entry; a text says why the file cannot be decoded."""
    algorithm, header_size, block_log = entry[4:6], entry[6] * 4, entry[7]
    if algorithm == b"pz":
        return Zisofs(1, header_size, block_log, struct.unpack_from("<I", entry, 8)[0])
    if algorithm == b"PZ":
        (size,) = struct.unpack_from("<Q", entry, 8)
        return Zisofs(2, header_size, block_log, size) if size <= MAX_FILE_SIZE else "claims too many bytes"
    return f"is compressed by {algorithm!r}, which is not supported"


def open_zisofs(
    device: BlockDevice, runs: RunList, stored: int, zisofs: Zisofs, cache: PlainBlocks
) -> Content:
    """Open a compressed file whose ``stored`` bytes lie in ``runs``.

    Raises:
        VolumeError: its header or its pointers are damaged, or contradict the ZF entry.
    """
    raw = RunContent(device, runs, stored)
    header = raw.read(0, min(_HEADER, stored))
    if _said(header.ljust(_HEADER, b"\0"), zisofs.version) != zisofs or zisofs.block_log not in _LOGS:
        raise VolumeError(
            "a file compressed by zisofs is damaged: its header, or what the directory says of it"
        )
    size, block_log = zisofs.size, zisofs.block_log
    block_size = 1 << block_log
    check_block_count(size, block_size)
    count = -(-size // block_size) + 1
    pointers = array(_POINTERS[zisofs.version])
    if zisofs.header_size + count * pointers.itemsize > stored:
        raise VolumeError("a file compressed by zisofs is damaged: its pointers are cut off")
    pointers.frombytes(raw.read(zisofs.header_size, count * pointers.itemsize))
    if sys.byteorder == "big":
        pointers.byteswap()
    return PackedContent(_Blocks(raw, runs, pointers, block_size, cache), size, block_size)


def _said(header: bytes, version: int) -> Zisofs | None:
    """Return what the header in the file says; None when it is none."""
    if not header.startswith(_MAGICS[version]):
        return None
    if version == 1:
        size, header_size, block_log = struct.unpack_from("<IBB", header, 8)
        return Zisofs(1, header_size * 4, block_log, size)
    header_size, algorithm, block_log, size = struct.unpack_from("<xBBBQ", header, 8)
    return Zisofs(2, header_size * 4, block_log, size) if algorithm == _ZLIB else None


class _Blocks:
    """The `StoredBlocks` between the pointers of one file."""

    def __init__(
        self, raw: RunContent, runs: RunList, pointers: array[int], block_size: int, cache: PlainBlocks
    ) -> None:
        self._raw = raw
        self._runs = runs
        self._pointers = pointers
        self._block_size = block_size
        self._cache = cache

    def place(self, index: int) -> tuple[int, int]:
        """See `StoredBlocks.place`."""
        start, length = self._bounds(index)
        run = next(self._runs.between(start, length), None)
        return (run.source, length) if run is not None else (0, 0)

    def plain(self, index: int) -> bytes:
        """See `StoredBlocks.plain`."""
        start, length = self._bounds(index)
        place, _ = self.place(index)
        return self._cache.get_or_make(
            place, lambda: inflate(self._raw.read(start, length), self._block_size)
        )

    def _bounds(self, index: int) -> tuple[int, int]:
        start, end = self._pointers[index], self._pointers[index + 1]
        if not start <= end <= self._raw.size or end - start > 2 * self._block_size:
            raise VolumeError(f"a file compressed by zisofs is damaged: the place of block {index}")
        return start, end - start
