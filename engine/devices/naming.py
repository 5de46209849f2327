"""A disk named by what it is instead of where it stands today: ``serial=``, ``wwn=``, ``size=``.

``/dev/sdb`` is another disk after the next boot. A serial number is not, and a name that fits no disk, or
more than one, never chooses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engine.devices.inventory import list_block_devices
from engine.devices.sysfs import LOCAL, SystemRoots
from imageformat.errors import AmbiguousNameError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.devices.inventory import BlockDeviceInfo

Key = Literal["serial", "wwn", "size"]

_KEYS: dict[str, Key] = {"serial": "serial", "wwn": "wwn", "size": "size"}
_SIZE = re.compile(r"(\d{1,19})(?:\.(\d{1,3}))? ?(?:([KMGTP])(iB|B)?|B)?", re.ASCII | re.IGNORECASE)
_WWN_PREFIX = re.compile(r"(?:wwn-)?(?:0x|naa\.|eui\.)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DiskName:
    """What the wanted disk says of itself."""

    key: Key
    value: str

    def __str__(self) -> str:
        """As it is typed."""
        return f"{self.key}={self.value}"


def parse_name(text: str) -> DiskName | None:
    """Take apart ``serial=S3X``, ``wwn=0x5000c500a1b2c3d4`` or ``size=500GB``; None for a path.

    A file of such a name is reached as ``./serial=S3X``.

    Raises:
        UsageError: the value is empty, or no size.
    """
    word, separator, value = text.partition("=")
    key = _KEYS.get(word) if separator else None
    if key is None:
        return None
    if not normal_mark(value) or (key == "wwn" and not normal_wwn(value)):
        raise UsageError(f"'{text}' names no disk: write {word}=VALUE")
    if key == "size":
        _parse_size(value)
    return DiskName(key, value)


def is_meant(name: DiskName, disk: BlockDeviceInfo) -> bool:
    """Whether the disk is what the name says; pure.

    Serial numbers and world-wide names are equal whatever their case; ``0x``, ``naa.`` and ``eui.`` before
    the latter do not count. A size in bytes is exact; in units, it is the disk's size rounded to as many
    digits, and at most 1 % away. GB counts in powers of 1000, GiB and G in powers of 1024.
    """
    if name.key == "serial":
        return normal_mark(disk.serial) == normal_mark(name.value)
    if name.key == "wwn":
        return normal_wwn(disk.wwn) == normal_wwn(name.value)
    value, scale, unit = _parse_size(name.value)
    rounded = (2 * disk.size * scale + unit) // (2 * unit)
    distance = abs(disk.size * scale - value * unit)
    return rounded == value and distance * 100 <= value * unit


def choose(name: DiskName, disks: Iterable[BlockDeviceInfo]) -> BlockDeviceInfo:
    """Return the one disk that is meant; pure.

    Raises:
        NotFoundError: none is; its notes list the disks.
        AmbiguousNameError: several are; its notes list those.
    """
    known = tuple(disks)
    found = [disk for disk in known if is_meant(name, disk)]
    if len(found) == 1:
        return found[0]
    listed, error = known, NotFoundError(f"no disk has {name}; 'mountfs disks' lists what there is")
    if found:
        paths = ", ".join(disk.path for disk in found)
        listed = tuple(found)
        error = AmbiguousNameError(f"{name} fits {len(found)} disks: {paths}; name one by its serial number")
    for disk in listed:
        error.add_note(_described(disk))
    raise error


def named_path(text: str, roots: SystemRoots = LOCAL) -> str:
    """Return the path of what is named by a path, serial number, world-wide name or size.

    Raises:
        NotFoundError, AmbiguousNameError: see `choose`.
        UsageError: see `parse_name`.
    """
    name = parse_name(text)
    return text if name is None else choose(name, list_block_devices(roots)).path


def normal_mark(text: str) -> str:
    """A serial number without what people and programs write differently: case and blanks around it."""
    return " ".join(text.split()).casefold()


def normal_wwn(text: str) -> str:
    """A world-wide name without its prefix; the kernel writes ``naa.5000``, udev ``0x5000``."""
    plain = normal_mark(text)
    match = _WWN_PREFIX.match(plain)
    return plain[match.end() :] if match else plain


def _parse_size(text: str) -> tuple[int, int, int]:
    """Return value, scale and unit: the size is ``value / scale`` units of that many bytes.

    Raises:
        UsageError: it is no size above zero.
    """
    match = _SIZE.fullmatch(text.strip())
    fraction = (match[2] or "") if match else ""
    if match is None or (fraction and not match[3]) or not int(match[1] + fraction):
        raise UsageError(f"'{text}' is no size of a disk: write size=500GB, size=465.8GiB, or bytes")
    power = " KMGTP".index((match[3] or " ").upper())
    base = 1000 if (match[4] or "").upper() == "B" else 1024
    return int(match[1] + fraction), 10 ** len(fraction), base**power


def _described(disk: BlockDeviceInfo) -> str:
    known = (
        disk.model,
        f"serial {disk.serial}" if disk.serial else "",
        f"wwn {disk.wwn}" if disk.wwn else "",
        f"{disk.size} bytes",
    )
    return f"{disk.path}: {', '.join(part for part in known if part)}"
