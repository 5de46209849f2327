"""Finding the file that a differencing image stands on, among the names that the image gives."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, TypeVar

from imageformat.errors import (
    AccessDeniedError,
    ChainCycleError,
    MountfsError,
    ParentMismatchError,
    ParentMissingError,
)
from imageformat.layer import Opening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from imageformat.siblings import Sibling

T = TypeVar("T")
MAX_LINE = 64
"""Files that may stand on each other."""


def check_line(name: str, identity: bytes, line: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the line of images from the one that was asked for down to this one.

    Raises:
        ChainCycleError: this one is among those that stand on it, or there are too many.
    """
    if identity in line:
        raise ChainCycleError(f"{name}: is its own ancestor")
    if len(line) >= MAX_LINE:
        raise ChainCycleError(f"{name}: more than {MAX_LINE} images stand on each other")
    return (*line, identity)


def open_parent(opening: Opening, names: Iterable[str], accept: Callable[[Opening], T]) -> T:
    """Open the first file among ``names`` that is the parent.

    A name is tried as it is; then as a file of that name in the image's own folder, where it is when a
    folder of images was moved. ``accept`` owns the device it gets, and raises when that is not the parent.

    Raises:
        ParentMismatchError: there is such a file, with other content; or what else ``accept`` raised.
        ParentMissingError, AccessDeniedError: there is none.
    """
    failures: list[MountfsError] = []
    for name in _candidates(names):
        try:
            found = opening.siblings.open(name)
            return accept(opening_of(opening, found))
        except MountfsError as error:
            failures.append(error)
    for kinds in ((ChainCycleError,), (ParentMismatchError,)):
        for failure in failures:
            if isinstance(failure, kinds):
                raise failure
    for failure in failures:
        if not isinstance(failure, (ParentMissingError, AccessDeniedError)):
            raise failure
    if failures:
        raise failures[0]
    raise ParentMissingError(f"{opening.name}: stands on another image and does not say which")


def opening_of(opening: Opening, found: Sibling) -> Opening:
    """Return how another file of the same image is opened."""
    return Opening(found.device, found.name, opening.cache, found.siblings, opening.secrets)


def _candidates(names: Iterable[str]) -> list[str]:
    given = [name for name in names if name]
    bare = [posixpath.basename(name.replace("\\", "/")) for name in given]
    return list(dict.fromkeys([*given, *(name for name in bare if name)]))
