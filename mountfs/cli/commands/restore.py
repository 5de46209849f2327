"""``mountfs restore``: write a point to a disk, a partition or a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from engine.devices.guards import TargetFacts, check_target, describe, target_facts
from engine.devices.source import open_source
from engine.devices.target import Target, open_target
from engine.restore import RestoreProgress, RestoreResult, restore
from imageformat.device import BlockDevice
from imageformat.errors import MountfsError, NotConfirmedError, UnsupportedVolumeError, UsageError
from imageformat.formats import listed_suffixes
from imageformat.repository import Access, Point
from mountfs.cli.command import At, DiskNumber, PointName, Threads, Yes, command
from mountfs.cli.images import disk_of, find_node, opened_point, parse_inner
from mountfs.cli.render import Renderer, format_duration, format_size
from mountfs.cli.unreadable import warn_of_bad_restore
from mountfs.disktree import DiskTree
from mountfs.session import Session
from mountfs.volumes import Openers, read_layout

ImageOrPart = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE[:PARTITION]",
        help="A point, as SET@POINT or a file; with :2 only its second partition, with :2/1 what that holds.",
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
    access: Access,
    image: ImageOrPart,
    target: TargetName,
    point: PointName = None,
    at: At = None,
    disk: DiskNumber = None,
    yes: Yes = False,
    check: Check = False,
    threads: Threads = 0,
) -> int:
    """Write any point to a disk, a partition or a file, byte for byte.

    Asks before it overwrites anything. A file gets its name only when it is complete; on a device the first
    mebibyte is written last, so that an interrupted restore never looks bootable. Sectors that were
    unreadable at the source become zeros, and a warning.
    """
    name = parse_inner(image, point=point, at=at)
    if target.endswith("/"):
        raise UsageError(f"{target} names a folder; name a disk, a partition or a file")
    with (
        opened_point(name, read_ahead=False, access=access) as (session, chosen),
        chosen_part(session, chosen, name.inner, disk=disk_of(chosen, disk)) as (part, sector_size),
    ):
        facts = target_facts(target, image_files(session, chosen, access))
        check_target(facts, part.size)
        if facts.kind != "new file":
            confirm(out, facts, chosen, part.size, yes=yes)
        opened = open_target(target, part.size, sector_size=sector_size, expected=facts)
        try:
            result = _restore(out, part, opened, threads, check=check)
            opened.commit()
        finally:
            opened.abort()
        _tell(out, chosen, target, result)
    return warn_of_bad_restore(out, result)


@contextmanager
def chosen_part(
    session: Session, chosen: Point, inner: str | None, *, disk: int
) -> Iterator[tuple[BlockDevice, int]]:
    """Open the whole disk, or the volume that ``inner`` names by numbers or folder names: ``2``, ``2/1``.

    The second value is the size of the disk's sectors.

    Raises:
        NotFoundError: there is none of that name.
        LockedError: it lies in a volume that is locked.
        MountfsError: the partition table cannot be read.
        UsageError: it names a file or a folder inside a volume.
    """
    view = session.view(chosen, disk=disk)
    if not (inner or "").strip("/"):
        yield view, view.sector_size
        return
    tree = session.disk_tree(chosen, disk=disk)
    try:
        yield _device_of(tree, inner), view.sector_size
    finally:
        tree.close()


def _device_of(tree: DiskTree, inner: str | None) -> BlockDevice:
    node, _ = find_node(tree, inner, unlock_last=False)
    slot = tree.slot_at(node)
    if slot is None:
        raise UsageError(f"'{inner}' lies inside a partition; copy files with: mountfs cp")
    if slot.part.device is None:
        raise UnsupportedVolumeError(f"'{inner}' has no bytes to restore: {slot.volume.reason}")
    return slot.part.device


def image_files(session: Session, chosen: Point, access: Access) -> list[str]:
    """Return the paths that a restore must not overwrite.

    Those are all image files of the set, and of an image of another tool what may be a part of it: files of
    its name, files with the suffix of an image in its folder, and those that the user named for it.
    """
    storage = session.location.repository.storage
    image_set = session.location.repository.image_set(chosen.set_name)
    keys = {point.key for point in image_set.points}
    if chosen.is_foreign:
        stem = chosen.file_name.split(".")[0]
        for stored in storage.objects(image_set.prefix):
            name = stored.key.removeprefix(image_set.prefix)
            if name.split(".")[0] == stem or name.lower().endswith(listed_suffixes()):
                keys.add(stored.key)
    return [*(f"{storage.url}/{key}" for key in keys), *(named.path for named in access.named)]


def confirm(out: Renderer, facts: TargetFacts, chosen: Point, size: int, *, yes: bool) -> None:
    """Show what would be overwritten and ask.

    Raises:
        NotConfirmedError: nobody agreed.
    """
    out.note(f"target: {describe(facts)}, {format_size(facts.size)}")
    for line in contents(facts.path):
        out.note(f"  holds {line}")
    named = chosen.file_name if chosen.is_foreign else f"point {chosen.number} of {chosen.set_name}"
    question = f"overwrite it with {named} ({format_size(size)})?"
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
        layout = read_layout(device, Openers((), tuple), device.sector_size)
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
            "unreadable_bytes": result.bad_bytes,
            "seconds": round(result.seconds, 3),
        }
    )
    verified = ", read back and compared" if result.verified else ""
    out.line(
        f"{target}: {format_size(result.size)} restored, {format_size(result.written)} of it data{verified}, "
        f"in {format_duration(result.seconds)}"
    )
