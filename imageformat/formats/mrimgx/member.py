"""One Macrium file by itself: its trailer, its ``$JSON``, and its lists of metadata blocks."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import zstandard

from imageformat.errors import (
    CorruptImageError,
    ImageError,
    IncompleteImageError,
    UnsupportedFeatureError,
)
from imageformat.formats.mrimgx.model import parse_document
from imageformat.formats.mrimgx.structs import (
    BLOCK_HEADER_SIZE,
    COMPRESSED,
    ENCRYPTED,
    EPT,
    INDEX,
    JSON,
    LAST,
    MAX_METADATA,
    OLD_FIRST_BYTE,
    SECTOR,
    TRACK0,
    TRAILER_SIZE,
    BlockHeader,
    md5,
    unpack_block_header,
    unpack_boot_records,
    unpack_trailer,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from imageformat.device import BlockDevice
    from imageformat.formats.mrimgx.model import Document
    from imageformat.formats.mrimgx.structs import BootRecord

    Decipher: TypeAlias = Callable[[bytes], bytes]

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""No boot sector begins so: the flag that says what is compressed has no checksum."""
_MAX_LIST = 64
"""Metadata blocks in one list; the longest of real files has four."""


class _ThreadState(threading.local):
    """zstandard's objects must not be shared between threads."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()


_state = _ThreadState()


class Stored(NamedTuple):
    """A metadata block in its file."""

    header: BlockHeader
    position: int
    """Of the payload."""

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.position + self.header.length


@dataclass(frozen=True, slots=True)
class DiskLists:
    """The metadata of one disk: what lies outside of its partitions, and where their indexes are."""

    track0: bytes
    boot_records: tuple[BootRecord, ...]
    indexes: tuple[Stored, ...]
    """One for each partition."""
    proofs: bytes
    """The checksums of all its metadata blocks, joined."""


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One file, opened. Owns its device."""

    device: BlockDevice
    name: str
    document: Document
    json_md5: bytes
    root: int
    """Where the root list begins: nothing before it belongs to it."""

    def lists(self, decipher: Decipher | None) -> tuple[DiskLists, ...]:
        """Read the metadata of every disk; the indexes are located, not read.

        Raises:
            CorruptImageError: a block is damaged, missing, or does not lie where it can.
            UnsupportedFeatureError: an encrypted index.
        """
        position = self.document.header.index_file_position
        found = []
        try:
            for disk in self.document.disks:
                blocks, position = _walk(self.device, position, self.root)
                outer = self._payloads(blocks, (TRACK0, EPT), decipher)
                track0 = outer.get(TRACK0, b"")
                if not track0 or len(track0) % SECTOR or track0.startswith(_ZSTD_MAGIC):
                    raise CorruptImageError(f"a disk has no $TRACK0 of whole sectors: {len(track0)} bytes")
                indexes = []
                for _ in disk.partitions:
                    inner, position = _walk(self.device, position, self.root)
                    indexes.append(self._index(inner))
                    blocks += inner
                records = unpack_boot_records(outer.get(EPT, b"")) if disk.format == "mbr" else ()
                proofs = b"".join(block.header.md5 for block in blocks)
                found.append(DiskLists(track0, records, tuple(indexes), proofs))
        except ImageError as error:
            raise type(error)(f"{self.name}: {error}") from error
        return tuple(found)

    def _payloads(
        self, blocks: list[Stored], wanted: tuple[bytes, ...], decipher: Decipher | None
    ) -> dict[bytes, bytes]:
        """Prove every block of a list, and decode those that are wanted."""
        found: dict[bytes, bytes] = {}
        for block in blocks:
            payload = read_payload(self.device, block)
            if block.header.name in wanted:
                found.setdefault(block.header.name, decode_payload(block, payload, decipher))
        return found

    def _index(self, blocks: list[Stored]) -> Stored:
        """Return the index of a partition; the blocks beside it are proven."""
        index = None
        for block in blocks:
            if block.header.name == INDEX:
                index = index or block
            else:
                read_payload(self.device, block)
        if index is None:
            raise CorruptImageError("a partition has no $INDEX")
        if index.header.length and index.header.flags & (COMPRESSED | ENCRYPTED):
            raise UnsupportedFeatureError("an $INDEX that is compressed or encrypted is not supported")
        return index


def is_container(device: BlockDevice) -> bool:
    """Tell whether a file ends as a finished Reflect X file does."""
    if device.size < TRAILER_SIZE:
        return False
    return unpack_trailer(device.pread(device.size - TRAILER_SIZE, TRAILER_SIZE)) is not None


def open_member(device: BlockDevice, name: str) -> Member:
    """Open a file; the caller keeps the device when that fails.

    Raises:
        UnsupportedFeatureError: a file of Reflect 8 or older.
        IncompleteImageError: it has no end.
        CorruptImageError: its root list or its ``$JSON`` is damaged.
    """
    size = device.size
    tail = device.pread(size - TRAILER_SIZE, TRAILER_SIZE) if size >= TRAILER_SIZE else b""
    root = unpack_trailer(tail)
    if root is None:
        raise _no_trailer(device, name)
    try:
        end = size - TRAILER_SIZE
        blocks, _ = _walk(device, root, end)
        found = next((block for block in blocks if block.header.name == JSON), None)
        if found is None or not found.header.length:
            raise CorruptImageError("the file has no $JSON")
        if found.header.flags & ENCRYPTED:
            raise CorruptImageError("its $JSON is encrypted, which cannot be")
        payloads = [read_payload(device, block) for block in blocks if block.header.length <= MAX_METADATA]
        json = decode_payload(found, payloads[blocks.index(found)], None)
        return Member(device, name, parse_document(json), md5(json), root)
    except ImageError as error:
        raise type(error)(f"{name}: {error}") from error


def _no_trailer(device: BlockDevice, name: str) -> ImageError:
    if device.size and device.pread(0, 1)[0] == OLD_FIRST_BYTE:
        return UnsupportedFeatureError(
            f"{name}: made by Macrium Reflect 8 or older, whose format is another; only images of Reflect X "
            "can be read. Open it in Reflect X and save it as .mrimgx"
        )
    return IncompleteImageError(
        f"{name}: does not end as an image of Macrium Reflect X does: it was never finished, or cut short"
    )


def _walk(device: BlockDevice, position: int, end: int) -> tuple[list[Stored], int]:
    """Locate the blocks of the list at ``position`` and return the byte after it."""
    blocks: list[Stored] = []
    while len(blocks) < _MAX_LIST:
        if position + BLOCK_HEADER_SIZE > end:
            raise CorruptImageError(f"offset {position}: a list of metadata leads out of the file")
        header = unpack_block_header(device.pread(position, BLOCK_HEADER_SIZE))
        block = Stored(header, position + BLOCK_HEADER_SIZE)
        if block.end > end:
            raise CorruptImageError(f"offset {position}: a metadata block reaches out of the file")
        blocks.append(block)
        position = block.end
        if header.flags & LAST:
            return blocks, position
    raise CorruptImageError(f"offset {position}: a list of metadata has no end")


def read_payload(device: BlockDevice, block: Stored) -> bytes:
    """Read and prove the stored payload of a block that is small.

    Raises:
        CorruptImageError: it is damaged, or bigger than any such block.
    """
    header = block.header
    if not header.length:
        return b""
    if header.length > MAX_METADATA:
        raise CorruptImageError(f"offset {block.position}: {_label(block)} has {header.length} bytes")
    payload = device.pread(block.position, header.length)
    if md5(payload) != header.md5:
        raise CorruptImageError(f"offset {block.position}: {_label(block)} is damaged (MD5 differs)")
    return payload


def decode_payload(block: Stored, payload: bytes, decipher: Decipher | None) -> bytes:
    """Undo what the flags say was done to a proven payload.

    Raises:
        CorruptImageError: it cannot be.
    """
    if not payload:
        return b""
    try:
        if block.header.flags & ENCRYPTED:
            if decipher is None:
                raise CorruptImageError("is encrypted in an image that is not")
            payload = decipher(payload)
        return inflate(payload, MAX_METADATA) if block.header.flags & COMPRESSED else payload
    except CorruptImageError as error:
        raise CorruptImageError(f"offset {block.position}: {_label(block)} {error}") from error


def inflate(payload: bytes, most: int) -> bytes:
    """Decompress one frame of at most ``most`` bytes; what follows the frame is ignored. Thread-safe.

    Raises:
        CorruptImageError: it is no such frame.
    """
    try:
        stated = zstandard.frame_content_size(payload)
        if stated > most:
            raise CorruptImageError(f"states {stated} bytes where {most} are the most")
        return _state.decompressor.decompress(payload, max_output_size=most)
    except zstandard.ZstdError as error:
        raise CorruptImageError(f"cannot be decompressed: {error}") from error


def _label(block: Stored) -> str:
    return block.header.name.decode("ascii", "backslashreplace").rstrip()
