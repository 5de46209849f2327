"""What a way to make snapshots is: a record that says whether it can, makes one, and takes it away again.

A provider is one module of this package with ``PLUGIN = SnapshotProvider(...)``. It never writes to what it
makes a snapshot of, and removes only what is noted in an entry of the journal that was its own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.devices import sysfs
from engine.devices.backing import BackingWalk, identify
from engine.devices.guards import written_at
from engine.devices.mountinfo import MountEntry
from engine.devices.sysfs import LOCAL, SystemRoots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine.devices.source import SourceIdentity
    from engine.snapshots.journal import Entry


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What is known of a source before a snapshot of it is made."""

    path: str
    kind: str
    """That of `SourceIdentity`."""
    size: int
    number: str = ""
    """Of the block device, "major:minor"; empty for a file."""
    mapped_name: str = ""
    mapped_id: str = ""
    """Name and UUID of a device of the device mapper; empty for any other."""
    written: tuple[MountEntry, ...] = ()
    """Mounts of the file systems in it that can be written: one of each, in the order of mounting."""
    file_system: str = ""
    """Type of the file system in which a file lies, or that is mounted from a device."""
    busy: bool = False
    """A program has the file open for writing."""

    @property
    def moves(self) -> bool:
        """Whether it can change while it is read, as far as can be told."""
        return bool(self.written) or self.busy


def source_facts(identity: SourceIdentity, *, busy: bool = False, roots: SystemRoots = LOCAL) -> SourceFacts:
    """Collect what providers ask for, changing nothing."""
    if sys.platform == "win32" and identity.kind != "file":
        return _volume_facts(identity)
    found = identify(identity.path, roots)
    walk = BackingWalk(roots)
    written: dict[str, MountEntry] = {}
    for entry in walk.mounts if found is not None else ():
        if "ro" not in entry.options and found in walk.below(entry):
            written.setdefault(entry.device, entry)
    number = found if isinstance(found, str) else ""
    folder = sysfs.block_folder(number, roots) if number else None
    return SourceFacts(
        path=identity.path,
        kind=identity.kind,
        size=identity.size,
        number=number,
        mapped_name=sysfs.attribute(folder, "dm/name") if folder is not None else "",
        mapped_id=sysfs.attribute(folder, "dm/uuid") if folder is not None else "",
        written=tuple(written.values()),
        file_system=_file_system(identity, tuple(written.values()), walk),
        busy=busy,
    )


def _volume_facts(identity: SourceIdentity) -> SourceFacts:
    """Return the facts of a drive or volume of Windows, where all that is mounted can be written."""
    written = tuple(MountEntry(0, "", place, "", identity.path, ()) for place in written_at(identity.path))
    return SourceFacts(identity.path, identity.kind, identity.size, written=written)


def _file_system(identity: SourceIdentity, written: tuple[MountEntry, ...], walk: BackingWalk) -> str:
    if identity.kind != "file":
        return written[0].file_system if written else ""
    entry = walk.mount_of(Path(identity.path))
    return entry.file_system if entry is not None else ""


def _nothing() -> None:
    """Own nothing."""


def _stands() -> str | None:
    """Know of no way in which it could end."""
    return None


@dataclass(frozen=True, slots=True)
class Picture:
    """A snapshot that stands and can be read."""

    path: str
    """A device or file with as many bytes as the source."""
    close: Callable[[], None] = field(default=_nothing)
    """Let go of what this process holds of it; before `SnapshotProvider.remove`."""
    ended: Callable[[], str | None] = field(default=_stands)
    """Cheap; asked after each read: why what was read is no longer the picture, or None. Thread-safe."""


def _none(_facts: SourceFacts) -> tuple[MountEntry, ...]:
    return ()


def _never_lost(_noted: Mapping[str, str]) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class SnapshotProvider:
    """A way to make snapshots. Its functions may run programs, and block for as long as these take."""

    name: str
    """What ``--snapshot`` calls it."""
    rank: int
    """``auto`` tries those with a low one first; below zero: only when asked for by name."""
    unavailable: Callable[[SourceFacts], str | None]
    """Why it cannot make one of this source, in a few words; None: it can, as far as can be told."""
    create: Callable[[SourceFacts, Entry], Picture]
    """Make one. What will exist is noted in the entry before it exists. Raises SnapshotError."""
    remove: Callable[[Mapping[str, str]], None]
    """Take away what an entry notes, also when only a part of it was made; nothing there is no error.

    The same for a snapshot that has served and for what a dead process left. Raises SnapshotError.
    """
    to_freeze: Callable[[SourceFacts], tuple[MountEntry, ...]] = field(default=_none)
    """The file systems that are to be frozen while it is made."""
    lost: Callable[[Mapping[str, str]], str | None] = field(default=_never_lost)
    """Why it cannot be read any more, asked when reading failed; None: it still stands."""
