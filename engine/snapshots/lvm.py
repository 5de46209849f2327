"""Snapshots of logical volumes: thin ones where the volume is thin, else classic ones with room for changes.

LVM freezes the file system that lies directly on a volume by itself, and would fail on one that is frozen
already; only what lies on it indirectly (encrypted, in partitions) is frozen here. A classic snapshot whose
room is used up becomes unreadable as a whole: an error at the next read, never other bytes.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

from engine.devices import sysfs
from engine.snapshots import programs
from engine.snapshots.provider import Picture, SnapshotProvider, SourceFacts
from imageformat.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.devices.mountinfo import MountEntry
    from engine.snapshots.journal import Entry

_PREFIX = "LVM-"
_IDENTIFIER = 64
"""Letters of the UUIDs of group and volume, one after the other; a suffix marks what LVM uses inside."""
_COLUMNS = "vg_name,lv_name,segtype,lv_size,vg_free,vg_extent_size,lv_tags"
_CLASSIC = frozenset({"linear", "striped", "mirror", "raid1", "raid4", "raid5", "raid6", "raid10", "cache"})
_CHANGES = 5
"""A classic snapshot has room for the change of one fifth of the volume, if the group has that much."""
_LEAST = 64 << 20


def unavailable(facts: SourceFacts) -> str | None:
    """See `SnapshotProvider.unavailable`."""
    if not facts.mapped_id.startswith(_PREFIX):
        return "it is no logical volume"
    if not is_volume(facts.mapped_id):
        return "it is a part of a logical volume"
    if programs.find("lvcreate") is None:
        return "lvcreate is not installed (package lvm2)"
    return None


def is_volume(mapped_id: str) -> bool:
    """Whether a device of the device mapper is a whole logical volume, by its UUID."""
    return mapped_id.startswith(_PREFIX) and len(mapped_id) == len(_PREFIX) + _IDENTIFIER


def create(facts: SourceFacts, entry: Entry) -> Picture:
    """See `SnapshotProvider.create`."""
    volume = volume_of(facts.mapped_id)
    name = f"mountfs-{entry.id}"
    command = create_command(volume, name)
    entry.note(snapshot=f"{volume['vg_name']}/{name}", tag=name)
    programs.run(*command)
    return Picture(_device_of(f"{volume['vg_name']}/{name}"))


def create_command(volume: Mapping[str, str], name: str) -> list[str]:
    """Return the command that makes a snapshot of a volume as `lvs` describes it; pure.

    Raises:
        SnapshotError: it is of a kind that has none, or its group has no room.
    """
    origin = f"{volume['vg_name']}/{volume['lv_name']}"
    fixed = ["lvcreate", "--yes", "--quiet", "--snapshot", "--permission", "r", "--name", name]
    fixed += ["--addtag", name]
    if volume["segtype"] == "thin":
        return [*fixed, "--setactivationskip", "n", origin]
    if volume["segtype"] not in _CLASSIC:
        raise SnapshotError(f"{origin}: there are no snapshots of volumes of type {volume['segtype']}")
    unit = _number(volume, "vg_extent_size")
    size, free = _number(volume, "lv_size"), _number(volume, "vg_free")
    # More than the volume itself is never needed, but for the table of what changed.
    wanted = min(max(size // _CHANGES, _LEAST), size + size // 50 + unit)
    extents = min(-(-wanted // unit), free // unit) if unit else 0
    if not extents:
        raise SnapshotError(
            f"volume group {volume['vg_name']} has no free space, and a snapshot needs room for what changes "
            "meanwhile: add a disk with vgextend, or make a volume smaller"
        )
    return [*fixed, "--extents", str(extents), origin]


def remove(noted: Mapping[str, str]) -> None:
    """See `SnapshotProvider.remove`: only what has our tag, under the name that we gave it."""
    snapshot, tag = noted.get("snapshot", ""), noted.get("tag", "")
    if not snapshot:
        return
    group = snapshot.partition("/")[0]
    for volume in report(f"lv_tags={{{tag}}}", group):
        if f"{volume['vg_name']}/{volume['lv_name']}" == snapshot and tag in volume["lv_tags"].split(","):
            programs.run("lvremove", "--yes", "--quiet", snapshot)


def lost(noted: Mapping[str, str]) -> str | None:
    """See `SnapshotProvider.lost`."""
    snapshot = noted.get("snapshot", "")
    try:
        told = programs.run("lvs", "--noheadings", "--options", "lv_snapshot_invalid", snapshot)
    except SnapshotError as error:
        return f"the snapshot {snapshot} is gone: {error}"
    if "snapshot invalid" in told:
        return (
            f"the snapshot {snapshot} ran full: more was written to the volume meanwhile than its group has "
            "room for; give the group more space, or take a quieter hour"
        )
    return None


def mounted_indirectly(facts: SourceFacts) -> tuple[MountEntry, ...]:
    """See `SnapshotProvider.to_freeze`."""
    return tuple(mount for mount in facts.written if mount.device != facts.number)


def volume_of(mapped_id: str, columns: str = _COLUMNS) -> dict[str, str]:
    """Find the volume by the UUID in the name that LVM gave its device.

    Raises:
        SnapshotError: there is none, or `lvs` fails.
    """
    identifier = mapped_id[len(_PREFIX) + _IDENTIFIER // 2 :]
    parts = (6, 4, 4, 4, 4, 4, 6)
    cuts = [sum(parts[:number]) for number in range(len(parts) + 1)]
    uuid = "-".join(identifier[start:end] for start, end in pairwise(cuts))
    found = report(f"lv_uuid={uuid}", columns=columns)
    if len(found) != 1:
        raise SnapshotError(f"lvs knows no logical volume {uuid}")
    return found[0]


def report(selection: str, group: str | None = None, columns: str = _COLUMNS) -> list[dict[str, str]]:
    """Ask `lvs` for the volumes of a selection; sizes are in bytes.

    Raises:
        SnapshotError: it fails, or says something else.
    """
    told = programs.run(
        "lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "--options", columns,
        "--select", selection, *((group,) if group else ()),
    )  # fmt: skip
    return parse_report(told, columns)


def parse_report(text: str, columns: str = _COLUMNS) -> list[dict[str, str]]:
    """Return the volumes that ``lvs --reportformat json`` describes, one each.

    Raises:
        SnapshotError: it says something else.
    """
    try:
        rows = [row for part in json.loads(text)["report"] for row in part["lv"]]
        found = {(row["vg_name"], row["lv_name"]): {key: str(row[key]) for key in row} for row in rows}
        needed = set(columns.split(","))
        if not all(needed <= volume.keys() for volume in found.values()):
            raise SnapshotError("the report of lvs makes no sense")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SnapshotError("the report of lvs makes no sense") from error
    return list(found.values())


def _number(volume: Mapping[str, str], key: str) -> int:
    text = volume[key]
    if not (text.isascii() and text.isdecimal()):
        raise SnapshotError(f"the report of lvs makes no sense: {key} is {text!r}")
    return int(text)


def _device_of(snapshot: str) -> str:
    """Where a volume can be read: by its number, because links in /dev come when udev finds time."""
    told = programs.run(
        "lvs", "--noheadings", "--separator", ":", "--options", "lv_kernel_major,lv_kernel_minor", snapshot
    ).strip()
    folder = sysfs.block_folder(told)
    if folder is None:
        raise SnapshotError(f"the snapshot {snapshot} was made, but there is no device of it")
    return sysfs.device_path(folder)


PLUGIN = SnapshotProvider("lvm", 10, unavailable, create, remove, to_freeze=mounted_indirectly, lost=lost)
