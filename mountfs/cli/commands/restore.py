"""``mountfs restore``: write a point to a disk, a partition or a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from engine.restore import restore
from engine.writing import Tally
from imageformat.device import BlockDevice
from imageformat.errors import UnsupportedVolumeError, UsageError
from imageformat.formats import listed_suffixes
from imageformat.repository import Access, Point
from imageformat.storage.places import is_remote
from mountfs.cli.command import At, DiskNumber, PointName, Threads, Yes, command
from mountfs.cli.images import disk_of, find_node, opened_point, parse_inner
from mountfs.cli.render import Renderer, format_duration, format_size
from mountfs.cli.targets import TargetSerial, agreed_target
from mountfs.cli.targetwriting import Job, tally_facts, write_target
from mountfs.cli.unreadable import warn_of_bad_restore
from mountfs.disktree import DiskTree
from mountfs.session import Session

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
Delta = Annotated[
    bool,
    typer.Option("--delta", help="Write only what differs from what is there; free space stays as it is."),
]

BAD_SECTORS_EXIT = 4

EXAMPLES = """\
mountfs restore /backups/sdb@3 /dev/sdc --verify
mountfs restore /backups/sdb@3 serial=S3X --target-serial S3X    in scripts
mountfs restore /backups/sdb@3 /dev/sdb --delta    only what changed since
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
    target_serial: TargetSerial = None,
    check: Check = False,
    delta: Delta = False,
    threads: Threads = 0,
) -> int:
    """Write any point to a disk, a partition or a file, byte for byte.

    Asks before it overwrites anything; for a disk, for its serial number. A file gets its name only when it
    is complete; on a device its start is written last, so that an interrupted restore never looks bootable.
    The same command goes on where one was interrupted. Sectors that were unreadable at the source become
    zeros, and a warning.
    """
    name = parse_inner(image, point=point, at=at)
    if target.endswith("/"):
        raise UsageError(f"{target} names a folder; name a disk, a partition or a file")
    with (
        opened_point(name, read_ahead=False, access=access) as (session, chosen),
        chosen_part(session, chosen, name.inner, disk=disk_of(chosen, disk)) as (part, sector_size),
    ):
        facts = agreed_target(
            out,
            target,
            part.size,
            what=chosen.file_name if chosen.is_foreign else f"point {chosen.number} of {chosen.set_name}",
            images=image_files(session, chosen, access),
            yes=yes,
            serial=target_serial,
        )
        job = Job(
            verb="restore",
            source=_named(chosen, name.inner, disk_of(chosen, disk)),
            size=part.size,
            sector_size=sector_size,
            delta=delta,
            keeps_record=delta,
        )
        tally = write_target(
            out,
            facts,
            job,
            lambda opened, record, known, report: restore(
                part,
                opened,
                threads=threads,
                check=check or delta,
                delta=delta,
                record=record,
                known=known,
                report=report,
            ),
        )
        _tell(out, chosen, target, tally)
    return warn_of_bad_restore(out, tally)


def _named(chosen: Point, inner: str | None, disk: int) -> str:
    known = f"{chosen.info.id} {chosen.info.root.hex()}" if chosen.info else chosen.key
    return f"point {known} disk {disk} part {(inner or '').strip('/')}"


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
    if is_remote(storage.url):
        return [named.path for named in access.named]
    image_set = session.location.repository.image_set(chosen.set_name)
    keys = {point.key for point in image_set.points}
    if chosen.is_foreign:
        stem = chosen.file_name.split(".")[0]
        for stored in storage.objects(image_set.prefix):
            name = stored.key.removeprefix(image_set.prefix)
            if name.split(".")[0] == stem or name.lower().endswith(listed_suffixes()):
                keys.add(stored.key)
    return [*(f"{storage.url}/{key}" for key in keys), *(named.path for named in access.named)]


def _tell(out: Renderer, chosen: Point, target: str, tally: Tally) -> None:
    out.result(
        {
            "set": chosen.set_name,
            "point": chosen.info.number if chosen.info else None,
            "target": target,
            **tally_facts(tally),
        }
    )
    verified = ", read back and compared" if tally.verified else ""
    unchanged = f", {format_size(tally.skipped)} there already" if tally.skipped else ""
    out.line(
        f"{target}: {format_size(tally.size)} restored, {format_size(tally.written)} written{unchanged}"
        f"{verified}, in {format_duration(tally.seconds)}"
    )
