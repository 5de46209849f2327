"""Keeping every file system on a source frozen until it is read: for short sources, and only when asked for.

Whoever writes there waits for as long. It ends with the time limit at the latest, and then the image fails:
what was read after that would be of another moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.snapshots.freezing import Freezer, stops_us, thaw_noted
from engine.snapshots.journal import journal_folder
from engine.snapshots.provider import Picture, SnapshotProvider, SourceFacts

if TYPE_CHECKING:
    from engine.snapshots.journal import Entry

LIMIT_S = 60.0


def unavailable(facts: SourceFacts) -> str | None:
    """See `SnapshotProvider.unavailable`."""
    if not facts.written:
        return "no file system on it is mounted to be written"
    for entry in facts.written:
        if stops_us(entry, journal_folder()):
            return f"this program needs to write to {entry.mount_point} itself"
    return None


def create(facts: SourceFacts, entry: Entry) -> Picture:
    """See `SnapshotProvider.create`."""
    freezer = Freezer([mount.mount_point for mount in facts.written], entry, LIMIT_S)

    def close() -> None:
        freezer.thaw()

    return Picture(facts.path, close=close, ended=freezer.ended)


PLUGIN = SnapshotProvider("freeze", -1, unavailable, create, thaw_noted)
