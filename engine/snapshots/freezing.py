"""Freezing file systems for a short time, with a child that thaws them whatever becomes of this process.

A frozen file system is written back, marked as whole, and lets writers wait. Three things thaw it: the end
of the task, the child when this process dies or the time is up, and, should both be killed, the journal.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from engine.devices import ioctl
from engine.snapshots import journal
from imageformat import system
from imageformat.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from engine.devices.mountinfo import MountEntry
    from engine.snapshots.journal import Entry

PROVIDER = "freeze"
BRIEF_S = 20.0
"""How long file systems may stand still while a snapshot is made."""
_PATIENCE_S = 120.0
"""Writing back all that a file system holds in memory takes its time."""
_REASONS = {
    "EBUSY": "somebody else has frozen it",
    "EOPNOTSUPP": "it cannot be frozen",
    "EPERM": "only root may freeze it",
    "EINVAL": "it is frozen already",
}


class Freezer:
    """File systems that stand still until `thaw`, or until the time is up."""

    def __init__(self, places: Sequence[str], entry: Entry, seconds: float) -> None:
        """Freeze ``places``, the last one first: what is mounted later may lie upon what was mounted before.

        Raises:
            SnapshotError: not all of them can be; none is then.
        """
        program = str(Path(__file__).with_name("_freezer.py"))
        self._seconds = seconds
        self._entry = entry
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", program, str(seconds), *reversed(places)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        try:
            self._expect(b"ready", "it could not be opened")
            entry.note(**_noted(places))
            self._tell()
            self._expect(b"frozen", "it took too long")
        except BaseException:
            self.thaw()
            raise

    def ended(self) -> str | None:
        """Return why they no longer stand still; None as long as they do. Cheap."""
        if self._child.poll() is None:
            return None
        return f"the file system was let go after {self._seconds:.0f} seconds, before all was read"

    def thaw(self) -> bool:
        """Let them go; False when they had been before."""
        child = self._child
        if child.stdin is not None:
            with suppress(OSError):
                child.stdin.close()
        try:
            code = child.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = -1
        if child.stdout is not None:
            child.stdout.close()
        if code < 0:  # killed, or it hangs in the kernel: it is for us
            thaw_noted(self._entry.facts)
        self._entry.facts.clear()  # what is frozen from now on is not ours
        return code == 0

    def _tell(self) -> None:
        if self._child.stdin is not None:
            self._child.stdin.write(b"f")
            self._child.stdin.flush()

    def _expect(self, word: bytes, otherwise: str) -> None:
        stream = self._child.stdout
        ready = stream is not None and select.select([stream], [], [], _PATIENCE_S)[0]
        said = stream.readline().strip() if stream is not None and ready else b""
        if said != word:
            reason, _, place = said.decode("utf-8", "replace").partition(" ")
            why = _REASONS.get(reason, reason or otherwise)
            raise SnapshotError(f"{place or 'a file system'} was not frozen: {why}")


@contextmanager
def frozen(entries: Sequence[MountEntry], folder: Path, seconds: float = BRIEF_S) -> Iterator[Freezer | None]:
    """Keep file systems still for a moment; None without any.

    Raises:
        SnapshotError: one cannot be frozen, or the time was up before the end: what was made meanwhile is
            no picture of one moment.
    """
    if not entries:
        yield None
        return
    noted = journal.begin(folder, PROVIDER)
    in_time = False
    try:
        freezer = Freezer([entry.mount_point for entry in entries], noted, seconds)
        try:
            yield freezer
        finally:
            in_time = freezer.thaw()
    finally:
        if noted.facts:
            noted.release()  # it could not be thawed: for whoever comes next
        else:
            noted.erase()
    if not in_time:
        raise SnapshotError(
            f"it took longer than {seconds:.0f} seconds, for which file systems may stand still"
        )


def thaw_noted(facts: Mapping[str, str]) -> None:
    """Thaw what an entry of the journal notes, if that is still the same file system since the same start.

    Raises:
        SnapshotError: this user may not.
    """
    if facts.get("boot") != _boot_id():
        return
    for number in range(len(facts)):
        place, device = facts.get(f"place{number}"), facts.get(f"device{number}")
        if place is None:
            return
        try:
            fd = os.open(place, os.O_RDONLY | system.PRIVATE)
        except OSError:
            continue  # it is gone
        try:
            if str(os.fstat(fd).st_dev) == device:
                ioctl.thaw(fd)
        except OSError as error:
            raise SnapshotError(
                f"{place} cannot be thawed: {error.strerror}; 'fsfreeze -u {place}'"
            ) from error
        finally:
            os.close(fd)


def stops_us(entry: MountEntry, folder: Path) -> bool:
    """Whether freezing that file system would stop this program: it lives there, or writes there.

    ``folder`` is that of the journal.
    """
    needed = (Path("/"), Path(tempfile.gettempdir()), _existing(folder), Path(sys.executable), Path.cwd())
    try:
        device = os.stat(entry.mount_point).st_dev  # noqa: PTH116
        written = (os.fstat(number).st_dev for number in (1, 2))
        return device in written or any(path.stat().st_dev == device for path in needed)
    except OSError:
        return True


def _existing(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))


def _noted(places: Sequence[str]) -> dict[str, str]:
    facts = {"boot": _boot_id()}
    for number, place in enumerate(places):
        facts[f"place{number}"] = place
        facts[f"device{number}"] = str(os.stat(place).st_dev)  # noqa: PTH116
    return facts


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
