"""``mountfs backup``: image a disk, a partition or a file into a repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from engine.adopt import adopt
from engine.backup import BackupOptions, BackupProgress, BackupResult, backup
from engine.devices.backing import holds
from engine.devices.guards import written_at
from engine.devices.ratelimit import RateLimited
from engine.devices.source import SourceDevice, open_source
from engine.plan import check_set_name, set_name_for
from engine.snapshots.taking import AUTO, PictureSource
from engine.verify import verify, worst_exit_code
from imageformat.codec import DEFAULT_LEVEL
from imageformat.errors import MountfsError, RepositoryInsideSourceError, UsageError
from imageformat.layer import ImageType
from imageformat.repository import Point, Repository
from imageformat.selection import holds_own_images, select_point
from imageformat.storage.local import LocalStorage
from mountfs import __version__
from mountfs.allocation.disk import DiskAllocation, read_allocation
from mountfs.cli.command import Threads, command, path
from mountfs.cli.hooking import hooked
from mountfs.cli.render import Renderer, counted, format_duration, format_size
from mountfs.cli.reports import UNUSED_KEY, backup_result, show_damages
from mountfs.cli.standstill import stand_still

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
Verify = Annotated[bool, typer.Option("--verify", help="Read the new image back and verify every block.")]

EXAMPLES = """\
mountfs backup /dev/sdb /backups            first full, then increments
mountfs backup disk.img repo --type diff    all changes since the last full
mountfs backup /dev/sdb2 /backups --set root --verify
mountfs backup vm.img repo --base old.qcow2 what changed since old.qcow2
mountfs backup /dev/sdc /evidence --raw     deleted files too
mountfs backup /dev/vg/data /backups --snapshot lvm
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
    threads: Threads = 0,
    rate_limit: RateLimit = None,
    verify_after: Verify = False,
    snapshot: Snapshot = AUTO,
) -> int:
    """Image SOURCE into REPO. The first image of a set is full; later ones hold only what changed.

    The free space of file systems is left out and reads as zeros, unless one is in use or not sound.
    Nothing appears in the repository before the image is complete, durable and read back.
    """
    device = open_source(source)
    try:
        name = check_set_name(set_name) if set_name else set_name_for(device.identity.path)
        check_places(device, repository)
        device = stand_still(out, device, snapshot)
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
            result = _backup(
                out, limited, _origin(device, allocation), allocation, opened, name, options, parent_point
            )
            _show(out, opened, result, device.size)
            if verify_after:
                return _verify(out, opened, result)
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


def _allocation(
    out: Renderer, device: SourceDevice, source: SourceDevice | RateLimited
) -> DiskAllocation | None:
    """Find what is free on the source; None, and a warning, while it can change."""
    mounted = () if isinstance(device, PictureSource) else written_at(device.identity.path)
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


def _origin(device: SourceDevice, allocation: DiskAllocation | None) -> dict[str, object]:
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
    source: SourceDevice | RateLimited,
    origin: dict[str, object],
    allocation: DiskAllocation | None,
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
