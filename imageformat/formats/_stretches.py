"""A disk put together from stretches of other devices: what virtual disks of blocks and grains are.

A format says where each range of its disk lies; reading and describing it is the same for all of them. What
is wrong with one range is an error of that range alone, when it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imageformat.device import check_range
from imageformat.errors import MountfsError, UnreadableBlockError
from imageformat.extent import Extent, ExtentKind, coalesce, shift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from imageformat.device import BlockDevice


class Stretch(NamedTuple):
    """The next ``length`` bytes of a disk: ``length`` bytes at ``position`` of the source."""

    length: int
    source: BlockDevice | ExtentKind | MountfsError
    """A device; a kind that is not DATA, for what is not stored; or why these bytes cannot be had."""
    position: int = 0


class StretchDevice:
    """See `BlockDevice`. As thread-safe as ``locate`` and the sources.

    ``locate(offset, size)`` describes a range inside the disk: ascending, contiguous, covering it exactly; by
    look-ups, lazily. ``on_close`` releases what the sources need.
    """

    def __init__(
        self,
        size: int,
        block_size: int,
        locate: Callable[[int, int], Iterable[Stretch]],
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.size = size
        self.block_size = block_size
        self._locate = locate
        self._on_close = on_close
        self._closed = False

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`; neighbours in one source are read together."""
        check_range(self.size, offset, size)
        parts = [_read(stretch) for stretch in _joined(self._locate(offset, size))]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`; what cannot be had counts as DATA: whoever reads it is told."""
        check_range(self.size, offset, size)
        return coalesce(self._extents(offset, size))

    def _extents(self, offset: int, size: int) -> Iterator[Extent]:
        for length, source, position in _joined(self._locate(offset, size)):
            if isinstance(source, ExtentKind):
                yield Extent(offset, length, source)
            elif isinstance(source, MountfsError):
                yield Extent(offset, length, ExtentKind.DATA)
            else:
                yield from shift(source.extents(position, length), offset - position)
            offset += length

    def close(self) -> None:
        """See `BlockDevice.close`."""
        if not self._closed:
            self._closed = True
            self._on_close()


def _joined(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """Join stretches that follow each other in the same device."""
    pending: Stretch | None = None
    for stretch in stretches:
        if pending is not None:
            if stretch.source is pending.source and stretch.position == pending.position + pending.length:
                pending = pending._replace(length=pending.length + stretch.length)
                continue
            yield pending
        pending = stretch
    if pending is not None:
        yield pending


def _read(stretch: Stretch) -> bytes:
    length, source, position = stretch
    if isinstance(source, MountfsError):
        raise source
    if source is ExtentKind.BAD:
        raise UnreadableBlockError("was unreadable when the image was made")
    if isinstance(source, ExtentKind):
        return bytes(length)
    return source.pread(position, length)


def within(device: BlockDevice, length: int, position: int) -> Iterator[Stretch]:
    """Yield a range of a device that may be shorter: what lies past its end is zeros."""
    held = max(0, min(length, device.size - position))
    if held:
        yield Stretch(held, device, position)
    if held < length:
        yield Stretch(length - held, ExtentKind.ZERO)


class Unit:
    """A device of ``size`` bytes that is decoded as a whole, when it is read: one compressed unit.

    ``decode`` returns them; what is read in parts is left to ``keep``, which calls it or knows the answer.
    """

    def __init__(
        self, size: int, decode: Callable[[], bytes], keep: Callable[[Callable[[], bytes]], bytes]
    ) -> None:
        self.size = size
        self.block_size = size
        self._decode = decode
        self._keep = keep

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`; raises what ``decode`` raises."""
        check_range(self.size, offset, size)
        if size == self.size:
            return self._decode()
        return self._keep(self._decode)[offset : offset + size]

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`."""
        check_range(self.size, offset, size)
        if size:
            yield Extent(offset, size, ExtentKind.DATA)

    def close(self) -> None:
        """Nothing is held."""
