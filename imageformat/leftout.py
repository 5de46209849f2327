"""What an image remembers of the files that were left out of it: which patterns, how many, how large.

It stands in the origin record of the image (docs/format.md section 2.1) for people; the blocks themselves
say by their state that nothing is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imageformat.extent import ExtentKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imageformat.device import BlockDevice
    from imageformat.layer import ImageInfo

EXCLUDED_KEY = "excluded"
"""Of the origin record: a list of [offset of the volume, pattern, files, bytes]."""
DEFAULT = "default: "
"""Begins the place of a pattern when it is the name of a file that is left out unless all is imaged."""
_MAX_TEXT = 1400
"""Bytes of the record that patterns may take; the header of an image has little room."""
_MAX_PATTERN = 200


class LeftOut(NamedTuple):
    """Files of one volume that one pattern left out."""

    offset: int
    """Of the volume on the disk."""
    pattern: str
    files: int
    size: int
    """Bytes of their content; those that share a block with something else are stored nevertheless."""


def record_of(found: Iterable[LeftOut]) -> list[list[object]]:
    """Return the value for the origin record; the smallest that have no room are added up as one."""
    kept: list[LeftOut] = []
    rest = LeftOut(0, "", 0, 0)
    hidden, room = 0, _MAX_TEXT
    for entry in sorted(found, key=lambda entry: -entry.size):
        pattern = entry.pattern[:_MAX_PATTERN]
        room -= 6 * len(pattern) + 40 if not pattern.isascii() else len(pattern) + 40
        if room >= 0:
            kept.append(entry._replace(pattern=pattern))
        else:
            hidden += 1
            rest = LeftOut(entry.offset, "", rest.files + entry.files, rest.size + entry.size)
    if hidden:
        kept.append(rest._replace(pattern=f"({hidden} more patterns)"))
    return [list(entry) for entry in sorted(kept)]


def left_out_files(info: ImageInfo) -> tuple[LeftOut, ...]:
    """Return what an image says of left-out files; what makes no sense there is passed over."""
    recorded = info.details.get(EXCLUDED_KEY)
    entries = recorded if isinstance(recorded, list) else []
    return tuple(
        LeftOut(*entry)
        for entry in entries
        if isinstance(entry, list)
        and len(entry) == 4
        and isinstance(entry[1], str)
        and all(isinstance(value, int) and value >= 0 for value in (entry[0], *entry[2:]))
    )


def excluded_bytes(device: BlockDevice) -> int:
    """Return how many bytes of a disk were left out with files; read from the index alone."""
    extents = device.extents(0, device.size)
    return sum(extent.length for extent in extents if extent.kind is ExtentKind.EXCLUDED)


def why_left_out(info: ImageInfo, offset: int) -> str:
    """Say, for an error, which patterns left out what lies at a byte of the disk."""
    entries = [entry for entry in left_out_files(info) if entry.offset <= offset]
    volume = max((entry.offset for entry in entries), default=0)
    here = [entry.pattern for entry in entries if entry.offset == volume]
    return f"left out of the image by {' or '.join(map(cause_of, here)) or '--exclude'}"


def cause_of(pattern: str) -> str:
    """Say what left files out, as part of a sentence: an option, or the rule that needs none."""
    if pattern.startswith(DEFAULT):
        return f"default ({pattern.removeprefix(DEFAULT)})"
    return f"--exclude {pattern}"
