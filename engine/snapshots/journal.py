"""What snapshots were made, written down before they are made, so that none outlives a process that died.

One file for each in the state folder of the user, locked as long as its process lives: a lock ends with the
process however that ends, and cannot be mistaken for another's as a process number can.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from imageformat import system
from imageformat.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_ENTRY = 64 << 10
_SUFFIX = ".json"


def journal_folder() -> Path:
    """Return where this user's processes note their snapshots."""
    return Path(platformdirs.user_state_dir("mountfs", appauthor=False)) / "snapshots"


@dataclass(slots=True)
class Entry:
    """A snapshot of this process, or one of a dead process that this one took over. Holds its lock."""

    path: Path
    provider: str
    facts: dict[str, str] = field(default_factory=dict)
    _fd: int = -1

    @property
    def id(self) -> str:
        """Return what no other entry is called, here or elsewhere: letters and digits."""
        return self.path.name.removesuffix(_SUFFIX)

    def note(self, **facts: str) -> None:
        """Add facts; when it returns they are durable.

        Raises:
            SnapshotError: they cannot be written.
        """
        self.facts.update(facts)
        text = json.dumps({"provider": self.provider, "facts": self.facts}).encode()
        try:
            os.lseek(self._fd, 0, os.SEEK_SET)
            # Never shorter than before: a line that was cut short by a crash would be no entry at all.
            os.write(self._fd, text + b"\n")
            os.fsync(self._fd)
        except OSError as error:
            raise SnapshotError(f"{self.path} cannot be written: {error.strerror}") from error

    def erase(self) -> None:
        """Forget it: nothing of it is left."""
        if not system.CAN_RENAME_OPEN_FILES:
            self.release()  # nor can open files be removed there
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let go of it without forgetting it: the next one to look takes it over."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def begin(folder: Path, provider: str) -> Entry:
    """Make an entry of this process.

    Raises:
        SnapshotError: the folder cannot be written.
    """
    path = folder / f"{secrets.token_hex(8)}{_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | system.PRIVATE, 0o600)
    except OSError as error:
        raise SnapshotError(f"{path} cannot be made: {error.strerror}; no snapshot without it") from error
    entry = Entry(path, provider, _fd=fd)
    try:
        system.lock(fd)
        entry.note()
        system.sync_folder(folder)
    except BaseException:
        entry.erase()
        raise
    return entry


def left_over(folder: Path) -> Iterator[Entry]:
    """Take over the entries of processes that are dead, one after the other; the caller releases or erases.

    Entries that make no sense were never acted upon: they are written whole before anything is made.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == _SUFFIX)
    except OSError:
        return
    for path in paths:
        entry = _take_over(path)
        if entry is not None:
            yield entry


def _take_over(path: Path) -> Entry | None:
    try:
        fd = os.open(path, os.O_RDWR | system.NO_FOLLOW | system.PRIVATE)
    except OSError:
        return None
    try:
        system.lock(fd)
        read = _parse(os.read(fd, MAX_ENTRY))
    except OSError:
        os.close(fd)
        return None
    entry = Entry(path, read[0] if read else "", dict(read[1]) if read else {}, fd)
    if read is not None:
        return entry
    entry.erase()
    return None


def _parse(text: bytes) -> tuple[str, Mapping[str, str]] | None:
    try:
        known = json.loads(text.partition(b"\n")[0])
        provider, facts = known["provider"], known["facts"]
        if not isinstance(provider, str) or not isinstance(facts, dict):
            return None
        return provider, {str(key): str(value) for key, value in facts.items()}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
