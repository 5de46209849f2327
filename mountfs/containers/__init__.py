"""Volumes that hold volumes: encryption and volume managers.

Each kind is one plug-in module of this package with ``PLUGIN = VolumeContainer(...)``. What it opens are
devices again, so what lies inside may be a file system, another container or a whole partition table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageformat.device import BlockDevice
    from imageformat.secrets import Secrets
    from mountfs.tree import FileSystemInfo


class Place(NamedTuple):
    """Bytes of an inner volume on one of the devices that its container was opened from."""

    member: int
    """Which device, in the order in which they were given."""
    offset: int
    length: int


Places: TypeAlias = "Callable[[int, int], Iterator[Place]]"
"""From a range of an inner volume to where it is stored, in order; metadata that has no place is left out."""


@dataclass(frozen=True, slots=True)
class InnerVolume:
    """One volume inside a container."""

    name: str
    """What people call it; empty when only what it holds has a name."""
    size: int
    device: BlockDevice | None
    """Its bytes, read from the devices of the container; None when they cannot be had. Owns nothing."""
    places: Places
    reason: str = ""
    """Why its bytes cannot be had, or only some of them; empty when they can."""


@dataclass(frozen=True, slots=True)
class OpenedContainer:
    """What a container turned out to hold. Values, and windows on the devices it was opened from."""

    volumes: tuple[InnerVolume, ...]
    """In an order that does not change while the container does not; numbered from 1."""
    members: tuple[int, ...] = (0,)
    """Which of the devices belong to it."""


@dataclass(frozen=True, slots=True)
class VolumeContainer:
    """The plug-in record of a kind of container."""

    name: str
    types: frozenset[str]
    """The `FileSystemInfo.type` values it can open."""
    open: Callable[[Iterator[BlockDevice], FileSystemInfo, Secrets], OpenedContainer]
    """Open the container that starts on the first device. If it ``spans``, the other volumes of the disk that
    have the same type follow, found only when they are asked for. Nothing is closed by it.

    Raises `LockedError` when the secrets do not open it, `VolumeError` with the reason when nothing can."""
    spans: bool = False
    """Whether one container may lie in several volumes of a disk."""
    label: Callable[[BlockDevice], str] | None = None
    """Say what people call the container that a device belongs to; for what the signature does not tell.

    Raises `MountfsError` when that cannot be read."""


def straight(start: int) -> Places:
    """Return the places of a volume that lies in one piece, ``start`` bytes into the first device."""

    def places(offset: int, length: int) -> Iterator[Place]:
        yield Place(0, start + offset, length)

    return places
