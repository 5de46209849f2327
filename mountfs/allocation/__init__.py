"""Which bytes of a volume hold nothing: the file system's own records of its free space.

Each kind of file system is one plug-in module of this package with ``PLUGIN = AllocationReader(...)``. Free
space is never guessed: what is dirty, damaged, contradicts itself or is not understood is a `VolumeError`,
and whoever asked takes all of the volume as used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from imageformat.device import BlockDevice
    from mountfs.allocation._freemap import FreeMap


@dataclass(frozen=True, slots=True)
class AllocationReader:
    """The plug-in record of what reads one kind of free space."""

    name: str
    types: frozenset[str]
    """As `mountfs.signatures` names them."""
    unused: Callable[[BlockDevice], FreeMap]
    """Return what is free on a volume, as `ExtentKind.UNUSED`, proven as far as the file system allows.

    Raises `VolumeError` with one sentence without a full stop when that cannot be said of the volume, and
    any other `MountfsError` when the device failed. Memory is bounded by `FreeMap`."""
    structures: Callable[[BlockDevice], Iterable[tuple[int, int]]] = lambda _: ()
    """Return where something lies that is no file's content, as (start, length) in any order: what a damaged
    file may seem to lie on. Empty where that cannot be. Raises as ``unused``."""
