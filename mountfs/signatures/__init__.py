"""What is on this volume? Superblocks recognised by their signatures, named as libblkid names them.

Labels and UUIDs are what ``blkid -p`` prints, so a volume has the same name here as on the machine it came
from. Only types differ where ours say more: "fat32" for "vfat", "luks2" for "crypto_LUKS".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mountfs.signatures import apple, containers, linux, optical, others, windows
from mountfs.signatures.window import Window

if TYPE_CHECKING:
    from imageformat.device import BlockDevice
    from mountfs.tree import FileSystemInfo

_ORDER = (
    *containers.SIGNATURES,
    *others.CONTAINERS,
    *windows.SIGNATURES,
    *linux.SIGNATURES,
    *optical.SIGNATURES,
    *apple.SIGNATURES,
    *others.SIGNATURES,
    *containers.LATE_SIGNATURES,
)


def identify(device: BlockDevice) -> FileSystemInfo | None:
    """Say what file system or container a volume holds; None when nothing known is there.

    Reads a bounded number of small pieces, whatever the volume says. The content is not verified: a driver
    may still refuse it.

    Raises:
        MountfsError: nothing known was found, but some of the places to look at could not be read.
    """
    window = Window(device)
    for signature in _ORDER:
        info = signature.identify(window)
        if info is not None:
            return info
    if window.error is not None:
        raise window.error
    return None


def identify_all(device: BlockDevice) -> tuple[FileSystemInfo, ...]:
    """Say everything that a volume may hold, the likeliest first: more than one when an older one left marks.

    Raises:
        MountfsError: some of the places to look at could not be read.
    """
    window = Window(device)
    found = tuple(info for signature in _ORDER if (info := signature.identify(window)) is not None)
    if window.error is not None:
        raise window.error
    return found
