"""The sector size of a disk whose image does not record it: told by where its partition table lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.errors import MountfsError

if TYPE_CHECKING:
    from imageformat.device import BlockDevice

_GPT = b"EFI PART"


def sector_size_of(device: BlockDevice) -> int:
    """Return 4096 for a disk with a GPT in its second sector of that size, else 512.

    The header of a GPT is LBA 1 (UEFI specification, 5.3.2). Nothing else depends on the size of sectors
    so visibly; a disk without one is read right with either.

    A disk whose beginning cannot be read counts as one without.
    """
    try:
        start = device.pread(0, min(device.size, 4096 + len(_GPT)))
    except MountfsError:
        return 512
    return 4096 if start[4096:] == _GPT and start[512 : 512 + len(_GPT)] != _GPT else 512
