"""``mountfs disks``: the disks of this machine, and how to name each."""

from __future__ import annotations

from collections.abc import Iterator

from engine.devices.inventory import BlockDeviceInfo, PartitionInfo, list_block_devices
from mountfs.cli.command import command
from mountfs.cli.render import Column, Renderer, format_size
from mountfs.cli.targets import volumes_on
from mountfs.volumes import Volume

_COLUMNS = (
    Column("disk"),
    Column("size", right=True),
    Column("model"),
    Column("serial"),
    Column("wwn"),
    Column("holds"),
    Column("label"),
    Column("mounted at"),
)

EXAMPLES = """\
mountfs disks
mountfs disks --json
mountfs backup serial=S4EWNX0R repo    a disk that is named by what it is
"""


@command
def run(out: Renderer) -> None:
    """List the disks and partitions of this machine.

    Wherever a command takes a disk it can be named by its path, or as serial=, wwn= or size=500GB; exactly
    one disk must be of that name. What they hold is shown to whom may read them.
    """
    found = [(disk, _by_offset(disk)) for disk in list_block_devices()]
    out.result({"disks": [_disk_result(disk, volumes) for disk, volumes in found]})
    if not found:
        out.note("no disks: the system shows none, as in a container")
        return
    out.table("", _COLUMNS, (row for disk, volumes in found for row in _rows(disk, volumes)))


def _by_offset(disk: BlockDeviceInfo) -> dict[int, Volume]:
    return {volume.offset: volume for volume in volumes_on(disk.path) if volume.offset is not None}


def _disk_result(disk: BlockDeviceInfo, volumes: dict[int, Volume]) -> dict[str, object]:
    return {
        "name": disk.path,
        "size": disk.size,
        "sector_size": disk.sector_size,
        "model": disk.model,
        "serial": disk.serial,
        "wwn": disk.wwn,
        "removable": disk.removable,
        "rotational": disk.rotational,
        "read_only": disk.read_only,
        "mounted_at": disk.mounted_at,
        **_held(None if disk.partitions else volumes.get(0)),
        "partitions": [
            {
                "name": part.path,
                "number": part.number,
                "offset": part.offset,
                "size": part.size,
                "mounted_at": part.mounted_at,
                **_held(volumes.get(part.offset)),
            }
            for part in disk.partitions
        ],
    }


def _held(volume: Volume | None) -> dict[str, str]:
    info = volume.info if volume is not None else None
    return {"file_system": info.type if info else "", "label": info.label if info else ""}


def _rows(disk: BlockDeviceInfo, volumes: dict[int, Volume]) -> Iterator[tuple[str, ...]]:
    whole = _held(None if disk.partitions else volumes.get(0))
    said = (disk.model, disk.serial, disk.wwn)
    mounted = "" if disk.partitions else ", ".join(disk.mounted_at)
    yield (disk.path, format_size(disk.size), *said, whole["file_system"], whole["label"], mounted)
    for part in disk.partitions:
        yield _partition_row(part, _held(volumes.get(part.offset)))


def _partition_row(part: PartitionInfo, held: dict[str, str]) -> tuple[str, ...]:
    mounted = ", ".join(part.mounted_at)
    size = format_size(part.size)
    return (f"  {part.path}", size, "", "", "", held["file_system"], held["label"], mounted)
