"""NTFS and HFS+ through The Sleuth Kit (pytsk3).

libtsk reads more formats than these two; ext, FAT and ISO 9660 have drivers of their own because libtsk
gets times, names or large directories of theirs wrong, and pytsk3 cannot open APFS (it has no pools).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.errors import UnsupportedVolumeError
from mountfs.drivers._tree import VolumeTree, reading
from mountfs.drivers._tsk_hfs import HfsVolume
from mountfs.drivers._tsk_ntfs import NtfsVolume
from mountfs.tree import FileSystemDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageformat.device import BlockDevice
    from mountfs.drivers._tree import Volume
    from mountfs.tree import FileSystemInfo, FileTree

_VOLUMES: dict[str, Callable[[BlockDevice], Volume]] = {"ntfs": NtfsVolume, "hfs+": HfsVolume}


def open_tsk(device: BlockDevice, info: FileSystemInfo) -> FileTree:
    """Open an NTFS or HFS+ volume.

    Raises:
        VolumeError: it is not one, or damaged.
        UnsupportedVolumeError: the type is none of this driver's.
    """
    volume = _VOLUMES.get(info.type)
    if volume is None:
        raise UnsupportedVolumeError(f"the tsk driver does not open {info.type}")
    with reading(f"the {info.type} file system"):
        tree = VolumeTree(volume(device))
        tree.root()
    return tree


PLUGIN = FileSystemDriver(name="tsk", types=frozenset(_VOLUMES), open=open_tsk)
