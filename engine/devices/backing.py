"""On which devices does a file really lie: through mounts, partitions, loop, device mapper and RAID.

A restore must not overwrite the image it reads, and a backup must not grow the disk it reads.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engine.devices import sysfs, windowsdisks
from engine.devices.mountinfo import MountEntry, mount_holding, mounts
from engine.devices.sysfs import LOCAL, SystemRoots
from engine.devices.windowskernel import kernel

if TYPE_CHECKING:
    from collections.abc import Iterator


class FileId(NamedTuple):
    """A regular file by identity, whatever its name."""

    device: int
    inode: int


Backing = str | FileId
"""A block device by number, or a regular file."""


def holds(device_path: str, file_path: str, roots: SystemRoots = LOCAL) -> bool:
    """Whether the file (or folder, or a path not made yet) lies on that device or in that image file.

    True as well when the two are the same file, and when the device is an attachment of that file. A
    file system whose device nobody can name, on the network or in memory, lies on no device.
    """
    if sys.platform == "win32":
        return windowsdisks.holds(kernel(), device_path, file_path)
    else:  # noqa: RET505 (each system is checked for what it runs)
        return BackingWalk(roots).holds(device_path, file_path)


def identify(path: str, roots: SystemRoots = LOCAL) -> Backing | None:
    """What stands at ``path``: a block device, a regular file, or neither."""
    number = sysfs.device_number(path, roots)
    if number is not None:
        return number
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return FileId(status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


class BackingWalk:
    """Answers what lies below files, mounts and devices; keeps what it found, so ask one walk often.

    A picture of one moment: make a new one when mounts may have changed.
    """

    def __init__(self, roots: SystemRoots = LOCAL) -> None:
        self._roots = roots
        self._known: dict[Path | MountEntry | str, frozenset[Backing]] = {}
        self.mounts = mounts(roots)

    def mount_of(self, path: Path) -> MountEntry | None:
        """The mount on which ``path`` lies."""
        return mount_holding(path, self.mounts, self._roots)

    def below(self, start: Path | MountEntry | str) -> frozenset[Backing]:
        """The file or device (by number) itself, and every device and file on which it lies."""
        known = self._known.get(start)
        if known is None:
            known = self._known[start] = self._follow(start)
        return known

    def holds(self, device_path: str, file_path: str) -> bool:
        """See `holds`."""
        device = identify(device_path, self._roots)
        if device is None:
            return False
        file = identify(file_path, self._roots)
        below_device = self.below(device if isinstance(device, str) else Path(device_path))
        return device in self.below(_nearest_existing(file_path)) or file in below_device

    def _follow(self, start: Path | MountEntry | str) -> frozenset[Backing]:
        seen: set[Path | MountEntry | Backing] = set()
        pending: list[Path | MountEntry | Backing] = [start]
        while pending:
            item = pending.pop()
            if item not in seen:
                seen.add(item)
                pending.extend(self._step(item))
        return frozenset(item for item in seen if isinstance(item, str | FileId))

    def _step(self, item: Path | MountEntry | Backing) -> Iterator[Path | MountEntry | Backing]:
        if isinstance(item, str):
            return self._below_device(item)
        if isinstance(item, MountEntry):
            return self._below_mount(item)
        return self._below_path(item) if isinstance(item, Path) else iter(())

    def _below_path(self, path: Path) -> Iterator[MountEntry | Backing]:
        identity = identify(str(path), self._roots)
        if identity is not None:
            yield identity
        entry = None if isinstance(identity, str) else self.mount_of(path)
        if entry is not None:
            yield entry

    def _below_mount(self, entry: MountEntry) -> Iterator[Path | str]:
        """A file system without a device number of its own names its device or image file as its source."""
        if entry.file_system == "overlay":
            yield from _overlay_folders(entry.options)
        elif not entry.device.startswith("0:"):
            yield entry.device
        else:
            for source in sorted({entry.source, *entry.source.split(":")}):
                identity = identify(source, self._roots) if source.startswith("/") else None
                if isinstance(identity, str):
                    yield identity
                    yield from self._btrfs_members(identity) if entry.file_system == "btrfs" else ()
                elif identity is not None:
                    yield Path(source)

    def _below_device(self, number: str) -> Iterator[Path | str]:
        folder = sysfs.block_folder(number, self._roots)
        if folder is None:
            return
        if sysfs.is_partition(folder):
            yield sysfs.attribute(folder.parent, "dev")
        yield from sysfs.related_numbers(folder, "slaves")
        stored_in = sysfs.attribute(folder, "loop/backing_file").removesuffix(" (deleted)")
        if stored_in:
            yield Path(stored_in)

    def _btrfs_members(self, number: str) -> tuple[str, ...]:
        """All devices of the btrfs that has a member of that number."""
        folder = self._roots.sys / "fs" / "btrfs"
        for file_system in sorted(folder.iterdir()) if folder.is_dir() else ():
            members = sysfs.related_numbers(file_system, "devices")
            if number in members:
                return members
        return ()


def _overlay_folders(options: tuple[str, ...]) -> tuple[Path, ...]:
    """The folders that an overlay shows: new files go to the upper, old ones come from the lower."""
    names: list[str] = []
    for option in options:
        key, _, value = option.partition("=")
        if key in {"upperdir", "lowerdir", "lowerdir+"}:
            names.extend(value.split(":"))
    return tuple(Path(name) for name in names if name.startswith("/"))


def _nearest_existing(path: str) -> Path:
    """The path, or the first folder above it that this user can see."""
    candidate = Path(path).absolute()
    while not os.path.exists(candidate) and candidate != candidate.parent:  # noqa: PTH110 - never raises
        candidate = candidate.parent
    return candidate
