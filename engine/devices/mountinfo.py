"""What is mounted where, from ``/proc/self/mountinfo`` (proc(5)) and ``/proc/swaps``."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.devices.sysfs import LOCAL, SystemRoots

if TYPE_CHECKING:
    from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One mount that this process can see."""

    id: int
    device: str
    """Number of the file system; major 0 when it has no block device of its own."""
    mount_point: str
    file_system: str
    source: str
    options: tuple[str, ...]
    """Of the file system, not of the mount."""


def mounts(roots: SystemRoots = LOCAL) -> tuple[MountEntry, ...]:
    """All mounts in the order in which they were made; empty when ``/proc`` is not there."""
    lines = _text(roots.proc / "self" / "mountinfo").split("\n")
    return tuple(entry for entry in map(_parse, lines) if entry is not None)


def mount_holding(
    path: Path, entries: tuple[MountEntry, ...], roots: SystemRoots = LOCAL
) -> MountEntry | None:
    """The mount on which ``path`` lies (symlinks followed), or None when that cannot be told."""
    identifier = _mount_id(path, roots)
    for entry in entries:
        if entry.id == identifier:
            return entry
    real = os.path.realpath(path)
    above = [entry for entry in entries if _is_below(real, entry.mount_point)]
    return max(reversed(above), key=lambda entry: len(entry.mount_point), default=None)


def swap_areas(roots: SystemRoots = LOCAL) -> tuple[str, ...]:
    """Paths of the devices and files that are used as swap."""
    lines = _text(roots.proc / "swaps").split("\n")[1:]
    return tuple(_unescape(line.split()[0]) for line in lines if line.strip())


def _parse(line: str) -> MountEntry | None:
    """One line: id parent device root point options [optional...] - type source superoptions."""
    before, separator, after = line.partition(" - ")
    left, right = before.split(" "), after.split(" ")
    if not separator or len(left) < 6 or len(right) < 2 or not left[0].isdecimal():
        return None
    return MountEntry(
        id=int(left[0]),
        device=left[2],
        mount_point=_unescape(left[4]),
        file_system=right[0],
        source=_unescape(right[1]),
        options=tuple(_unescape(option) for option in right[2].split(",")) if len(right) > 2 else (),
    )


def _unescape(text: str) -> str:
    """Undo the kernel's octal escapes of blank, tab, newline and backslash."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _mount_id(path: Path, roots: SystemRoots) -> int | None:
    """The id of the mount of an existing path, as the kernel tells it of an open file.

    The longest mount point above a path can be wrong: a later mount may cover it.
    """
    if sys.platform == "win32":
        return None
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = _text(roots.proc / "self" / "fdinfo" / str(fd))
    finally:
        os.close(fd)
    match = re.search(r"^mnt_id:\s*(\d+)$", text, re.MULTILINE)
    return int(match[1]) if match else None


def _is_below(path: str, folder: str) -> bool:
    return folder in {"/", path} or path.startswith(folder + "/")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return ""
