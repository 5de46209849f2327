"""Snapshots by dm-snapshot of devices that the device mapper made and LVM does not know.

What is read of such a device goes through its table, and that can be exchanged while it is in use: for a
moment the device becomes the origin of a snapshot, what is overwritten is copied first into a file, and at
the end it gets its own table back. A disk or a partition has no table to exchange, and none can be put
under a file system that is mounted. Tables with keys or paths in them are left alone: only linear and
striped ones can stand twice.

The device is suspended while the tables change places, by a shell of its own session, which goes on when
this process dies. A kill of that shell too leaves a suspended device: the journal knows it.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from engine.devices import sysfs
from engine.devices.backing import holds
from engine.snapshots import programs
from engine.snapshots.provider import Picture, SnapshotProvider, SourceFacts
from imageformat.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.devices.mountinfo import MountEntry
    from engine.snapshots.journal import Entry

_TARGETS = frozenset({"linear", "striped"})
_CHUNK_SECTORS = 8
_CHANGES = 5
"""There is room for the change of one fifth of the device, if the folder has twice that much free."""
_LEAST = 64 << 20
_KNOWN_BY_OTHERS = ("LVM-", "CRYPT-", "mpath-", "part")
_SWITCH = 'dmsetup suspend "$1" && dmsetup resume "$2"; dmsetup resume "$1"'


def unavailable(facts: SourceFacts) -> str | None:
    """See `SnapshotProvider.unavailable`."""
    if not facts.mapped_name:
        return "it is no device of the device mapper, and cannot become one while it is in use"
    if facts.mapped_id.startswith(_KNOWN_BY_OTHERS):
        return f"its table belongs to {facts.mapped_id.partition('-')[0]}"
    for program in ("dmsetup", "losetup"):
        if programs.find(program) is None:
            return f"{program} is not installed"
    if holds(facts.path, tempfile.gettempdir()):
        return (
            f"what changes would be kept in {tempfile.gettempdir()}, which lies on it; name another in TMPDIR"
        )
    return None


def create(facts: SourceFacts, entry: Entry) -> Picture:
    """See `SnapshotProvider.create`."""
    name = f"mountfs-{entry.id}"
    table = programs.run("dmsetup", "table", facts.mapped_name)
    sectors = check_table(table, facts.size)
    room = _room(facts.size, tempfile.gettempdir())
    changes = str(Path(tempfile.gettempdir(), f"{name}.cow"))
    entry.note(snapshot=name, device=facts.mapped_name, changes=changes)
    with Path(changes).open("xb") as file:
        Path(changes).chmod(0o600)
        file.truncate(room)
    loop = programs.run("losetup", "--find", "--show", changes).strip()
    programs.run("dmsetup", "create", f"{name}-real", stdin=table)  # a table of several lines
    real = f"/dev/mapper/{name}-real"
    programs.run("dmsetup", "create", name, "--notable")
    snapshot = f"0 {sectors} snapshot {real} {loop} N {_CHUNK_SECTORS}"
    programs.run("dmsetup", "load", name, "--readonly", "--table", snapshot)
    programs.run("dmsetup", "load", facts.mapped_name, "--table", f"0 {sectors} snapshot-origin {real}")
    programs.run("sh", "-c", _SWITCH, "sh", facts.mapped_name, name)
    if _is_suspended(name):
        raise SnapshotError(f"the snapshot of {facts.path} was not switched on")
    return Picture(_device_of(name))


def check_table(table: str, size: int) -> int:
    """Return how many sectors a table covers; pure.

    Raises:
        SnapshotError: it has targets that cannot stand twice, or covers something else than the device.
    """
    end = 0
    for line in table.splitlines():
        start, length, target, *_ = [*line.split(), "", "", ""]
        if target not in _TARGETS:
            raise SnapshotError(f"a device with a table of type {target or 'unknown'} has no snapshot by dm")
        if not (start.isdecimal() and length.isdecimal()) or int(start) != end:
            raise SnapshotError("the table of the device makes no sense")
        end += int(length)
    if end * 512 != size:
        raise SnapshotError("the table of the device does not cover it")
    return end


def remove(noted: Mapping[str, str]) -> None:
    """See `SnapshotProvider.remove`: first the device gets its table back, then ours go."""
    name, device, changes = noted.get("snapshot", ""), noted.get("device", ""), noted.get("changes", "")
    if not name.startswith("mountfs-"):
        return
    present = _names()
    real = f"{name}-real"
    if device in present:
        _give_back(device, real, present)
    for one in (name, real):
        if one in present:
            programs.run("dmsetup", "remove", "--retry", one)
    if Path(changes).name != f"{name}.cow":
        return
    if Path(changes).exists():
        for line in programs.run(
            "losetup", "--noheadings", "--output", "NAME", "--associated", changes
        ).split():
            programs.run("losetup", "--detach", line)
        with suppress(FileNotFoundError):
            Path(changes).unlink()


def _give_back(device: str, real: str, present: frozenset[str]) -> None:
    """Let a device have the table that stands in ours, if it is the origin of our snapshot, and run again."""
    number = _number_of(real) if real in present else ""
    table = programs.run("dmsetup", "table", device).split()
    if number and table[2:4] == ["snapshot-origin", number]:
        programs.run("dmsetup", "suspend", device)
        try:
            programs.run("dmsetup", "load", device, stdin=programs.run("dmsetup", "table", real))
        finally:
            programs.run("dmsetup", "resume", device)
    elif real in present:
        # A table may be waiting, or the device be suspended before it got it: neither is to stay.
        programs.run("dmsetup", "clear", device)
        if _is_suspended(device):
            programs.run("dmsetup", "resume", device)


def lost(noted: Mapping[str, str]) -> str | None:
    """See `SnapshotProvider.lost`."""
    name = noted.get("snapshot", "")
    try:
        told = programs.run("dmsetup", "status", name)
    except SnapshotError as error:
        return f"the snapshot {name} is gone: {error}"
    if "Invalid" in told or "Overflow" in told:
        return f"the snapshot ran full: more was written meanwhile than {noted.get('changes')} had room for"
    return None


def mounted_indirectly(facts: SourceFacts) -> tuple[MountEntry, ...]:
    """See `SnapshotProvider.to_freeze`: what lies directly on the device is frozen as it is suspended."""
    return tuple(mount for mount in facts.written if mount.device != facts.number)


def _room(size: int, folder: str) -> int:
    wanted = min(max(size // _CHANGES, _LEAST), size + size // 50 + (1 << 20))
    room = min(wanted, shutil.disk_usage(folder).free // 2) >> 20 << 20
    if not room:
        raise SnapshotError(f"{folder} has no room for what changes meanwhile; name another folder in TMPDIR")
    return room


def _names() -> frozenset[str]:
    lines = programs.run("dmsetup", "ls").splitlines()
    return frozenset(line.split("\t")[0].strip() for line in lines)


def _info(name: str, column: str) -> str:
    return programs.run("dmsetup", "info", "--columns", "--noheadings", "--options", column, name).strip()


def _is_suspended(name: str) -> bool:
    return "uspended" in _info(name, "suspended")


def _number_of(name: str) -> str:
    return f"{_info(name, 'major')}:{_info(name, 'minor')}"


def _device_of(name: str) -> str:
    folder = sysfs.block_folder(_number_of(name))
    if folder is None:
        raise SnapshotError(f"the snapshot {name} was made, but there is no device of it")
    return sysfs.device_path(folder)


PLUGIN = SnapshotProvider("dm", 40, unavailable, create, remove, to_freeze=mounted_indirectly, lost=lost)
