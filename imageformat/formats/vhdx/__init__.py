"""VHDX: the virtual disks of Hyper-V, single and in differencing chains. Source: [MS-VHDX] 8.0.

Proven are the headers, the region tables and the log (CRC-32C), and that the parent is the one that the image
was made on. The format has no checksums of metadata, block allocation table and data.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, IncompleteImageError, ParentMismatchError
from imageformat.foreign import ForeignDisk, ForeignImage, ForeignLayer
from imageformat.formats._identity import file_identity
from imageformat.formats._parents import check_line, open_parent
from imageformat.formats._stretches import StretchDevice
from imageformat.formats.vhdx import structs
from imageformat.formats.vhdx.disk import Blocks
from imageformat.formats.vhdx.log import replayed
from imageformat.formats.vhdx.writer import write_vhdx
from imageformat.layer import ImageFormat

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from imageformat.device import BlockDevice
    from imageformat.formats.vhdx.structs import Header, Parameters, Region
    from imageformat.layer import ImageLayer, Opening

_BLOCK_SIZE = 1 << 16
_PARENT_PATHS = ("relative_path", "volume_path", "absolute_win32_path")


@dataclass(frozen=True, slots=True)
class _Disk:
    """An opened file and all that it stands on."""

    device: BlockDevice
    """Closing it closes the files."""
    header: Header
    parameters: Parameters
    identity: bytes
    name: str
    parent: str
    """Name of the file it stands on; empty when it stands alone."""


def probe(device: BlockDevice) -> bool:
    """Tell whether a file begins as VHDX does."""
    return device.size >= len(structs.IDENTIFIER) and (
        device.pread(0, len(structs.IDENTIFIER)) == structs.IDENTIFIER
    )


def _open(opening: Opening) -> ImageLayer:
    disk = _open_disk(opening, ())
    details: dict[str, object] = {"disk id": str(disk.parameters.disk_id)}
    if disk.parent:
        details["parent"] = disk.parent
    if disk.header.log.int:
        details["log"] = "was not closed; its log was replayed in memory"
    return ForeignLayer(
        opening.name,
        ForeignImage(
            "vhdx",
            (ForeignDisk(disk.device, disk.parameters.sector_size),),
            disk.identity,
            created_ns=opening.siblings.modified_ns,
            stored_size=opening.device.size,
            set_identity=disk.parameters.disk_id.bytes,
            details=details,
        ),
    )


def _open_disk(opening: Opening, line: tuple[bytes, ...]) -> _Disk:
    """Open a file and what it stands on; ``line`` are those that stand on it."""
    with ExitStack() as stack:
        stack.callback(opening.device.close)
        header, block = _read_header(opening)
        line = check_line(opening.name, header.data_write.bytes + header.file_write.bytes, line)
        file = replayed(opening.name, opening.device, header)
        regions = _read_regions(opening.name, file)
        items = _read_items(opening.name, file, regions[structs.METADATA_REGION])
        parameters = structs.parse_parameters(opening.name, items)
        parent = None
        if parameters.has_parent:
            parent = _open_parent(opening, items.get(structs.PARENT_LOCATOR, b""), line, parameters)
            stack.callback(parent.device.close)
        blocks = Blocks(
            opening.name,
            file,
            regions[structs.BAT_REGION],
            parameters,
            parent.device if parent is not None else None,
        )
        identity = file_identity(opening, block)
        if parent is not None:
            identity += parent.identity
        owned = stack.pop_all()
    device = StretchDevice(parameters.size, _BLOCK_SIZE, blocks.locate, owned.close)
    return _Disk(
        device, header, parameters, identity, opening.name, parent.name if parent is not None else ""
    )


def _read(name: str, file: BlockDevice, offset: int, size: int, what: str) -> bytes:
    if offset + size > file.size:
        raise IncompleteImageError(f"{name}: was cut short: its {what} at {offset} is not all there")
    return file.pread(offset, size)


def _read_header(opening: Opening) -> tuple[Header, bytes]:
    """Return the current header, parsed and as it is. Section 2.2.2."""
    if not probe(opening.device):
        raise CorruptImageError(f"{opening.name}: does not begin as a VHDX file does")
    found: list[tuple[Header, bytes]] = []
    for offset in structs.HEADER_OFFSETS:
        block = _read(opening.name, opening.device, offset, structs.HEADER_SIZE, "header")
        header = structs.parse_header(opening.name, block)
        if header is not None:
            found.append((header, block))
    if not found:
        raise CorruptImageError(f"{opening.name}: both headers are damaged")
    if len(found) == 2 and found[0][0].sequence == found[1][0].sequence and found[0][0] != found[1][0]:
        raise CorruptImageError(f"{opening.name}: two headers of the same age contradict each other")
    return max(found, key=lambda pair: pair[0].sequence)


def _read_regions(name: str, file: BlockDevice) -> Mapping[UUID, Region]:
    for offset in structs.REGION_OFFSETS:
        block = _read(name, file, offset, structs.REGION_SIZE, "region table")
        regions = structs.parse_regions(name, block)
        if regions is not None:
            return regions
    raise CorruptImageError(f"{name}: both region tables are damaged")


def _read_items(name: str, file: BlockDevice, region: Region) -> Mapping[UUID, bytes]:
    table = _read(name, file, region.offset, structs.METADATA_TABLE_SIZE, "metadata")
    found = structs.parse_metadata_table(name, table, region.size)
    return {
        item: _read(name, file, region.offset + place.offset, place.size, "metadata")
        for item, place in found.items()
    }


def _open_parent(opening: Opening, locator: bytes, line: tuple[bytes, ...], child: Parameters) -> _Disk:
    """Open the file that a differencing file stands on, and prove that it is that. Section 2.6.2.6.3."""
    found = structs.parse_locator(opening.name, locator)
    linkage = [
        found[key].strip("{} ").lower() for key in ("parent_linkage", "parent_linkage2") if key in found
    ]
    if not linkage:
        raise CorruptImageError(f"{opening.name}: does not say which parent it stands on")

    def accept(parent: Opening) -> _Disk:
        disk = _open_disk(parent, line)
        if str(disk.header.data_write) not in linkage:
            problem = "was changed since, or is another file"
        elif disk.parameters.sector_size != child.sector_size:
            problem = f"has sectors of {disk.parameters.sector_size} bytes instead of {child.sector_size}"
        else:
            return disk
        disk.device.close()
        raise ParentMismatchError(f"{opening.name}: stands on {parent.name}, which {problem}")

    return open_parent(opening, [found.get(key, "") for key in _PARENT_PATHS], accept)


PLUGIN = ImageFormat("vhdx", (".vhdx", ".avhdx"), probe, _open, write_vhdx)
