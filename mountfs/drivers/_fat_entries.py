"""Directory entries of FAT and exFAT.

Long names win over short ones; short names are code page 437 and keep the case that Windows NT notes in
the entry. Times: FAT has no zone, so local time is taken as UTC; exFAT notes its zone, which is applied.
"""

from __future__ import annotations

import calendar
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = 32

_READ_ONLY = 0x1
_VOLUME_LABEL = 0x8
_DIRECTORY = 0x10
_LONG_NAME = 0xF

_BITMAP = 0x81
_FILE = 0x85
_STREAM = 0xC0
_NAME = 0xC1


class FatEntry(NamedTuple):
    """One file or directory."""

    position: int
    """Byte offset of its entry inside the directory."""
    name: bytes
    is_directory: bool
    is_read_only: bool
    cluster: int
    size: int
    """Of a FAT directory: 0."""
    valid_size: int
    """Bytes after it read as zeros (exFAT)."""
    contiguous: bool
    """Clusters follow each other and the table is not used (exFAT)."""
    atime_ns: int
    mtime_ns: int
    birth_ns: int


class Problem(NamedTuple):
    """Something wrong in a directory."""

    text: str


def timestamp(date: int, time: int, hundredths: int = 0) -> int:
    """Return nanoseconds since 1970 of a DOS date and time; 0 for a date that does not exist."""
    year, month, day = 1980 + (date >> 9), date >> 5 & 0xF, date & 0x1F
    hour, minute, second = time >> 11, time >> 5 & 0x3F, (time & 0x1F) * 2
    if not 1 <= month <= 12 or not 1 <= day <= 31 or hour > 23 or minute > 59 or second > 59:
        return 0
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    return seconds * 1_000_000_000 + min(hundredths, 199) * 10_000_000


def fat_entries(raw: bytes) -> Iterator[FatEntry | Problem]:
    """Yield what a FAT directory holds; deleted entries and the volume label are left out."""
    parts: dict[int, bytes] = {}
    wanted, checksum = 0, -1
    for at in range(0, len(raw) - ENTRY + 1, ENTRY):
        entry = raw[at : at + ENTRY]
        first, attributes = entry[0], entry[11]
        if first == 0:
            return
        if first == 0xE5:
            parts = {}
        elif attributes & 0x3F == _LONG_NAME:
            if first & 0x40:
                parts, wanted, checksum = {}, first & 0x1F, entry[13]
            if entry[13] == checksum:
                parts[first & 0x1F] = entry[1:11] + entry[14:26] + entry[28:32]
        elif attributes & _VOLUME_LABEL:
            parts = {}
        else:
            complete = sorted(parts) == list(range(1, wanted + 1)) and checksum == _short_checksum(entry[:11])
            long_name = b"".join(parts[n] for n in sorted(parts)) if parts and complete else b""
            parts = {}
            found = _fat_entry(entry, at, _utf16(long_name) or _short_name(entry))
            if found.name not in {b".", b".."}:
                yield found if found.name else Problem("a directory is damaged: an entry without a name")


def _fat_entry(entry: bytes, at: int, name: bytes) -> FatEntry:
    tenths, ctime, cdate, adate, high, mtime, mdate, low, size = struct.unpack_from("<BHHHHHHHI", entry, 13)
    is_directory = bool(entry[11] & _DIRECTORY)
    size = 0 if is_directory else size
    return FatEntry(
        position=at,
        name=name,
        is_directory=is_directory,
        is_read_only=bool(entry[11] & _READ_ONLY),
        cluster=high << 16 | low,
        size=size,
        valid_size=size,
        contiguous=False,
        atime_ns=timestamp(adate, 0),
        mtime_ns=timestamp(mdate, mtime),
        birth_ns=timestamp(cdate, ctime, tenths),
    )


def _short_checksum(name: bytes) -> int:
    total = 0
    for byte in name:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total


def _short_name(entry: bytes) -> bytes:
    base, extension, case = entry[:8], entry[8:11], entry[12]
    if base[0] == 0x05:
        base = b"\xe5" + base[1:]
    name = base.rstrip(b" ").decode("cp437")
    suffix = extension.rstrip(b" ").decode("cp437")
    name = name.lower() if case & 0x08 else name
    suffix = suffix.lower() if case & 0x10 else suffix
    return (f"{name}.{suffix}" if suffix else name).encode()


def _utf16(raw: bytes) -> bytes:
    """Decode up to the first NUL; half a surrogate pair is kept (WTF-8)."""
    text = raw.decode("utf-16-le", "surrogatepass")
    return text.partition("\0")[0].encode("utf-8", "surrogatepass")


def exfat_entries(raw: bytes) -> Iterator[FatEntry | Problem]:
    """Yield what an exFAT directory holds; deleted sets, label, bitmap and table are left out."""
    at = 0
    while at + ENTRY <= len(raw) and raw[at]:
        if raw[at] != _FILE:
            at += ENTRY
            continue
        end = at + (1 + raw[at + 1]) * ENTRY
        found = _exfat_set(raw[at:end], at)
        yield found
        at = at + ENTRY if isinstance(found, Problem) else end


def exfat_bitmaps(raw: bytes) -> Iterator[tuple[bool, int, int]]:
    """Yield the allocation bitmaps of a root directory: whether it is the second, first cluster, size."""
    for at in range(0, len(raw) - ENTRY + 1, ENTRY):
        if not raw[at]:
            return
        if raw[at] == _BITMAP:
            cluster, size = struct.unpack_from("<IQ", raw, at + 20)
            yield bool(raw[at + 1] & 1), cluster, size


def _exfat_set(raw: bytes, at: int) -> FatEntry | Problem:
    count = len(raw) // ENTRY
    names = (count - 2) * 15
    if count < 3 or count != raw[1] + 1 or raw[ENTRY] != _STREAM:
        return Problem(f"a directory is damaged: a bad entry set at byte {at}")
    if _set_checksum(raw) != struct.unpack_from("<H", raw, 2)[0]:
        return Problem(f"a directory is damaged: the entry set at byte {at} does not match its checksum")
    flags, _, name_length, _, _, valid, _, cluster, size = struct.unpack_from("<BBBHHQIIQ", raw, ENTRY + 1)
    parts = [raw[n + 2 : n + ENTRY] for n in range(2 * ENTRY, len(raw), ENTRY) if raw[n] == _NAME]
    name = b"".join(parts)[: 2 * name_length].decode("utf-16-le", "surrogatepass")
    if not name or name_length > names or valid > size:
        return Problem(f"a directory is damaged: a bad name or size at byte {at}")
    attributes, _, created, modified, accessed = struct.unpack_from("<HHIII", raw, 4)
    return FatEntry(
        position=at,
        name=name.encode("utf-8", "surrogatepass"),
        is_directory=bool(attributes & _DIRECTORY),
        is_read_only=bool(attributes & _READ_ONLY),
        cluster=cluster,
        size=size,
        valid_size=valid,
        contiguous=bool(flags & 2),
        atime_ns=_zoned(accessed, 0, raw[24]),
        mtime_ns=_zoned(modified, raw[21], raw[23]),
        birth_ns=_zoned(created, raw[20], raw[22]),
    )


def _zoned(stamp: int, hundredths: int, zone: int) -> int:
    """Apply the zone: a 7-bit signed count of quarter hours east of UTC, valid with bit 7 set."""
    local = timestamp(stamp >> 16, stamp & 0xFFFF, hundredths)
    if not local or not zone & 0x80:
        return local
    quarters = (zone & 0x7F) - (0x80 if zone & 0x40 else 0)
    return local - quarters * 900 * 1_000_000_000


def _set_checksum(raw: bytes) -> int:
    total = 0
    for index, byte in enumerate(raw):
        if index not in {2, 3}:
            total = ((total & 1) << 15) + (total >> 1) + byte & 0xFFFF
    return total
