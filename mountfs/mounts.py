"""The mounts of this machine: find ours, ask whether they live, end them, clear the dead.

The kernel's mount table is the only record: nothing of ours has to be kept, so nothing can be out of date.
A mount whose server hangs makes every process that touches it hang too; it is only ever touched from a
child process that can be left behind.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from imageformat.errors import AccessDeniedError, MountError, MountPointError
from mountfs.names import safe_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROBE_S = 3.0
UNMOUNT_S = 5.0
"""How long the system may take to end a mount; one whose server hangs may take for ever."""
GONE_S = 5.0
FUSE_TYPE = "fuse.mountfs"

_MOUNT_TABLE = Path("/proc/self/mountinfo")
_CONNECTIONS = Path("/sys/fs/fuse/connections")
_MNT_FORCE = 1
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_HOLDERS_NAMED = 5
_PIPE_HOLDS = 4096
_OCTAL = re.compile(r"\\([0-7]{3})")


class MountState(Enum):
    """Whether the server of a mount answers."""

    OK = "ok"
    STALE = "stale"
    """The server died without unmounting; every access answers "transport endpoint is not connected"."""
    NOT_RESPONDING = "not responding"


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One mount of ours."""

    mountpoint: Path
    source: str
    """The image or repository, as `MountOptions.source` gave it."""
    state: MountState
    mount_id: int
    connection: int
    """Number of the FUSE connection below ``/sys/fs/fuse/connections``."""


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the mount table (proc(5), ``/proc/pid/mountinfo``)."""

    mount_id: int
    minor: int
    mountpoint: str
    type: str
    source: str


def list_mounts(*, timeout_s: float = PROBE_S) -> list[MountRecord]:
    """Return the mounts of ours that this process can see, in order of mounting.

    Each is probed at the same time as the others, for at most ``timeout_s`` seconds in all.
    """
    lines = [line for line in _mount_table() if line.type == FUSE_TYPE]
    states = _probe([line.mountpoint for line in lines], timeout_s)
    return [_record(line, state) for line, state in zip(lines, states, strict=True)]


def check_mountpoint(path: Path) -> Path:
    """Return the absolute path of a folder that can be mounted on.

    Raises:
        MountPointError: it is missing, not a folder, not empty, or a mount already.
    """
    absolute = _absolute(path)
    shown = safe_text(str(absolute))
    found = _topmost(absolute)
    if found is not None:
        if found.type == FUSE_TYPE:
            raise MountPointError(f"{shown} is mounted already: mountfs umount {shown}")
        raise MountPointError(
            f"something else ({safe_text(found.source)}) is mounted on {shown}: choose another folder"
        )
    try:
        with os.scandir(absolute) as entries:
            empty = next(entries, None) is None
    except FileNotFoundError:
        raise MountPointError(f"the mount point is missing: mkdir {shown}") from None
    except NotADirectoryError:
        raise MountPointError(f"{shown} is not a folder: choose an empty folder") from None
    except OSError as error:
        raise MountPointError(f"the mount point {shown} cannot be used: {error.strerror}") from error
    if not empty:
        raise MountPointError(f"{shown} is not empty: choose an empty folder, or its files would be hidden")
    return absolute


def unmount(path: Path, *, lazy: bool = False) -> None:
    """End the mount at ``path`` and return when it is gone from the mount table.

    Args:
        path: the mount point.
        lazy: detach it at once even when it is in use; those who use it may finish.

    Raises:
        MountPointError: no mount of ours is there.
        AccessDeniedError: somebody else mounted it.
        MountError: it is in use (the message names who), it does not answer, or the operating system
            refused.
    """
    absolute = _absolute(path)
    shown = safe_text(str(absolute))
    line = _topmost(absolute)
    if line is None or line.type != FUSE_TYPE:
        raise MountPointError(f"{shown} is not a mount of mountfs: mountfs mounts lists them")
    way = _unmount_as_root if os.geteuid() == 0 else _unmount_as_user
    code, message = _from_a_child(lambda: way(absolute, lazy=lazy), UNMOUNT_S)
    if code == errno.EBUSY:
        raise MountError(
            f"{shown} is in use{_named(_holders(absolute))}: leave it, or use --lazy to detach it now"
        )
    if code == errno.ETIMEDOUT:
        raise MountError(
            f"{shown} does not answer{_used(absolute)}: use --lazy to detach it now, or mountfs doctor --fix"
        )
    if code == errno.EPERM:
        raise AccessDeniedError(f"{shown} was mounted by another user: ask them, or use sudo")
    if code:
        raise MountError(f"{shown} cannot be unmounted: {message}")
    deadline = time.monotonic() + GONE_S
    while any(other.mount_id == line.mount_id for other in _mount_table()):
        if time.monotonic() > deadline:
            raise MountError(f"{shown} is still mounted: use --lazy to detach it")
        time.sleep(0.02)


def clear_stale(below: Path = Path("/")) -> list[MountRecord]:
    """Detach every mount at or below a folder whose server died, and return those that are gone now.

    Mounts of other users are left alone. A mount that is only slow to answer is not touched: see `abort`.
    """
    cleared = []
    for record in list_mounts():
        if record.state is not MountState.STALE or not record.mountpoint.is_relative_to(below):
            continue
        try:
            unmount(record.mountpoint, lazy=True)
        except AccessDeniedError:
            continue
        except MountPointError:
            pass  # somebody else was faster: it is gone, as it should be
        cleared.append(record)
    return cleared


def abort(record: MountRecord) -> None:
    """End a mount that does not respond: whoever hangs on it gets an error and runs on.

    Raises:
        AccessDeniedError: somebody else mounted it.
        MountError: the kernel does not let this user do it.
    """
    shown = safe_text(str(record.mountpoint))
    if os.geteuid() == 0:
        code, message = _umount2(record.mountpoint, _MNT_FORCE | _MNT_DETACH)
        if code:
            raise MountError(f"the connection of {shown} cannot be cut: {message}")
        return
    try:
        (_CONNECTIONS / str(record.connection) / "abort").write_text("1", "ascii")
    except PermissionError:
        raise AccessDeniedError(f"{shown} was mounted by another user: use sudo") from None
    except OSError as error:
        raise MountError(f"the connection of {shown} cannot be cut without sudo: {error.strerror}") from error
    unmount(record.mountpoint, lazy=True)


def end_now(path: Path) -> None:
    """End our own mount at ``path``, whoever uses it: they get errors. Nothing happens when it is gone."""
    line = _topmost(_absolute(path))
    if line is None or line.type != FUSE_TYPE:
        return
    try:
        abort(_record(line, MountState.OK))
    except (AccessDeniedError, MountError):
        # Not every machine shows the connections to users; a detached mount ends with its last user.
        with suppress(AccessDeniedError, MountError):
            unmount(path, lazy=True)


def _absolute(path: Path) -> Path:
    """Resolve all but the last name, which may be a mount that hangs when it is touched.

    A symbolic link in the last place is followed unless something is mounted on its very name.

    Raises:
        MountPointError: it lies inside a mount of ours.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps ".."
    if _topmost(absolute) is not None:
        return absolute
    for line in _mount_table():
        if line.type == FUSE_TYPE and absolute.is_relative_to(line.mountpoint):
            shown, mounted = safe_text(str(absolute)), safe_text(line.mountpoint)
            raise MountPointError(f"{shown} lies inside the mount at {mounted}: mountfs umount {mounted}")
    parent = absolute.parent.resolve() / absolute.name
    return parent if _topmost(parent) is not None else parent.resolve()


def _mount_table() -> list[_Line]:
    if sys.platform == "win32":
        return []  # a mount of ours lasts as long as the command that made it
    text = _MOUNT_TABLE.read_text("utf-8", "surrogateescape")
    return [line for row in text.split("\n") if (line := _parse_line(row)) is not None]


def _parse_line(row: str) -> _Line | None:
    left, separator, right = row.partition(" - ")
    fields, tail = left.split(" "), right.split(" ")
    if not separator or len(fields) < 6 or len(tail) < 2:
        return None
    minor = fields[2].rpartition(":")[2]
    if not (fields[0].isdigit() and minor.isdigit()):
        return None
    return _Line(int(fields[0]), int(minor), _unescape(fields[4]), tail[0], _unescape(tail[1]))


def _unescape(field: str) -> str:
    r"""Undo the kernel's ``\040`` for a blank; beyond ASCII the bytes are as they were."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def _topmost(absolute: Path) -> _Line | None:
    found = [line for line in _mount_table() if line.mountpoint == str(absolute)]
    return found[-1] if found else None


def _record(line: _Line, state: MountState) -> MountRecord:
    return MountRecord(Path(line.mountpoint), line.source, state, line.mount_id, line.minor)


def _probe(paths: list[str], timeout_s: float) -> list[MountState]:
    """Ask every mount from a child of its own; a child that does not come back is left behind."""
    children = [_spawn_probe(path) for path in paths]
    deadline = time.monotonic() + timeout_s
    states = []
    for pid in children:
        status = _wait(pid, deadline)
        if status is None:
            states.append(MountState.NOT_RESPONDING)
        elif os.waitstatus_to_exitcode(status) in {errno.ENOTCONN, errno.ECONNABORTED}:
            states.append(MountState.STALE)
        else:
            states.append(MountState.OK)
    return states


def _spawn_probe(path: str) -> int:
    """Start a child whose exit code is the errno of statfs, which no kernel answers from memory.

    It only makes that one call, so what other threads of ours hold at the fork does not matter; starting
    another program would need one that this user may run.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.statvfs(path)
        code = 0
    except OSError as error:
        code = error.errno or code
    finally:
        os._exit(code)


def _wait(pid: int, deadline: float) -> int | None:
    """Return the wait status of a child; None when it was still hanging at the deadline."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            os.waitpid(pid, os.WNOHANG)
            return None
        time.sleep(0.005)


def _from_a_child(act: Callable[[], tuple[int, str]], timeout_s: float) -> tuple[int, str]:
    """Do something that may hang in a child that can be left behind; ETIMEDOUT when it does."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        code = errno.EIO
        try:
            os.chdir("/")
            code, message = act()
            os.write(writer, message.encode("utf-8", "backslashreplace")[:_PIPE_HOLDS])
        finally:
            os._exit(code)
    os.close(writer)
    status = _wait(pid, time.monotonic() + timeout_s)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        if status is None:
            return errno.ETIMEDOUT, ""
        return os.waitstatus_to_exitcode(status), pipe.read(_PIPE_HOLDS).decode("utf-8", "replace")


def _unmount_as_root(path: Path, *, lazy: bool) -> tuple[int, str]:
    return _umount2(path, _MNT_DETACH if lazy else 0)


def _umount2(path: Path, flags: int) -> tuple[int, str]:
    """Call umount2(2); return 0 or the errno, and its text."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.umount2(os.fsencode(path), flags | _UMOUNT_NOFOLLOW) == 0:
        return 0, ""
    code = ctypes.get_errno()
    return code, os.strerror(code)


def _unmount_as_user(path: Path, *, lazy: bool) -> tuple[int, str]:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(path)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError:
        return errno.ENOENT, "fusermount3 is not installed: sudo apt install fuse3"
    message = done.stderr.strip()
    if done.returncode == 0:
        return 0, ""
    if "busy" in message:
        return errno.EBUSY, message
    if "not permitted" in message or "not found in /etc/mtab" in message:
        return errno.EPERM, message
    return errno.EIO, safe_text(message)


def _holders(path: Path) -> Iterator[str]:
    """Yield "name (pid)" of processes that stand in or have open what is below ``path``.

    Links below ``/proc`` are text made by the kernel: reading them does not touch the mount.
    """
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and any(_lies_below(link, path) for link in _links_of(process)):
            yield f"{_process_name(process)} ({process.name})"


def _links_of(process: Path) -> Iterator[Path]:
    yield from (process / name for name in ("cwd", "root", "exe"))
    try:
        yield from (process / "fd").iterdir()
    except OSError:
        return


def _lies_below(link: Path, path: Path) -> bool:
    try:
        return link.readlink().is_relative_to(path)
    except OSError:
        return False


def _process_name(process: Path) -> str:
    try:
        return safe_text((process / "comm").read_text("utf-8", "replace").strip())
    except OSError:
        return "process"


def _used(path: Path) -> str:
    names = _named(_holders(path))
    return f", and is in use{names}" if names else ""


def _named(holders: Iterator[str]) -> str:
    names = [name for name, _ in zip(holders, range(_HOLDERS_NAMED + 1), strict=False)]
    if not names:
        return ""
    more = " and others" if len(names) > _HOLDERS_NAMED else ""
    return f" by {', '.join(names[:_HOLDERS_NAMED])}{more}"
