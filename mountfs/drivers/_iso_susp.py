"""Rock Ridge: what the system use areas of ISO 9660 directory records add.

Sources: IEEE P1281 (SUSP 1.12) and IEEE P1282 (RRIP 1.12). Numbers are stored in both byte orders; the
little-endian one is read.
"""

from __future__ import annotations

import calendar
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.drivers._iso_zisofs import Zisofs, parse_zf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_CONTINUATIONS = 64
_EXTENSIONS = (b"RRIP_1991A", b"IEEE_P1282", b"IEEE_1282")


@dataclass(slots=True)
class RockRidge:
    """What Rock Ridge says of one record; None and 0 where it says nothing."""

    name: bytes | None = None
    mode: int | None = None
    links: int = 1
    uid: int = 0
    gid: int = 0
    device: tuple[int, int] = (0, 0)
    target: bytes = b""
    relocated: bool = False
    """The real place of this directory is elsewhere; it is not listed here."""
    child: int = 0
    """Block of the directory that this record stands for."""
    refusal: str = ""
    """Why the content cannot be read."""
    zisofs: Zisofs | None = None
    """How the content is compressed."""
    times: dict[str, int] = field(default_factory=dict)
    """Nanoseconds by "birth", "mtime", "atime", "ctime"."""
    link: list[tuple[bytes, bool]] = field(default_factory=list)
    """Components of the target; true: the next one continues it."""
    name_goes_on: bool = False


def entries(area: bytes, read: Callable[[int, int, int], bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield signature and whole entry of a system use area and its continuations.

    ``read(block, offset, size)`` fetches a continuation.

    Raises:
        VolumeError: continuations without end.
    """
    for _ in range(_MAX_CONTINUATIONS):
        following: tuple[int, int, int] | None = None
        at = 0
        while at + 4 <= len(area):
            signature, length = area[at : at + 2], area[at + 2]
            if length < 4 or at + length > len(area) or signature == b"ST":
                break
            entry = area[at : at + length]
            if signature == b"CE" and length >= 28:
                block, offset, size = (struct.unpack_from("<I", entry, n)[0] for n in (4, 12, 20))
                following = (block, offset, size)
            else:
                yield signature, entry
            at += length
        if following is None:
            return
        area = read(*following)
    raise VolumeError("a directory record is continued without end")


def skipped_bytes(area: bytes) -> int | None:
    """Return how many bytes of each system use area to skip, from the root's first record; None: no SUSP."""
    if len(area) < 7 or area[:2] != b"SP" or area[4:6] != b"\xbe\xef":
        return None
    return area[6]


def is_rock_ridge(found: Iterator[tuple[bytes, bytes]]) -> bool:
    """Tell from the entries of the root's first record whether Rock Ridge is in use."""
    for signature, entry in found:
        if signature == b"ER" and len(entry) >= 8 and entry[8 : 8 + entry[4]].startswith(_EXTENSIONS):
            return True
        if signature in {b"RR", b"PX"}:
            return True
    return False


def parse(found: Iterator[tuple[bytes, bytes]]) -> RockRidge:
    """Collect the entries of one record."""
    result = RockRidge()
    for signature, entry in found:
        handler = _HANDLERS.get(signature)
        if handler is not None:
            handler(result, entry)
    result.target = _join(result.link)
    return result


def _attributes(result: RockRidge, entry: bytes) -> None:
    result.mode, result.links, result.uid, result.gid = (
        struct.unpack_from("<I", entry, at)[0] for at in (4, 12, 20, 28)
    )


def _device(result: RockRidge, entry: bytes) -> None:
    high, low = (struct.unpack_from("<I", entry, at)[0] for at in (4, 12))
    if high:
        result.device = (high, low)
    else:
        result.device = (low >> 8 & 0xFFF, low & 0xFF | low >> 12 & 0xF_FF00)


def _name(result: RockRidge, entry: bytes) -> None:
    flags = entry[4]
    if flags & 6:
        return
    result.name = (result.name or b"") + entry[5:] if result.name_goes_on else entry[5:]
    result.name_goes_on = bool(flags & 1)


def _symlink(result: RockRidge, entry: bytes) -> None:
    at = 5
    while at + 2 <= len(entry):
        flags, length = entry[at], entry[at + 1]
        text = {2: b".", 4: b"..", 8: b"/"}.get(flags & 0xE, entry[at + 2 : at + 2 + length])
        result.link.append((text, bool(flags & 1)))
        at += 2 + length


def _join(parts: list[tuple[bytes, bool]]) -> bytes:
    """Join components with slashes, but for those that go on in the next one."""
    target, goes_on = b"", True
    for text, continues in parts:
        target += text if goes_on or target.endswith(b"/") else b"/" + text
        goes_on = continues
    return target


def _child(result: RockRidge, entry: bytes) -> None:
    (result.child,) = struct.unpack_from("<I", entry, 4)


def _relocated(result: RockRidge, _: bytes) -> None:
    result.relocated = True


def _sparse(result: RockRidge, _: bytes) -> None:
    result.refusal = "is stored sparse (Rock Ridge SF), which is not supported"


def _zisofs(result: RockRidge, entry: bytes) -> None:
    found = parse_zf(entry)
    if isinstance(found, Zisofs):
        result.zisofs = found
    else:
        result.refusal = found


def _times(result: RockRidge, entry: bytes) -> None:
    flags, at = entry[4], 5
    size = 17 if flags & 0x80 else 7
    for bit, name in enumerate(("birth", "mtime", "atime", "ctime")):
        if flags >> bit & 1:
            raw = entry[at : at + size]
            result.times[name] = long_time(raw) if size == 17 else short_time(raw)
            at += size


_HANDLERS = {
    b"PX": _attributes,
    b"PN": _device,
    b"NM": _name,
    b"SL": _symlink,
    b"CL": _child,
    b"RE": _relocated,
    b"SF": _sparse,
    b"ZF": _zisofs,
    b"Z2": _zisofs,
    b"TF": _times,
}


def short_time(raw: bytes) -> int:
    """Decode the seven bytes of ECMA-119 9.1.5, with their zone; 0 when they make no sense."""
    if len(raw) < 7:
        return 0
    year, month, day, hour, minute, second, zone = struct.unpack_from("<BBBBBBb", raw)
    return _moment((1900 + year, month, day, hour, minute, second), zone, 0)


def long_time(raw: bytes) -> int:
    """Decode the seventeen bytes of ECMA-119 8.4.26.1; 0 when they make no sense."""
    digits = raw[:16]
    if len(raw) < 17 or not digits.isdigit():
        return 0
    fields = [int(digits[a:b]) for a, b in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14), (14, 16))]
    (zone,) = struct.unpack_from("<b", raw, 16)
    return _moment(tuple(fields[:6]), zone, fields[6])


def _moment(fields: tuple[int, ...], quarters: int, hundredths: int) -> int:
    year, month, day, hour, minute, second = fields
    if year < 1 or not 1 <= month <= 12 or not 1 <= day <= 31 or hour > 23 or minute > 59 or second > 60:
        return 0
    seconds = calendar.timegm((year, month, day, hour, minute, second)) - quarters * 900
    return seconds * 1_000_000_000 + hundredths * 10_000_000
