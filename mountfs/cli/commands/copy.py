"""``mountfs copy``: another copy of the images, in a folder, on an S3 server or on another machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from engine.copying import CopyItem, CopyPlan, copy_set, plan_from
from engine.devices.ratelimit import RateLimit as Limit
from imageformat.errors import NotFoundError, UsageError, VerificationError
from imageformat.formats import is_ours
from imageformat.repository import Access, ImageSet, Repository
from imageformat.selection import Location
from imageformat.storage.places import is_remote, open_storage
from mountfs.cli.command import command
from mountfs.cli.images import parse_name
from mountfs.cli.render import Column, Renderer, counted, format_size
from mountfs.session import Session

Source = Annotated[
    str, typer.Argument(metavar="REPO|SET", help="What is copied: all sets, or one.", show_default=False)
]
Destination = Annotated[
    str,
    typer.Argument(
        metavar="DEST",
        help="A repository: a folder, s3://BUCKET/PREFIX, or sftp://USER@HOST/PATH.",
        show_default=False,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SET", help="Only this set. Repeatable.", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Show what would be copied, and copy nothing.")]
Verify = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Read each file back whole, or only both of its ends.")
]
Older = Annotated[
    bool,
    typer.Option("--older", help="Also points that are missing among older ones: what retention deleted."),
]
RateLimit = Annotated[
    int | None,
    typer.Option("--rate-limit", min=1, metavar="MIB", help="Copy at most so many MiB a second."),
]

EXAMPLES = """\
mountfs copy /backups /media/usb/backups
mountfs copy /backups s3://my-bucket/backups    keys: as for the AWS tools
mountfs copy /backups sftp://me@nas/backups --rate-limit 5
"""

_COLUMNS = (Column("set"), Column("point", right=True), Column("size", right=True), Column("file"))


@command
def run(
    out: Renderer,
    access: Access,
    source: Source,
    destination: Destination,
    sets: Sets = None,
    dry_run: DryRun = False,
    verify: Verify = True,
    older: Older = False,
    rate_limit: RateLimit = None,
) -> int:
    """Copy what is missing: whole image files, oldest first, each proven before it gets its name.

    The copy is a repository of its own: list, mount, cp, verify and restore work on DEST directly, and so
    does retention: points that it deleted there are not copied again. After an interruption, run it again.
    """
    name = parse_name(source)
    if name.selector is not None:
        raise UsageError(f"{source} names a point; whole sets are copied")
    limit = Limit(rate_limit << 20) if rate_limit is not None else None
    with Session(name.path, read_ahead=False, access=access) as session:
        location = session.location
        chosen = _chosen(location, sets or ())
        with _target(location, destination, access) as target:
            codes = [
                _plan_only(out, location.repository, target, image_set.name, older=older)
                if dry_run
                else _copy(
                    out, location.repository, target, image_set.name, older=older, verify=verify, limit=limit
                )
                for image_set in chosen
            ]
    return next((code for code in codes if code), 0)


def _chosen(location: Location, names: Sequence[str]) -> tuple[ImageSet, ...]:
    if location.key is not None:
        raise UsageError("whole sets are copied, not single images; name the set")
    found = location.sets()
    unknown = set(names) - {image_set.name for image_set in found}
    if unknown:
        raise NotFoundError(f"there is no set {', '.join(sorted(unknown))}")
    return tuple(image_set for image_set in found if not names or image_set.name in names)


@contextlib.contextmanager
def _target(location: Location, destination: str, access: Access) -> Iterator[Repository]:
    """Open the repository that is copied to.

    Raises:
        UsageError: it is a set, or is what is copied, or lies inside of it.
    """
    _refuse_itself(location.repository.storage.url, destination)
    storage = open_storage(destination)
    repository = Repository(storage, access=access)
    try:
        if any(is_ours(stored.key) for stored in repository.beside()):
            raise UsageError(f"{destination} is a set, not a repository; name the folder above it")
        yield repository
    finally:
        repository.close()


def _refuse_itself(source: str, destination: str) -> None:
    if is_remote(source) != is_remote(destination):
        return
    if is_remote(source):
        here, there = source.rstrip("/") + "/", destination.rstrip("/") + "/"
    else:
        here, there = (f"{Path(path.removeprefix('file://')).resolve()}/" for path in (source, destination))
    if there.startswith(here) or here.startswith(there):
        raise UsageError(f"{destination} and {source} lie in one another; copy to another place")


def _plan_only(out: Renderer, source: Repository, target: Repository, name: str, *, older: bool) -> int:
    plan = plan_from(source, target, name, older=older)
    if plan.items:
        out.table("", _COLUMNS, map(_row, plan.items))
    return _conclude(out, plan, (), {}, dry_run=True)


def _row(item: CopyItem) -> tuple[str, int | None, str, str]:
    set_name, _, file_name = item.key.rpartition("/")
    return set_name, item.point.number if item.point is not None else None, format_size(item.size), file_name


def _copy(
    out: Renderer,
    source: Repository,
    target: Repository,
    name: str,
    *,
    older: bool,
    verify: bool,
    limit: Limit | None,
) -> int:
    with contextlib.ExitStack() as stack:
        progress = None

        def planned(plan: CopyPlan) -> None:
            nonlocal progress
            if plan.items:
                total = plan.size * (2 if verify else 1)
                progress = stack.enter_context(out.progress(f"copy {name}".rstrip(), total))

        done = 0

        def report(item: CopyItem, count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress.update(done, item.key)

        reused: dict[str, int] = {}

        def continued(item: CopyItem, count: int) -> None:
            reused[item.key] = count
            out.note(f"continuing {item.key}, {count * 100 // item.size} % was there")

        plan, unopened = copy_set(
            source,
            target,
            name,
            older=older,
            verify=verify,
            limit=limit,
            planned=planned,
            report=report,
            continued=continued,
        )
    return _conclude(out, plan, unopened, reused, dry_run=False)


def _conclude(
    out: Renderer,
    plan: CopyPlan,
    unopened: Sequence[CopyItem],
    reused: Mapping[str, int],
    *,
    dry_run: bool,
) -> int:
    out.result(
        {
            "set": plan.set_name,
            "copied": [item.key for item in plan.items],
            "bytes": plan.size,
            "continued": [{"file": key, "bytes": count} for key, count in reused.items()],
            "present": [point.number for point in plan.present],
            "older": [point.number for point in plan.older],
            "skipped": [
                {"file": entry.point.key, "error": type(entry.error).__name__, "message": str(entry.error)}
                for entry in plan.skipped
            ],
            "unopened": [item.key for item in unopened],
            "dry_run": dry_run,
        }
    )
    for entry in plan.skipped:
        out.warning(f"not copied: {entry.error}")
    for item in unopened:
        out.warning(f"{item.key}: was copied, but does not open there: files that it needs lie elsewhere")
    if plan.older:
        out.note(f"{counted(len(plan.older), 'older point')} missing there stay away; --older copies them")
    verb = "would be copied" if dry_run else "copied"
    said = f"{counted(len(plan.items), 'file')} {verb}, {format_size(plan.size)}"
    out.line(f"{plan.set_name or 'images'}: {said}; {counted(len(plan.present), 'point')} there already")
    if plan.skipped:
        return plan.skipped[0].error.exit_code
    return VerificationError.exit_code if unopened else 0
