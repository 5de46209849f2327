"""What commands tell of images, points and damage, as values for programs and lines for people."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from imageformat.errors import LockedError
from mountfs.listing import exact_text, time_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.backup import BackupResult
    from engine.changes.knowledge import Knowledge
    from engine.verify import Damage, FileReport
    from imageformat.errors import MountfsError
    from imageformat.layer import ImageInfo
    from imageformat.partitions import PartitionTable
    from imageformat.repository import Point
    from mountfs.cli.render import Renderer
    from mountfs.volumes import Volume

UNUSED_KEY = "unused"
"""Of what an image remembers of its source: offset and free bytes of each volume, as far as left out."""
MAX_SHOWN = 100
"""Damages that are printed one by one for each file; JSON has them all."""


def info_result(info: ImageInfo) -> dict[str, object]:
    """Return the facts of an image."""
    return {
        "format": info.format,
        "id": str(info.id),
        "set_id": str(info.set_id),
        "number": info.number,
        "kind": info.type.value,
        "created": time_text(info.created_ns),
        "created_ns": info.created_ns,
        "root": info.root.hex(),
        "parent_id": str(info.parent_id) if info.parent_id else None,
        "depth": info.depth,
        "stored_size": info.stored_size,
        "disks": [
            {
                "name": disk.name,
                "size": disk.size,
                "block_size": disk.block_size,
                "sector_size": disk.sector_size,
            }
            for disk in info.disks
        ],
        "details": dict(info.details),
    }


def shown_parent(info: ImageInfo) -> str:
    """Return the name of the file that an image of another tool stands on; empty when on none."""
    path = str(info.details.get("parent", "")).replace("\\", "/")
    return path.rstrip("/").rpartition("/")[2]


def point_result(point: Point) -> dict[str, object]:
    """Return the facts of a point in its set."""
    facts: dict[str, object] = {
        "set": point.set_name,
        "file": point.key,
        "size": point.size,
        "state": point.state,
        "verified": time_text(point.proof.verified_ns) if point.proof else None,
    }
    if point.problem is not None:
        facts["problem"] = {"error": point.problem.error, "message": point.problem.message}
    return facts | (info_result(point.info) if point.info is not None else {})


def table_result(table: PartitionTable) -> dict[str, object]:
    """Return what a partition table says of its disk."""
    return {
        "scheme": table.scheme,
        "disk_id": table.disk_id,
        "sector_size": table.sector_size,
        "warnings": list(table.warnings),
    }


def volume_result(
    volume: Volume, failure: MountfsError | None = None, left_out: Mapping[int, int] = MappingProxyType({})
) -> dict[str, object]:
    """Return the facts of a volume and of what lies in it; ``failure`` is why that is not shown.

    ``left_out`` says of volumes by offset how many free bytes are not in the image.
    """
    partition, info = volume.partition, volume.info
    return {
        **exact_text("folder", volume.path),
        "number": volume.number,
        "offset": volume.offset,
        "size": volume.size,
        "partition": None
        if partition is None
        else {
            "type_id": partition.type_id,
            "type_name": partition.type_name,
            "name": partition.name,
            "uuid": partition.uuid,
            "bootable": partition.bootable,
        },
        "file_system": None
        if info is None
        else {"type": info.type, "label": info.label, "uuid": info.uuid, "note": info.note},
        "unreadable": volume.reason or (str(failure) if failure is not None else None),
        "locked": isinstance(failure, LockedError),
        "left_out": left_out.get(volume.offset, 0) if volume.offset is not None else 0,
    }


def left_out(info: ImageInfo) -> dict[int, int]:
    """Return how many free bytes the volume at each offset had when it was imaged without them."""
    recorded = info.details.get(UNUSED_KEY)
    entries = recorded if isinstance(recorded, list) else []
    pairs = (entry for entry in entries if isinstance(entry, list) and len(entry) == 2)
    return {
        offset: free
        for offset, free in pairs
        if isinstance(offset, int) and isinstance(free, int) and free > 0
    }


def backup_result(result: BackupResult, url: str) -> dict[str, object]:
    """Return the facts of a finished backup."""
    return {
        "repository": url,
        "set": result.set_name,
        "file": result.key,
        "changed_blocks": result.changed_blocks,
        "seconds": round(result.seconds, 3),
        "warning": result.warning or None,
        "changes": changes_result(result.changes, result.info.disks[0].block_size),
        "unreadable_bytes": result.bad_bytes,
        "unreadable": [{"offset": gap.offset, "length": gap.length} for gap in result.bad],
        **info_result(result.info),
    }


def changes_result(known: Knowledge, block_size: int) -> dict[str, object]:
    """Return how a backup knew what had changed, and how that was tested."""
    return {
        "tracker": known.tracker,
        "inherited_bytes": known.inherited.blocks * block_size,
        "sampled_blocks": known.sampled,
        "missed_offsets": [block * block_size for block in known.missed],
        "reason": known.reason or None,
    }


def damage_result(damage: Damage, files: Sequence[str]) -> dict[str, object]:
    """Return one damage, with the files it belongs to."""
    return {
        "error": damage.error,
        "message": damage.message,
        "disk": damage.disk,
        "disk_offset": damage.disk_offset,
        "length": damage.length,
        "files": list(files),
    }


def show_damages(
    out: Renderer, reports: Sequence[FileReport], files: Mapping[Damage, Sequence[str]], *, after: str = ""
) -> None:
    """Print what is wrong and could not be read, file by file; ``after`` is said of all of each."""
    for report in reports:
        for label, found, count in (
            ("DAMAGED ", report.damages, report.damaged_count),
            ("NOT READ", report.unread, report.unread_count),
        ):
            for damage in found[:MAX_SHOWN]:
                named = report.point.file_name in damage.message
                out.line(f"{label} {damage.message if named else f'{report.point.key}: {damage.message}'}")
                for name in files.get(damage, ()):
                    out.line(f"         belongs to {name}")
            hidden = count - min(len(found), MAX_SHOWN)
            if hidden > 0:
                out.line(f"         and {hidden} more in {report.point.key}; --json lists them")
        if after:
            out.line(f"         {after}")
