"""Sizes, durations and times for people."""

from __future__ import annotations

import datetime as dt

_SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")


def format_size(size: float) -> str:
    """Return a number of bytes with a unit: ``512 B``, ``1.5 GiB``, ``120 MiB``."""
    value = float(size)
    for unit in _SIZE_UNITS:
        digits = 1 if unit != "B" and abs(value) < 99.95 else 0
        text = f"{value:.{digits}f}"
        if abs(float(text)) < 1024 or unit == _SIZE_UNITS[-1]:
            return f"{text} {unit}"
        value /= 1024
    return f"{size} B"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_time(time_ns: int, *, zone: bool = True) -> str:
    """Return a time in the local zone, and its offset: ``2024-05-01 13:22:01 +02:00``."""
    try:
        moment = dt.datetime.fromtimestamp(time_ns // 1_000_000_000, tz=dt.UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"
    offset = f"{moment:%z}"
    return f"{moment:%Y-%m-%d %H:%M:%S}" + (f" {offset[:3]}:{offset[3:5]}" if zone else "")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 file``, ``2 files``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
