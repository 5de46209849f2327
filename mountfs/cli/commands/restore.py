"""``mountfs restore``: write a point to a disk, a partition or a file."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.devices.guards import TargetFacts, check_target, describe, target_facts
from engine.devices.source import open_source
from engine.devices.target import Target, open_target
from engine.restore import RestoreProgress, RestoreResult, restore
from imageformat.device import BlockDevice, Slice
from imageformat.errors import MountfsError, NotConfirmedError, NotFoundError, UsageError
from imageformat.repository import Point
from imageformat.secrets import Secrets
from mountfs.cli.command import At, PointName, Threads, Yes, command
from mountfs.cli.images import opened_point, parse_inner
from mountfs.cli.render import Renderer, format_duration, format_size
from mountfs.session import Session, file_system_drivers
from mountfs.volumes import read_layout

ImageOrPart = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE[:PARTITION]",
        help="A point, as SET@POINT or a file; with :2 only its second partition.",
        show_default=False,
    ),
]
TargetName = Annotated[
    str, typer.Argument(metavar="TARGET", help="Disk, partition or file to write.", show_default=False)
]
Check = Annotated[bool, typer.Option("--verify", help="Read everything back and compare.")]

EXAMPLES = """\
mountfs restore /backups/sdb@3 /dev/sdc --verify
mountfs restore /backups/sdb@3:2 partition.img    only the second partition
"""


@command
def run(
    out: Renderer,
    secrets: Secrets,
    image: ImageOrPart,
    target: TargetName,
    point: PointName = None,
    at: At = None,
    yes: Yes = False,
    check: Check = False,
    threads: Threads = 0,
) -> None:
    """Write any point to a disk, a partition or a file, byte for byte.

    Asks before it overwrites anything. A file gets its name only when it is complete; on a device the first
    mebibyte is written last, so that an interrupted restore never looks bootable.
    """
    name = parse_inner(image, point=point, at=at)
    if target.endswith("/"):
        raise UsageError(f"{target} names a folder; name a disk, a partition or a file")
    with opened_point(name, read_ahead=False, secrets=secrets) as (session, chosen):
        view = session.view(chosen)
        part = choose_part(view, name.inner, view.sector_size)
        facts = target_facts(target, image_files(session, chosen))
        check_target(facts, part.size)
        if facts.kind != "new file":
            confirm(out, facts, chosen, part.size, yes=yes)
        opened = open_target(target, part.size, sector_size=view.sector_size, expected=facts)
        try:
            result = _restore(out, part, opened, threads, check=check)
            opened.commit()
        finally:
            opened.abort()
        _tell(out, chosen, target, result)


def choose_part(view: BlockDevice, inner: str | None, sector_size: int) -> BlockDevice:
    """Return the whole disk, or the partition that ``inner`` names by number or folder name.

    Raises:
        NotFoundError: there is none of that name.
        MountfsError: the partition table cannot be read.
        UsageError: it names something inside a partition.
    """
    wanted = (inner or "").strip("/")
    if not wanted:
        return view
    if "/" in wanted:
        raise UsageError(f"'{wanted}' lies inside a partition; copy files with: mountfs cp")
    layout = read_layout(view, file_system_drivers(), sector_size)
    for volume in layout.volumes:
        if wanted in {str(volume.number), volume.name.decode("utf-8", "replace")}:
            return Slice(view, volume.offset, volume.size)
    if layout.failure is not None:
        raise layout.failure
    known = ", ".join(volume.name.decode("utf-8", "replace") for volume in layout.volumes) or "none"
    raise NotFoundError(f"the image has no partition '{wanted}'; it has: {known}")


def image_files(session: Session, chosen: Point) -> list[str]:
    """Return the paths of all image files of the set: a restore must not overwrite any of them."""
    root = session.location.repository.storage.url
    image_set = session.location.repository.image_set(chosen.set_name)
    return [f"{root}/{point.key}" for point in image_set.points]


def confirm(out: Renderer, facts: TargetFacts, chosen: Point, size: int, *, yes: bool) -> None:
    """Show what would be overwritten and ask.

    Raises:
        NotConfirmedError: nobody agreed.
    """
    out.note(f"target: {describe(facts)}, {format_size(facts.size)}")
    for line in contents(facts.path):
        out.note(f"  holds {line}")
    number = chosen.info.number if chosen.info else 0
    question = f"overwrite it with point {number} of {chosen.set_name} ({format_size(size)})?"
    if not yes and not out.confirm(question):
        raise NotConfirmedError(
            f"{facts.path} exists and was not overwritten; answer yes, or use --yes in scripts"
        )


def contents(path: str) -> list[str]:
    """Describe what is on a target now, as far as it can be told."""
    try:
        device = open_source(path)
    except MountfsError:
        return []
    try:
        layout = read_layout(device, (), device.sector_size)
        return [
            f"{volume.name.decode('utf-8', 'replace')} ({format_size(volume.size)})"
            for volume in layout.volumes
        ]
    finally:
        device.close()


def _restore(out: Renderer, part: BlockDevice, target: Target, threads: int, *, check: bool) -> RestoreResult:
    steps = 2 if check else 1
    with out.progress(f"restore to {target.path}", part.size * steps) as progress:

        def report(state: RestoreProgress) -> None:
            passed = state.total if state.label == "compare" else 0
            progress.update(passed + state.done, state.label)

        return restore(part, target, threads=threads, check=check, report=report)


def _tell(out: Renderer, chosen: Point, target: str, result: RestoreResult) -> None:
    out.result(
        {
            "set": chosen.set_name,
            "point": chosen.info.number if chosen.info else None,
            "target": target,
            "size": result.size,
            "written": result.written,
            "verified": result.verified,
            "seconds": round(result.seconds, 3),
        }
    )
    verified = ", read back and compared" if result.verified else ""
    out.line(
        f"{target}: {format_size(result.size)} restored, {format_size(result.written)} of it data{verified}, "
        f"in {format_duration(result.seconds)}"
    )
