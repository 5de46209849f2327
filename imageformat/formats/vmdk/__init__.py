"""VMDK: the virtual disks of VMware, whole or in parts, sparse, flat or compressed, and chains of them.

Proven are compressed grains (Adler-32) and that the parent is the one the image was made on; of each table
that is there twice, both copies must agree. The format has no other checksums. Source: VMware, Virtual Disk
Format 5.0.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from imageformat.device import Concat
from imageformat.errors import (
    CorruptImageError,
    IncompleteImageError,
    NotAnImageError,
    ParentMismatchError,
    UnsupportedFeatureError,
)
from imageformat.extent import ExtentKind
from imageformat.foreign import ForeignDisk, ForeignImage, ForeignLayer
from imageformat.formats._identity import file_identity
from imageformat.formats._parents import check_line, open_parent, opening_of
from imageformat.formats._stretches import Stretch, StretchDevice, within
from imageformat.formats.vmdk import structs
from imageformat.formats.vmdk.grains import Grains
from imageformat.layer import ImageFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from imageformat.formats.vmdk.structs import Descriptor, ExtentLine, SparseHeader
    from imageformat.layer import ImageLayer, Opening

_BLOCK_SIZE = 1 << 16
_FOOTER_AT = 1024
"""From the end: the second header, and behind it the marker of the end."""
_FLAT = frozenset({"FLAT", "VMFS"})
_SPARSE = frozenset({"SPARSE", "VMFSSPARSE"})
_REFUSED = {
    "SESPARSE": "a seSparse disk of ESX",
    "VMFSRDM": "a raw disk mapping",
    "VMFSRAW": "a raw disk mapping",
}
_SHOWN = {"createtype": "type", "ddb.adaptertype": "adapter", "ddb.uuid": "disk id"}


@dataclass(frozen=True, slots=True)
class _Disk:
    device: BlockDevice
    """Closing it closes the files."""
    descriptor: Descriptor
    identity: bytes
    name: str
    stored_size: int
    details: dict[str, object]


def probe(device: BlockDevice) -> bool:
    """Tell whether a file begins as a sparse file or a descriptor does."""
    start = device.pread(0, min(64, device.size))
    magics = (structs.SPARSE_MAGIC, structs.COWD_MAGIC, structs.SESPARSE_MAGIC, structs.DESCRIPTOR_MARK)
    return start.startswith(magics)


def _open(opening: Opening) -> ImageLayer:
    disk = _open_disk(opening, ())
    return ForeignLayer(
        opening.name,
        ForeignImage(
            "vmdk",
            (ForeignDisk(disk.device),),
            disk.identity,
            created_ns=opening.siblings.modified_ns,
            stored_size=disk.stored_size,
            details=disk.details,
        ),
    )


def _open_disk(opening: Opening, line: tuple[bytes, ...]) -> _Disk:
    """Open a disk by its descriptor, with its parts and what it stands on."""
    with ExitStack() as stack:
        stack.callback(opening.device.close)
        header, descriptor = _read_descriptor(opening)
        line = check_line(opening.name, descriptor.content, line)
        details: dict[str, object] = {
            shown: descriptor.values[key] for key, shown in _SHOWN.items() if descriptor.values.get(key)
        }
        identity = file_identity(opening, descriptor.content)
        parent = None
        if descriptor.parent_content_id != structs.NO_PARENT:
            parent = _open_parent(opening, descriptor, line)
            stack.callback(parent.device.close)
            details["parent"] = parent.name
            identity += parent.identity
        parts = _Parts(opening, descriptor, header, parent.device if parent is not None else None)
        device = Concat(parts.open(stack))
        identity += parts.identity
        if any(part.is_unclean for part in parts.headers):
            details["warning"] = "was not closed by whoever wrote it"
        owned = stack.pop_all()
    whole = StretchDevice(device.size, _BLOCK_SIZE, lambda at, size: [Stretch(size, device, at)], owned.close)
    return _Disk(whole, descriptor, identity, opening.name, parts.stored_size, details)


def _read_descriptor(opening: Opening) -> tuple[SparseHeader | None, Descriptor]:
    """Return the descriptor, and the header of the file when it is inside a sparse one.

    Raises:
        NotAnImageError: the file is a part of a disk.
    """
    device, name = opening.device, opening.name
    start = device.pread(0, min(structs.HEADER_SIZE, device.size))
    if start.startswith(structs.SESPARSE_MAGIC):
        raise UnsupportedFeatureError(f"{name}: {_REFUSED['SESPARSE']}, which cannot be read")
    if start.startswith(structs.COWD_MAGIC):
        raise NotAnImageError(f"{name}: is a part of a disk; open its descriptor, the .vmdk that names it")
    if not start.startswith(structs.SPARSE_MAGIC):
        if not start.startswith(structs.DESCRIPTOR_MARK):
            raise NotAnImageError(f"{name}: is no VMDK; a flat part is opened by the .vmdk that names it")
        if device.size > structs.MAX_DESCRIPTOR:
            raise CorruptImageError(f"{name}: descriptor of {device.size} bytes")
        return None, structs.parse_descriptor(name, device.pread(0, device.size))
    header = _sparse_header(name, device)
    if not header.descriptor:
        raise NotAnImageError(f"{name}: is a part of a disk; open its descriptor, the .vmdk that names it")
    if header.descriptor_size > structs.MAX_DESCRIPTOR:
        raise CorruptImageError(f"{name}: descriptor of {header.descriptor_size} bytes")
    if header.descriptor + header.descriptor_size > device.size:
        raise IncompleteImageError(f"{name}: was cut short: its descriptor is not all there")
    content = device.pread(header.descriptor, header.descriptor_size)
    return header, structs.parse_descriptor(name, content)


def _sparse_header(name: str, device: BlockDevice) -> SparseHeader:
    """Return the header of a sparse file, of whichever kind; the one at the end when that is meant."""
    if device.size < structs.HEADER_SIZE:
        raise IncompleteImageError(f"{name}: was cut short: it has no whole header")
    block = device.pread(0, structs.HEADER_SIZE)
    if block.startswith(structs.COWD_MAGIC):
        return structs.parse_cowd(name, block)
    if block.startswith(structs.SESPARSE_MAGIC):
        raise UnsupportedFeatureError(f"{name}: {_REFUSED['SESPARSE']}, which cannot be read")
    header = structs.parse_sparse(name, block)
    if not header.at_end:
        return header
    footer = device.pread(max(0, device.size - _FOOTER_AT), min(_FOOTER_AT, device.size))[
        : structs.HEADER_SIZE
    ]
    if not footer.startswith(structs.SPARSE_MAGIC):
        raise IncompleteImageError(f"{name}: was cut short: the header at its end is missing")
    last = structs.parse_sparse(name, footer)
    if last.at_end or (last.capacity, last.grain_size) != (header.capacity, header.grain_size):
        raise CorruptImageError(f"{name}: the header at its end contradicts the first")
    return replace(last, descriptor=header.descriptor, descriptor_size=header.descriptor_size)


class _Parts:
    """The parts of one disk, opened in order."""

    def __init__(
        self,
        opening: Opening,
        descriptor: Descriptor,
        header: SparseHeader | None,
        parent: BlockDevice | None,
    ) -> None:
        self._opening = opening
        self._descriptor = descriptor
        self._parent = parent
        self._own = header
        self.headers: list[SparseHeader] = []
        self.stored_size = opening.device.size
        self.identity = b""

    def open(self, stack: ExitStack) -> list[BlockDevice]:
        """Open all; ``stack`` closes the files."""
        found: list[BlockDevice] = []
        base = 0
        for line in self._descriptor.extents:
            found.append(self._part(line, base, stack))
            base += line.size
        return found

    def _part(self, line: ExtentLine, base: int, stack: ExitStack) -> BlockDevice:
        if line.kind == "ZERO":
            return StretchDevice(line.size, _BLOCK_SIZE, lambda _, size: [Stretch(size, ExtentKind.ZERO)])
        if line.kind in _REFUSED or line.kind not in _FLAT | _SPARSE:
            what = _REFUSED.get(line.kind, f"a part of the unknown kind {line.kind}")
            raise UnsupportedFeatureError(f"{self._opening.name}: {what}, which cannot be read")
        if self._own is not None and base == 0:
            return self._sparse(self._opening.name, self._opening.device, self._own, line, base)
        found = self._opening.siblings.open(line.name)
        stack.callback(found.device.close)
        self.stored_size += found.device.size
        self.identity += file_identity(opening_of(self._opening, found))
        if line.kind in _SPARSE:
            return self._sparse(
                found.name, found.device, _sparse_header(found.name, found.device), line, base
            )
        return self._flat(found.name, found.device, line)

    def _flat(self, name: str, file: BlockDevice, line: ExtentLine) -> BlockDevice:
        if file.size < line.offset + line.size:
            raise IncompleteImageError(
                f"{name}: was cut short: has {file.size} bytes instead of {line.offset + line.size}"
            )

        def locate(offset: int, size: int) -> Iterator[Stretch]:
            return within(file, size, line.offset + offset)

        return StretchDevice(line.size, _BLOCK_SIZE, locate)

    def _sparse(
        self, name: str, file: BlockDevice, header: SparseHeader, line: ExtentLine, base: int
    ) -> BlockDevice:
        if header.capacity < line.size:
            raise CorruptImageError(f"{name}: holds {header.capacity} bytes of a part of {line.size}")
        self.headers.append(header)
        grains = Grains(name, file, header, self._parent, base)
        return StretchDevice(line.size, _BLOCK_SIZE, grains.locate)


def _open_parent(opening: Opening, descriptor: Descriptor, line: tuple[bytes, ...]) -> _Disk:
    """Open the disk that this one stands on, and prove that it was not written to since."""

    def accept(parent: Opening) -> _Disk:
        disk = _open_disk(parent, line)
        if disk.descriptor.content_id != descriptor.parent_content_id:
            disk.device.close()
            raise ParentMismatchError(
                f"{opening.name}: stands on {parent.name}, which was changed since, or is another disk"
            )
        return disk

    return open_parent(opening, [descriptor.values.get("parentfilenamehint", "")], accept)


PLUGIN = ImageFormat("vmdk", (".vmdk",), probe, _open)
