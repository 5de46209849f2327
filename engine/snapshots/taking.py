"""A source that stands still while it is read, where something here can make it.

The snapshot is read under the name and identity of its source, so that a set goes on whether or not there
was a snapshot.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import engine.snapshots
from engine.devices import ioctl
from engine.devices.source import OpenSource, SourceDevice
from engine.devices.windowsdevice import WindowsSource
from engine.devices.windowskernel import kernel
from engine.snapshots import journal
from engine.snapshots.freezing import frozen, stops_us
from engine.snapshots.provider import Picture, SnapshotProvider, SourceFacts, source_facts
from imageformat import system
from imageformat.errors import MountfsError, SnapshotError, SourceError, SourceReadError, UsageError
from imageformat.plugins import discover

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from engine.devices.mountinfo import MountEntry
    from engine.devices.source import SourceDevice
    from engine.snapshots.journal import Entry
    from imageformat.extent import Extent

AUTO, NONE = "auto", "none"
_Read = TypeVar("_Read", bytes, memoryview)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no snapshot by one provider."""

    name: str
    reason: str


class PictureSource:
    """A snapshot of a source, read as the source. Closing it removes the snapshot and closes the source."""

    def __init__(
        self,
        opened: OpenSource | WindowsSource,
        source: SourceDevice,
        provider: SnapshotProvider,
        picture: Picture,
        entry: Entry,
        tell: Callable[[str], None],
    ) -> None:
        self.identity = source.identity
        self.size = source.size
        self.sector_size = source.sector_size
        self.block_size = source.block_size
        self.provider = provider.name
        self.place = picture.path
        """The device or file that is read."""
        self._opened = opened
        self._source = source
        self._plugin = provider
        self._picture = picture
        self._entry = entry
        self._warn = tell
        self._closed = False

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`; raises as `lend`."""
        with self.lend(offset, size) as lent:
            return bytes(lent)

    def lend(self, offset: int, size: int) -> memoryview:
        """See `engine.imaging.Lender.lend`.

        Raises:
            SnapshotError: it is no longer the picture of one moment.
            SourceReadError: as of the source; the snapshot still stands.
        """
        return self._while_it_stands(self._opened.lend, offset, size)

    def _while_it_stands(self, read: Callable[[int, int], _Read], offset: int, size: int) -> _Read:
        try:
            data = read(offset, size)
        except SourceReadError as error:
            reason = self._picture.ended() or self._plugin.lost(self._entry.facts)
            if reason is not None:
                raise SnapshotError(f"{self.identity.path}: {reason}") from error
            raise
        self._check()
        return data

    @property
    def smallest_read(self) -> int:
        """See `engine.rescue.SectorReader.smallest_read`."""
        return self._opened.smallest_read if isinstance(self._opened, OpenSource) else self.sector_size

    def read_sectors(self, offset: int, size: int) -> bytes:
        """See `engine.rescue.SectorReader.read_sectors`; raises as `lend`."""
        if not isinstance(self._opened, OpenSource):
            return self.pread(offset, size)
        return self._while_it_stands(self._opened.read_sectors, offset, size)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `SourceDevice.extents`."""
        for extent in self._opened.extents(offset, size):
            self._check()
            yield extent

    def close(self) -> None:
        """See `BlockDevice.close`; what cannot be removed stays noted, with a warning."""
        if self._closed:
            return
        self._closed = True
        self._opened.close()
        self._source.close()
        end(self._plugin, self._picture, self._entry, self._warn)

    def _check(self) -> None:
        reason = self._picture.ended()
        if reason is not None:
            raise SnapshotError(f"{self.identity.path}: {reason}")


def providers() -> dict[str, SnapshotProvider]:
    """Return every provider by its name."""
    return {provider.name: provider for provider in discover(engine.snapshots).available}


def facts_of(source: SourceDevice) -> SourceFacts:
    """Collect what is known of an open source."""
    busy = source.identity.kind == "file" and _written_by_others(source.identity.path)
    return source_facts(source.identity, busy=busy)


def take(
    source: SourceDevice, facts: SourceFacts, choice: str, folder: Path, tell: Callable[[str], None]
) -> tuple[SourceDevice, tuple[Refusal, ...]]:
    """Return a snapshot of a source where there is one, else the source itself and why.

    Args:
        source: opened; it belongs to what is returned, or to the caller when this raises.
        facts: of it, see `facts_of`.
        choice: ``none``; ``auto``: if the source can change, by whatever can; or the name of a provider.
        folder: of the journal.
        tell: takes what went less well than it could.

    Raises:
        SnapshotError: the provider that was named could not.
        UsageError: there is no such provider.
    """
    known = providers()
    if choice not in known and choice not in {AUTO, NONE}:
        raise UsageError(f"there is no snapshot '{choice}': choose {', '.join((AUTO, NONE, *sorted(known)))}")
    if choice == NONE:
        return source, ()
    if choice != AUTO:
        reason = known[choice].unavailable(facts)
        if reason is not None:
            raise SnapshotError(f"no snapshot of {facts.path} by {choice}: {reason}")
        return _make(source, facts, known[choice], folder, tell), ()
    if not facts.moves:
        return source, ()
    refusals = []
    for provider in sorted((one for one in known.values() if one.rank >= 0), key=lambda one: one.rank):
        reason = provider.unavailable(facts)
        if reason is None:
            try:
                return _make(source, facts, provider, folder, tell), ()
            except SnapshotError as error:
                reason = str(error)
        refusals.append(Refusal(provider.name, reason))
    return source, tuple(refusals)


def clean(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Remove what processes that died have left of snapshots; yield each, and why it is still there.

    Nothing else is touched: only what the journal notes, and only if it is still that.
    """
    known = providers()
    for entry in journal.left_over(folder):
        what = f"{entry.provider} {entry.facts.get('snapshot') or entry.facts.get('place0', '')}".strip()
        provider = known.get(entry.provider)
        try:
            if provider is None:
                raise SnapshotError(f"nothing here knows snapshots by {entry.provider}")
            provider.remove(entry.facts)
            entry.erase()
        except (MountfsError, OSError) as error:
            entry.release()
            yield what, str(error)
        else:
            yield what, None


def end(
    provider: SnapshotProvider, picture: Picture | None, entry: Entry, tell: Callable[[str], None]
) -> None:
    """Let a snapshot go and remove it; what cannot be removed stays noted, and is told."""
    try:
        if picture is not None:
            picture.close()
        provider.remove(entry.facts)
        entry.erase()
    except (MountfsError, OSError) as error:
        entry.release()
        tell(f"the snapshot is still there: {error}; 'mountfs doctor --fix' removes it")


def _make(
    source: SourceDevice,
    facts: SourceFacts,
    provider: SnapshotProvider,
    folder: Path,
    tell: Callable[[str], None],
) -> PictureSource:
    still = tuple(mount for mount in provider.to_freeze(facts) if not stops_us(mount, folder))
    try:
        return _made(source, facts, provider, folder, tell, still)
    except SnapshotError as error:
        if not still:
            raise
        tell(f"{facts.path}: the snapshot is made without freezing: {error}")
    return _made(source, facts, provider, folder, tell, ())


def _made(
    source: SourceDevice,
    facts: SourceFacts,
    provider: SnapshotProvider,
    folder: Path,
    tell: Callable[[str], None],
    still: tuple[MountEntry, ...],
) -> PictureSource:
    entry = journal.begin(folder, provider.name)
    picture: Picture | None = None
    opened: OpenSource | WindowsSource | None = None
    try:
        with frozen(still, folder):
            picture = provider.create(facts, entry)
        opened = _opened(picture.path, source)
        if opened.size != source.size:
            raise SnapshotError(f"the snapshot of {facts.path} has another size than it")
        return PictureSource(opened, source, provider, picture, entry, tell)
    except BaseException as error:
        if opened is not None:
            opened.close()
        end(provider, picture, entry, tell)
        if isinstance(error, OSError | SourceError) and not isinstance(error, SnapshotError):
            reason = getattr(error, "strerror", None) or error
            raise SnapshotError(f"the snapshot of {facts.path} cannot be read: {reason}") from error
        raise


def _opened(path: str, source: SourceDevice) -> OpenSource | WindowsSource:
    """Open a snapshot, to be read under the name of its source."""
    if sys.platform == "win32" and isinstance(source, WindowsSource):
        return WindowsSource.open(kernel(), path)
    fd = os.open(path, os.O_RDONLY | system.PRIVATE)
    try:
        identity = replace(source.identity, size=ioctl.device_size(fd))
        return OpenSource(fd, identity, sector_size=source.sector_size, block_size=source.block_size)
    except BaseException:
        os.close(fd)
        raise


def _written_by_others(path: str) -> bool:
    with suppress(OSError):
        return ioctl.open_for_writing(path)
    return False
