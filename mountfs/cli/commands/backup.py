"""``mountfs backup``: image a disk, a partition or a file into a repository."""

from __future__ import annotations

import enum
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from engine.adopt import adopt
from engine.backup import BackupOptions, BackupProgress, BackupResult, backup
from engine.devices.backing import holds
from engine.devices.guards import target_facts, written_at
from engine.devices.ratelimit import RateLimited
from engine.devices.source import SourceDevice, open_source
from engine.plan import check_set_name, set_name_for
from engine.proving import record_whole
from engine.sourcecheck import compare_with_source
from engine.verify import verify, worst_exit_code
from imageformat.codec import DEFAULT_LEVEL
from imageformat.errors import MountfsError, RepositoryInsideSourceError, UsageError
from imageformat.layer import ImageType
from imageformat.leftout import EXCLUDED_KEY, record_of
from imageformat.repository import Point, Repository
from imageformat.selection import holds_own_images, select_point
from imageformat.storage.local import LocalStorage
from imageformat.view import ImageView
from mountfs import __version__
from mountfs.allocation.disk import DiskAllocation, read_allocation
from mountfs.allocation.excluded import ExcludedFiles, find_excluded
from mountfs.cli.command import Threads, command, path
from mountfs.cli.render import Renderer, counted, format_duration, format_size
from mountfs.cli.reports import UNUSED_KEY, backup_result, show_damages
from mountfs.excludes import Pattern, parse_pattern
from mountfs.session import file_system_drivers

WARNING_EXIT = 3

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Disk, partition or image file.", show_default=False)
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
mountfs backup /dev/sdb /backups --exclude '*.iso' --exclude '/*/var/cache/**'
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
    exclude: Exclude = None,
    threads: Threads = 0,
    rate_limit: RateLimit = None,
    verify_after: Verify = VerifyAfter.NONE,
) -> int:
    """Image SOURCE into REPO. The first image of a set is full; later ones hold only what changed.

    The free space of file systems is left out and reads as zeros, unless one is in use or not sound; so are
    page and swap files, and what --exclude names, which cannot be read from the image.
    Nothing appears in the repository before the image is complete, durable and read back.
    """
    patterns = tuple(map(parse_pattern, exclude or ()))
    if raw and patterns:
        raise UsageError("--raw images everything; leave out --raw or --exclude")
    device = open_source(source)
    try:
        name = check_set_name(set_name) if set_name else set_name_for(device.identity.path)
        check_places(device, repository, out)
        if verify_after is VerifyAfter.SOURCE:
            _refuse_moving(device)
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
            limited = device if rate_limit is None else RateLimited(device, rate_limit << 20)
            allocation = None if raw else _allocation(out, device, limited)
            excluded = _excluded(out, device, limited, allocation, patterns)
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
            )
            _show(out, opened, result, device.size)
            if verify_after is not VerifyAfter.NONE:
                _verify(out, opened, result)
            if verify_after is VerifyAfter.SOURCE:
                _compare(out, opened, result, limited)
        finally:
            opened.close()
    finally:
        device.close()
    if result.warning:
        out.warning(f"a full image was made: {result.warning}")
        return WARNING_EXIT
    return 0


def _block_bytes(kib: int) -> int:
    if kib & (kib - 1) or not 4 <= kib <= 4096:
        raise UsageError("--block-size is a power of two from 4 to 4096 KiB")
    return kib << 10


def check_places(device: SourceDevice, repository: Path, out: Renderer) -> None:
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
    if device.identity.kind != "file":
        mounted = target_facts(device.identity.path).mounted_at
        if mounted:
            out.warning(
                f"{device.identity.path} is mounted at {', '.join(mounted)}: what is written meanwhile may "
                "be half in the image; unmount it, or image a snapshot"
            )


def _allocation(
    out: Renderer, device: SourceDevice, source: SourceDevice | RateLimited
) -> DiskAllocation | None:
    """Find what is free on the source; None, and a warning, while it can change."""
    mounted = written_at(device.identity.path)
    if mounted:
        out.warning(
            f"{device.identity.path} is mounted at {', '.join(mounted)} and can change: it is imaged whole, "
            "free space included"
        )
        return None
    found = read_allocation(source, device.sector_size if device.identity.kind != "file" else None)
    for sentence in found.warnings():
        out.warning(sentence)
    return found


def _excluded(
    out: Renderer,
    device: SourceDevice,
    source: SourceDevice | RateLimited,
    allocation: DiskAllocation | None,
    patterns: tuple[Pattern, ...],
) -> ExcludedFiles | None:
    """Find the files that are left out; None, and a warning where some were named, while they can change."""
    if allocation is None:
        if patterns:
            out.warning("no file is left out by --exclude: the source can change while it is read")
        return None
    sector_size = device.sector_size if device.identity.kind != "file" else None
    found = find_excluded(source, allocation, patterns, file_system_drivers(), sector_size)
    for sentence in found.warnings:
        out.warning(sentence)
    return found or None


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
            excluded=excluded.extents if excluded is not None else None,
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


def _refuse_moving(device: SourceDevice) -> None:
    """Raise `UsageError` when the source is written meanwhile: it would differ from any image of it."""
    mounted = written_at(device.identity.path)
    if mounted:
        raise UsageError(
            f"{device.identity.path} is mounted at {', '.join(mounted)} and can change: it cannot be "
            "compared with its image; unmount it, image a snapshot, or use --verify file"
        )


def _compare(
    out: Renderer, repository: Repository, result: BackupResult, source: SourceDevice | RateLimited
) -> None:
    point = select_point(repository.image_set(result.set_name), str(result.info.number))
    view = ImageView(repository.chain(point), repository.cache)
    with out.progress("compare with the source", source.size) as progress:
        compared = compare_with_source(view, source, report=progress.update)
    out.line(f"{result.set_name}: point {result.info.number}: {format_size(compared)} equal to the source")


def _verify(out: Renderer, repository: Repository, result: BackupResult) -> None:
    started_ns = time.time_ns()
    point = select_point(repository.image_set(result.set_name), str(result.info.number))
    with out.progress("verify", point.size) as progress:
        reports = list(
            verify(repository, (point,), report=lambda state: progress.update(state.done, point.file_name))
        )
    record_whole(repository, reports, started_ns)
    if worst_exit_code(reports):
        show_damages(out, reports, {})
        raise MountfsError(f"{result.key}: the new image does not verify; the destination is failing")
    out.line(f"{result.set_name}: point {result.info.number}: every block verified")
