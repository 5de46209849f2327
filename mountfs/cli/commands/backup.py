"""``mountfs backup``: image a disk, a partition or a file into a repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from engine.adopt import adopt
from engine.backup import BackupOptions, BackupProgress, BackupResult, backup
from engine.changes import ChangeTracker, Mark, Wanted, open_tracker
from engine.changes.knowledge import Tracking, marks_of
from engine.devices.backing import holds
from engine.devices.guards import target_facts, written_at
from engine.devices.ratelimit import RateLimited
from engine.plan import check_set_name, set_name_for
from engine.sources import OpenedSource, open_any
from engine.verify import verify, worst_exit_code
from imageformat.codec import DEFAULT_LEVEL
from imageformat.errors import ChangesMissedError, MountfsError, RepositoryInsideSourceError, UsageError
from imageformat.layer import ImageType
from imageformat.repository import Point, Repository
from imageformat.selection import holds_own_images, select_point
from imageformat.storage.local import LocalStorage
from mountfs import __version__
from mountfs.allocation.disk import DiskAllocation, read_allocation
from mountfs.cli.command import Threads, command, path
from mountfs.cli.render import Renderer, counted, format_duration, format_size
from mountfs.cli.reports import UNUSED_KEY, backup_result, show_damages

WARNING_EXIT = 3

Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="Disk, partition, image file or nbd:// URL.", show_default=False),
]
Repo = Annotated[
    Path,
    typer.Argument(
        parser=path, metavar="REPO", help="Folder for the images; made if missing.", show_default=False
    ),
]
SetName = Annotated[
    str | None, typer.Option("--set", metavar="NAME", help="Name of the set; default: that of the source.")
]
Type = Annotated[
    ImageType | None,
    typer.Option("--type", help="Default: full first, then inc.", show_default=False, case_sensitive=False),
]
Parent = Annotated[
    str | None, typer.Option("--parent", metavar="POINT", help="Build on this point instead of the last.")
]
Base = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="FILE",
        help="Build on an image of another tool (qcow2, VHDX, ...), which stays where it is.",
        show_default=False,
    ),
]
BlockSize = Annotated[
    int, typer.Option("--block-size", metavar="KIB", help="Of a new chain: a power of two, 4 to 4096 KiB.")
]
Level = Annotated[int, typer.Option("--level", min=1, max=19, help="zstd level.")]
WholeBlocks = Annotated[
    bool,
    typer.Option(
        "--whole-blocks",
        help="Store no differences inside blocks: larger increments, and long chains read as fast as a full.",
    ),
]
Raw = Annotated[bool, typer.Option("--raw", help="Image everything, also the free space of file systems.")]
RateLimit = Annotated[
    int | None,
    typer.Option("--rate-limit", min=1, metavar="MIB", help="Read at most so many MiB a second."),
]
Changed = Annotated[
    str,
    typer.Option(
        "--changed",
        metavar="HOW",
        help="What knows which blocks changed: auto, scan (read everything), dirty-bitmap, reflink.",
    ),
]
NextBitmap = Annotated[
    str,
    typer.Option(
        "--next-bitmap",
        metavar="NAME",
        help="The dirty bitmap begun with this picture of an NBD disk; the next backup asks for it.",
        show_default=False,
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Read the new image back and verify every block.")]

EXAMPLES = """\
mountfs backup /dev/sdb /backups            first full, then increments
mountfs backup disk.img repo --type diff    all changes since the last full
mountfs backup /dev/sdb2 /backups --set root --verify
mountfs backup vm.img repo --base old.qcow2 what changed since old.qcow2
mountfs backup /dev/sdc /evidence --raw     deleted files too
"""


@command
def run(
    out: Renderer,
    source: Source,
    repository: Repo,
    set_name: SetName = None,
    type_: Type = None,
    parent: Parent = None,
    base: Base = None,
    block_size: BlockSize = 64,
    level: Level = DEFAULT_LEVEL,
    whole_blocks: WholeBlocks = False,
    raw: Raw = False,
    threads: Threads = 0,
    rate_limit: RateLimit = None,
    changed: Changed = "auto",
    next_bitmap: NextBitmap = "",
    verify_after: Verify = False,
) -> int:
    """Image SOURCE into REPO. The first image of a set is full; later ones hold only what changed.

    The free space of file systems is left out and reads as zeros, unless one is in use or not sound.
    Nothing appears in the repository before the image is complete, durable and read back.
    """
    device = open_any(source)
    try:
        identity = device.identity
        name = check_set_name(set_name) if set_name else set_name_for(identity.label or identity.path)
        check_places(device, repository, out)
        options = BackupOptions(
            type=type_,
            block_size=_block_bytes(block_size),
            level=level,
            differences=not whole_blocks,
            threads=threads,
            any_source=set_name is not None,
        )
        opened = Repository(LocalStorage(repository.absolute()))
        try:
            parent_point = select_point(opened.image_set(name), parent) if parent is not None else None
            if base is not None:
                if parent is not None:
                    raise UsageError(
                        "an image is built on a point or on a base; use one of --parent and --base"
                    )
                parent_point = adopt(opened, repository.absolute(), name, base)
            tracker = _tracker(changed, next_bitmap, device, opened, name)
            limited = device if rate_limit is None else RateLimited(device, rate_limit << 20)
            allocation = None if raw else _allocation(out, device, limited)
            result = _backup(
                *(out, limited, _origin(device, allocation), allocation, opened, name, options, parent_point),
                Tracking(tracker),
            )
            _show(out, opened, result, device.size)
            _show_changes(out, result, asked=changed != "auto")
            code = _verify(out, opened, result) if verify_after else 0
        finally:
            opened.close()
    finally:
        device.close()
    check_missed(result)
    if result.warning:
        out.warning(f"a full image was made: {result.warning}")
        return WARNING_EXIT
    return code


def _tracker(
    choice: str, next_bitmap: str, device: OpenedSource, repository: Repository, name: str
) -> ChangeTracker | None:

    def marks() -> tuple[Mark | None, ...]:
        return marks_of(repository.image_set(name))

    place = f"{repository.storage.url}/{name}"
    tracker = open_tracker(choice, lambda parameter: Wanted(device, place, parameter, next_bitmap, marks))
    if next_bitmap and (tracker is None or tracker.name != "dirty-bitmap"):
        raise UsageError("--next-bitmap goes with --changed dirty-bitmap, and with a disk of an NBD server")
    return tracker


def _block_bytes(kib: int) -> int:
    if kib & (kib - 1) or not 4 <= kib <= 4096:
        raise UsageError("--block-size is a power of two from 4 to 4096 KiB")
    return kib << 10


def check_places(device: OpenedSource, repository: Path, out: Renderer) -> None:
    """Refuse a repository that lies on the source; warn about a source that is being written.

    Raises:
        RepositoryInsideSourceError, UsageError
    """
    if holds(device.identity.path, str(repository)):
        raise RepositoryInsideSourceError(
            f"{repository} lies on {device.identity.path}, which is being imaged; use another disk"
        )
    if os.path.isdir(repository) and holds_own_images(repository):  # noqa: PTH112 - never raises
        raise UsageError(
            f"{repository} is a set, not a repository; name the folder above it: {repository.parent}"
        )
    if device.identity.is_device:
        mounted = target_facts(device.identity.path).mounted_at
        if mounted:
            out.warning(
                f"{device.identity.path} is mounted at {', '.join(mounted)}: what is written meanwhile may "
                "be half in the image; unmount it, or image a snapshot"
            )


def _allocation(
    out: Renderer, device: OpenedSource, source: OpenedSource | RateLimited
) -> DiskAllocation | None:
    """Find what is free on the source; None, and a warning, while it can change."""
    mounted = written_at(device.identity.path) if device.identity.kind != "export" else ()
    if mounted:
        out.warning(
            f"{device.identity.path} is mounted at {', '.join(mounted)} and can change: it is imaged whole, "
            "free space included"
        )
        return None
    found = read_allocation(source, device.sector_size if device.identity.is_device else None)
    for sentence in found.warnings():
        out.warning(sentence)
    return found


def _origin(device: OpenedSource, allocation: DiskAllocation | None) -> dict[str, object]:
    identity = device.identity
    known = {
        "source": identity.path,
        "kind": identity.kind,
        "model": identity.model,
        "serial": identity.serial,
        "wwn": identity.wwn,
        "writer": f"mountfs {__version__}",
        UNUSED_KEY: allocation.facts() if allocation is not None else None,
    }
    return {key: value for key, value in known.items() if value}


def _backup(
    out: Renderer,
    source: OpenedSource | RateLimited,
    origin: dict[str, object],
    allocation: DiskAllocation | None,
    repository: Repository,
    name: str,
    options: BackupOptions,
    parent: Point | None,
    tracking: Tracking,
) -> BackupResult:
    with out.progress(f"image {origin['source']}", source.size) as progress:

        def report(state: BackupProgress) -> None:
            progress.update(state.done, f"{format_size(state.stored)} stored")

        unused = allocation.unused if allocation is not None else ()
        return backup(
            source,
            repository,
            name,
            options,
            origin=origin,
            parent=parent,
            unused=unused,
            tracking=tracking,
            report=report,
        )


def _show(out: Renderer, repository: Repository, result: BackupResult, size: int) -> None:
    info = result.info
    out.result(backup_result(result, repository.storage.url))
    changed = "" if info.parent_id is None else f"{counted(result.changed_blocks, 'block')} changed, "
    out.line(
        f"{result.set_name}: point {info.number} ({info.type.value}): {format_size(size)} disk, "
        f"{changed}{format_size(info.stored_size)} stored in {format_duration(result.seconds)}"
    )
    out.line(f"{repository.storage.url}/{result.key}")


def _show_changes(out: Renderer, result: BackupResult, *, asked: bool) -> None:
    known = result.changes
    if known.inherited.blocks:
        size = format_size(known.inherited.blocks * result.info.disks[0].block_size)
        out.line(
            f"{size} not read: unchanged, says {known.tracker}; {counted(known.sampled, 'block')} tested"
        )
    elif known.reason and not known.missed and (asked or not known.expected):
        out.warning(f"everything was read: {known.tracker}: {known.reason}")


def check_missed(result: BackupResult) -> None:
    """Raise the alarm when what tracks changes missed one.

    Raises:
        ChangesMissedError
    """
    known = result.changes
    if known.missed:
        raise ChangesMissedError(
            f"{known.tracker} misses changes: {known.reason}. Everything was read, and point "
            f"{result.info.number} of {result.set_name} is complete; images before it that relied on "
            f"{known.tracker} may lack changes. Begin a new one, or use --changed scan"
        )


def _verify(out: Renderer, repository: Repository, result: BackupResult) -> int:
    point = select_point(repository.image_set(result.set_name), str(result.info.number))
    with out.progress("verify", point.size) as progress:
        reports = list(
            verify(repository, (point,), report=lambda state: progress.update(state.done, point.file_name))
        )
    code = worst_exit_code(reports)
    if code:
        show_damages(out, reports, {})
        raise MountfsError(f"{result.key}: the new image does not verify; the destination is failing")
    out.line(f"{result.set_name}: point {result.info.number}: every block verified")
    return WARNING_EXIT if result.warning else 0
