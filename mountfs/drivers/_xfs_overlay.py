"""A device whose bytes are replaced in places, in memory."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from imageformat.device import check_range
from imageformat.errors import VolumeError
from imageformat.extent import Extent, ExtentKind, coalesce
from mountfs.drivers._content import read_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

_SECTOR = 512
_MAX_SECTORS = 1 << 20
"""512 MiB that differ from the device."""


class Overlay:
    """Collects changes in whole sectors. One thread."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._sectors: dict[int, bytes] = {}

    def read(self, offset: int, size: int) -> bytearray:
        """Return bytes as they are by now; whole sectors or parts of one.

        Raises:
            VolumeError: they lie outside the device.
        """
        raw = bytearray(read_at(self._device, offset, size, "what the journal changes"))
        first = offset // _SECTOR
        for number in range(first, -(-(offset + size) // _SECTOR)):
            changed = self._sectors.get(number)
            if changed is not None:
                start, end = max(offset, number * _SECTOR), min(offset + size, (number + 1) * _SECTOR)
                raw[start - offset : end - offset] = changed[
                    start - number * _SECTOR : end - number * _SECTOR
                ]
        return raw

    def write(self, offset: int, data: bytes | bytearray) -> None:
        """Change bytes.

        Raises:
            VolumeError: they lie outside the device, or there are too many.
        """
        start, end = offset // _SECTOR * _SECTOR, -(-(offset + len(data)) // _SECTOR) * _SECTOR
        if (start, end) != (offset, offset + len(data)):
            whole = self.read(start, end - start)
            whole[offset - start : offset - start + len(data)] = data
            data = whole
        elif end > self._device.size:
            raise VolumeError("the journal changes what lies outside the volume")
        for at in range(start, end, _SECTOR):
            self._sectors[at // _SECTOR] = bytes(data[at - start : at - start + _SECTOR])
        if len(self._sectors) > _MAX_SECTORS:
            raise VolumeError(f"the journal changes more than {_MAX_SECTORS * _SECTOR >> 20} MiB")

    def finished(self) -> OverlayDevice:
        """Return the device with all changes."""
        starts: list[int] = []
        pieces: list[bytearray] = []
        for number in sorted(self._sectors):
            if not starts or starts[-1] + len(pieces[-1]) != number * _SECTOR:
                starts.append(number * _SECTOR)
                pieces.append(bytearray())
            pieces[-1] += self._sectors[number]
        return OverlayDevice(self._device, starts, [bytes(piece) for piece in pieces])


class OverlayDevice:
    """A device with other bytes at ``starts`` (ascending, apart). Closing it leaves the device below open."""

    def __init__(self, device: BlockDevice, starts: list[int], pieces: list[bytes]) -> None:
        self._device = device
        self._starts = starts
        self._pieces = pieces
        self.size = device.size

    @property
    def block_size(self) -> int:
        """Preferred unit of the device below."""
        return self._device.block_size

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        changes = list(self._between(offset, size))
        if not changes:
            return self._device.pread(offset, size)
        raw = bytearray(self._device.pread(offset, size))
        for start, data in changes:
            raw[start - offset : start - offset + len(data)] = data
        return bytes(raw)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`."""
        check_range(self.size, offset, size)
        return coalesce(self._extents(offset, size))

    def close(self) -> None:
        """The owner of the device below closes it."""

    def _between(self, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield the changes inside a range, cut to it."""
        index = max(0, bisect_right(self._starts, offset) - 1)
        while index < len(self._starts) and self._starts[index] < offset + size:
            start, piece = self._starts[index], self._pieces[index]
            low, high = max(offset, start), min(offset + size, start + len(piece))
            if low < high:
                yield low, piece[low - start : high - start]
            index += 1

    def _extents(self, offset: int, size: int) -> Iterator[Extent]:
        position = offset
        for start, data in self._between(offset, size):
            if start > position:
                yield from self._device.extents(position, start - position)
            yield Extent(start, len(data), ExtentKind.DATA)
            position = start + len(data)
        if position < offset + size:
            yield from self._device.extents(position, offset + size - position)
