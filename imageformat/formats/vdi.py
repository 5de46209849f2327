"""VDI, the disk images of VirtualBox: dynamic, of fixed size, and differencing.

Sources: the description of the format by its authors in the VirtualBox forums ("All about VDIs"), and the
header and block map as `VBoxManage` and QEMU write them. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from imageformat.errors import (
    CorruptImageError,
    IncompleteImageError,
    MountfsError,
    ParentMismatchError,
    ParentMissingError,
    UnsupportedFeatureError,
)
from imageformat.foreign import ForeignDisk, ForeignImage, ForeignLayer
from imageformat.formats._identity import file_identity
from imageformat.formats._runs import Kind, Run, RunDisk, joined
from imageformat.formats._sectors import sector_size_of
from imageformat.formats._shown import shown_name
from imageformat.formats._tables import Tables, table_cache
from imageformat.layer import ImageFormat, Opening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.cache import BlockCache
    from imageformat.device import BlockDevice

_SIGNATURE = b"\x7f\x10\xda\xbe"
_SIGNATURE_AT = 64
_HEADER = struct.Struct("<4sIIII256sIIIIIIIQIIII16s16s16s16s")
"""From the signature on, version 1.1."""
HEADER_END = _SIGNATURE_AT + _HEADER.size
_DYNAMIC, _FIXED, _UNDO, _DIFFERENCING = 1, 2, 3, 4
_KINDS = {_DYNAMIC: "dynamic", _FIXED: "fixed", _DIFFERENCING: "differencing"}
_NO_UUID = bytes(16)

_ABSENT = 0xFFFF_FFFF
_ZERO = 0xFFFF_FFFE
_MAX_BLOCK = 1 << 30


@dataclass(frozen=True, slots=True)
class Header:
    """What the header says; every number is checked against the others and the file."""

    kind: int
    comment: str
    map_offset: int
    data_offset: int
    size: int
    """Of the disk."""
    block_size: int
    block_extra: int
    """Bytes before each block that belong to it and hold no data."""
    blocks: int
    created: bytes
    """UUID of the image, in the byte order of the file."""
    modified: bytes
    """UUID that changes with every change."""
    parent: bytes
    parent_modified: bytes


def probe(device: BlockDevice) -> bool:
    """Tell whether the signature of VDI is at its place."""
    end = _SIGNATURE_AT + len(_SIGNATURE)
    return device.size >= end and device.pread(_SIGNATURE_AT, len(_SIGNATURE)) == _SIGNATURE


def parse_header(start: bytes, file_size: int, name: str) -> Header:
    """Read the header from the first bytes of the file.

    Raises:
        IncompleteImageError, CorruptImageError
        UnsupportedFeatureError: another version, or an undo image.
    """
    if len(start) < HEADER_END:
        raise IncompleteImageError(f"{name}: ends inside the header, at {len(start)} bytes")
    fields = _HEADER.unpack_from(start, _SIGNATURE_AT)
    signature, version, _, kind, _, comment, map_offset, data_offset = fields[:8]
    size, block_size, block_extra, blocks = fields[13:17]
    if signature != _SIGNATURE:
        raise CorruptImageError(f"{name}: has no signature of VDI at offset {_SIGNATURE_AT}")
    if version >> 16 != 1 or not version & 0xFFFF:
        raise UnsupportedFeatureError(
            f"{name}: is VDI of version {version >> 16}.{version & 0xFFFF}, not 1.1"
        )
    if kind not in _KINDS:
        what = "an undo image" if kind == _UNDO else f"a VDI of kind {kind}"
        raise UnsupportedFeatureError(f"{name}: is {what}, which is not known here")
    if not 0 < block_size <= _MAX_BLOCK or block_size % 512 or block_extra > _MAX_BLOCK:
        raise CorruptImageError(f"{name}: offset 376: blocks of {block_size} and {block_extra} bytes")
    if size >> 63 or blocks * block_size < size:
        raise CorruptImageError(f"{name}: offset 368: {size} bytes in {blocks} blocks of {block_size}")
    if map_offset < HEADER_END or data_offset < HEADER_END:
        raise CorruptImageError(f"{name}: offset 340: map at {map_offset} and data at {data_offset}")
    if map_offset + blocks * 4 > file_size:
        raise IncompleteImageError(
            f"{name}: the map at {map_offset} lies after the end of the file, at {file_size}"
        )
    text = comment.split(b"\0")[0].decode("utf-8", "replace")
    return Header(kind, text, map_offset, data_offset, size, block_size, block_extra, blocks, *fields[18:22])


class BlockMap:
    """Where each block lies: entries of four bytes. Any number of threads may call it at once."""

    def __init__(self, device: BlockDevice, header: Header, cache: BlockCache, name: str) -> None:
        self._tables = Tables(device, cache, name, 4, "little")
        self._header = header
        self._name = name

    def runs(self, offset: int, size: int) -> Iterator[Run]:
        """Describe a range of the disk, neighbours joined where they can be.

        Raises:
            MountfsError: the map cannot be read.
        """
        return joined(self._parts(offset, offset + size))

    def _parts(self, offset: int, end: int) -> Iterator[Run]:
        header = self._header
        while offset < end:
            number, skip = divmod(offset, header.block_size)
            length = min(header.block_size - skip, end - offset)
            entry = self.entry(number)
            if entry == _ABSENT:
                yield Run(Kind.ABSENT, offset, length, 0)
            elif entry == _ZERO:
                yield Run(Kind.ZERO, offset, length, 0)
            else:
                start = entry * (header.block_extra + header.block_size) + header.block_extra
                yield Run(Kind.STORED, offset, length, header.data_offset + start + skip)
            offset += length

    def entry(self, number: int) -> int:
        """Return one entry of the map."""
        return self._tables.entry(self._header.map_offset, self._header.blocks, number)

    def problems(self) -> Iterator[str]:
        """Yield each block that another one lies in too. Memory: a bit for each block of the disk."""
        seen = bytearray(-(-self._header.blocks // 8))
        for number in range(self._header.blocks):
            entry = self.entry(number)
            if entry in {_ABSENT, _ZERO}:
                continue
            if entry >= self._header.blocks:
                yield f"{self._name}: block {number} is said to be number {entry} of the file"
            elif seen[entry >> 3] >> (entry & 7) & 1:
                yield f"{self._name}: block {number} lies where another block lies, as number {entry}"
            else:
                seen[entry >> 3] |= 1 << (entry & 7)


def open_vdi(opening: Opening) -> ForeignLayer:
    """Open an image, and for a differencing one its parent, which is found by its UUID.

    Raises:
        IncompleteImageError, CorruptImageError, UnsupportedFeatureError
        ParentMissingError: no image beside it, and none that the user named, is its parent; one that
            stands on it does not count.
        ParentMismatchError: the parent was changed since.
    """
    with ExitStack() as files:
        files.callback(opening.device.close)
        start = opening.device.pread(0, min(HEADER_END, opening.device.size))
        header = parse_header(start, opening.device.size, opening.name)
        identity = [start]
        below = None
        details: dict[str, object] = {"kind": _KINDS[header.kind], "uuid": _uuid_text(header.created)}
        if header.comment:
            details["comment"] = header.comment
        if header.kind == _DIFFERENCING:
            name, parent = _open_parent(opening, header)
            files.callback(parent.close)
            below = parent.device()
            identity.append(parent.info.root)
            details["parent"] = shown_name(name)
        blocks = BlockMap(opening.device, header, table_cache(opening.cache), opening.name)
        disk = RunDisk(opening.name, header.size, blocks.runs, opening.device, below)
        sector_size = sector_size_of(disk)
        image = ForeignImage(
            "vdi",
            (ForeignDisk(disk, sector_size),),
            file_identity(opening, *identity),
            created_ns=opening.siblings.modified_ns,
            stored_size=opening.device.size,
            details=details,
            checks=blocks.problems,
            close=files.pop_all().close,
        )
        return ForeignLayer(opening.name, image)


def _open_parent(opening: Opening, header: Header) -> tuple[str, ForeignLayer]:
    """Find the image with the UUID of the parent: among those that the user named, then in the folder."""
    if header.parent == _NO_UUID:
        raise CorruptImageError(f"{opening.name}: is differencing, but from no image")
    beside = [name for name in opening.siblings.names() if name.lower().endswith(PLUGIN.suffixes)]
    changed = ""
    for name in (*opening.siblings.named, *beside):
        parent = _header_of(opening, name)
        if parent is None or parent.created != header.parent:
            continue
        if header.parent_modified not in {_NO_UUID, parent.modified}:
            changed = name
            continue
        found = opening.siblings.open(name)
        below = Opening(found.device, found.name, opening.cache, found.siblings, opening.secrets)
        return name, open_vdi(below)
    wanted = _uuid_text(header.parent)
    if changed:
        raise ParentMismatchError(
            f"{opening.name}: its parent {changed} was changed after this image was made"
        )
    raise ParentMissingError(
        f"{opening.name}: its parent, the VDI with the UUID {wanted}, is not in its folder; "
        "name that file with --backing"
    )


def _header_of(opening: Opening, name: str) -> Header | None:
    """Return the header of another file; None when that is no VDI, or may not be opened."""
    try:
        other = opening.siblings.open(name)
    except MountfsError:
        return None
    try:
        size = other.device.size
        return parse_header(other.device.pread(0, min(HEADER_END, size)), size, other.name)
    except MountfsError:
        return None
    finally:
        other.device.close()


def _uuid_text(stored: bytes) -> str:
    return str(UUID(bytes_le=stored))


PLUGIN = ImageFormat("vdi", (".vdi",), probe, open_vdi)
