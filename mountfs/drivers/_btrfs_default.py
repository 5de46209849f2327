"""Which subvolume of a btrfs is mounted when none is named: a short look, for what is told of a volume.

Source: the btrfs documentation, "Subvolumes" (set-default) and "Btree Items", ROOT_TREE_DIR and ROOT_BACKREF.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mountfs.drivers._btrfs_items import DIR_ITEM, ROOT_BACKREF, parse_names, parse_root_ref
from mountfs.drivers._btrfs_superblock import read_superblocks
from mountfs.drivers._btrfs_trees import Forest, Key
from mountfs.drivers._tree import reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from mountfs.drivers._btrfs_superblock import Superblock

_TOP_LEVEL = 5
_MAX_READS = 40


def default_subvolume(device: BlockDevice) -> tuple[int, bytes]:
    """Return identity and name of the subvolume that is mounted by default; 5 and no name for all of it.

    Reads a bounded number of nodes.

    Raises:
        VolumeError: the trees are damaged, too large, or not on this device.
        MountfsError: the device failed.
    """
    with reading("btrfs"):
        superblock = read_superblocks(device)[0]
        forest = Forest(device, superblock, max_reads=_MAX_READS)
        found = _TOP_LEVEL
        for data in _all_of(forest, superblock, Key(superblock.root_directory, DIR_ITEM, 0)):
            found = next((name.target.object for name in parse_names(data) if name.name == b"default"), found)
        if found == _TOP_LEVEL:
            return found, b""
        entered = next(_all_of(forest, superblock, Key(found, ROOT_BACKREF, 0)), None)
        return found, parse_root_ref(entered)[1] if entered is not None else b""


def _all_of(forest: Forest, superblock: Superblock, first: Key) -> Iterator[bytes]:
    """Yield the items of the root tree of one object and kind."""
    for key, data in forest.items(superblock.root_tree, first):
        if key[:2] != first[:2]:
            return
        yield data
