"""``mountfs cp``: copy files and folders out of an image."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from imageformat.errors import MountfsError, UsageError
from imageformat.repository import Access
from imageformat.storage.local import write_error
from mountfs.cli.command import At, DiskNumber, PointName, command
from mountfs.cli.images import (
    ImageName,
    failures_of,
    find_node,
    inner_bytes,
    opened_tree,
    parse_inner,
    raise_first,
)
from mountfs.cli.render import Renderer, counted, format_size
from mountfs.copyout import (
    CopyEvent,
    CopyOptions,
    CopyProgress,
    CopyResult,
    Failure,
    Loss,
    Overwrite,
    copy_out,
    measure,
)
from mountfs.listing import exact_text
from mountfs.tree import Node

Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE:PARTITION/PATH ... TARGET",
        help="What to copy, then where to: a new name, or a folder (made when it ends in /).",
        show_default=False,
    ),
]
Recursive = Annotated[bool, typer.Option("-r", "-a", help="Accepted, for those used to cp: always so.")]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist already.")]
NoOwner = Annotated[bool, typer.Option("--no-owner", help="Do not set user and group.")]
SpecialBits = Annotated[bool, typer.Option("--special-bits", help="Keep setuid, setgid and sticky.")]
SpecialFiles = Annotated[bool, typer.Option("--special-files", help="Make FIFOs, sockets and device nodes.")]
PARTIAL_EXIT = 13

Copied: TypeAlias = tuple[CopyResult, list[MountfsError]]
"""What was copied, and why there may be more to copy."""

EXAMPLES = """\
mountfs cp /backups/sdb@3:2/home/ada .    a folder and all in it
mountfs cp /backups/sdb:2/etc/fstab /backups/sdb:1 out/
"""


@command
def run(
    out: Renderer,
    access: Access,
    paths: Paths,
    point: PointName = None,
    at: At = None,
    disk: DiskNumber = None,
    recursive: Recursive = False,  # noqa: ARG001 (always so)
    overwrite: Replace = False,
    no_owner: NoOwner = False,
    special_bits: SpecialBits = False,
    special_files: SpecialFiles = False,
) -> int:
    """Copy files and folders out of an image, as cp -a does, without mounting anything.

    Kept: owner, mode, times to the nanosecond, links, holes, extended attributes, named streams (as
    user.NAME). What cannot be kept is reported. A file with a damaged block is not written at all; the
    others are, and the exit code tells.
    """
    if len(paths) < 2:
        raise UsageError("name what to copy and where to: mountfs cp IMAGE:2/docs TARGET")
    *sources, target = paths
    names = [parse_inner(source, point=point, at=at) for source in sources]
    for source, name in zip(sources, names, strict=True):
        if name.inner is None:
            raise UsageError(f"{source} names a whole image; add what to copy from it: {source}:2/path")
    options = CopyOptions(
        overwrite=Overwrite.REPLACE if overwrite else Overwrite.REFUSE,
        keep_owner=not no_owner,
        keep_special_bits=special_bits,
        special_files=special_files,
    )
    if target.endswith("/"):
        make_folder(Path(target))
    groups = [list(group) for _, group in groupby(names, key=lambda name: (name.path, name.selector))]
    if len(groups) > 1 and not os.path.isdir(target):  # noqa: PTH112 - never raises
        raise UsageError(f"{target} is not a folder; several things can only be copied into a folder")
    copied = [_copy(out, access, group, disk, Path(target), options) for group in groups]
    raise_first(out, [error for _, failures in copied for error in failures])
    return next((_exit_code(result) for result, _ in copied if result.failure_count), 0)


def make_folder(path: Path) -> None:
    """Make the folder that a target ending in a slash names, unless it is there."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(error, path) from error


def _copy(
    out: Renderer,
    access: Access,
    group: list[ImageName],
    disk: int | None,
    target: Path,
    options: CopyOptions,
) -> Copied:
    with opened_tree(group[0], read_ahead=True, disk=disk, access=access) as tree:
        sources: list[tuple[bytes, Node]] = []
        for name in group:
            node, stream = find_node(tree, name.inner)
            if stream is not None:
                raise UsageError(f"{name.inner} is a named stream; write it with: mountfs cat ... > FILE")
            sources.append((inner_bytes(name.inner), node))
        total = measure(tree, sources).bytes
        with out.progress(f"copy to {target}", total) as progress:

            def report(event: CopyEvent) -> None:
                if isinstance(event, CopyProgress):
                    progress.update(event.bytes_done, event.path)
                elif isinstance(event, Failure):
                    out.warning(f"{_shown(event.path)}: not copied: {event.error}")
                else:
                    out.detail(f"{_shown(event.path)}: {event.what.value} not kept {event.detail}".rstrip())

            result = copy_out(tree, sources, target, options, report)
        _tell(out, result, target)
        failures = {str(error): error for _, node in sources for error in failures_of(tree, node)}
    return result, list(failures.values())


def _shown(path: bytes) -> str:
    return os.fsdecode(path) or "/"


def _tell(out: Renderer, result: CopyResult, target: Path) -> None:
    out.result(
        {
            "target": str(target),
            "files": result.files,
            "folders": result.folders,
            "links": result.links,
            "special": result.special,
            "bytes": result.bytes,
            "failures": [_failure(failure) for failure in result.failures],
            "failure_count": result.failure_count,
            "losses": [_loss(loss) for loss in result.losses],
            "loss_counts": {kind.value: count for kind, count in result.loss_counts.items()},
        }
    )
    out.line(
        f"{counted(result.files, 'file')}, {counted(result.folders, 'folder')}, "
        f"{counted(result.links, 'link')}: {format_size(result.bytes)} copied to {target}"
    )
    for kind, count in result.loss_counts.items():
        out.warning(f"{kind.value}: not kept for {count} of the entries; --verbose names them")
    if result.failure_count:
        out.warning(f"entries that were not copied: {result.failure_count}")


def _failure(failure: Failure) -> dict[str, object]:
    error = failure.error
    return {**exact_text("path", failure.path), "error": type(error).__name__, "message": str(error)}


def _loss(loss: Loss) -> dict[str, object]:
    return {**exact_text("path", loss.path), "what": loss.what.value, "detail": loss.detail}


def _exit_code(result: CopyResult) -> int:
    """Return the exit code of the first failure that was listed."""
    return result.failures[0].error.exit_code if result.failures else PARTIAL_EXIT
