"""``mountfs info``: what an image is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

from imageformat.errors import LockedError, MountfsError
from imageformat.layer import ImageInfo, ImageType
from imageformat.leftout import cause_of, left_out_files
from imageformat.repository import Access, Point
from imageformat.selection import problem_error
from mountfs.cli.command import At, DiskNumber, Image, PointName, command
from mountfs.cli.images import disk_of, failures_of, opened_point, parse_name, raise_first
from mountfs.cli.render import Column, Renderer, counted, format_size, format_time
from mountfs.cli.reports import info_result, left_out, point_result, table_result, volume_result
from mountfs.disktree import DiskTree
from mountfs.session import Session
from mountfs.volumes import Volume

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

_FACT_WIDTH = 18
_SHOWN_ELSEWHERE = frozenset(
    {
        *("source", "host", "model", "serial", "parent", "label", "partitions"),
        *(
            "data_blocks",
            "zero_blocks",
            "unused_blocks",
            "bad_blocks",
            "excluded_blocks",
            "excluded",
            "raw_bytes",
            "stored_bytes",
        ),
    }
)

_ABBREVIATIONS = {"id": "ID", "uuid": "UUID", "md5": "MD5", "sha1": "SHA-1"}

EXAMPLES = """\
mountfs info /backups/sdb                    the latest point
mountfs info /backups/sdb --at 2026-11-20    the last of that day
"""


@command
def run(
    out: Renderer,
    access: Access,
    image: Image,
    point: PointName = None,
    at: At = None,
    disk: DiskNumber = None,
) -> None:
    """Show what an image is: header, chain, disks, partitions, file systems, what is stored."""
    name = parse_name(image, point=point, at=at)
    with opened_point(name, access=access) as (session, chosen), ExitStack() as stack:
        if chosen.problem is not None:
            raise problem_error(chosen)
        chain = session.location.repository.chain(chosen)
        line = [chain.layer(depth).info for depth in range(chain.depth + 1)]
        numbers = range(len(chain.info.disks)) if disk is None else (disk_of(chosen, disk),)
        shown = [_shown_disk(stack, session, chosen, number) for number in numbers]
        missing = left_out(chain.info)
        disks = [_disk_result(entry, missing) for entry in shown]
        out.result(
            {
                **point_result(chosen),
                **disks[0],
                "shown": disks,
                "chain": [info_result(info) for info in line],
            }
        )
        for fact, text in facts_of(chain.info, foreign=chosen.is_foreign).items():
            out.line(f"{fact + ':':<{_FACT_WIDTH}}{text}")
        for entry in shown:
            _show_disk(out, entry, several=len(chain.info.disks) > 1)
            _show_left_out(out, missing, entry.volumes)
            _show_excluded(out, chain.info, entry.volumes)
        if chain.depth:
            out.line("")
            out.table("Chain", _CHAIN, (_chain_row(info) for info in line))
        raise_first(
            out, [failure for entry in shown for failure in failures_of(entry.tree, entry.tree.root())]
        )


class _ShownDisk(NamedTuple):
    number: int
    tree: DiskTree
    size: int
    sector_size: int
    volumes: tuple[tuple[Volume, MountfsError | None], ...]


def _shown_disk(stack: ExitStack, session: Session, chosen: Point, number: int) -> _ShownDisk:
    view = session.view(chosen, disk=number)
    tree = session.disk_tree(chosen, disk=number)
    stack.callback(tree.close)
    return _ShownDisk(number, tree, view.size, view.sector_size, tuple(tree.all_volumes()))


def _disk_result(shown: _ShownDisk, missing: Mapping[int, int]) -> dict[str, object]:
    return {
        "disk": {"number": shown.number, "size": shown.size, "sector_size": shown.sector_size},
        "table": table_result(shown.tree.table),
        "volumes": [volume_result(volume, failure, missing) for volume, failure in shown.volumes],
    }


def facts_of(info: ImageInfo, *, foreign: bool) -> dict[str, str]:
    """Return what the header of an image says, as lines for people."""
    is_numbered = not foreign or info.type is not ImageType.FULL or info.number > 1
    disks = [
        f"{format_size(disk.size)} ({disk.size} bytes), sectors of {disk.sector_size}" for disk in info.disks
    ]
    facts = {
        "Image": f"{info.format} {info.id}",
        "Point": f"{info.number} ({info.type.value}), {format_time(info.created_ns)}" if is_numbered else "",
        "Time": "" if is_numbered else format_time(info.created_ns),
        "Source": _source_text(info),
        "Parent": str(info.details.get("parent", "")) if foreign else "",
        "Disk": disks[0] if len(disks) == 1 else "",
        **({f"Disk {number}": text for number, text in enumerate(disks)} if len(disks) > 1 else {}),
        "Stored here": stored_text(info),
        **(_other_facts(info) if foreign else {}),
        "Root": info.root.hex(),
    }
    return {name: text for name, text in facts.items() if text}


def _source_text(info: ImageInfo) -> str:
    source = " ".join(
        str(info.details[key]) for key in ("model", "serial", "source") if info.details.get(key)
    )
    host = str(info.details.get("host", ""))
    return f"{source} on {host}" if source and host else source or host


def _other_facts(info: ImageInfo) -> dict[str, str]:
    """Return what an image of another tool records besides, under the names that its reader gave it."""
    known = {key: value for key, value in info.details.items() if key not in _SHOWN_ELSEWHERE}
    return {_fact_name(key): _detail_text(key, value) for key, value in known.items()}


def _fact_name(key: str) -> str:
    words = [_ABBREVIATIONS.get(word, word) for word in key.replace("_", " ").split()]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def _detail_text(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int) and key.endswith("_size"):
        return format_size(value)
    if isinstance(value, Mapping):
        return " ".join(str(part) for part in value.values() if part not in {None, "", 0})
    if isinstance(value, list | tuple):
        return "; ".join(_detail_text("", entry) for entry in value)
    return "" if value is None else str(value)


def stored_text(info: ImageInfo) -> str:
    """Say what an image file holds of its own, and how well it was compressed."""
    counts = {name: _count(info, f"{name}_blocks") for name in ("data", "zero", "unused", "bad", "excluded")}
    if not any(counts.values()) and info.parent_id is None:
        return format_size(info.stored_size)
    if not counts["data"] + counts["zero"] and info.parent_id is not None:
        return f"nothing changed since the parent; index only, {format_size(info.stored_size)}"
    raw, stored = _count(info, "raw_bytes"), _count(info, "stored_bytes")
    blocks = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    block_size = format_size(info.disks[0].block_size)
    ratio = f" ({raw / stored:.2f}:1)" if stored else ""
    return (
        f"{blocks} blocks of {block_size}; {format_size(raw)} as {format_size(stored)}{ratio}; "
        f"the file has {format_size(info.stored_size)}"
    )


def _count(info: ImageInfo, name: str) -> int:
    value = info.details.get(name, 0)
    return value if isinstance(value, int) else 0


def _show_disk(out: Renderer, shown: _ShownDisk, *, several: bool) -> None:
    table = shown.tree.table
    out.line("")
    scheme = "no partition table" if table.scheme == "none" else f"{table.scheme.upper()} {table.disk_id}"
    title = f"Disk {shown.number}: {scheme}" if several else scheme
    if shown.volumes:
        out.table(title, _VOLUMES, (_volume_row(*found) for found in shown.volumes))
    else:
        out.line(title)
    failures = set(map(str, shown.tree.failures()))
    for warning in table.warnings:
        if warning not in failures:
            out.warning(f"disk {shown.number}: {warning}" if several else warning)


def _show_left_out(
    out: Renderer, missing: Mapping[int, int], volumes: tuple[tuple[Volume, MountfsError | None], ...]
) -> None:
    """Name the free space that is not in the image."""
    for volume, _ in volumes:
        free = 0 if volume.offset is None or volume.parents else missing.get(volume.offset, 0)
        if free:
            name = volume.name.decode("utf-8", "replace")
            text = f"{format_size(free)} of free space in {name}; it reads as zeros"
            out.line(f"{'Left out:':<{_FACT_WIDTH}}{text}")


def _show_excluded(
    out: Renderer, info: ImageInfo, volumes: tuple[tuple[Volume, MountfsError | None], ...]
) -> None:
    """Name the files that are not in the image, by what left them out."""
    names = {volume.offset: volume.name for volume, _ in volumes if not volume.parents}
    for entry in left_out_files(info):
        name = names.get(entry.offset, b"?").decode("utf-8", "replace")
        what = f"{counted(entry.files, 'file')} ({format_size(entry.size)}) of {name}"
        text = f"{what}, by {cause_of(entry.pattern)}"
        out.line(f"{'Left out:':<{_FACT_WIDTH}}{text}")


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
