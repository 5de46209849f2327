"""VHD: the virtual disks of Virtual PC, older Hyper-V, Azure and Xen: fixed, dynamic and differencing.

Proven are footer and header (sums of their bytes), and that the parent is the one that the image was made
on. The format has no checksums of tables and data. Source: Microsoft, Virtual Hard Disk Image Format
Specification, version 1.0 (2006).

The size of the disk is the footer's current size, except where Virtual PC or early qemu wrote it: they round
disks to cylinders and go by the geometry, unless that is the largest there is. qemu does the same, and also
goes by the geometry for writers that it does not know (VirtualBox); here those are taken at their word,
because the end of the disk would be cut off otherwise.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from imageformat.cache import BlockCache
from imageformat.errors import (
    CorruptImageError,
    IncompleteImageError,
    ParentMismatchError,
    UnsupportedFeatureError,
)
from imageformat.extent import ExtentKind
from imageformat.foreign import ForeignDisk, ForeignImage, ForeignLayer
from imageformat.formats._entries import PagedTable, flags_high_first, runs
from imageformat.formats._identity import file_identity
from imageformat.formats._parents import check_line, open_parent
from imageformat.formats._stretches import Stretch, StretchDevice, within
from imageformat.layer import ImageFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from imageformat.layer import ImageLayer, Opening

SECTOR = 512
_BLOCK_SIZE = 1 << 16
_EPOCH = 946_684_800
"""2000-01-01 UTC in seconds since 1970."""
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")
_FOOTER_SIZE = 512
_OLD_FOOTER_SIZE = 511
"""Virtual PC before 2004."""
_HEADER = struct.Struct(">8sQQIIII16sI4x512s")
_HEADER_SIZE = 1024
_LOCATORS_AT = 576
_LOCATOR = struct.Struct(">4sIIIQ")
_MAX_LOCATOR = 1 << 16
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_LARGEST_GEOMETRY = (65535, 16, 255)
_BY_GEOMETRY = (b"vpc ", b"qemu")
_MAX_DISK = 1 << 50
_MIN_BLOCK, _MAX_BLOCK = SECTOR, 256 << 20
_NOT_ALLOCATED = 0xFFFF_FFFF
_BITMAPS_KEPT = 1 << 18
_SAMPLE = 1 << 16


@dataclass(frozen=True, slots=True)
class Footer:
    """What a file says of its disk; of a dynamic one, its first sector is a copy."""

    kind: int
    size: int
    header_offset: int
    created: int
    """Seconds since 2000."""
    creator: bytes
    identity: bytes
    content: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """Where the blocks of a disk are found that is not fixed."""

    table_offset: int
    blocks: int
    block_size: int
    parent_identity: bytes
    parent_time: int
    """When the parent's file was last changed: seconds since 2000."""
    parent_name: str
    locators: tuple[tuple[bytes, int, int], ...]
    """Code, offset and length of other names of the parent."""
    content: bytes


@dataclass(frozen=True, slots=True)
class _Disk:
    device: BlockDevice
    """Closing it closes the files."""
    footer: Footer
    identity: bytes
    name: str
    details: dict[str, object]


def _sum_fits(content: bytes, at: int) -> bool:
    """Tell whether the ones' complement of the sum of all bytes stands at ``at``."""
    stated = content[at : at + 4]
    return ~(sum(content) - sum(stated)) & 0xFFFF_FFFF == int.from_bytes(stated, "big")


def parse_footer(content: bytes) -> Footer | None:
    """Return a footer, or None when it is none or damaged."""
    content = content.ljust(_FOOTER_SIZE, b"\0")
    fields = _FOOTER.unpack_from(content)
    cookie, _, _, header_offset, created, creator, _, _, _, size, cylinders, heads, sectors, kind = fields[
        :14
    ]
    if cookie != b"conectix" or not _sum_fits(content, 64):
        return None
    geometry = (cylinders, heads, sectors)
    if creator in _BY_GEOMETRY and geometry != _LARGEST_GEOMETRY:
        size = cylinders * heads * sectors * SECTOR
    return Footer(kind, size // SECTOR * SECTOR, header_offset, created, creator, fields[15], content)


def parse_header(name: str, content: bytes) -> Header:
    """Return the header of a disk that is not fixed.

    Raises:
        CorruptImageError: it is damaged, or a number is out of its range.
    """
    cookie, _, table, _, blocks, block_size, _, parent, parent_time, parent_name = _HEADER.unpack_from(
        content
    )
    if cookie != b"cxsparse" or not _sum_fits(content, 36):
        raise CorruptImageError(f"{name}: the header of the dynamic disk is damaged")
    if not _MIN_BLOCK <= block_size <= _MAX_BLOCK or block_size & (block_size - 1):
        raise CorruptImageError(f"{name}: block size of {block_size} bytes")
    locators = tuple(
        (code, offset, length)
        for code, _, length, _, offset in _LOCATOR.iter_unpack(
            content[_LOCATORS_AT : _LOCATORS_AT + 8 * _LOCATOR.size]
        )
        if code != bytes(4)
    )
    text = parent_name.decode("utf-16-be", "replace").split("\0")[0]
    return Header(table, blocks, block_size, parent, parent_time, text, locators, content)


class Blocks:
    """Where each byte of a dynamic or differencing disk lies. Thread-safe."""

    def __init__(self, name: str, file: BlockDevice, header: Header, parent: BlockDevice | None) -> None:
        self._name = name
        self._file = file
        self._parent = parent
        self._block_size = header.block_size
        self._bitmap_size = -(-header.block_size // SECTOR // 8 // SECTOR) * SECTOR
        self._table = PagedTable(file, header.table_offset, header.blocks, ">I")
        self._bitmaps = BlockCache(_BITMAPS_KEPT)

    def locate(self, offset: int, size: int) -> Iterator[Stretch]:
        """Describe a range of the disk; what is wrong with a block is the error of its range."""
        end = offset + size
        first = offset // self._block_size
        count = -(-end // self._block_size) - first
        for block, entry in enumerate(self._table.entries(first, count), first):
            stop = min(end, (block + 1) * self._block_size)
            if entry == _NOT_ALLOCATED:
                yield from self._absent(stop - offset, offset)
            else:
                try:
                    yield from list(self._stored(block, entry * SECTOR, offset, stop - offset))
                except CorruptImageError as error:
                    yield Stretch(stop - offset, error)
            offset = stop

    def _absent(self, length: int, offset: int) -> Iterator[Stretch]:
        if self._parent is None:
            yield Stretch(length, ExtentKind.ZERO)
        else:
            yield from within(self._parent, length, offset)

    def _stored(self, block: int, start: int, offset: int, length: int) -> Iterator[Stretch]:
        """Describe a range of a block; its bitmap tells what was ever written to it.

        Raises:
            CorruptImageError
        """
        inner = offset - block * self._block_size
        data = start + self._bitmap_size
        if start < SECTOR or data + inner + length > self._file.size:
            raise CorruptImageError(
                f"{self._name}: block {block} is to be at {start}, outside of the file; was it cut short?"
            )
        bitmap = self._bitmaps.get(block, partial(self._file.pread, start, self._bitmap_size))
        first, stop = inner // SECTOR, -(-(inner + length) // SECTOR)
        flags = flags_high_first(bitmap[first // 8 : -(-stop // 8)])
        skip = first % 8
        position, edge, end = inner, first * SECTOR, inner + length
        for count, is_here in runs(flags[skip : skip + stop - first]):
            edge += count * SECTOR
            here = min(edge, end) - position
            if is_here:
                yield Stretch(here, self._file, data + position)
            else:
                yield from self._absent(here, block * self._block_size + position)
            position += here


def probe(device: BlockDevice) -> bool:
    """Tell whether a file ends, or begins, with a footer."""
    if device.size < _OLD_FOOTER_SIZE:
        return False
    tail = device.pread(max(0, device.size - _FOOTER_SIZE), min(_FOOTER_SIZE, device.size))
    return b"conectix" in (tail[:8], tail[-_OLD_FOOTER_SIZE:][:8], device.pread(0, 8))


def _find_footer(name: str, device: BlockDevice) -> tuple[Footer, int, bool]:
    """Return the footer, how many bytes precede it, and whether it is the one at the end.

    Raises:
        CorruptImageError, IncompleteImageError: there is none that is not damaged.
    """
    for length in (_FOOTER_SIZE, _OLD_FOOTER_SIZE):
        if device.size >= length:
            footer = parse_footer(device.pread(device.size - length, length))
            if footer is not None:
                return footer, device.size - length, True
    if device.size >= _FOOTER_SIZE:
        footer = parse_footer(device.pread(0, _FOOTER_SIZE))
        if footer is not None and footer.kind != _FIXED:
            return footer, device.size, False
    if device.size >= _FOOTER_SIZE and device.pread(0, 8) == b"conectix":
        raise CorruptImageError(f"{name}: the footer and its copy are damaged")
    raise IncompleteImageError(f"{name}: has no sound footer at its end; it was cut short or damaged")


def _open(opening: Opening) -> ImageLayer:
    disk = _open_disk(opening, ())
    return ForeignLayer(
        opening.name,
        ForeignImage(
            "vhd",
            (ForeignDisk(disk.device, SECTOR),),
            disk.identity,
            created_ns=(disk.footer.created + _EPOCH) * 10**9,
            stored_size=opening.device.size,
            set_identity=disk.footer.identity,
            details=disk.details,
        ),
    )


def _open_disk(opening: Opening, line: tuple[bytes, ...]) -> _Disk:
    """Open a file and what it stands on; ``line`` are those that stand on it."""
    with ExitStack() as stack:
        stack.callback(opening.device.close)
        footer, held, at_end = _find_footer(opening.name, opening.device)
        if not footer.size or footer.size > _MAX_DISK:
            raise CorruptImageError(f"{opening.name}: disk size of {footer.size} bytes")
        details: dict[str, object] = {
            "disk id": str(UUID(bytes=footer.identity)),
            "creator": footer.creator.decode("latin-1").rstrip("\0 "),
        }
        if not at_end:
            details["warning"] = "the footer at the end is damaged or missing; its copy was used"
        ends = _sample(opening.device, 0), _sample(opening.device, max(0, held - _SAMPLE))
        identity = file_identity(opening, footer.content, *ends)
        if footer.kind == _FIXED:
            if held < footer.size:
                raise IncompleteImageError(
                    f"{opening.name}: was cut short: has {held} bytes of a disk of {footer.size}"
                )
            locate = partial(within, opening.device)
            device = StretchDevice(
                footer.size, _BLOCK_SIZE, lambda offset, size: locate(size, offset), stack.pop_all().close
            )
            return _Disk(device, footer, identity, opening.name, details)
        if footer.kind not in (_DYNAMIC, _DIFFERENCING):
            raise UnsupportedFeatureError(f"{opening.name}: VHD of the unknown type {footer.kind}")
        line = check_line(opening.name, footer.identity, line)
        header = _read_header(opening.name, opening.device, footer)
        identity += header.content + _sample(opening.device, header.table_offset)
        parent = None
        if footer.kind == _DIFFERENCING:
            parent = _open_parent(opening, header, line)
            stack.callback(parent.device.close)
            details["parent"] = parent.name
            details |= {key: value for key, value in parent.details.items() if key == "warning"}
            identity += parent.identity
        blocks = Blocks(opening.name, opening.device, header, parent.device if parent is not None else None)
        device = StretchDevice(footer.size, _BLOCK_SIZE, blocks.locate, stack.pop_all().close)
        return _Disk(device, footer, identity, opening.name, details)


def _sample(device: BlockDevice, offset: int) -> bytes:
    """Return what is cheap to look at, to tell two states of a disk apart."""
    return device.pread(offset, min(_SAMPLE, device.size - offset))


def _read_header(name: str, device: BlockDevice, footer: Footer) -> Header:
    if footer.header_offset + _HEADER_SIZE > device.size:
        raise IncompleteImageError(
            f"{name}: was cut short: its header at {footer.header_offset} is not there"
        )
    header = parse_header(name, device.pread(footer.header_offset, _HEADER_SIZE))
    if header.blocks * header.block_size < footer.size:
        raise CorruptImageError(f"{name}: {header.blocks} blocks are too few for {footer.size} bytes")
    if header.table_offset + header.blocks * 4 > device.size:
        raise IncompleteImageError(f"{name}: was cut short: its block allocation table is not all there")
    return header


def _open_parent(opening: Opening, header: Header, line: tuple[bytes, ...]) -> _Disk:
    """Open the file that a differencing file stands on, and prove that it is that.

    The time of the parent's file, which the header has as well, changes when files are copied: if it is
    another one, that is told, and no error.
    """

    def accept(parent: Opening) -> _Disk:
        written = parent.siblings.modified_ns // 10**9 - _EPOCH
        disk = _open_disk(parent, line)
        if header.parent_time not in (disk.footer.created, *range(written - 2, written + 3)):
            disk.details["warning"] = (
                f"the time of {parent.name} is not the one it had: was it written since?"
            )
        if disk.footer.identity != header.parent_identity:
            disk.device.close()
            raise ParentMismatchError(f"{opening.name}: stands on {parent.name}, which is another disk")
        return disk

    return open_parent(opening, _parent_names(opening, header), accept)


def _parent_names(opening: Opening, header: Header) -> Iterator[str]:
    """Yield what the parent may be called, best first."""
    by_code: dict[bytes, str] = {}
    for code, offset, length in header.locators:
        if code in (b"W2ru", b"W2ku") and length <= _MAX_LOCATOR and offset + length <= opening.device.size:
            by_code[code] = opening.device.pread(offset, length).decode("utf-16-le", "replace").rstrip("\0")
    yield by_code.get(b"W2ru", "")
    yield by_code.get(b"W2ku", "")
    yield header.parent_name


PLUGIN = ImageFormat("vhd", (".vhd", ".avhd", ".vpc"), probe, _open)
