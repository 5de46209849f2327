"""Turning any readable image into one of another format.

Into our own format a whole set is converted, point by point, each with its time; a point that is there
already is not made again, so that an interrupted conversion goes on. Into another tool's format a disk is
written by that format itself (`ImageFormat.write`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.backup import BackupOptions, backup
from imageformat.layer import ImageType
from imageformat.leftout import excluded_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engine.backup import BackupProgress, BackupResult
    from imageformat.layer import ImageInfo
    from imageformat.repository import Point, Repository
    from imageformat.view import ImageView


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of one point."""

    point: Point
    result: BackupResult | None
    """None: it was there already."""


def convert_points(
    points: Sequence[Point],
    view_of: Callable[[Point], ImageView],
    repository: Repository,
    set_name: str,
    options: BackupOptions,
    *,
    writer: str,
    report: Callable[[Point, BackupProgress], None] = lambda _point, _progress: None,
) -> Iterator[Conversion]:
    """Write points, oldest first, into one set of native images: the first in full, then what changed.

    Each keeps its time and remembers what it was made from. ``view_of`` opens a point; it is closed here.

    Raises:
        ImageError, ChainError: a point cannot be read; those before it stay.
        DestinationError, SetBusyError
    """
    known = {_source_of(point.info): point for point in repository.image_set(set_name).points if point.info}
    parent: Point | None = None
    for point in points:
        if point.info is None:
            continue
        there = known.get(_name_of(point.info))
        result = None
        if there is None:
            with contextlib.closing(view_of(point)) as view:
                kind = ImageType.INCREMENTAL if parent is not None else ImageType.FULL
                result = backup(
                    view,
                    repository,
                    set_name,
                    replace(options, type=kind, any_source=True),
                    origin=_origin(point, point.info, writer),
                    parent=parent,
                    excluded=() if excluded_bytes(view) else None,
                    report=_reporter(report, point),
                    clock_ns=_fixed(point.info.created_ns),
                )
            there = _point_of(repository, set_name, result)
        parent = there
        yield Conversion(point, result)


def _reporter(
    report: Callable[[Point, BackupProgress], None], point: Point
) -> Callable[[BackupProgress], None]:
    return lambda progress: report(point, progress)


def _fixed(moment_ns: int) -> Callable[[], int]:
    return lambda: moment_ns


def _point_of(repository: Repository, set_name: str, result: BackupResult) -> Point:
    return next(point for point in repository.image_set(set_name).points if point.key == result.key)


def _name_of(info: ImageInfo) -> str:
    return f"{info.format} {info.id} {info.root.hex()}"


def _source_of(info: ImageInfo) -> str:
    return str(info.details.get("converted_from", ""))


def _origin(point: Point, info: ImageInfo, writer: str) -> dict[str, object]:
    kept = {
        key: info.details[key]
        for key in ("host", "model", "serial", "source", "unused", "excluded")
        if key in info.details
    }
    return {"source": point.file_name, **kept, "writer": writer, "converted_from": _name_of(info)}
