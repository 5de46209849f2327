"""``mountfs convert``: any readable image into another format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from engine.backup import BackupOptions, BackupProgress
from engine.convert import Conversion, convert_points
from engine.devices.guards import check_target, target_facts
from engine.devices.target import open_target
from engine.plan import check_set_name, set_name_for
from engine.restore import restore
from imageformat.errors import DestinationError, UsageError
from imageformat.formats import image_formats
from imageformat.layer import DiskSource, ImageFormat, WrittenImage
from imageformat.leftout import excluded_bytes
from imageformat.repository import Access, Point, Repository
from imageformat.selection import place_names, problem_error
from imageformat.storage.local import LocalStorage
from imageformat.view import ImageView
from mountfs import __version__
from mountfs.cli.command import At, DiskNumber, PointName, Threads, command
from mountfs.cli.images import disk_of, parse_name
from mountfs.cli.render import Renderer, counted, format_size
from mountfs.cli.reports import point_result
from mountfs.session import Session

RAW = "raw"
NATIVE = "mfi"
_RAW_SUFFIXES = (".img", ".raw", ".dd", ".bin")

Place = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE|SET", help="Any readable image; a set: all its points.", show_default=False
    ),
]
TargetName = Annotated[
    str,
    typer.Argument(
        metavar="TARGET", help="A new file, or for mfi the folder of a repository.", show_default=False
    ),
]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="mfi, raw, qcow2, vhdx, mrimgx; default: by TARGET's suffix, else mfi.",
    ),
]
SetName = Annotated[
    str | None, typer.Option("--set", metavar="NAME", help="Name of the new set; default: the source's.")
]

EXAMPLES = """\
mountfs convert backup.mrimgx /backups    every point, as native images
mountfs convert /backups/sdb@3 vm.qcow2
mountfs convert disk.E01 disk.img
"""


@command
def run(
    out: Renderer,
    access: Access,
    image: Place,
    target: TargetName,
    to: To = None,
    point: PointName = None,
    at: At = None,
    set_name: SetName = None,
    disk: DiskNumber = None,
    threads: Threads = 0,
) -> None:
    """Convert an image of any format that can be read.

    To mfi, every point of a set becomes a point with its time, the first in full and then what changed; a run
    that was interrupted goes on. To any other format goes one disk of one point; its file appears when it is
    whole. Images for Macrium Reflect X (mrimgx) are experimental.
    """
    name = parse_name(image, point=point, at=at)
    wanted = to or _format_of(target)
    with Session(name.path, access=access) as session:
        if wanted == NATIVE:
            points = _points(session, name.selector)
            new_set = check_set_name(set_name) if set_name else set_name_for(_set_source(session, points))
            _to_native(out, session, points, Path(target), new_set, disk=disk, threads=threads)
            return
        if set_name is not None:
            raise UsageError("--set names a set of native images; leave it out, or use --to mfi")
        chosen = session.location.point(name.selector)
        view = session.view(chosen, disk=disk_of(chosen, disk))
        excluded = excluded_bytes(view)
        if excluded:
            out.warning(f"{format_size(excluded)} of files that were left out of the image become zeros")
        if wanted == RAW:
            made = _to_raw(out, view, target, threads)
        else:
            created_ns = chosen.info.created_ns if chosen.info else 0
            made = _to_file(out, view, created_ns, _writer(wanted), Path(target))
        out.result(
            {
                "point": point_result(chosen),
                "target": target,
                "format": wanted,
                "size": made.size,
                "notes": list(made.notes),
            }
        )
        out.line(f"{target}: {wanted}, {format_size(made.size)}")
        for note in made.notes:
            out.warning(note)


def _format_of(target: str) -> str:
    """Tell by its suffix what a target is to be."""
    lower = target.lower()
    if lower.endswith(_RAW_SUFFIXES):
        return RAW
    for record in image_formats():
        if lower.endswith(record.suffixes):
            return record.name
    return NATIVE


def _writer(wanted: str) -> ImageFormat:
    for record in image_formats():
        if record.name == wanted and record.write is not None:
            return record
    known = ", ".join(record.name for record in image_formats() if record.write is not None)
    raise UsageError(f"--to {wanted}: cannot be written here; use one of mfi, raw, {known}")


def _points(session: Session, selector: str | None) -> list[Point]:
    """Return what is to be converted, oldest first; a broken point is an error before anything is written."""
    location = session.location
    if selector is not None or location.key is not None:
        return [location.point(selector)]
    sets = location.sets()
    if len(sets) > 1:
        names = ", ".join(place_names(sets))
        raise UsageError(f"there are several sets here; convert one at a time: {names}")
    if not sets[0].is_line:
        names = ", ".join(place_names(sets))
        raise UsageError(f"there are several images here; convert one at a time: {names}")
    points = list(sets[0].points)
    for found in points:
        if found.problem is not None:
            raise problem_error(found)
    return sorted(points, key=lambda found: (found.number, found.info.created_ns if found.info else 0))


def _set_source(session: Session, points: list[Point]) -> str:
    """Return what the new set is named after: the set, or the file that was named."""
    return points[0].set_name if session.location.key is None else Path(points[0].file_name).stem


def _to_native(
    out: Renderer,
    session: Session,
    points: list[Point],
    root: Path,
    set_name: str,
    *,
    disk: int | None,
    threads: int,
) -> None:
    numbers = {point.key: disk_of(point, disk) for point in points}
    total = sum(_size(point, numbers) for point in points)
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file; name the folder of a repository")
    repository = Repository(LocalStorage(root.absolute()))
    done: list[Conversion] = []
    try:
        with out.progress(f"convert to {root}/{set_name}", total) as progress:

            def report(point: Point, state: BackupProgress) -> None:
                passed = sum(_size(conversion.point, numbers) for conversion in done)
                progress.update(passed + state.done, f"point {point.number}")

            done.extend(
                convert_points(
                    points,
                    lambda point: session.view(point, disk=numbers[point.key]),
                    repository,
                    set_name,
                    BackupOptions(threads=threads),
                    writer=f"mountfs {__version__}",
                    report=report,
                )
            )
    finally:
        repository.close()
    made = [conversion.result for conversion in done if conversion.result is not None]
    stored = sum(result.info.stored_size for result in made)
    out.result(
        {
            "repository": str(root.absolute()),
            "set": set_name,
            "points": [point_result(conversion.point) for conversion in done],
            "converted": len(made),
            "stored": stored,
        }
    )
    known = len(done) - len(made)
    skipped = f", {known} there already" if known else ""
    out.line(
        f"{root}/{set_name}: {counted(len(made), 'point')} converted{skipped}, {format_size(stored)} stored"
    )


def _size(point: Point, numbers: Mapping[str, int]) -> int:
    """Return the size of the disk of a point whose number stands under its key."""
    return point.info.disks[numbers[point.key]].size if point.info else 0


def _to_raw(out: Renderer, view: ImageView, target: str, threads: int) -> WrittenImage:
    facts = target_facts(target)
    if facts.kind != "new file":
        raise DestinationError(f"{target} exists already; write over it with: mountfs restore")
    check_target(facts, view.size)
    opened = open_target(target, view.size, sector_size=view.sector_size, expected=facts)
    try:
        with out.progress(f"convert to {target}", view.size) as progress:
            restore(view, opened, threads=threads, report=lambda state: progress.update(state.done, ""))
        opened.commit()
    finally:
        opened.abort()
    return WrittenImage(view.size)


def _to_file(
    out: Renderer, view: ImageView, created_ns: int, record: ImageFormat, target: Path
) -> WrittenImage:
    if record.write is None:
        raise UsageError(f"{record.name} cannot be written here")
    storage = LocalStorage(target.absolute().parent)
    with out.progress(f"convert to {target}", view.size) as progress:

        def report(done: int) -> None:
            progress.update(done, "")

        source = DiskSource(view, view.sector_size, created_ns)
        return record.write(source, storage, target.name, report)
