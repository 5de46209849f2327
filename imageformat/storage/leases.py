"""Being the only writer of a set where no file can be locked: by notes that expire.

Each writer leaves a note of its own and then looks for others': of two that come at once, at least one sees
the other and withdraws. That needs no conditional write, which some servers ignore; only that what was
written is listed at once. A note is renewed while its writer lives, and is void when its writer is known to
be dead, or when it was not renewed for `LIFETIME_S` by the clock of the storage itself.

docs/decisions/0019-remote-storage.md says what this promises and what it cannot.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from uuid import uuid4

import msgspec

from imageformat.errors import DestinationError, MountfsError, SetBusyError

if TYPE_CHECKING:
    from collections.abc import Iterator

LIFETIME_S = 120
RENEW_S = 30
LEASE_NAME = ".lease-"
_MAX_NOTE = 4096


class Note(NamedTuple):
    """A note as a listing shows it."""

    name: str
    written_s: float
    """When it was written, by the clock of the storage."""


class Notes(Protocol):
    """Small objects of one folder. Any thread may call it."""

    @property
    def place(self) -> str:
        """How a person names the folder."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write a note, or write it anew."""
        ...

    def listed(self, prefix: str) -> list[Note]:
        """List the notes whose names begin so."""
        ...

    def read(self, name: str, most: int) -> bytes:
        """Return a note, ``most`` bytes of it; empty when it is gone."""
        ...

    def delete(self, name: str) -> None:
        """Remove a note; none is no error."""
        ...


class _Owner(msgspec.Struct, frozen=True):
    """Who wrote a note. A process is told by its machine's boot, its name space, its number and its start."""

    host: str
    boot: str
    space: str
    pid: int
    started: str


def _this_process() -> _Owner:
    return _Owner(
        socket.gethostname(),
        _text("/proc/sys/kernel/random/boot_id"),
        _space(),
        os.getpid(),
        _start(os.getpid()),
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _start(pid: int) -> str:
    """Return the start time of a process in ticks since the boot; empty when there is none."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] != "Z" else ""


def _is_dead(owner: _Owner) -> bool:
    """Tell whether a writer has certainly ended; False when that cannot be known from here."""
    here = _this_process()
    if not here.boot or not here.space or (owner.boot, owner.space) != (here.boot, here.space):
        return False
    return _start(owner.pid) != owner.started


if sys.platform == "linux":

    def _uptime() -> float:
        """Return seconds that also pass while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:

    def _uptime() -> float:
        return time.monotonic()


_held: set[tuple[str, str]] = set()
"""What the threads of this process hold: no server need be asked about those."""
_held_lock = threading.Lock()


@dataclass(slots=True)
class Lease:
    """What `exclusive` holds. `check` it before something is published."""

    notes: Notes
    name: str
    content: bytes
    renewed: float
    lost: bool = False

    def check(self) -> None:
        """Return when nobody else can have taken over meanwhile.

        Raises:
            DestinationError: somebody has, or may have: this process slept or was cut off for too long.
        """
        if not self.lost and _uptime() - self.renewed > LIFETIME_S / 2:
            with contextlib.suppress(MountfsError):
                self.renew()
        if self.lost or _uptime() - self.renewed > LIFETIME_S / 2:
            raise DestinationError(
                f"{self.notes.place}: this writer was cut off for so long that another may have taken over; "
                "nothing was published; run it again"
            )

    def renew(self) -> None:
        """Write the note anew, unless somebody has removed it."""
        asked = _uptime()
        if not any(note.name == self.name for note in self.notes.listed(self.name)):
            self.lost = True
            return
        self.notes.put(self.name, self.content)
        self.renewed = asked


@contextlib.contextmanager
def leased(notes: Notes) -> Iterator[Lease]:
    """Hold the only lease of a folder while the context lasts.

    Raises:
        SetBusyError: somebody else holds one.
        DestinationError, AccessDeniedError
    """
    key = (type(notes).__name__, notes.place)
    with _held_lock:
        if key in _held:
            raise SetBusyError(f"{notes.place}: another writer of this process is at work here")
        _held.add(key)
    try:
        lease = _acquire(notes)
        stop = threading.Event()
        renewer = threading.Thread(target=_renew_until, args=(lease, stop), daemon=True, name="lease")
        renewer.start()
        try:
            yield lease
        finally:
            stop.set()
            renewer.join()
            with contextlib.suppress(MountfsError):  # it expires
                notes.delete(lease.name)
    finally:
        with _held_lock:
            _held.discard(key)


def _renew_until(lease: Lease, stop: threading.Event) -> None:
    while not stop.wait(RENEW_S) and not lease.lost:
        with contextlib.suppress(MountfsError):  # `check` notices when this goes on for too long
            lease.renew()


def _acquire(notes: Notes) -> Lease:
    name = f"{LEASE_NAME}{uuid4().hex}"
    asked = _uptime()
    lease = Lease(notes, name, msgspec.json.encode(_this_process()), asked)
    notes.put(name, lease.content)
    try:
        stale = _rivals(notes, name)
    except BaseException:
        with contextlib.suppress(MountfsError):
            notes.delete(name)
        raise
    for rival in stale:
        notes.delete(rival)
    return lease


def _rivals(notes: Notes, own: str) -> list[str]:
    """Return the notes that are void.

    Raises:
        SetBusyError: one is not.
    """
    found = notes.listed(LEASE_NAME)
    now = next((note.written_s for note in found if note.name == own), None)
    if now is None:
        raise DestinationError(
            f"{notes.place}: what is written is not listed; no writer can be kept out here"
        )
    stale = []
    for note in found:
        if note.name == own:
            continue
        owner = _owner_of(notes, note.name)
        if now - note.written_s <= LIFETIME_S and not (owner is not None and _is_dead(owner)):
            who = f"process {owner.pid} on {owner.host}" if owner is not None else "another mountfs"
            raise SetBusyError(f"{notes.place}: {who} is writing here; wait for it to finish")
        stale.append(note.name)
    return stale


def _owner_of(notes: Notes, name: str) -> _Owner | None:
    try:
        return msgspec.json.decode(notes.read(name, _MAX_NOTE), type=_Owner)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
