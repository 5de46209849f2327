"""Tables and bitmaps inside image files: packed, read in pages, however large they are."""

from __future__ import annotations

from functools import partial
from struct import Struct
from typing import TYPE_CHECKING

from imageformat.cache import BlockCache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

_PAGE = 1 << 16
_KEPT = 1 << 20


class PagedTable:
    """``count`` numbers in a file, one after another from ``offset`` on. Thread-safe.

    Pages of 64 KiB are read when they are asked for, and the last few are kept: 1 MiB, whatever ``count`` is.
    """

    def __init__(self, device: BlockDevice, offset: int, count: int, entry: str) -> None:
        self._device = device
        self._offset = offset
        self._count = count
        self._order = entry[0]
        self._kind = entry[1]
        self._entry = Struct(entry)
        self._per_page = _PAGE // self._entry.size
        self._pages = BlockCache(_KEPT)

    def _page(self, number: int) -> bytes:
        page = self._pages.peek(number)
        return self._pages.get(number, partial(self._load, number)) if page is None else page

    def _load(self, number: int) -> bytes:
        first = number * self._per_page
        count = min(self._per_page, self._count - first)
        return self._device.pread(self._offset + first * self._entry.size, count * self._entry.size)

    def entry(self, index: int) -> int:
        """Return one number.

        Raises:
            StorageError
        """
        page, at = divmod(index, self._per_page)
        value: int = self._entry.unpack_from(self._page(page), at * self._entry.size)[0]
        return value

    def entries(self, first: int, count: int) -> Iterator[int]:
        """Yield ``count`` numbers from index ``first`` on; pages are read as they are reached."""
        while count:
            page, at = divmod(first, self._per_page)
            here = min(count, self._per_page - at)
            size = self._entry.size
            yield from Struct(f"{self._order}{here}{self._kind}").unpack_from(self._page(page), at * size)
            first, count = first + here, count - here


def runs(flags: str) -> Iterator[tuple[int, bool]]:
    """Yield ``(length, set)`` for the runs of equal flags in a text of ``0`` and ``1``."""
    position = 0
    while position < len(flags):
        is_set = flags[position] == "1"
        end = flags.find("0" if is_set else "1", position)
        end = len(flags) if end < 0 else end
        yield end - position, is_set
        position = end


def flags_high_first(bitmap: bytes) -> str:
    """Write out a bitmap whose first flag is the highest bit of its first byte (VHD)."""
    return format(int.from_bytes(bitmap, "big"), f"0{len(bitmap) * 8}b") if bitmap else ""


def flags_low_first(bitmap: bytes) -> str:
    """Write out a bitmap whose first flag is the lowest bit of its first byte (VHDX)."""
    return format(int.from_bytes(bitmap, "little"), f"0{len(bitmap) * 8}b")[::-1] if bitmap else ""
