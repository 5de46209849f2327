"""The past runs of one plan on disk: records, reports, and the lock that keeps a second run away.

A record is written before its run begins and after each step, each time as a whole file under a new name
first, so that whatever kills a run leaves a record of how far it came.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec

from imageformat import system
from imageformat.errors import MountfsError, PlanBusyError
from imageformat.storage.failures import read_error, write_error
from mountfs.plans.records import MAX_SIZE, RunRecord, decode_record, encode_record

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_RECORD, _LOCK = ".json", "lock"
_REPORTS = (".txt", ".html")
_PAUSES_S = (0.02, 0.05, 0.1)


class History(NamedTuple):
    """What is remembered of one plan. Any number of processes may read it at once."""

    folder: Path

    def records(self, *, locked: bool = False) -> list[RunRecord]:
        """Return the runs, the oldest first; one whose record cannot be understood is none.

        A run that is recorded as running, and whose process is gone, was interrupted. ``locked``: the caller
        has the lock, so that no other run can be under way.

        Raises:
            MountfsError: the folder cannot be read.
        """
        found = []
        try:
            paths = sorted(path for path in self.folder.iterdir() if path.suffix == _RECORD)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise read_error(error, self.folder) from error
        for path in paths:
            with contextlib.suppress(OSError), path.open("rb") as file:
                record = decode_record(file.read(MAX_SIZE))
                if record is not None and record.id == path.stem:
                    found.append(record)
        running = any(record.outcome == "running" for record in found)
        if running and (locked or not self.is_busy()):
            found = [_interrupted(record) for record in found]
        return sorted(found, key=lambda record: (record.started, record.id))

    def is_busy(self) -> bool:
        """Whether a run is under way; also when that cannot be told."""
        try:
            with RunLock(self):
                return False
        except MountfsError:
            return True

    def save(self, record: RunRecord) -> None:
        """Write a record in place of what was known of that run.

        Raises:
            DestinationError: it cannot be written.
        """
        self._write(self.folder / f"{record.id}{_RECORD}", encode_record(record))

    def save_report(self, record: RunRecord, suffix: str, text: str) -> Path:
        """Write a report for people beside its record, and return where; raises as `save`."""
        path = self.folder / f"{record.id}{suffix}"
        self._write(path, text.encode("utf-8", "replace"))
        return path

    def prune(self, keep: int) -> None:
        """Forget all but the last runs; what cannot be removed stays."""
        with contextlib.suppress(OSError):
            records = sorted(path for path in self.folder.iterdir() if path.suffix == _RECORD)
            for path in records[:-keep]:
                for name in (path, *(path.with_suffix(suffix) for suffix in _REPORTS)):
                    name.unlink(missing_ok=True)

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            system.sync_folder(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise write_error(error, path) from error


def _interrupted(record: RunRecord) -> RunRecord:
    if record.outcome != "running":
        return record
    steps = tuple(
        msgspec.structs.replace(step, outcome="interrupted") if step.outcome == "running" else step
        for step in record.steps
    )
    return msgspec.structs.replace(record, outcome="interrupted", steps=steps)


class RunLock:
    """Held by one run of a plan, and by the processes that it started, until the last of them has ended."""

    def __init__(self, history: History) -> None:
        self._path = history.folder / _LOCK
        self.fd = -1

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            PlanBusyError: another run has it.
            DestinationError: there can be none.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.fd = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError as error:
            raise write_error(error, self._path) from error
        try:
            self._lock()
        except BlockingIOError as error:
            self._close()
            name = self._path.parent.name
            raise PlanBusyError(
                f"plan '{name}' is running already; this run ends and does nothing"
            ) from error
        except OSError as error:
            self._close()
            raise write_error(error, self._path) from error
        return self

    def _lock(self) -> None:
        """Try for a moment: whoever only looks whether a run is under way has the lock meanwhile."""
        for pause in _PAUSES_S:
            try:
                system.lock(self.fd)
                return
            except BlockingIOError:
                time.sleep(pause)
        system.lock(self.fd)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the lock go."""
        self._close()

    def _close(self) -> None:
        os.close(self.fd)
        self.fd = -1
