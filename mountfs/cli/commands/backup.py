"""``mountfs backup``: image a disk, a partition or a file into a repository."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated

import typer

from engine.adopt import adopt
from engine.backup import BackupOptions, BackupProgress, BackupResult, backup
from engine.changes import ChangeTracker, Mark, Wanted, open_tracker
from engine.changes.knowledge import Tracking, marks_of
from engine.devices.backing import holds
from engine.devices.ratelimit import RateLimited
from engine.devices.source import SourceDevice
from engine.plan import check_set_name, set_name_for
from engine.snapshots.taking import AUTO
from engine.sources import open_any
from imageformat.codec import DEFAULT_LEVEL
from imageformat.errors import RepositoryInsideSourceError, UsageError
from imageformat.layer import ImageType
from imageformat.leftout import EXCLUDED_KEY, record_of
from imageformat.repository import Point, Repository
from imageformat.selection import holds_own_images, select_point
from imageformat.storage.local import LocalStorage
from mountfs import __version__
from mountfs.allocation.disk import DiskAllocation
from mountfs.allocation.excluded import ExcludedFiles
from mountfs.cli.afterbackup import check_missed, compare, prove, show, show_changes
from mountfs.cli.command import Threads, command, path
from mountfs.cli.hooking import hooked
from mountfs.cli.leavingout import find_free, find_unwanted
from mountfs.cli.render import Renderer, format_size
from mountfs.cli.reports import UNUSED_KEY
from mountfs.cli.standstill import refuse_moving, stand_still
from mountfs.cli.unreadable import warn_of_bad_backup
from mountfs.excludes import parse_pattern

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
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="Leave out files: '*.iso', '/2-ntfs-Data/Temp/**'; may be given more than once.",
        show_default=False,
    ),
]
RateLimit = Annotated[
    int | None,
    typer.Option("--rate-limit", min=1, metavar="MIB", help="Read at most so many MiB a second."),
]
Snapshot = Annotated[
    str,
    typer.Option(
        "--snapshot",
        metavar="HOW",
        help="Image SOURCE as it is now, while it is used: auto, none, lvm, dm, reflink, btrfs, freeze.",
    ),
]
Changed = Annotated[
    str,
    typer.Option(
        "--changed",
        metavar="HOW",
        help="What knows which blocks changed: auto, scan (read everything), dirty-bitmap, reflink, "
        "lvm-thin, dm-era.",
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
Rescue = Annotated[
    bool, typer.Option("--rescue", help="Go on past any number of bad sectors; else past 32 KiB of them.")
]
NoResume = Annotated[
    bool, typer.Option("--no-resume", help="Throw away what an interrupted backup left; start anew.")
]


class VerifyAfter(enum.Enum):
    """What is read again when an image is there."""

    NONE = "none"
    FILE = "file"
    SOURCE = "source"


Verify = Annotated[
    VerifyAfter,
    typer.Option(
        "--verify",
        help="Then verify every block of the new image (file), and compare it with SOURCE as well (source).",
        case_sensitive=False,
    ),
]

EXAMPLES = """\
mountfs backup /dev/sdb /backups            first full, then increments
mountfs backup disk.img repo --type diff    all changes since the last full
mountfs backup /dev/sdb2 /backups --set root --verify file
mountfs backup vm.img repo --base old.qcow2 what changed since old.qcow2
mountfs backup /dev/sdc /evidence --raw     deleted files too
mountfs backup /dev/vg/data /backups --snapshot lvm
mountfs backup /dev/sdb /backups --exclude '*.iso'
mountfs backup /dev/sdd /backups --rescue   what a failing disk still gives
"""


@command
@hooked
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
    exclude: Exclude = None,
    threads: Threads = 0,
    rate_limit: RateLimit = None,
    changed: Changed = "auto",
    next_bitmap: NextBitmap = "",
    rescue: Rescue = False,
    no_resume: NoResume = False,
    verify_after: Verify = VerifyAfter.NONE,
    snapshot: Snapshot = AUTO,
) -> int:
    """Image SOURCE into REPO. The first image of a set is full; later ones hold only what changed.

    The free space of file systems is left out and reads as zeros, unless one is in use or not sound; so are
    page and swap files, and what --exclude names, which cannot be read from the image.
    Nothing appears in the repository before the image is complete, durable and read back. What an
    interrupted backup had stored is kept for the next one, as far as SOURCE, read again, still holds it.
    """
    patterns = tuple(map(parse_pattern, exclude or ()))
    if raw and patterns:
        raise UsageError("--raw images everything; leave out --raw or --exclude")
    device = open_any(source)
    try:
        identity = device.identity
        name = check_set_name(set_name) if set_name else set_name_for(identity.label or identity.path)
        check_places(device, repository)
        device = stand_still(out, device, snapshot)
        if verify_after is VerifyAfter.SOURCE:
            refuse_moving(device)
        options = BackupOptions(
            type=type_,
            block_size=_block_bytes(block_size),
            level=level,
            differences=not whole_blocks,
            threads=threads,
            any_source=set_name is not None,
            rescue=rescue,
            resume=not no_resume,
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
            allocation = None if raw else find_free(out, device, limited)
            excluded = find_unwanted(out, device, limited, allocation, patterns)
            result = _backup(
                out,
                limited,
                _origin(device, allocation, excluded),
                allocation,
                excluded,
                opened,
                name,
                options,
                parent_point,
                Tracking(tracker),
            )
            show(out, opened, result, device.size)
            show_changes(out, result, asked=changed != "auto")
            bad = warn_of_bad_backup(out, result)
            if verify_after is not VerifyAfter.NONE:
                prove(out, opened, result)
            if verify_after is VerifyAfter.SOURCE:
                compare(out, opened, result, limited)
        finally:
            opened.close()
    finally:
        device.close()
    check_missed(result)
    if result.warning:
        out.warning(f"a full image was made: {result.warning}")
    return bad or (WARNING_EXIT if result.warning else 0)


def _tracker(
    choice: str, next_bitmap: str, device: SourceDevice, repository: Repository, name: str
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


def check_places(device: SourceDevice, repository: Path) -> None:
    """Refuse a repository that lies on the source.

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


def _origin(
    device: SourceDevice, allocation: DiskAllocation | None, excluded: ExcludedFiles | None
) -> dict[str, object]:
    identity = device.identity
    known = {
        "source": identity.path,
        "kind": identity.kind,
        "model": identity.model,
        "serial": identity.serial,
        "wwn": identity.wwn,
        "writer": f"mountfs {__version__}",
        EXCLUDED_KEY: record_of(excluded.found) if excluded is not None else None,
        UNUSED_KEY: allocation.facts() if allocation is not None else None,
    }
    return {key: value for key, value in known.items() if value}


def _backup(
    out: Renderer,
    source: SourceDevice | RateLimited,
    origin: dict[str, object],
    allocation: DiskAllocation | None,
    excluded: ExcludedFiles | None,
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
            excluded=excluded.extents if excluded is not None else None,
            report=report,
            tell=out.note,
        )
