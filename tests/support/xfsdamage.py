"""Repairs the checksums of a damaged XFS v5, so that damage gets past them."""

from __future__ import annotations

import struct

from mountfs.drivers._crc32c import crc32c

AT = {b"XFSB": 224, b"IN": 100, b"XDB3": 4, b"XDD3": 4, b"BMA3": 64, b"XARM": 12, b"XSLM": 12}
AT_EIGHT = {b"\x3b\xee": 12, b"\x3e\xbe": 12}
"""Magic numbers of attribute blocks, which stand at byte 8."""


def checksum_at(unit: bytes | bytearray) -> int | None:
    """Where a structure of version 5 has its checksum; None when it is no such structure."""
    if unit[:2] == b"IN" and unit[4] == 3:
        return AT[b"IN"]
    return AT.get(bytes(unit[:4]), AT_EIGHT.get(bytes(unit[8:10])))


def repair(unit: bytearray) -> None:
    """Give a structure that is all of ``unit`` a right checksum."""
    at = checksum_at(unit)
    if at is not None and at + 4 <= len(unit):
        unit[at : at + 4] = bytes(4)
        struct.pack_into("<I", unit, at, crc32c(bytes(unit)))
