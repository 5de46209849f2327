"""May this target be overwritten? Facts are collected once, then judged by a pure function.

A person sees the same facts before agreeing, and `engine.devices.target.open_target` compares them with
what it opened, because the name of a disk can move to another disk in between.
"""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.devices import sysfs, windowsdisks
from engine.devices.backing import Backing, BackingWalk, holds, identify
from engine.devices.facts import TargetFacts
from engine.devices.inventory import mounted_at
from engine.devices.mountinfo import swap_areas
from engine.devices.naming import named_path, normal_mark, normal_wwn
from engine.devices.sysfs import LOCAL, SystemRoots
from engine.devices.windows import device_path
from engine.devices.windowskernel import kernel
from imageformat import system
from imageformat.errors import (
    AccessDeniedError,
    DestinationError,
    DestinationReadOnlyError,
    NotFoundError,
    TargetHoldsImageError,
    TargetInUseError,
    TargetMismatchError,
    TargetTooSmallError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "TargetFacts",
    "check_mark",
    "check_target",
    "describe",
    "device_identity",
    "file_identity",
    "is_mark",
    "marks",
    "target_facts",
    "written_at",
]


def target_facts(
    path: str,
    image_paths: Iterable[str] = (),
    *,
    sources: Iterable[str] = (),
    roots: SystemRoots = LOCAL,
) -> TargetFacts:
    """Collect what is known of a target without changing it.

    Args:
        path: Block device, existing file, or a file that is to be made; a device also by `naming`.
        image_paths: Every file the restore will read: the image, its ancestors, their folder.
        sources: Disks, partitions and files that are copied to it.
        roots: Where the kernel describes its devices.

    Raises:
        NotFoundError: the folder of a new file, or the device, does not exist.
        AmbiguousNameError: several disks are of that name.
        UsageError: a folder, pipe or character device.
        AccessDeniedError: the user may not look at it, or not write it.
    """
    path = named_path(path, roots)
    read = tuple(_absolute(named_path(source, roots)) for source in sources)
    if sys.platform == "win32" and (device := device_path(path)) is not None:
        return windowsdisks.target_facts(kernel(), device, tuple(image_paths), read)
    try:
        real = _absolute(path)
        status = Path(real).stat()
    except (FileNotFoundError, NotADirectoryError):
        return _new_file_facts(_absolute(path), read, roots)
    except PermissionError as error:
        raise AccessDeniedError(
            f"{path} may not be looked at by this user; run this as root, or choose another place"
        ) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be a target: {error.strerror}") from error
    walk = BackingWalk(roots)
    found = identify(real, roots)
    if found is None:
        raise UsageError(f"{path} cannot be restored to: name a disk, a partition or a file")
    images = tuple(image for image in image_paths if walk.holds(real, image))
    read = tuple(source for source in read if walk.holds(real, source) or holds(source, real, roots))
    if isinstance(found, str):
        return replace(_device_facts(real, found, walk, roots), images=images, sources=read)
    return TargetFacts(
        path=real,
        kind="file",
        size=status.st_size,
        identity=file_identity(status),
        read_only=_is_read_only(Path(real).parent),
        mounted_at=_mounted(found, walk),
        held_by=_holders(found, walk, roots),
        images=images,
        sources=read,
    )


def written_at(path: str, roots: SystemRoots = LOCAL) -> tuple[str, ...]:
    """Return where a file system on a device, or in a file, is mounted so that it can change.

    Raises:
        NotFoundError: there is nothing of that name.
    """
    if sys.platform == "win32" and (device := device_path(path)) is not None:
        return windowsdisks.mounted_on(kernel(), device)
    found = identify(path, roots)
    if found is None:
        raise NotFoundError(f"{path} does not exist")
    walk = BackingWalk(roots)
    on_it = (entry for entry in walk.mounts if "ro" not in entry.options and found in walk.below(entry))
    return tuple(dict.fromkeys(entry.mount_point for entry in on_it))


def check_target(facts: TargetFacts, needed_size: int) -> None:
    """Refuse a target that must not, or cannot, be overwritten; pure.

    Raises:
        TargetHoldsImageError, TargetInUseError, DestinationReadOnlyError, TargetTooSmallError
    """
    name = describe(facts)
    if facts.images:
        raise TargetHoldsImageError(
            f"{name} holds {facts.images[0]}, which the restore reads; restore to another disk, or copy the "
            "images elsewhere first"
        )
    if facts.sources:
        raise TargetHoldsImageError(
            f"{name} is, or has bytes in common with, {facts.sources[0]}, which is read; name another disk"
        )
    if facts.system:
        raise TargetInUseError(
            f"{name} holds the running system; to restore it, start this machine from another disk"
        )
    if facts.mounted_at:
        raise TargetInUseError(f"{name} is mounted at {', '.join(facts.mounted_at)}; unmount it first")
    if facts.held_by:
        raise TargetInUseError(f"{name} is held by {', '.join(facts.held_by)}; detach that first")
    if facts.in_use:
        raise TargetInUseError(f"{name} is in use by another program; 'lsof {facts.path}' may name it")
    if facts.read_only:
        raise DestinationReadOnlyError(f"{name} is read-only")
    if facts.is_device and facts.size < needed_size:
        raise TargetTooSmallError(f"{name} has {facts.size} bytes, and the disk in the image {needed_size}")


def marks(facts: TargetFacts) -> tuple[str, ...]:
    """What only this target says of itself, best first: any of them names it; none for a file.

    The serial number; of a disk that has none, its world-wide name; without that, size in bytes and name.
    """
    if not facts.is_device:
        return ()
    if facts.serial or facts.wwn:
        return (facts.serial or facts.wwn,)
    return (str(facts.size), facts.path, Path(facts.path).name)


def is_mark(facts: TargetFacts, typed: str) -> bool:
    """Whether somebody typed one of the `marks`; case, blanks around it, a prefix of a WWN do not count."""
    normal = normal_mark if facts.serial else normal_wwn
    return any(normal(typed) == normal(mark) for mark in marks(facts))


def check_mark(facts: TargetFacts, typed: str) -> None:
    """Refuse a target that is not the disk whose serial number was given; pure.

    Raises:
        TargetMismatchError
    """
    if is_mark(facts, typed):
        return
    if not facts.is_device:
        raise TargetMismatchError(f"{facts.path} is a file and has no serial number; '{typed}' was demanded")
    known = f"serial number {facts.serial}" if facts.serial else f"no serial number, but {marks(facts)[0]}"
    raise TargetMismatchError(
        f"{describe(facts)} is not the disk that was demanded: it has {known}, not '{typed}'; nothing was "
        "written"
    )


def describe(facts: TargetFacts) -> str:
    """The target as a person recognises it: path, model and serial number."""
    known = [facts.model, f"serial {facts.serial}" if facts.serial else ""]
    details = ", ".join(detail for detail in known if detail)
    return f"{facts.path} ({details})" if details else facts.path


def file_identity(status: os.stat_result) -> tuple[str, ...]:
    """What makes a file this file."""
    return ("file", str(status.st_dev), str(status.st_ino))


def device_identity(number: str, roots: SystemRoots = LOCAL) -> tuple[str, ...]:
    """What makes a device this device: number, size, serial, and the kernel's count of attachments."""
    folder = sysfs.block_folder(number, roots)
    if folder is None:
        return (number,)
    disk = sysfs.disk_folder(folder)
    serial = sysfs.hardware(folder, roots).serial
    return (number, str(sysfs.size_of(folder)), serial, sysfs.attribute(disk, "diskseq"))


def _absolute(path: str) -> str:
    """Resolve a path of a file; what Windows opens as a drive or volume stays."""
    if sys.platform == "win32":
        device = device_path(path)
        return str(system.long_path(Path(os.path.realpath(path)))) if device is None else device
    return os.path.realpath(path)


def _new_file_facts(real: str, sources: tuple[str, ...], roots: SystemRoots) -> TargetFacts:
    folder = Path(real).parent
    if not folder.is_dir():
        raise NotFoundError(f"the folder {folder} does not exist; make it first")
    walk = BackingWalk(roots)
    entry = walk.mount_of(folder)
    if entry is not None and (entry.file_system == "devtmpfs" or entry.mount_point == str(roots.dev)):
        raise NotFoundError(f"there is no device {real}; 'mountfs disks' lists those of this machine")
    grown = tuple(source for source in sources if holds(source, real, roots))
    return TargetFacts(path=real, kind="new file", size=0, read_only=_is_read_only(folder), sources=grown)


def _device_facts(real: str, number: str, walk: BackingWalk, roots: SystemRoots) -> TargetFacts:
    folder = sysfs.block_folder(number, roots)
    if folder is None:
        raise DestinationError(
            f"the kernel does not describe {real} under {roots.sys}; it is not safe to overwrite"
        )
    found = sysfs.hardware(folder, roots)
    mounted = mounted_at(number, walk)
    return TargetFacts(
        path=real,
        kind="partition" if sysfs.is_partition(folder) else "disk",
        size=sysfs.size_of(folder),
        identity=device_identity(number, roots),
        model=found.model,
        serial=found.serial,
        wwn=found.wwn,
        read_only=sysfs.attribute(folder, "ro") == "1",
        mounted_at=mounted,
        held_by=_holders(number, walk, roots),
        in_use=_refuses_exclusive(real),
        system=any(point in _SYSTEM_MOUNTS for point in mounted),
    )


_SYSTEM_MOUNTS = frozenset({"/", "/usr", "/boot", "/boot/efi", "/efi"})


def _mounted(found: Backing, walk: BackingWalk) -> tuple[str, ...]:
    """Where a file system stored in that file is mounted."""
    on_loop = (entry for entry in walk.mounts if found in walk.below(entry))
    return tuple(dict.fromkeys(entry.mount_point for entry in on_loop))


def _holders(found: Backing, walk: BackingWalk, roots: SystemRoots) -> tuple[str, ...]:
    """Devices that stand on the target (its own partitions do not count), and swap."""
    holders: list[str] = []
    block = roots.sys / "block"
    for link in sorted(block.iterdir()) if block.is_dir() else ():
        folder = link.resolve()
        number = sysfs.attribute(folder, "dev")
        if number and number != found and sysfs.size_of(folder) and found in walk.below(number):
            holders.append(sysfs.device_path(folder, roots))
    if any(found in walk.below(Path(area)) for area in swap_areas(roots)):
        holders.append("swap")
    return tuple(holders)


def _refuses_exclusive(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise AccessDeniedError(f"{path} may not be opened by this user; run this as root") from error
        raise DestinationError(f"{path} cannot be opened: {error.strerror}") from error
    os.close(fd)
    return False


def _is_read_only(folder: Path) -> bool:
    if sys.platform == "win32":
        return False  # the first write tells
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
