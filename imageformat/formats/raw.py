"""Raw images: the bytes of a disk and nothing else, in one file or in numbered parts.

Nothing in a raw image says that it is one, and nothing in it proves it. So it is opened only when it is
named, and what it holds is shown as it is: a length that is no whole number of sectors stays as it is, and
a file of 0 bytes is no disk.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import reduce
from itertools import count
from typing import TYPE_CHECKING

from imageformat.device import Concat
from imageformat.errors import IncompleteImageError, NotAnImageError, UnsupportedFeatureError
from imageformat.foreign import ForeignDisk, ForeignImage, ForeignLayer
from imageformat.formats._identity import file_identity
from imageformat.formats._sectors import sector_size_of
from imageformat.layer import ImageFormat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from imageformat.device import BlockDevice
    from imageformat.extent import Extent
    from imageformat.layer import Opening

_WHOLE = (".raw", ".img", ".dd", ".bin", ".iso", ".dsk", ".image")
_NUMBERED = tuple(f".{number:03}" for number in range(1000))
"""FTK Imager, Guymager, dc3dd, dd_rescue and most others; they begin at 001 or 000."""
_SPLIT = (".00", ".01", ".0000", ".0001", ".aa", ".aaa")
"""The first of what `split` writes; only the first, since other things end in two letters or digits."""
_PART = re.compile(r"(.*\.)([0-9]{2,4}|a{2,3})", re.DOTALL | re.IGNORECASE)
_LETTERS_AHEAD = 100
"""A name in letters farther on than this is another file: ``md`` or ``txt``, and no part after a gap."""
_SAMPLE = 64 << 10

_HEAD = 128 << 10
_MARKS = (
    (510, b"\x55\xaa"),
    (512, b"EFI PART"),
    (4096, b"EFI PART"),
    (0x438, b"\x53\xef"),
    (0, b"XFSB"),
    (0x10040, b"_BHRfS_M"),
    (0x8001, b"CD001"),
    (0x8001, b"BEA01"),
    (3, b"NTFS    "),
    (3, b"EXFAT   "),
    (0x400, b"\x10\x20\xf5\xf2"),
    (0x400, b"H+\0\x04"),
    (0x400, b"HX\0\x05"),
    (32, b"NXSB"),
    (0, b"LUKS\xba\xbe"),
    (3, b"-FVE-FS-"),
    (0, b"hsqs"),
    (0x400, b"\xe2\xe1\xf5\xe0"),
    (0x218, b"LVM2 001"),
    (4086, b"SWAPSPACE2"),
)
"""Where disks and volumes have their signatures: MBR, GPT (sectors of 512 and 4096), ext, XFS, btrfs,
ISO 9660, UDF, NTFS, exFAT, F2FS, HFS+, HFSX, APFS, LUKS, BitLocker, SquashFS, EROFS, LVM, swap."""


class RawDisk:
    """A stored disk as it is, read in large blocks. Any number of threads may call it at once."""

    block_size = 64 << 10

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self.size = device.size

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        return self._device.pread(offset, size)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`; holes that the storage knows of are ZERO."""
        return self._device.extents(offset, size)

    def close(self) -> None:
        """Close the file, or all parts."""
        self._device.close()


def probe(device: BlockDevice) -> bool:
    """Tell whether the content begins as a disk or a volume does."""
    head = device.pread(0, min(_HEAD, device.size))
    return any(head.startswith(mark, offset) for offset, mark in _MARKS)


def open_raw(opening: Opening) -> ForeignLayer:
    """Open a raw image, with all its parts when it has some.

    Raises:
        NotAnImageError: it is empty.
        IncompleteImageError: a part is missing or too short; the message names the part.
        MountfsError: a part cannot be opened or read.
    """
    with ExitStack() as stack:
        stack.callback(opening.device.close)
        parts = _parts(opening, stack)
        device = parts[0] if len(parts) == 1 else Concat(parts)
        if not device.size:
            raise NotAnImageError(f"{opening.name}: not an image: it has 0 bytes")
        image = ForeignImage(
            "raw",
            (ForeignDisk(RawDisk(device), sector_size_of(device)),),
            _identity(opening, device),
            created_ns=opening.siblings.modified_ns,
            stored_size=device.size,
            details={"parts": len(parts)} if len(parts) > 1 else {},
        )
        layer = ForeignLayer(opening.name, image)
        stack.pop_all()
        return layer


def _identity(opening: Opening, device: BlockDevice) -> bytes:
    """Tell one raw image from another by what is cheap: both ends of it."""
    sample = min(_SAMPLE, device.size)
    ends = device.pread(0, sample), device.pread(device.size - sample, sample)
    return file_identity(opening, *ends, device.size.to_bytes(8, "little"))


def _parts(opening: Opening, stack: ExitStack) -> list[BlockDevice]:
    """Return the file and all that go with it; every one opened here is closed by ``stack``."""
    own = opening.name.rsplit("/", 1)[-1]
    match = _PART.fullmatch(own)
    if match is None:
        return [opening.device]
    names = _names_of_parts(own, _Numbering(match[1], match[2]), opening.siblings.names())
    parts: list[BlockDevice] = []
    for name in names:
        if name == own:
            parts.append(opening.device)
        else:
            sibling = opening.siblings.open(name)
            stack.callback(sibling.device.close)
            parts.append(sibling.device)
    for name, part in zip(names[:-1], parts[:-1], strict=True):
        if part.size != parts[0].size:
            raise IncompleteImageError(
                f"{opening.name}: part {name} has {part.size} bytes, but the first has {parts[0].size}"
            )
    return parts


class _Numbering:
    """How the parts of one image are called: ``stem`` and a number, in digits or in letters from ``aa``."""

    def __init__(self, stem: str, suffix: str) -> None:
        self._stem = stem
        self._width = len(suffix)
        self.decimal = suffix.isdecimal()
        self.widened = {
            f"{stem}z{'a' * (self._width + 1)}".lower(),
            f"{stem}9{'0' * (self._width + 1)}".lower(),
        }
        """What `split` calls the part after ``yz`` or ``89``."""

    def name(self, number: int) -> str:
        """Return the name of a part in lower case."""
        if self.decimal:
            return f"{self._stem}{number:0{self._width}}".lower()
        letters = ""
        for _ in range(self._width):
            number, digit = divmod(number, 26)
            letters = chr(ord("a") + digit) + letters
        return f"{self._stem}{letters}".lower()

    def number(self, name: str) -> int | None:
        """Return the number of a part; None for a file that is none."""
        stem, suffix = name[: len(self._stem)], name[len(self._stem) :].lower()
        if stem.lower() != self._stem.lower() or len(suffix) < self._width:
            return None
        if self.decimal:
            fits = suffix.isascii() and suffix.isdecimal() and name.lower() == self.name(int(suffix[:9]))
            return int(suffix) if fits else None
        if len(suffix) != self._width or not (suffix.isascii() and suffix.isalpha()):
            return None
        return reduce(lambda number, letter: number * 26 + ord(letter) - ord("a"), suffix, 0)


def _names_of_parts(own: str, numbering: _Numbering, folder: Sequence[str]) -> list[str]:
    """Return the names of all parts in order.

    Raises:
        IncompleteImageError: one is missing; the message names it.
        UnsupportedFeatureError: `split` ran out of suffixes and went on with longer ones.
    """
    if any(name.lower() in numbering.widened for name in folder):
        raise UnsupportedFeatureError(
            f"{own}: has parts whose names are longer than the first; put them together"
        )
    present: dict[int, str] = {}
    for name in (*folder, own):
        number = numbering.number(name)
        if number is not None:
            present[number] = name
    first = 0 if 0 in present or not numbering.decimal else 1
    end = next(number for number in count(first) if number not in present)
    later = [number for number in present if number > end]
    if later and (numbering.decimal or min(later) < end + _LETTERS_AHEAD):
        raise IncompleteImageError(f"{own}: part {numbering.name(end)} is missing")
    return [present[number] for number in range(first, end)]


PLUGIN = ImageFormat("raw", (*_WHOLE, *_NUMBERED, *_SPLIT), probe, open_raw, listed=False, vague=True)
