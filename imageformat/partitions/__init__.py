"""Partition tables: what lies where on a disk.

Each scheme is one plug-in module of this package with ``PLUGIN = PartitionScheme(...)``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.plugins import discover

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageformat.device import BlockDevice


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition."""

    number: int
    """As the operating system counts: sda1 is 1; logical MBR partitions start at 5."""
    offset: int
    size: int
    type_id: str
    """GPT: the type GUID in lower case; MBR: two hex digits, such as "83"."""
    type_name: str
    """For people: "Linux filesystem"; the type id when unknown."""
    name: str = ""
    """GPT partition name."""
    uuid: str = ""
    """GPT: partition GUID in lower case; MBR: "%08x-%02x" of disk id and number, as Linux names it."""
    bootable: bool = False
    within: int = 0
    """The number of the partition that this one is a part of; 0 for one of the disk itself."""


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """The partitions of one disk in order of number."""

    scheme: str
    """"gpt", "mbr", or "none" for a disk that is one bare file system."""
    sector_size: int
    disk_id: str
    partitions: tuple[Partition, ...]
    warnings: tuple[str, ...] = ()
    """What is wrong but readable: "primary GPT is damaged, the backup was used"."""


@dataclass(frozen=True, slots=True)
class PartitionScheme:
    """The plug-in record of a partition scheme."""

    name: str
    priority: int
    """Higher is asked first: a GPT disk also carries a protective MBR."""
    read: Callable[[BlockDevice, int | None], PartitionTable | None]
    """Read the table, or None when the disk has none of this scheme. Hostile content gives a table with
    warnings or None, never an exception other than an I/O error of the device. The second argument is
    the sector size when known; None: find out (512 and 4096 are tried)."""


def read_table(device: BlockDevice, sector_size: int | None = None) -> PartitionTable:
    """Read the partition table of a disk; scheme "none" and no partitions when there is none.

    Raises:
        MountfsError: the device cannot be read.
    """
    schemes: list[PartitionScheme] = list(discover(sys.modules[__name__]).available)
    for scheme in sorted(schemes, key=lambda record: -record.priority):
        table = scheme.read(device, sector_size)
        if table is not None:
            return table
    return PartitionTable("none", sector_size or 512, "", ())
