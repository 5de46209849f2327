"""Volume descriptors of ISO 9660 (ECMA-119, Joliet) and UDF (ECMA-167, OSTA UDF)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mountfs.signatures.window import Signature
from mountfs.tree import FileSystemInfo

if TYPE_CHECKING:
    from mountfs.signatures.window import Window

_FIRST = 32768
_MAX_DESCRIPTORS = 64
_JOLIET = frozenset({b"%/@", b"%/C", b"%/E"})
_UDF_SECTORS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)
_UDF_STEPS = (2048, 4096, 8192, 16_384, 32_768)
_LEADING_HEX = re.compile(r"[0-9A-Fa-f]*")


def _iso9660(window: Window) -> FileSystemInfo | None:
    primary = joliet = 0
    for index in range(_MAX_DESCRIPTORS):
        start = _FIRST + 2048 * index
        kind = window.at(start, 1)
        if not window.has(start + 1, b"CD001") or kind == b"\xff":
            break
        if kind == b"\x01" and not primary:
            primary = start
        elif kind == b"\x02" and not joliet and window.at(start + 88, 3) in _JOLIET:
            joliet = start
    if not primary:
        return None
    label = window.text(primary + 40, 32)
    if joliet:
        label = _joliet_label(label, window.text(joliet + 40, 32, "utf-16-be"))
    uuid = _iso_time(window.at(primary + 830, 17)) or _iso_time(window.at(primary + 813, 17))
    return FileSystemInfo("iso9660", label, uuid, _sessions_note(window, primary))


def _sessions_note(window: Window, primary: int) -> str:
    """Tell when another session follows: which is the last one, only the table of contents knew."""
    end = window.number(primary + 80, "<I") * window.number(primary + 128, "<H")
    for unit in (16, 32):
        start = -(-end // (unit * 2048)) * unit * 2048
        if end and window.has(start + _FIRST + 1, b"CD001"):
            return f"a later session begins at byte {start}; the first one is shown"
    return ""


def _joliet_label(plain: str, joliet: str) -> str:
    """Return the Joliet label, with what its 16 letters cut off when the plain label is the same text."""
    whole = joliet.ljust(16)
    same = all(ours in {wide, "_"} for ours, wide in zip(plain, whole, strict=False))
    return (whole + plain[16:]).rstrip() if same else joliet


def _iso_time(raw: bytes) -> str:
    """Format a time of a volume descriptor; empty when it was not set."""
    digits = raw[:16].decode("ascii", "replace")
    if len(digits) < 16 or (digits == "0" * 16 and raw[16] == 0) or not digits.isprintable():
        return ""
    return "-".join((digits[:4], *(digits[at : at + 2] for at in range(4, 16, 2))))


def _udf(window: Window) -> FileSystemInfo | None:
    if not _is_udf(window):
        return None
    note = "also holds ISO 9660" if window.has(_FIRST + 1, b"CD001") else ""
    for sector_size in _UDF_SECTORS:
        anchor = 256 * sector_size
        if window.number(anchor, "<H") == 2 and window.number(anchor + 12, "<I") == 256:
            label, uuid = _udf_names(window, sector_size, anchor)
            return FileSystemInfo("udf", label, uuid, note)
    return FileSystemInfo("udf", note=note)


def _is_udf(window: Window) -> bool:
    """Look for NSR in the volume recognition sequence, whose step is the sector but at least 2048."""
    for step in _UDF_STEPS:
        for index in range(_MAX_DESCRIPTORS):
            name = window.at(_FIRST + index * step + 1, 5)
            if name in {b"NSR02", b"NSR03"}:
                return True
            if name not in {b"BEA01", b"CD001", b"BOOT2", b"CDW02"}:
                break
    return False


def _udf_names(window: Window, sector_size: int, anchor: int) -> tuple[str, str]:
    """Read the name of the logical volume, and a UUID made from the id of the volume set."""
    length, first = window.number(anchor + 16, "<I"), window.number(anchor + 20, "<I")
    label = uuid = ""
    for index in range(min(length // sector_size, _MAX_DESCRIPTORS)):
        start = (first + index) * sector_size
        tag = window.number(start, "<H")
        if tag in {0, 8} or window.number(start + 12, "<I") != first + index:
            break
        if tag == 1 and not uuid:
            uuid = _volume_set_uuid(_dstring(window.at(start + 72, 128)))
        elif tag == 6 and not label:
            label = _dstring(window.at(start + 84, 128)).rstrip()
    return label, uuid


def _dstring(raw: bytes) -> str:
    if not raw:
        return ""
    body = raw[1 : min(raw[-1], len(raw) - 1)]
    if raw[0] in {8, 254}:
        return body.decode("latin-1").split("\0", 1)[0]
    if raw[0] in {16, 255}:
        return body[: len(body) & ~1].decode("utf-16-be", "replace").split("\0", 1)[0]
    return ""


def _volume_set_uuid(name: str) -> str:
    """Make the 16 hexadecimal digits that Linux tools show: as many as lead the id, then bytes in hex."""
    raw = name.encode()
    if len(raw) < 8:
        return ""
    leading = _LEADING_HEX.match(name)
    digits = leading[0] if leading is not None else ""
    if len(digits) >= 16:
        return digits[:16].lower()
    if len(digits) >= 8:
        return digits[:8].lower() + raw[8:12].ljust(4, b"\0").hex()
    return raw[:8].hex()


SIGNATURES = (
    Signature((), _udf),
    Signature(((_FIRST + 1, b"CD001"),), _iso9660),
)
