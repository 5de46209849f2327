"""Where partitions may lie: what is left of a hostile or damaged entry, and who overlaps whom.

Both schemes name places on the disk in sectors that a table may state wrongly; the rules for that are
the same for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.errors import UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imageformat.partitions import Partition

MAX_WARNINGS = 32
"""A table can hold a thousand wrong entries; nobody reads a thousand warnings."""


class Warnings:
    """Collects what is wrong but readable; keeps the first `MAX_WARNINGS` and counts the rest."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._dropped = 0

    def add(self, text: str) -> None:
        """Remember one sentence, once."""
        if text in self._kept:
            return
        if len(self._kept) < MAX_WARNINGS:
            self._kept.append(text)
        else:
            self._dropped += 1

    def all(self) -> tuple[str, ...]:
        """Return the sentences in order."""
        if not self._dropped:
            return tuple(self._kept)
        return (*self._kept, f"and {self._dropped} more problems with the partition table")


def fit(number: int, offset: int, size: int, disk_size: int, warnings: Warnings) -> tuple[int, int] | None:
    """Cut a partition to the disk: its offset and size, or None when nothing of it is there."""
    if size <= 0:
        warnings.add(f"partition {number} ends before it starts and was left out")
        return None
    if offset >= disk_size:
        warnings.add(f"partition {number} lies behind the end of the disk and was left out")
        return None
    if offset + size > disk_size:
        warnings.add(f"partition {number} reaches {offset + size - disk_size} bytes past the end of the disk")
        size = disk_size - offset
    return offset, size


def warn_overlaps(partitions: Iterable[Partition], warnings: Warnings) -> None:
    """Warn of each partition that starts inside one that lies before it."""
    reach: Partition | None = None
    for partition in sorted(partitions, key=lambda entry: (entry.offset, entry.number)):
        if reach is not None and partition.offset < reach.offset + reach.size:
            first, second = sorted((reach.number, partition.number))
            warnings.add(f"partitions {first} and {second} overlap")
        if reach is None or partition.offset + partition.size > reach.offset + reach.size:
            reach = partition


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A partition table made for another disk; everything in bytes of that disk."""

    patches: tuple[tuple[int, bytes], ...]
    """(offset, bytes) of the sectors that make it up, ascending."""
    ranges: tuple[tuple[int, int], ...]
    """(offset, size) of the partitions in it, ascending."""
    disk_id: str


def check_alignment(number: int, offset: int, size: int, sector_size: int) -> None:
    """Refuse a partition that does not begin and end with whole sectors.

    Raises:
        UnsupportedFeatureError
    """
    if offset % sector_size or size % sector_size:
        raise UnsupportedFeatureError(
            f"partition {number} lies at byte {offset} and has {size} bytes: on a disk with sectors of "
            f"{sector_size} bytes it cannot begin, or end, there"
        )
