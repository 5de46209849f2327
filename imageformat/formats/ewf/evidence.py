"""What both versions of the evidence file come to, and share: names of segments, recorded values."""

from __future__ import annotations

import posixpath
import string
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, IncompleteImageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice
    from imageformat.formats.ewf.chunks import BadSectors, Table

MAX_TEXT = 1 << 20
MAX_SECTIONS = 1 << 20
MAX_DISK = 1 << 60
MAX_BAD = 1 << 20
_LETTERS = string.ascii_uppercase


@dataclass(slots=True)
class Evidence:
    """What was found in the segments of one image."""

    sector_size: int = 0
    sectors: int = 0
    chunk_sectors: int = 0
    tables: list[Table] = field(default_factory=list)
    bad: list[BadSectors] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    """What the examiner and the program recorded, by the tags of version 1."""
    md5: bytes = b""
    sha1: bytes = b""
    identity: bytes = b""
    set_identity: bytes = b""
    bzip2: bool = False
    faults: list[str] = field(default_factory=list)
    """What is damaged and not needed to read the disk."""

    @property
    def size(self) -> int:
        """Of the disk."""
        return self.sectors * self.sector_size

    @property
    def chunk_size(self) -> int:
        """Of one chunk but the last, in bytes."""
        return self.chunk_sectors * self.sector_size


def adler_fits(content: bytes, at: int) -> bool:
    """Tell whether the Adler-32 of all before ``at`` stands there."""
    return zlib.adler32(content[:at]) == int.from_bytes(content[at : at + 4], "little")


def read_exactly(name: str, file: BlockDevice, offset: int, size: int, what: str) -> bytes:
    """Read a structure.

    Raises:
        IncompleteImageError: the file ends before.
    """
    if offset + size > file.size:
        raise IncompleteImageError(f"{name}: was cut short: its {what} at {offset} is not all there")
    return file.pread(offset, size)


def segment_names(first: str) -> Iterator[str]:
    """Yield what the second and all further segments are called, from the name of the first.

    ``.E01`` to ``.E99``, ``.EAA`` to ``.EZZ``, ``.FAA`` ... ``.ZZZ``; ``.Ex01`` ..., ``.ExAA`` ... ``.EzZZ``.

    Raises:
        IncompleteImageError: there is no way to tell, or there are too many.
    """
    base = posixpath.basename(first.replace("\\", "/"))
    stem, suffix = posixpath.splitext(base)
    if len(suffix) < 4 or suffix[-2:] != "01":
        raise IncompleteImageError(f"{base}: has more segments, and its name does not end as .E01 does")
    head = suffix[:-2]
    for number in range(2, 100):
        yield f"{stem}{head}{number:02}"
    is_lower = head[1].islower()
    last = "z" if head[-1].islower() else "Z"
    for letter in range(ord(head[-1]), ord(last) + 1):
        for pair in (first + second for first in _LETTERS for second in _LETTERS):
            yield f"{stem}{head[:-1]}{chr(letter)}{pair.lower() if is_lower else pair}"
    raise IncompleteImageError(f"{base}: has more segments than can be named")


def parse_values(text: str) -> Mapping[str, str]:
    """Return the values of the object ``main``: a line of tags, a line of values, both split by tabs."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if "main" not in lines:
        return {}
    at = lines.index("main")
    if at + 2 >= len(lines):
        return {}
    return dict(zip(lines[at + 1].split("\t"), lines[at + 2].split("\t"), strict=False))


def check_shape(name: str, found: Evidence) -> None:
    """Raise unless the numbers of an image fit each other.

    Raises:
        CorruptImageError, IncompleteImageError
    """
    if found.sector_size not in (512, 1024, 2048, 4096):
        raise CorruptImageError(f"{name}: sectors of {found.sector_size} bytes")
    if not 1 <= found.chunk_sectors <= 1 << 17 or found.chunk_size > 64 << 20:
        raise CorruptImageError(f"{name}: chunks of {found.chunk_sectors} sectors")
    if not found.sectors or found.size > MAX_DISK:
        raise CorruptImageError(f"{name}: a disk of {found.sectors} sectors")
    needed = -(-found.size // found.chunk_size)
    held = sum(table.count for table in found.tables)
    if held < needed:
        raise IncompleteImageError(
            f"{name}: holds {held} of {needed} chunks; the acquisition was ended, or segments were cut short"
        )
