"""The bytes of files of btrfs: every sector held against its checksum, from another copy if the first is bad.

Compressed extents are decoded whole and kept for a while, because their neighbours are read next.

Source: the btrfs documentation, "On-disk Format", items EXTENT_DATA and EXTENT_CSUM; "Checksumming".
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import MountfsError, VolumeError
from imageformat.extent import Extent, ExtentKind, coalesce
from mountfs.drivers._btrfs_codecs import MAX_EXTENT, decode
from mountfs.drivers._btrfs_items import EXTENT_CHECKSUM
from mountfs.drivers._btrfs_trees import Key, missing_device
from mountfs.drivers._content import MAX_RUNS, read_at
from mountfs.drivers._tree import SharedCache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from mountfs.drivers._btrfs_chunks import Piece
    from mountfs.drivers._btrfs_items import Extent as ExtentItem
    from mountfs.drivers._btrfs_superblock import Root, Superblock
    from mountfs.drivers._btrfs_trees import Forest

_CHECKSUM_OBJECT = 2**64 - 10
_CACHED_BYTES = 16 << 20
_BITS = 20


class Packing(NamedTuple):
    """How an extent is compressed; sizes are at most `MAX_EXTENT`."""

    compression: int
    stored_size: int
    raw_size: int


class Span(NamedTuple):
    """A part of a file that lies on the volume: ``source`` is the logical address of its first byte.

    With ``packing`` it is the address of the compressed extent, of which the part begins at ``skip``.
    """

    offset: int
    length: int
    source: int
    packing: Packing | None
    skip: int


class Spans:
    """The parts of one file, ascending, in packed arrays; neighbours that are not compressed are joined."""

    def __init__(self) -> None:
        self._offsets = array("Q")
        self._lengths = array("Q")
        self._sources = array("Q")
        self._packings = array("Q")

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, offset: int, length: int, extent: ExtentItem) -> None:
        """Append a part that has been checked."""
        if len(self) >= MAX_RUNS:
            raise VolumeError(f"the map of a file has more than {MAX_RUNS} fragments")
        packed, source = 0, extent.address + extent.skip
        if extent.compression:
            source = extent.address
            for value in (extent.compression, extent.stored_size, extent.raw_size, extent.skip):
                packed = packed << _BITS | value
        elif self and not self._packings[-1]:
            touches = offset == self._offsets[-1] + self._lengths[-1]
            if touches and source == self._sources[-1] + self._lengths[-1]:
                self._lengths[-1] += length
                return
        self._offsets.append(offset)
        self._lengths.append(length)
        self._sources.append(source)
        self._packings.append(packed)

    def between(self, offset: int, size: int) -> Iterator[Span]:
        """Yield the parts inside ``[offset, offset + size)``, cut to it."""
        end = offset + size
        index = max(0, bisect_right(self._offsets, offset) - 1)
        while index < len(self) and self._offsets[index] < end:
            begin = self._offsets[index]
            start, stop = max(offset, begin), min(end, begin + self._lengths[index])
            if start < stop:
                yield self._span(index, start, stop - start, start - begin)
            index += 1

    def _span(self, index: int, offset: int, length: int, inside: int) -> Span:
        source, packed = self._sources[index], self._packings[index]
        if not packed:
            return Span(offset, length, source + inside, None, 0)
        mask = (1 << _BITS) - 1
        skip, raw, stored = (packed >> _BITS * part & mask for part in range(3))
        return Span(offset, length, source, Packing(packed >> 3 * _BITS, stored, raw), skip + inside)


class DataReader:
    """Reads data by logical address and proves it. Any number of threads may call it at once."""

    def __init__(
        self, device: BlockDevice, superblock: Superblock, forest: Forest, checksums: Root | None
    ) -> None:
        self._device = device
        self._superblock = superblock
        self._forest = forest
        self._checksums = checksums
        self._decoded: SharedCache[tuple[int, Packing], bytes] = SharedCache(_CACHED_BYTES, len)

    def pieces(self, address: int, length: int) -> Iterator[Piece]:
        """Say where data lies."""
        return self._forest.chunks.pieces(address, length)

    def read(self, address: int, length: int, *, checked: bool) -> bytes:
        """Return bytes as they are stored.

        Raises:
            VolumeError: no copy matches its checksum, or none is on this device.
            MountfsError: the device failed.
        """
        unit = self._superblock.sector_size
        start, end = address // unit * unit, -(-(address + length) // unit) * unit
        wanted = self._wanted(start, end) if checked else None
        raw = b"".join(self._piece(piece, wanted) for piece in self.pieces(start, end - start))
        return raw if end - start == length else raw[address - start : address - start + length]

    def unpacked(self, address: int, packing: Packing, *, checked: bool) -> bytes:
        """Return a compressed extent, decoded whole; see `read` for the errors."""

        def make() -> bytes:
            packed = self.read(address, packing.stored_size, checked=checked)
            return decode(packing.compression, packed, packing.raw_size, self._superblock.sector_size)

        return self._decoded.get_or_make((address, packing), make)

    def _wanted(self, start: int, end: int) -> dict[int, bytes]:
        """Return the stored checksum of each sector that has one, by its address."""
        if self._checksums is None:
            raise VolumeError("the tree of checksums is missing")
        size, unit = self._superblock.checksum.size, self._superblock.sector_size
        found: dict[int, bytes] = {}
        first = Key(_CHECKSUM_OBJECT, EXTENT_CHECKSUM, start)
        for key, data in self._forest.items(self._checksums, first, covering=True):
            if key[:2] > first[:2] or key.offset >= end:
                break
            if key[:2] == first[:2]:
                stop = min(end, key.offset + len(data) // size * unit)
                for sector in range(max(start, key.offset), stop, unit):
                    at = (sector - key.offset) // unit * size
                    found[sector] = data[at : at + size]
        return found

    def _piece(self, piece: Piece, wanted: dict[int, bytes] | None) -> bytes:
        """Read one piece: whole from one copy, or where that is bad, sector by sector from all."""
        unit = self._superblock.sector_size
        if not piece.places:
            what = f"the data at logical address {piece.logical}"
            raise VolumeError(missing_device(what, sorted(set(piece.elsewhere))))
        if piece.logical % unit or piece.length % unit:
            raise VolumeError(f"the data at logical address {piece.logical} begins inside a sector")
        sectors = range(0, piece.length, unit)
        try:
            raw = read_at(self._device, piece.places[0], piece.length, "the content of a file")
        except MountfsError:
            if len(piece.places) == 1:
                raise
        else:
            if wanted is None:
                return raw
            if all(self._fits(raw[at : at + unit], piece.logical + at, wanted) for at in sectors):
                return raw
        return b"".join(self._sector(piece, at, wanted) for at in sectors)

    def _sector(self, piece: Piece, at: int, wanted: dict[int, bytes] | None) -> bytes:
        """Return a sector from the first copy that is good; the error is that of the first."""
        failure: MountfsError | None = None
        address, unit = piece.logical + at, self._superblock.sector_size
        for place in piece.places:
            try:
                raw = read_at(self._device, place + at, unit, "the content of a file")
            except MountfsError as error:
                failure = failure or error
                continue
            if wanted is None or self._fits(raw, address, wanted):
                return raw
            reason = f"does not match its {self._superblock.checksum.name}"
            if address not in wanted:
                reason = "has no checksum"
            failure = failure or VolumeError(
                f"the data at byte {place + at} of the volume (logical {address}) {reason}"
            )
        raise failure or VolumeError(f"the data at logical address {address} cannot be read")

    def _fits(self, raw: bytes, address: int, wanted: dict[int, bytes]) -> bool:
        checksum = self._superblock.checksum
        return checksum.digest(raw)[: checksum.size] == wanted.get(address)


class ExtentContent:
    """The content of one file; what no part covers is a hole. It may begin with bytes of the metadata."""

    def __init__(self, reader: DataReader, head: bytes, spans: Spans, size: int, *, checked: bool) -> None:
        self._reader = reader
        self._head = head
        self._spans = spans
        self._checked = checked
        self.size = size

    @property
    def weight(self) -> int:
        """See `Content.weight`."""
        return len(self._spans) + 1 + len(self._head) // 32

    def read(self, offset: int, size: int) -> bytes:
        """See `Content.read`."""
        end = offset + size
        parts = [self._head[offset:end]]
        position = offset + len(parts[0])
        for span in self._spans.between(offset, size):
            if span.offset > position:
                parts.append(bytes(span.offset - position))
            parts.append(self._read(span))
            position = span.offset + span.length
        if position < end:
            parts.append(bytes(end - position))
        return parts[1] if len(parts) == 2 and not parts[0] else b"".join(parts)

    def _read(self, span: Span) -> bytes:
        if span.packing is None:
            return self._reader.read(span.source, span.length, checked=self._checked)
        raw = self._reader.unpacked(span.source, span.packing, checked=self._checked)
        return raw[span.skip : span.skip + span.length]

    def extents(self) -> Iterator[Extent]:
        """See `Content.extents`."""
        return coalesce(self._extents())

    def _extents(self) -> Iterator[Extent]:
        position = len(self._head)
        yield Extent(0, position, ExtentKind.DATA)
        for span in self._spans.between(0, self.size):
            yield Extent(position, span.offset - position, ExtentKind.ZERO)
            yield Extent(span.offset, span.length, ExtentKind.DATA)
            position = span.offset + span.length
        yield Extent(position, self.size - position, ExtentKind.ZERO)

    def placements(self) -> Iterator[tuple[int, int]]:
        """See `Content.placements`: all copies on this device."""
        for span in self._spans.between(0, self.size):
            length = span.length if span.packing is None else span.packing.stored_size
            for piece in self._reader.pieces(span.source, length):
                yield from ((place, piece.length) for place in piece.places)


def check_extent(extent: ExtentItem, sector_size: int) -> None:
    """Check the numbers of an extent that lies on the volume.

    Raises:
        VolumeError: they contradict each other.
    """
    whole = extent.raw_size if extent.compression else extent.stored_size
    sizes = (extent.raw_size, extent.stored_size)
    if (
        extent.address % sector_size
        or extent.stored_size % sector_size
        or not extent.length
        or extent.skip + extent.length > whole
        or (extent.compression and not 0 < min(sizes) <= max(sizes) <= MAX_EXTENT)
        or extent.address + extent.stored_size >= 1 << 63
    ):
        raise VolumeError(f"the map of a file is damaged: a bad extent at logical address {extent.address}")
