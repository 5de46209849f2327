"""An image of another tool as a layer: whole disks, addressed by block, proven by their own format.

A format module opens each disk of an image as a `BlockDevice` that already knows its parents, backing
files and parts, and hands them to `ForeignLayer`. To the chain above it is a full image: depth 0, no
ancestors. A block of it is named by its place on the disk, so that a native image can stand on it.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from imageformat.codec import digest
from imageformat.errors import CorruptImageError, MountfsError
from imageformat.extent import ExtentKind
from imageformat.layer import Ancestry, BlockRef, DiskInfo, Fill, ImageInfo, ImageType, Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from imageformat.device import BlockDevice
    from imageformat.layer import ImageLayer, LoadBlock

_FILLS = {
    ExtentKind.ZERO: Fill.ZERO,
    ExtentKind.UNUSED: Fill.UNUSED,
    ExtentKind.BAD: Fill.BAD,
    ExtentKind.EXCLUDED: Fill.EXCLUDED,
}
_ERRORS = frozenset({ExtentKind.BAD, ExtentKind.EXCLUDED})
"""Kinds that must not be hidden behind a block that is data in part."""
_ALIGN = 1 << 20
_RUN = 4 << 20
"""Neighbouring blocks are read together, up to this much."""


@dataclass(frozen=True, slots=True)
class ForeignDisk:
    """One disk of an image of another tool."""

    device: BlockDevice
    """Every byte it gives is proven as well as its format allows; its ``block_size`` is the unit in which
    it decodes, a power of two that the view above reads and caches as a whole (64 KiB is best)."""
    sector_size: int = 512
    name: str = "disk"


@dataclass(frozen=True, slots=True)
class ForeignImage:
    """What a format module found out about one image file."""

    format: str
    """Name of the format as `info` shows it: "qcow2", "mrimgx"."""
    disks: tuple[ForeignDisk, ...]
    identity: bytes
    """What tells this file's content from any other's as well as the format allows, parents included: ids,
    checksums, header bytes."""
    created_ns: int = 0
    """When the picture was taken: UTC; the time of the file when the format does not record it."""
    stored_size: int = 0
    set_identity: bytes = b""
    """Common to all files of one backup set; empty when the format knows no sets."""
    type: ImageType = ImageType.FULL
    number: int = 1
    """Running number in its set, from 1."""
    details: Mapping[str, object] = field(default_factory=dict)
    """What else is recorded, made of JSON values. Known keys: ``source``, ``host``, ``model``, ``serial``,
    ``parent`` (name of the file it stands on), ``label``, ``comment``, ``snapshots`` (of those inside)."""
    checks: Callable[[], Iterable[str]] = tuple
    """What `verify` does beside reading every block: yields what is wrong (a stored hash of the whole disk).
    May read everything; stops at nothing."""
    close: Callable[[], None] = lambda: None
    """Releases the files; the devices are closed before it."""


class ForeignLayer:
    """See `ImageLayer`. Any number of threads may call it at once, as far as its devices allow it."""

    def __init__(self, name: str, image: ForeignImage) -> None:
        self._name = name
        self._image = image
        self._devices = tuple(disk.device for disk in image.disks)
        self._starts: list[int] = []
        start = 0
        for device in self._devices:
            self._starts.append(start)
            start += -(-device.size // _ALIGN) * _ALIGN
        self._closed = False
        self.info = _info(image)
        # Two files may have one identity, as far as their format lets it be known.
        self.cache_key = os.urandom(16)

    def device(self, disk: int = 0) -> BlockDevice:
        """Return a disk itself: for a file that stands on this one. The layer keeps ownership."""
        return self._devices[disk]

    def ancestors(self) -> Ancestry:
        """Return none: an image of another tool looks after its parents itself."""
        return Ancestry()

    def pieces(
        self,
        disk: int,
        offset: int,
        size: int,
        ancestor: Callable[[int], ImageLayer] | None = None,  # noqa: ARG002 (it has none)
    ) -> Iterator[Piece]:
        """See `ImageLayer.pieces`; a block of which any part is data is one piece."""
        device, block_size = self._devices[disk], self._image.disks[disk].device.block_size
        end = offset + size
        first = offset - offset % block_size
        last = min(device.size, -(-end // block_size) * block_size)
        if first + block_size >= last and size:
            # One block, as almost every read: what it holds is one look-up away.
            extent = next(device.extents(first, last - first))
            if extent.kind is ExtentKind.DATA:
                yield Piece(offset, size, self._ref(disk, first // block_size), offset - first)
                return
        position = offset
        for extent in device.extents(first, last - first) if size else ():
            stop = min(end, extent.end)
            if extent.kind is not ExtentKind.DATA:
                if extent.kind in _ERRORS or extent.end % block_size == 0 or extent.end >= last:
                    fill_end = stop
                else:
                    fill_end = min(stop, extent.end - extent.end % block_size)
                if fill_end > position:
                    yield Piece(position, fill_end - position, _FILLS[extent.kind], 0)
                    position = fill_end
                continue
            while position < stop:
                ref = self._ref(disk, position // block_size)
                start = ref.block * block_size
                length = min(start + ref.raw_length, end) - position
                yield Piece(position, length, ref, position - start)
                position += length

    def _ref(self, disk: int, block: int) -> BlockRef:
        device = self._devices[disk]
        start = block * device.block_size
        length = min(device.block_size, device.size - start)
        return BlockRef(0, self._starts[disk] + start, length, block, length, b"")

    def load(self, refs: Sequence[BlockRef], reference: LoadBlock) -> tuple[bytes, ...]:  # noqa: ARG002
        """See `ImageLayer.load`; a block with a digest, as a native child knows it, is held against it."""
        if len(refs) == 1:
            return tuple(self._read(refs, refs[0].length))
        blocks: list[bytes] = []
        start = 0
        while start < len(refs):
            stop = start + 1
            size = refs[start].length
            while (
                stop < len(refs)
                and refs[stop].offset == refs[stop - 1].offset + refs[stop - 1].length
                and size + refs[stop].length <= _RUN
            ):
                size += refs[stop].length
                stop += 1
            blocks.extend(self._read(refs[start:stop], size))
            start = stop
        return tuple(blocks)

    def _read(self, refs: Sequence[BlockRef], size: int) -> Iterator[bytes]:
        """Read neighbouring blocks together and take them apart."""
        first = refs[0]
        disk = max((at for at, start in enumerate(self._starts) if start <= first.offset), default=0)
        device, offset = self._devices[disk], first.offset - self._starts[disk]
        if offset < 0 or offset + size > device.size:
            raise CorruptImageError(f"{self._name}: has no block {first.block} of {size} bytes")
        data = device.pread(offset, size)
        position = 0
        for ref in refs:
            block = data if size == ref.length else data[position : position + ref.length]
            position += ref.length
            if len(block) != ref.raw_length or (ref.digest and digest(block) != ref.digest):
                raise CorruptImageError(
                    f"{self._name}: block {ref.block} is not what the image that stands on it knows; "
                    "the file was changed"
                )
            yield block

    def prove(self, ancestor: Callable[[int], ImageLayer] | None = None) -> Iterator[str]:  # noqa: ARG002
        """See `ImageLayer.prove`: what the format can say against itself, its hash of the whole disk too."""
        try:
            yield from self._image.checks()
        except MountfsError as error:
            yield str(error)

    def close(self) -> None:
        """See `ImageLayer.close`."""
        if not self._closed:
            self._closed = True
            with ExitStack() as stack:
                stack.callback(self._image.close)
                for device in self._devices:
                    stack.callback(device.close)


def _info(image: ForeignImage) -> ImageInfo:
    root = hashlib.blake2b(image.format.encode() + b"\0" + image.identity, digest_size=32).digest()
    set_root = hashlib.blake2b(image.format.encode() + b"\0" + image.set_identity, digest_size=32).digest()
    return ImageInfo(
        format=image.format,
        id=UUID(bytes=root[:16], version=4),
        set_id=UUID(bytes=(set_root if image.set_identity else root)[16:], version=4),
        type=image.type,
        number=image.number,
        created_ns=image.created_ns,
        disks=tuple(
            DiskInfo(disk.device.size, disk.device.block_size, disk.sector_size, disk.name)
            for disk in image.disks
        ),
        root=root,
        stored_size=image.stored_size,
        details=dict(image.details),
    )
