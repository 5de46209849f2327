"""btrfs, said honestly: its snapshots are of files, not of the device.

A snapshot of a subvolume is more metadata on the same device, which goes on changing; an image of the device
is no stiller for it. What btrfs can give is a still picture of an image file that lies in it.
"""

from __future__ import annotations

from engine.snapshots import reflink
from engine.snapshots.provider import SnapshotProvider, SourceFacts


def unavailable(facts: SourceFacts) -> str | None:
    """See `SnapshotProvider.unavailable`."""
    if facts.kind != "file":
        return "a snapshot of a subvolume does not keep its device still, only files in it"
    if facts.file_system != "btrfs":
        return "it does not lie in a btrfs"
    return reflink.unavailable(facts)


PLUGIN = SnapshotProvider(
    "btrfs", 30, unavailable, reflink.create, reflink.remove, to_freeze=reflink.mounted_from_it
)
