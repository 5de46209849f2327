"""From the place of a file entry to the content of its file."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.drivers import _udf_descriptors as udf
from mountfs.drivers._content import BytesContent, RunContent, RunList
from mountfs.drivers._tree import ChunkReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content
    from mountfs.drivers._udf_partitions import Partition

_HIDDEN = 1 << 16
"""First number of partitions that no map of the volume names: references in files have 16 bits."""
_MAX_EXTENTS = 4_000_000


class Files:
    """Entries and contents of the files of one volume. Any number of threads, once it is set up."""

    def __init__(self, device: BlockDevice, block_size: int) -> None:
        self._device = device
        self._chunks = ChunkReader(device)
        self._block_size = block_size
        self.partitions: list[Partition] = []
        self._hidden: list[Partition] = []

    def hidden(self, partition: Partition) -> int:
        """Return a number by which to name a partition while those of the volume are not yet known."""
        self._hidden.append(partition)
        return _HIDDEN + len(self._hidden) - 1

    def block(self, place: udf.Place) -> bytes:
        """Read one logical block."""
        parts = [
            self._chunks.read(offset, length, "a descriptor")
            for offset, length in self._pieces(place, self._block_size)
        ]
        return b"".join(parts)

    def entry(self, place: udf.Place) -> udf.Entry:
        """Read a file entry.

        Raises:
            VolumeError: see `parse_entry`.
        """
        return udf.parse_entry(self.block(place), place)

    def content(self, entry: udf.Entry) -> Content:
        """Find the content of a file.

        Raises:
            VolumeError: its allocation is damaged.
        """
        if entry.form != udf.EMBEDDED:
            return RunContent(self._device, self.runs(entry), entry.size)
        if entry.size > len(entry.allocation):
            raise VolumeError(f"a file of {entry.size} bytes lies in {len(entry.allocation)} of its entry")
        return BytesContent(entry.allocation[: entry.size])

    def runs(self, entry: udf.Entry) -> RunList:
        """Return where a file lies; what it does not name within its size are holes.

        Raises:
            VolumeError: the allocation is damaged, or ends before the file.
        """
        if entry.form > udf.EXTENDED:
            raise VolumeError(f"a file is damaged: its allocation is of form {entry.form}")
        runs, position = RunList(), 0
        for extent in self._extents(entry):
            if position >= entry.size:
                break
            length = min(extent.length, entry.size - position)
            if extent.kind == udf.RECORDED:
                for source, size in self._pieces(extent.place, length):
                    runs.add(position, size, source)
                    position += size
            else:
                position += length
        if position < entry.size:
            raise VolumeError(f"a file of {entry.size} bytes has only {position} allocated")
        return runs

    def _extents(self, entry: udf.Entry) -> Iterator[udf.Extent]:
        """Yield the extents of a file through all of its allocation descriptors."""
        raw, partition = entry.allocation, entry.place.partition
        seen: set[udf.Place] = set()
        count = 0
        following: udf.Extent | None = None
        while True:
            for extent in udf.extents(raw, entry.form, partition):
                if extent.kind == udf.CONTINUED:
                    following = extent
                    break
                count += 1
                if count > _MAX_EXTENTS:
                    raise VolumeError(f"a file has more than {_MAX_EXTENTS} extents")
                yield extent
            if following is None:
                return
            if following.place in seen:
                raise VolumeError("the allocation of a file is continued in a circle")
            seen.add(following.place)
            raw, partition = self._continuation(following), following.place.partition
            following = None

    def _continuation(self, extent: udf.Extent) -> bytes:
        block = self.block(extent.place)
        udf.expect(block, udf.ALLOCATION, "an allocation extent", location=extent.place.block)
        (length,) = struct.unpack_from("<I", block, 20)
        if 24 + length > len(block):
            raise VolumeError(f"an allocation extent of {length} bytes is larger than its block")
        return block[24 : 24 + length]

    def _pieces(self, place: udf.Place, length: int) -> Iterator[tuple[int, int]]:
        known = self._hidden if place.partition >= _HIDDEN else self.partitions
        index = place.partition % _HIDDEN
        if index >= len(known):
            raise VolumeError(f"a file lies in partition {index}, which is not there")
        return known[index].pieces(place.block * self._block_size, length)
