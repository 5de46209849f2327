"""NTFS through The Sleuth Kit (pytsk3).

libtsk reads more formats than this one; the others have drivers of their own because libtsk gets times,
names, attributes or large directories of theirs wrong, and pytsk3 cannot open APFS (it has no pools).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.errors import UnsupportedVolumeError
from mountfs.drivers._tree import VolumeTree, reading
from mountfs.drivers._tsk_ntfs import NtfsVolume
from mountfs.tree import FileSystemDriver

if TYPE_CHECKING:
    from imageformat.device import BlockDevice
    from mountfs.tree import FileSystemInfo, FileTree


def open_ntfs(device: BlockDevice, info: FileSystemInfo) -> FileTree:
    """Open an NTFS volume.

    Raises:
        VolumeError: it is not one, or damaged.
        UnsupportedVolumeError: the type is another.
    """
    if info.type != "ntfs":
        raise UnsupportedVolumeError(f"the NTFS driver does not open {info.type}")
    with reading("the NTFS file system"):
        tree = VolumeTree(NtfsVolume(device))
        tree.root()
    return tree


PLUGIN = FileSystemDriver(name="ntfs", types=frozenset({"ntfs"}), open=open_ntfs)
