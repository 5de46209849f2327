"""``mountfs info``: what an image is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.errors import LockedError, MountfsError
from imageformat.layer import ImageInfo
from imageformat.repository import Access
from mountfs.cli.command import At, Image, PointName, command
from mountfs.cli.images import failures_of, opened_point, parse_name, raise_first
from mountfs.cli.render import Column, Renderer, format_size, format_time
from mountfs.cli.reports import info_result, left_out, point_result, table_result, volume_result
from mountfs.disktree import DiskTree
from mountfs.volumes import Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

_VOLUMES = (
    Column("folder"),
    Column("offset", right=True),
    Column("size", right=True),
    Column("partition"),
    Column("file system"),
    Column("label"),
    Column("uuid"),
    Column("note"),
)
_CHAIN = (
    Column("point", right=True),
    Column("type"),
    Column("time"),
    Column("stored", right=True),
    Column("id"),
)

EXAMPLES = """\
mountfs info /backups/sdb                    the latest point
mountfs info /backups/sdb --at 2026-11-20    the last of that day
"""


@command
def run(out: Renderer, access: Access, image: Image, point: PointName = None, at: At = None) -> None:
    """Show what an image is: header, chain, disk, partitions, file systems, what is stored."""
    name = parse_name(image, point=point, at=at)
    with opened_point(name, access=access) as (session, chosen):
        view = session.view(chosen)
        chain = session.location.repository.chain(chosen)
        line = [chain.layer(depth).info for depth in range(chain.depth + 1)]
        tree = session.disk_tree(chosen)
        try:
            volumes = tuple(tree.all_volumes())
            missing = left_out(chain.info)
            out.result(
                {
                    **point_result(chosen),
                    "disk": {"size": view.size, "sector_size": view.sector_size},
                    "table": table_result(tree.table),
                    "volumes": [volume_result(volume, failure, missing) for volume, failure in volumes],
                    "chain": [info_result(info) for info in line],
                }
            )
            _show_facts(out, chain.info)
            _show_disk(out, tree, volumes)
            _show_left_out(out, missing, volumes)
            if chain.depth:
                out.line("")
                out.table("Chain", _CHAIN, (_chain_row(info) for info in line))
            raise_first(out, failures_of(tree, tree.root()))
        finally:
            tree.close()


def _show_facts(out: Renderer, info: ImageInfo) -> None:
    details = info.details
    disk = info.disks[0]
    source = " ".join(str(details[key]) for key in ("model", "serial", "source") if details.get(key))
    facts = {
        "Image": f"{info.format} {info.id}",
        "Point": f"{info.number} ({info.type.value}), {format_time(info.created_ns)}",
        "Source": f"{source} on {details.get('host', '?')}",
        "Disk": f"{format_size(disk.size)} ({disk.size} bytes), sectors of {disk.sector_size}",
        "Stored here": stored_text(info),
        "Root": info.root.hex(),
    }
    for name, value in facts.items():
        out.line(f"{name + ':':<13}{value}")


def stored_text(info: ImageInfo) -> str:
    """Say what an image file holds of its own, and how well it was compressed."""
    if not _count(info, "data_blocks") + _count(info, "zero_blocks") and info.parent_id is not None:
        return f"nothing changed since the parent; index only, {format_size(info.stored_size)}"
    counts = {name: _count(info, f"{name}_blocks") for name in ("data", "zero", "unused", "bad")}
    raw, stored = _count(info, "raw_bytes"), _count(info, "stored_bytes")
    ratio = f", {raw / stored:.2f}:1" if stored else ""
    blocks = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no"
    return (
        f"{blocks} blocks of {format_size(info.disks[0].block_size)}; "
        f"{format_size(raw)} as {format_size(info.stored_size)}{ratio}"
    )


def _count(info: ImageInfo, name: str) -> int:
    value = info.details.get(name, 0)
    return value if isinstance(value, int) else 0


def _show_disk(
    out: Renderer, tree: DiskTree, volumes: tuple[tuple[Volume, MountfsError | None], ...]
) -> None:
    table = tree.table
    out.line("")
    scheme = "no partition table" if table.scheme == "none" else f"{table.scheme.upper()} {table.disk_id}"
    out.table(scheme, _VOLUMES, (_volume_row(*found) for found in volumes))
    failures = set(map(str, tree.failures()))
    for warning in table.warnings:
        if warning not in failures:
            out.warning(warning)


def _show_left_out(
    out: Renderer, missing: Mapping[int, int], volumes: tuple[tuple[Volume, MountfsError | None], ...]
) -> None:
    """Name the free space that is not in the image."""
    for volume, _ in volumes:
        free = 0 if volume.offset is None or volume.parents else missing.get(volume.offset, 0)
        if free:
            name = volume.name.decode("utf-8", "replace")
            out.line(f"Left out:    {format_size(free)} of free space in {name}; it reads as zeros")


def _volume_row(volume: Volume, failure: MountfsError | None) -> tuple[str | bytes | int, ...]:
    info, partition = volume.info, volume.partition
    locked = " (locked)" if isinstance(failure, LockedError) else ""
    return (
        volume.path,
        "" if volume.offset is None else volume.offset,
        format_size(volume.size),
        partition.type_name if partition else "",
        f"{info.type}{locked}" if info else "unknown",
        info.label if info else "",
        info.uuid if info else "",
        "unreadable" if volume.failure else volume.reason or (info.note if info else ""),
    )


def _chain_row(info: ImageInfo) -> tuple[int | str, ...]:
    return (
        info.number,
        info.type.value,
        format_time(info.created_ns),
        format_size(info.stored_size),
        info.id.hex[:8],
    )
