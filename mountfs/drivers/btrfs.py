"""btrfs, read without a library: proven by its checksums, one device of a file system at a time.

The top-level tree is shown, with subvolumes and snapshots as the directories that they are. Of what lies on
other devices only the names are known, and an error says which device is missing. The log of fsynced writes
is not replayed (as with the kernel's ``rescue=nologreplay``): what is shown is the last commit, whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import MountfsError, VolumeError
from mountfs.drivers._btrfs_codecs import decode
from mountfs.drivers._btrfs_content import DataReader, ExtentContent, Spans, check_extent
from mountfs.drivers._btrfs_items import (
    DIR_INDEX,
    EXTENT_DATA,
    INODE_ITEM,
    INODE_NO_CHECKSUM,
    NAME_KINDS,
    ROOT_ITEM,
    ROOT_REF,
    XATTR_ITEM,
    Extent,
    Inode,
    Name,
    TreeRoot,
    parse_extent,
    parse_inode,
    parse_names,
    parse_root,
    parse_root_ref,
)
from mountfs.drivers._btrfs_superblock import read_superblocks
from mountfs.drivers._btrfs_trees import Forest, Key
from mountfs.drivers._content import BytesContent
from mountfs.drivers._tree import MAX_TARGET, Listing, ListingBuilder, VolumeTree, reading
from mountfs.tree import FileSystemDriver, Node, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice
    from mountfs.drivers._btrfs_superblock import Superblock
    from mountfs.drivers._content import Content
    from mountfs.tree import FileSystemInfo, FileTree, Stream

_TOP_LEVEL = 5
_CHECKSUM_TREE = 7
_FIRST_FREE, _LAST_FREE = 256, 2**64 - 257
_MAX_SUBVOLUMES = 1_000_000
_INODE_BITS = 48
"""A disk tells its volumes apart in the bits above."""
_EMPTY_MODE = 0o755


class _NodeKey(NamedTuple):
    """An inode of a subvolume; with ``name``, an entry of that directory whose subvolume is not here."""

    tree: int
    inode: int
    name: bytes = b""


class BtrfsVolume:
    """A `Volume` over one device of a btrfs."""

    def __init__(self, device: BlockDevice, superblock: Superblock) -> None:
        self._superblock = superblock
        self._forest = Forest(device, superblock)
        self._trees = dict(self._read_trees())
        checksums = self._trees.pop(_CHECKSUM_TREE, None)
        self._data = DataReader(
            device, self._superblock, self._forest, checksums.root if checksums is not None else None
        )
        self._numbers = {tree: number for number, tree in enumerate(sorted(self._trees))}
        self._bits = _INODE_BITS - (len(self._trees) - 1).bit_length()

    def _read_trees(self) -> Iterator[tuple[int, TreeRoot]]:
        """Yield the trees that hold files, and that of the checksums; of several items the last counts."""
        for count, (key, data) in enumerate(self._forest.items(self._superblock.root_tree, Key(0, 0, 0))):
            if key.kind == ROOT_ITEM and (
                key.object in {_TOP_LEVEL, _CHECKSUM_TREE} or _FIRST_FREE <= key.object <= _LAST_FREE
            ):
                yield key.object, parse_root(data)
            if count >= 8 * _MAX_SUBVOLUMES:
                raise VolumeError("the root tree has too many items")

    def root(self) -> Node:
        """See `Volume.root`."""
        found = self._tree(_TOP_LEVEL)
        root = self._inode(_TOP_LEVEL, found.directory)
        if root.kind is not NodeKind.DIRECTORY:
            raise VolumeError("the root of the file system is not a directory")
        return self._node(b"", _TOP_LEVEL, root)

    def listing(self, node: Node) -> Listing:
        """See `Volume.listing`."""
        found = ListingBuilder()
        key = _key(node)
        if key.name:
            return found.done()
        parent = self._node_inode(node)
        for name in self._names(key.tree, parent.number, DIR_INDEX):
            if name.name in {b"", b".", b".."} or b"/" in name.name:
                found.damaged(f"a directory is damaged: the name {name.name!r}")
                continue
            try:
                found.add(self._entry(key.tree, parent, name))
            except VolumeError as error:
                found.damaged(f"{name.name!r} cannot be read: {error}")
        return found.done()

    def _entry(self, tree: int, parent: Inode, name: Name) -> Node:
        if name.target.kind == ROOT_ITEM:
            return self._subvolume(tree, parent, name)
        if name.target.kind != INODE_ITEM:
            raise VolumeError(f"it leads to an item of kind {name.target.kind}")
        inode = self._inode(tree, name.target.object)
        if NAME_KINDS.get(name.kind) is not inode.kind:
            raise VolumeError(f"inode {inode.number} is of another kind than its directory says")
        return self._node(name.name, tree, inode)

    def _subvolume(self, tree: int, parent: Inode, name: Name) -> Node:
        """Enter a subvolume; where a snapshot only names one, there is an empty directory."""
        child = name.target.object
        entered = self._forest.find(self._superblock.root_tree, Key(tree, ROOT_REF, child))
        found = self._trees.get(child)
        is_here = entered is not None and parse_root_ref(entered) == (parent.number, name.name)
        if not is_here or found is None or not found.references:
            accessed, changed, modified, born = parent.times
            return Node(
                name=name.name,
                kind=NodeKind.DIRECTORY,
                key=_NodeKey(tree, parent.number, name.name),
                mode=_EMPTY_MODE,
                uid=parent.uid,
                gid=parent.gid,
                atime_ns=accessed,
                mtime_ns=modified,
                ctime_ns=changed,
                birth_ns=born,
            )
        return self._node(name.name, child, self._inode(child, found.directory))

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """See `Volume.content`; btrfs has no named streams."""
        if stream is not None:
            return None
        return self._content(_key(node).tree, self._node_inode(node))

    def _content(self, tree: int, inode: Inode) -> Content:
        head, spans, position = b"", Spans(), 0
        first = Key(inode.number, EXTENT_DATA, 0)
        for key, data in self._forest.items(self._tree(tree).root, first):
            if key[:2] != first[:2]:
                break
            extent = parse_extent(data)
            if key.offset < position or (extent.inline is not None and key.offset):
                raise VolumeError(f"the map of inode {inode.number} is damaged at byte {key.offset}")
            if extent.inline is not None:
                head = self._inline(extent)[: inode.size]
                position = len(head)
                continue
            position = key.offset + extent.length
            length = min(extent.length, inode.size - key.offset)
            if length > 0 and extent.address:
                check_extent(extent, self._superblock.sector_size)
                if extent.is_written:
                    spans.add(key.offset, length, extent)
        if len(head) == inode.size:
            return BytesContent(head)
        checked = not inode.flags & INODE_NO_CHECKSUM
        return ExtentContent(self._data, head, spans, inode.size, checked=checked)

    def _inline(self, extent: Extent) -> bytes:
        held = extent.inline or b""
        if not extent.compression:
            return held
        return decode(extent.compression, held, extent.raw_size, self._superblock.sector_size)

    def readlink(self, node: Node) -> bytes:
        """See `Volume.readlink`."""
        inode = self._node_inode(node)
        if inode.size > MAX_TARGET:
            raise VolumeError(f"a symbolic link of {inode.size} bytes")
        return self._content(_key(node).tree, inode).read(0, inode.size)

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """See `Volume.xattrs`."""
        key = _key(node)
        if key.name:
            return {}
        return {
            name.name.decode("utf-8", "surrogateescape"): name.value
            for name in self._names(key.tree, key.inode, XATTR_ITEM)
        }

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """Always empty."""
        del node
        return ()

    def close(self) -> None:
        """Nothing is held."""

    def _tree(self, tree: int) -> TreeRoot:
        found = self._trees.get(tree)
        if found is None:
            raise VolumeError(f"there is no subvolume {tree}")
        return found

    def _names(self, tree: int, inode: int, kind: int) -> Iterator[Name]:
        first = Key(inode, kind, 0)
        for key, data in self._forest.items(self._tree(tree).root, first):
            if key[:2] != first[:2]:
                return
            yield from parse_names(data)

    def _inode(self, tree: int, number: int) -> Inode:
        raw = self._forest.find(self._tree(tree).root, Key(number, INODE_ITEM, 0))
        if raw is None:
            raise VolumeError(f"inode {number} of subvolume {tree} does not exist")
        return parse_inode(number, raw)

    def _node(self, name: bytes, tree: int, inode: Inode) -> Node:
        """Describe an inode; its number is made distinct between subvolumes, or 0 where it is too large."""
        shown = self._numbers[tree] << self._bits | inode.number if inode.number < 1 << self._bits else 0
        return inode.to_node(name, _NodeKey(tree, inode.number), shown)

    def _node_inode(self, node: Node) -> Inode:
        key = _key(node)
        if key.name:
            raise VolumeError(f"{node.name!r} is not here: the snapshot holds only its name")
        inode = self._inode(key.tree, key.inode)
        if inode.kind is not node.kind:
            raise VolumeError(f"{node.name!r} is not a node of this file system")
        return inode


def _key(node: Node) -> _NodeKey:
    if not isinstance(node.key, _NodeKey):
        raise VolumeError(f"{node.name!r} is not a node of this file system")
    return node.key


def open_btrfs(device: BlockDevice, info: FileSystemInfo) -> FileTree:
    """Open one device of a btrfs.

    Raises:
        VolumeError: it is not one, it is damaged, its trees lie on a device that is not here, or it uses a
            feature that is not supported.
    """
    del info
    failure: MountfsError | None = None
    with reading("btrfs"):
        for superblock in read_superblocks(device):
            try:
                tree = VolumeTree(BtrfsVolume(device, superblock))
                tree.root()
                return tree
            except MountfsError as error:
                failure = failure or error
    raise failure or VolumeError("btrfs cannot be opened")


PLUGIN = FileSystemDriver(name="btrfs", types=frozenset({"btrfs"}), open=open_btrfs)
