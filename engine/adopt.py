"""Letting a chain stand on an image of another tool: how that image comes into the set."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from engine.plan import NATIVE_SUFFIX
from imageformat.errors import NotFoundError, UsageError
from imageformat.storage.local import read_error, write_error

if TYPE_CHECKING:
    from pathlib import Path

    from imageformat.repository import Point, Repository


def adopt(repository: Repository, root: Path, set_name: str, base: Path) -> Point:
    """Return the image ``base`` as a point of a set, linked into the set's folder unless it lies there.

    Nothing is copied: the chain needs that file where it is from now on.

    Raises:
        NotFoundError: it is not there.
        UsageError: it is no image that a chain can stand on, or another file has its name in the set.
        ImageError: it is damaged, locked, or uses what is not known here.
    """
    try:
        place = base.resolve(strict=True)
    except OSError as error:
        raise read_error(error, base) from error
    folder = root / set_name
    link = folder / place.name
    made = False
    try:
        if not link.exists():
            folder.mkdir(parents=True, exist_ok=True)
            link.symlink_to(place)
            made = True
        elif not link.samefile(place):
            raise UsageError(f"{link} is another file than {base}; rename one of them")
    except OSError as error:
        raise write_error(error, folder) from error
    try:
        return _point(repository, set_name, place.name)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                link.unlink()
        raise


def _point(repository: Repository, set_name: str, name: str) -> Point:
    for point in repository.image_set(set_name).points:
        if point.file_name == name:
            if point.problem is not None:
                raise point.problem.to_error()
            if name.endswith(NATIVE_SUFFIX):
                raise UsageError(
                    f"{name} is an image of this tool: put it in its set, and build on it by --parent"
                )
            return point
    raise NotFoundError(
        f"{name} is no image that a chain can stand on; a raw disk is imaged like any other source: "
        f"mountfs backup {name} REPO"
    )
