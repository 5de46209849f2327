"""The one neck: everything readable is a `BlockDevice`.

A stored file, a disk, a partition and a point in time are the same thing to the code above them:
``pread(offset, size)`` and ``extents``, with no cursor and no lock.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from typing import TYPE_CHECKING, Protocol

from imageformat.errors import UsageError
from imageformat.extent import Extent, ExtentKind, clip, coalesce, shift

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _typeshed import WriteableBuffer


class BlockDevice(Protocol):
    """Read-only random access to exactly ``size`` bytes. Any number of threads may call it at once."""

    @property
    def size(self) -> int:
        """Length in bytes; never changes."""
        ...

    @property
    def block_size(self) -> int:
        """Preferred unit of access in bytes; every offset and length is legal."""
        ...

    def pread(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes at ``offset``.

        Raises:
            UsageError: the range does not lie inside the device.
            MountfsError: the bytes cannot be had, or cannot be proven. Never a short answer.
        """
        ...

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """Describe the range: ascending, contiguous, covering it exactly, no empty extent."""
        ...

    def close(self) -> None:
        """Release what is held; idempotent. No other call may follow."""
        ...


class WritableDevice(BlockDevice, Protocol):
    """A device that can be written. Threads may write at once as long as their ranges do not meet."""

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write all of ``data`` at ``offset``, or raise."""
        ...

    def zero(self, offset: int, size: int) -> None:
        """Make the range read as zeros, as cheaply as the target can."""
        ...

    def evict(self) -> None:
        """Flush, and forget what is cached, so that the next `pread` comes from the medium if it can."""
        ...

    def flush(self) -> None:
        """Return when everything written is durable; an error here means it may be lost."""
        ...


def check_range(size: int, offset: int, length: int) -> None:
    """Raise `UsageError` unless ``[offset, offset + length)`` lies inside ``[0, size)``."""
    if offset < 0 or length < 0 or offset + length > size:
        raise UsageError(f"range {offset}+{length} is outside the device of {size} bytes")


class MemoryDevice:
    """A device over bytes in memory; all of it is DATA."""

    def __init__(self, content: bytes, *, block_size: int = 512) -> None:
        self._content = content
        self.size = len(content)
        self.block_size = block_size

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        return self._content[offset : offset + size]

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`."""
        check_range(self.size, offset, size)
        if size:
            yield Extent(offset, size, ExtentKind.DATA)

    def close(self) -> None:
        """Nothing is held."""


class Slice:
    """A window of another device: a partition of a disk. Closing it leaves the other device open."""

    def __init__(self, device: BlockDevice, offset: int, size: int) -> None:
        check_range(device.size, offset, size)
        self._device = device
        self._offset = offset
        self.size = size

    @property
    def block_size(self) -> int:
        """Preferred unit of the device below."""
        return self._device.block_size

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        return self._device.pread(self._offset + offset, size)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`."""
        check_range(self.size, offset, size)
        inner = self._device.extents(self._offset + offset, size)
        return shift(clip(inner, self._offset + offset, size), -self._offset)

    def close(self) -> None:
        """The owner of the underlying device closes it."""


class Concat:
    """Several devices, one after another: split images, linear volumes. Owns its parts."""

    def __init__(self, parts: Sequence[BlockDevice]) -> None:
        self._parts = tuple(parts)
        self._starts: list[int] = []
        position = 0
        for part in self._parts:
            self._starts.append(position)
            position += part.size
        self.size = position
        self.block_size = max((part.block_size for part in self._parts), default=512)

    def _runs(self, offset: int, size: int) -> Iterator[tuple[BlockDevice, int, int, int]]:
        """Yield (part, start of the part, offset inside it, length) for the range."""
        index = bisect_right(self._starts, offset) - 1
        while size:
            part, start = self._parts[index], self._starts[index]
            length = min(size, start + part.size - offset)
            if length:
                yield part, start, offset - start, length
            offset, size, index = offset + length, size - length, index + 1

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        return b"".join(part.pread(inner, length) for part, _, inner, length in self._runs(offset, size))

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`."""
        check_range(self.size, offset, size)
        return coalesce(
            extent
            for part, start, inner, length in self._runs(offset, size)
            for extent in shift(part.extents(inner, length), start)
        )

    def close(self) -> None:
        """Close every part."""
        for part in self._parts:
            part.close()


class AsStream(io.RawIOBase):
    """The only cursor: a seekable read-only file object, for libraries that demand one. One thread."""

    def __init__(self, device: BlockDevice) -> None:
        super().__init__()
        self._device = device
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the cursor; positions past the end are legal and read as empty."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._device.size}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill ``buffer`` from the cursor on; 0 at the end."""
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._device.size - self._position))
        if length:
            view[:length] = self._device.pread(self._position, length)
            self._position += length
        return length
