"""How probes look at a volume: bounded reads that answer nothing where the volume has nothing.

A probe never checks a range itself; out of range and unreadable both read as b"", so a field that points
into nowhere simply proves nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from imageformat.errors import MountfsError
from mountfs.tree import FileSystemInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageformat.device import BlockDevice

MAX_READ = 1 << 18
"""No probe needs more at once; a longer wish comes from a hostile field."""
_PAGE = 4096
_MAX_PAGES = 64


class Window:
    """Reads for the probes of one volume. One thread."""

    def __init__(self, device: BlockDevice) -> None:
        self.device = device
        """The volume, for a longer look; whoever takes it keeps to a bounded number of reads."""
        self._pages: dict[int, bytes] = {}
        self.size = device.size
        self.error: MountfsError | None = None
        """The first read that failed."""

    def at(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes, or b"" where the volume has no such range."""
        if offset < 0 or size <= 0 or size > MAX_READ or offset + size > self.size:
            return b""
        number, start = divmod(offset, _PAGE)
        if start + size <= _PAGE:
            return self._page(number)[start : start + size]
        return self._pread(offset, size)

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is None:
            page = self._pread(number * _PAGE, min(_PAGE, self.size - number * _PAGE))
            if len(self._pages) < _MAX_PAGES:
                self._pages[number] = page
        return page

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            return self.device.pread(offset, size)
        except MountfsError as error:
            self.error = self.error or error
            return b""

    def has(self, offset: int, magic: bytes) -> bool:
        """Whether ``magic`` stands at ``offset``."""
        return self.at(offset, len(magic)) == magic

    def number(self, offset: int, layout: str) -> int:
        """Unpack one integer, such as ``"<I"``; 0 where the volume has no such range."""
        raw = self.at(offset, struct.calcsize(layout))
        return int(struct.unpack(layout, raw)[0]) if raw else 0

    def uuid(self, offset: int) -> str:
        """Return 16 bytes as a UUID in the usual order; empty when they are all zero."""
        return uuid_text(self.at(offset, 16))

    def text(self, offset: int, size: int, encoding: str = "utf-8") -> str:
        """Return a text up to its first NUL, without trailing blanks."""
        return self.at(offset, size).decode(encoding, "replace").split("\0", 1)[0].rstrip()


@dataclass(frozen=True, slots=True)
class Signature:
    """One kind of volume: where its magic stands, and what else the volume must say to be one."""

    magics: tuple[tuple[int, bytes], ...]
    """Any of these (offset, bytes) makes ``describe`` worth asking; none at all: always ask."""
    describe: Callable[[Window], FileSystemInfo | None]
    """Read type, label and uuid; None when the magic was an accident."""

    def identify(self, window: Window) -> FileSystemInfo | None:
        """Say what the volume is, if it is of this kind."""
        if self.magics and not any(window.has(offset, magic) for offset, magic in self.magics):
            return None
        return self.describe(window)


def uuid_text(raw: bytes) -> str:
    """Format 16 bytes; empty when they are missing or all zero."""
    return str(UUID(bytes=raw)) if len(raw) == 16 and any(raw) else ""


def is_power_of_two(number: int) -> bool:
    """Whether exactly one bit is set."""
    return number > 0 and not number & (number - 1)


def fixed(
    kind: str, *, uuid: int | None = None, label: tuple[int, int] | None = None
) -> Callable[[Window], FileSystemInfo | None]:
    """Describe a kind whose label and uuid stand at fixed places."""

    def describe(window: Window) -> FileSystemInfo | None:
        return FileSystemInfo(
            kind,
            window.text(*label) if label is not None else "",
            window.uuid(uuid) if uuid is not None else "",
        )

    return describe
