"""Is a target still as it was left? What the kernel counts and stamps can vouch for that.

A file has an identity, a size and a time of change. For a disk the kernel counts the sectors written since it
was attached: as long as machine, attachment and count are the same, nobody wrote to it through this kernel.
A disk that was elsewhere meanwhile, or a restart, leaves nothing that vouches.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from engine.devices import sysfs
from engine.devices.guards import file_identity
from engine.devices.sysfs import LOCAL, SystemRoots

if TYPE_CHECKING:
    from engine.devices.guards import TargetFacts

_WRITES, _DISCARDS = (4, 6), (11, 13)
"""Requests and sectors in ``/sys/block/*/stat``: Documentation/block/stat.rst of Linux."""


def stamp_of(path: str, roots: SystemRoots = LOCAL) -> str:
    """Return what is equal as long as nobody wrote to a device or file; empty when nothing can tell.

    To be taken when everything is written back and nobody has the target open for writing.
    """
    number = sysfs.device_number(path, roots)
    if number is not None:
        return _device_stamp(number, roots)
    try:
        status = Path(path).stat()
    except OSError:
        return ""
    return " ".join((*file_identity(status), str(status.st_size), str(status.st_mtime_ns)))


def _device_stamp(number: str, roots: SystemRoots) -> str:
    folder = sysfs.block_folder(number, roots)
    if folder is None:
        return ""
    disk = sysfs.disk_folder(folder)
    boot = sysfs.attribute(roots.proc / "sys" / "kernel" / "random", "boot_id")
    attachment = sysfs.attribute(disk, "diskseq")
    counts = sysfs.attribute(disk, "stat").split()
    if not (boot and attachment) or len(counts) < max(_WRITES):
        return ""
    written = [counts[index] for index in (*_WRITES, *_DISCARDS) if index < len(counts)]
    return " ".join((boot, number, attachment, str(sysfs.size_of(folder)), *written))


def name_of_target(facts: TargetFacts) -> str:
    """Name a target for its record: by its serial number where it has one, else by its path."""
    mark = facts.serial or facts.wwn
    if not facts.is_device or not mark:
        return f"{facts.kind if facts.is_device else 'file'} {facts.path}"
    number = re.search(r"\d*$", facts.path) if facts.kind == "partition" else None
    return f"{facts.kind} {number.group() if number else ''} {mark} {facts.size}"
