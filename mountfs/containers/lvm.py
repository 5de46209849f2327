"""LVM2: volume groups over one or more physical volumes, and the logical volumes in them.

Linear and striped volumes are read. What needs more than that to be right (thin provisioning, caches, RAID,
snapshots) is shown with the reason why it is not opened.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from imageformat.device import check_range
from imageformat.errors import MountfsError, VolumeError
from imageformat.extent import coalesce, shift
from mountfs.containers import InnerVolume, OpenedContainer, Place, VolumeContainer
from mountfs.containers._lvm_metadata import SECTOR, read_physical_volume
from mountfs.names import safe_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from imageformat.device import BlockDevice
    from imageformat.extent import Extent
    from imageformat.secrets import Secrets
    from mountfs.containers._lvm_metadata import LogicalVolume, LvSegment, PhysicalVolume, VolumeGroup
    from mountfs.tree import FileSystemInfo

_MAX_VOLUMES = 1024
_READ = frozenset({"striped", "linear"})


class _Run(NamedTuple):
    """A segment whose physical volumes are all there."""

    start: int
    size: int
    stripes: tuple[tuple[int, int], ...]
    """Device and byte on it, of each stripe."""
    stripe_size: int
    """Of a run of one stripe: its whole size."""


def open_lvm(devices: Iterator[BlockDevice], info: FileSystemInfo, secrets: Secrets) -> OpenedContainer:  # noqa: ARG001
    """See `VolumeContainer.open`. Looks for other physical volumes only as long as some are missing."""
    given: list[BlockDevice] = []
    known: dict[str, int] = {}
    found: list[PhysicalVolume] = []
    group: VolumeGroup | None = None
    for device in devices:
        given.append(device)
        try:
            physical = read_physical_volume(device)
        except MountfsError:
            if len(given) == 1:
                raise
            continue
        found.append(physical)
        known.setdefault(physical.uuid, len(given) - 1)
        group = _newest(found)
        if group is not None and all(carrier.uuid in known for carrier in group.carriers.values()):
            break
    if group is None:
        raise VolumeError("no metadata of its volume group is on this disk")
    places = {name: known[carrier.uuid] for name, carrier in group.carriers.items() if carrier.uuid in known}
    snapshots = dict(_snapshots(group))
    shown = [volume for volume in group.volumes if volume.visible or volume.name in snapshots]
    if len(shown) > _MAX_VOLUMES:
        raise VolumeError(f"the volume group claims {len(shown)} logical volumes")
    volumes = tuple(_inner(group, volume, given, places, snapshots.get(volume.name, "")) for volume in shown)
    if not volumes:
        raise VolumeError(f"the volume group {safe_text(group.name)} has no logical volumes")
    return OpenedContainer(volumes, tuple(sorted(set(places.values()))))


def _newest(found: Sequence[PhysicalVolume]) -> VolumeGroup | None:
    """Return the newest description of the group that the first physical volume belongs to."""
    first = found[0].uuid
    groups = [physical.group for physical in found if physical.group is not None]
    own = [group for group in groups if any(carrier.uuid == first for carrier in group.carriers.values())]
    return max(own, key=lambda group: group.sequence, default=None)


def _snapshots(group: VolumeGroup) -> Iterator[tuple[str, str]]:
    """Yield the names of snapshots, which LVM itself hides, and of what each is one."""
    for volume in group.volumes:
        for segment in volume.segments:
            if segment.type == "snapshot" and segment.related:
                yield from ((store, segment.related[0]) for store in segment.related[1:])


def _inner(
    group: VolumeGroup,
    volume: LogicalVolume,
    devices: Sequence[BlockDevice],
    places: Mapping[str, int],
    origin: str,
) -> InnerVolume:
    reason = f"it is a snapshot of {safe_text(origin)}, which cannot be read here" if origin else ""
    runs: list[_Run] = []
    try:
        if not reason:
            runs = [_run(group, segment, devices, places) for segment in volume.segments]
    except VolumeError as error:
        reason = str(error)
    if reason or not runs:
        return InnerVolume(volume.name, volume.size, None, lambda *_: iter(()), reason or "it is empty")
    device = _LogicalDevice(devices, tuple(runs), volume.size)
    return InnerVolume(volume.name, volume.size, device, device.places)


def _run(
    group: VolumeGroup, segment: LvSegment, devices: Sequence[BlockDevice], places: Mapping[str, int]
) -> _Run:
    """Find the physical volumes of a segment.

    Raises:
        VolumeError: one is missing, or it is of a kind that cannot be read.
    """
    count = len(segment.stripes)
    if segment.type not in _READ:
        raise VolumeError(f"it is of the kind {safe_text(segment.type)}, which cannot be read here")
    if not count or segment.size % count or (count > 1 and not segment.stripe_size):
        raise VolumeError("one of its segments makes no sense")
    stripes = []
    for name, offset in segment.stripes:
        carrier = group.carriers.get(name)
        if carrier is None or name not in places:
            hint = f" (it was {safe_text(carrier.hint)})" if carrier is not None and carrier.hint else ""
            raise VolumeError(f"its physical volume {safe_text(name)}{hint} is not on this disk")
        start = carrier.start + offset
        if start + segment.size // count > devices[places[name]].size:
            raise VolumeError(f"it lies behind the end of the physical volume {safe_text(name)}")
        stripes.append((places[name], start))
    return _Run(segment.start, segment.size, tuple(stripes), segment.stripe_size or segment.size)


class _LogicalDevice:
    """A logical volume. Its devices belong to others. Any number of threads."""

    def __init__(self, devices: Sequence[BlockDevice], runs: tuple[_Run, ...], size: int) -> None:
        self._devices = devices
        self._runs = runs
        self._starts = [run.start for run in runs]
        self.size = size
        self.block_size = max((device.block_size for device in devices), default=SECTOR)

    def places(self, offset: int, length: int) -> Iterator[Place]:
        """Yield where a range lies, in order."""
        end = offset + length
        index = bisect_right(self._starts, offset) - 1
        while offset < end:
            run = self._runs[index]
            inside = offset - run.start
            if inside >= run.size:
                index += 1
                continue
            chunk, within = divmod(inside, run.stripe_size)
            row, stripe = divmod(chunk, len(run.stripes))
            device, start = run.stripes[stripe]
            step = min(end - offset, run.stripe_size - within, run.size - inside)
            yield Place(device, start + row * run.stripe_size + within, step)
            offset += step

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        return b"".join(
            self._devices[place.member].pread(place.offset, place.length)
            for place in self.places(offset, size)
        )

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`."""
        check_range(self.size, offset, size)
        return coalesce(self._extents(offset, size))

    def _extents(self, offset: int, size: int) -> Iterator[Extent]:
        for place in self.places(offset, size):
            inner = self._devices[place.member].extents(place.offset, place.length)
            yield from shift(inner, offset - place.offset)
            offset += place.length

    def close(self) -> None:
        """The owner of the underlying devices closes them."""


def group_name(device: BlockDevice) -> str:
    """Return the name of the volume group, as far as this one device tells it."""
    group = read_physical_volume(device).group
    return group.name if group is not None else ""


PLUGIN = VolumeContainer("lvm", frozenset({"lvm2"}), open_lvm, spans=True, label=group_name)
