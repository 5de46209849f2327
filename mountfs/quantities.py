"""Spans of time, sizes and shares as people type them: on a command line and in a plan. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from imageformat.errors import UsageError

_SPANS = {"min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_SIZES = {"": 1, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_SIZE = re.compile(r"(\d{1,19})(?:\.(\d{1,3}))? ?(?:([KMGTP])(?:i?B)?)?", re.ASCII | re.IGNORECASE)
_LONGEST = 1000 * _SPANS["y"]
_LARGEST = 1 << 60


def parse_span(text: str) -> int:
    """Return seconds: ``30min``, ``36h``, ``30d``, ``8w``, ``2y`` (of 365 days).

    Raises:
        UsageError: it is no span of time, or one longer than 1000 years.
    """
    match = re.fullmatch(r"(\d{1,9}) ?(min|h|d|w|y)", text, re.ASCII)
    if match is None or int(match[1]) * _SPANS[match[2]] > _LONGEST:
        raise UsageError(f"'{text}' is no span of time: use 30min, 36h, 30d, 8w or 2y")
    return int(match[1]) * _SPANS[match[2]]


def parse_size(text: str) -> int:
    """Return bytes: ``4096``, ``500M``, ``20GiB``; units are powers of 1024.

    Raises:
        UsageError: it is no size, or one above 1 EiB.
    """
    match = _SIZE.fullmatch(text)
    unit = (match[3] or "").upper() if match else ""
    if match is None or (match[2] and not unit):
        raise UsageError(f"'{text}' is no size: use 500M, 20G or 1.5T")
    scale = 1 << _SIZES[unit] if unit else 1
    size = int(match[1]) * scale + int((match[2] or "0").ljust(3, "0")) * scale // 1000
    if size > _LARGEST:
        raise UsageError(f"'{text}' is more than there can be")
    return size


class Budget(NamedTuple):
    """How much may be done: so many bytes, or so many seconds; the other is None."""

    size: int | None
    seconds: int | None


def parse_budget(text: str) -> Budget:
    """Return a budget: ``20GiB``, ``30min``, ``2h``, ``90s``.

    Raises:
        UsageError: it is neither a size nor a time, or nothing.
    """
    match = re.fullmatch(r"(\d{1,6}) ?(s|min|h)", text, re.ASCII)
    if match is not None:
        found = Budget(None, int(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2]])
    else:
        try:
            found = Budget(parse_size(text), None)
        except UsageError as error:
            raise UsageError(f"'{text}' is no budget: use 20GiB, 30min or 2h") from error
    if not any(found):
        raise UsageError(f"'{text}' leaves nothing to do; use 20GiB, 30min or 2h")
    return found


def parse_part(text: str, whole: int) -> int:
    """Return bytes from a size, or from a share of ``whole``: ``10%``.

    Raises:
        UsageError: it is neither.
    """
    match = re.fullmatch(r"(\d{1,2}|100) ?%", text, re.ASCII)
    return whole * int(match[1]) // 100 if match is not None else parse_size(text)
