"""Writing one Macrium file: blocks as they come, then the lists, ``$JSON`` and the trailer.

What a file must look like is the publisher's layout; what may be stored where follows the files that
Reflect X writes itself: data from the first byte on, zeros up to 4096, nothing unaccounted for.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zstandard

from imageformat.formats.mrimgx.structs import (
    BITMAP,
    COMPRESSED,
    DATA_ALIGN,
    ENTRY_SIZE,
    EPT,
    INDEX,
    JSON,
    LAST,
    NO_MD5,
    TRACK0,
    Entry,
    md5,
    pack_block,
    pack_block_header,
    pack_boot_records,
    pack_count,
    pack_entry,
    pack_trailer,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from imageformat.formats.mrimgx.crypto import Cryptor
    from imageformat.formats.mrimgx.structs import BootRecord
    from imageformat.storage import ObjectWriter

PAGE = 2048
_LEVELS = {"medium": 3, "high": 9}


class IndexPages:
    """The complete index of a partition while it is made: only pages in which there is anything are kept."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.reserved: list[bytes] = []
        self._pages: dict[int, bytearray] = {}

    def put(self, number: int, entry: Entry) -> None:
        """Say where a block is stored."""
        page, at = divmod(number, PAGE)
        entries = self._pages.get(page)
        if entries is None:
            entries = self._pages[page] = bytearray(self._size(page))
        entries[at * ENTRY_SIZE : (at + 1) * ENTRY_SIZE] = pack_entry(entry)

    def _size(self, page: int) -> int:
        return min(PAGE, self.count - page * PAGE) * ENTRY_SIZE

    def __iter__(self) -> Iterator[bytes]:
        """Yield the payload of ``$INDEX``, again each time."""
        yield pack_count(len(self.reserved)) + b"".join(self.reserved) + pack_count(self.count)
        for page in range(-(-self.count // PAGE)):
            known = self._pages.get(page)
            yield bytes(known) if known is not None else bytes(self._size(page))


@dataclass(frozen=True, slots=True)
class DiskMetadata:
    """What is listed for one disk."""

    track0: bytes
    boot_records: tuple[BootRecord, ...]
    indexes: Sequence[Iterable[bytes]]
    """The payloads of ``$INDEX``, one for each partition. Each is gone through twice."""


class _ThreadState(threading.local):
    """zstandard's objects must not be shared between threads."""

    def __init__(self) -> None:
        self.compressors: dict[str, zstandard.ZstdCompressor] = {}


_state = _ThreadState()


def compress(plain: bytes, compression: str) -> bytes:
    """Return what is stored of ``plain``: one frame that states its size, or itself. Thread-safe."""
    if compression == "none":
        return plain
    compressor = _state.compressors.get(compression)
    if compressor is None:
        compressor = zstandard.ZstdCompressor(level=_LEVELS[compression], write_content_size=True)
        _state.compressors[compression] = compressor
    return compressor.compress(plain)


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """A block as it is stored."""

    md5: bytes
    stored: bytes


def encode_block(
    plain: bytes, compression: str, cryptor: Cryptor | None, disk: int, partition: int, number: int
) -> EncodedBlock:
    """Compress and encrypt a block; ``number`` is its place in the whole partition. Thread-safe."""
    stored = compress(plain, compression)
    if cryptor is not None:
        stored = cryptor.encrypt_block(stored, disk, partition, number)
    return EncodedBlock(md5(plain), stored)


def canonical_json(document: Mapping[str, object]) -> bytes:
    """Return ``$JSON`` in the form of real files: sorted keys, 4 spaces, no escapes, a final newline."""
    return (json.dumps(document, sort_keys=True, indent=4, ensure_ascii=False) + "\n").encode()


class ContainerWriter:
    """One file of a set. One thread."""

    def __init__(self, target: ObjectWriter, file_number: int, compression: str) -> None:
        self.target = target
        self.file_number = file_number
        self._compression = compression

    def append(self, block: EncodedBlock) -> Entry:
        """Store a block and return its entry."""
        position = self.target.position
        self.target.append(block.stored)
        return Entry(position, block.md5, len(block.stored), self.file_number)

    def end_of_data(self) -> int:
        """Fill up with zeros and return where the lists begin: the ``index_file_position``."""
        self.target.append(bytes(-self.target.position % DATA_ALIGN))
        return self.target.position

    def finish(self, document: Mapping[str, object], disks: Sequence[DiskMetadata]) -> None:
        """Write lists, ``$JSON`` and trailer; a part of a split image has no disks."""
        for disk in disks:
            self._block(TRACK0, disk.track0, 0 if disk.boot_records else LAST)
            if disk.boot_records:
                self._block(EPT, pack_boot_records(disk.boot_records), LAST)
            for index in disk.indexes:
                empty = COMPRESSED if self._compression != "none" else 0
                self.target.append(pack_block_header(BITMAP, 0, NO_MD5, empty))
                self._index(index)
        root = self.target.position
        self._block(JSON, canonical_json(document), LAST)
        self.target.append(pack_trailer(root))

    def _block(self, name: bytes, payload: bytes, flags: int) -> None:
        flags |= COMPRESSED if self._compression != "none" else 0
        self.target.append(pack_block(name, compress(payload, self._compression), flags))

    def _index(self, chunks: Iterable[bytes]) -> None:
        """Write an index, always plain; its checksum stands before it."""
        length, checksum = 0, hashlib.md5(usedforsecurity=False)
        for chunk in chunks:
            length += len(chunk)
            checksum.update(chunk)
        self.target.append(pack_block_header(INDEX, length, checksum.digest(), LAST))
        for chunk in chunks:
            self.target.append(chunk)
