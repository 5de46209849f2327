"""UDF 1.02 to 2.60: DVDs, Blu-ray discs, write-once media, and hard disks that several systems share.

Every descriptor is proven by its checksum and its place before it is believed. Of a disc that also holds
ISO 9660, UDF is shown, as Linux does. Sources: ECMA-167 3rd edition and OSTA UDF 2.60.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.errors import VolumeError
from mountfs.drivers import _udf_descriptors as udf
from mountfs.drivers._tree import MAX_TARGET, Listing, ListingBuilder, VolumeTree, reading
from mountfs.drivers._udf_volume import open_files
from mountfs.tree import FileSystemDriver, Node, NodeKind, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content
    from mountfs.tree import FileSystemInfo, FileTree

_MAX_DIRECTORY = 256 << 20
_MAX_STREAMS = 10_000

_KINDS = {
    0: NodeKind.FILE,
    4: NodeKind.DIRECTORY,
    5: NodeKind.FILE,
    6: NodeKind.BLOCK_DEVICE,
    7: NodeKind.CHARACTER_DEVICE,
    9: NodeKind.FIFO,
    10: NodeKind.SOCKET,
    12: NodeKind.SYMLINK,
    249: NodeKind.FILE,
}
"""By the file type of an entry (ECMA-167 4/14.6.6); 249 is a real-time file."""
_DEVICES = {NodeKind.BLOCK_DEVICE, NodeKind.CHARACTER_DEVICE}


class UdfVolume:
    """A `Volume` over one UDF logical volume. Keys are places of file entries."""

    def __init__(self, device: BlockDevice) -> None:
        self._files, self._root = open_files(device)

    def root(self) -> Node:
        """See `Volume.root`."""
        node = self._node(b"", self._root)
        if node.kind is not NodeKind.DIRECTORY:
            raise VolumeError("the root of the file system is not a directory")
        return node

    def listing(self, node: Node) -> Listing:
        """See `Volume.listing`."""
        found = ListingBuilder()
        try:
            for entry in self._identifiers(self._entry(node)):
                self._add(found, entry)
        except VolumeError as error:
            if not found.entries:
                raise
            found.damaged(str(error))
        return found.done()

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """See `Volume.content`."""
        entry = self._entry(node)
        if stream is None:
            return self._files.content(entry)
        for name, found in self._streams(entry):
            if name == stream:
                return self._files.content(found)
        return None

    def readlink(self, node: Node) -> bytes:
        """See `Volume.readlink`."""
        return self._target(self._entry(node))

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """Always empty: the extended attributes of UDF are for systems, not for people."""
        del node
        return {}

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """See `Volume.streams`."""
        return tuple(Stream(name, entry.size) for name, entry in self._streams(self._entry(node)))

    def close(self) -> None:
        """Nothing is held."""

    def _entry(self, node: Node) -> udf.Entry:
        if not isinstance(node.key, udf.Place):
            raise VolumeError(f"{node.name!r} is not a node of this file system")
        return self._files.entry(node.key)

    def _identifiers(self, directory: udf.Entry) -> Iterator[udf.Identifier]:
        content = self._files.content(directory)
        if content.size > _MAX_DIRECTORY:
            raise VolumeError(f"a directory of {content.size} bytes")
        for found in udf.identifiers(content.read(0, content.size)):
            if not found.deleted and not found.parent:
                yield found

    def _add(self, found: ListingBuilder, entry: udf.Identifier) -> None:
        if entry.name in {b"", b".", b".."}:
            found.damaged(f"a directory is damaged: the name {entry.name!r}")
            return
        try:
            with reading("its entry"):
                found.add(self._node(entry.name, entry.place))
        except VolumeError as error:
            found.damaged(f"{entry.name!r} cannot be read: {error}")

    def _node(self, name: bytes, place: udf.Place) -> Node:
        entry = self._files.entry(place)
        kind = _KINDS.get(entry.kind)
        if kind is None:
            raise VolumeError(f"a file of kind {entry.kind}")
        size = entry.size if kind is NodeKind.FILE else 0
        return Node(
            name=name,
            kind=kind,
            key=place,
            size=len(self._target(entry)) if kind is NodeKind.SYMLINK else size,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            links=max(1, entry.links),
            inode=place.partition << 32 | place.block,
            atime_ns=entry.atime_ns,
            mtime_ns=entry.mtime_ns,
            ctime_ns=entry.ctime_ns,
            birth_ns=entry.birth_ns,
            device=udf.device_number(entry) if kind in _DEVICES else (0, 0),
        )

    def _target(self, entry: udf.Entry) -> bytes:
        if entry.size > MAX_TARGET:
            raise VolumeError(f"a symbolic link of {entry.size} bytes")
        return udf.link_target(self._files.content(entry).read(0, entry.size))

    def _streams(self, entry: udf.Entry) -> Iterator[tuple[bytes, udf.Entry]]:
        if entry.streams is None:
            return
        directory = self._files.entry(entry.streams.place)
        if directory.kind != udf.STREAM_DIRECTORY:
            raise VolumeError(f"the streams of a file are in a file of kind {directory.kind}")
        for number, found in enumerate(self._identifiers(directory)):
            if number >= _MAX_STREAMS:
                raise VolumeError(f"a file has more than {_MAX_STREAMS} streams")
            yield found.name, self._files.entry(found.place)


def open_udf(device: BlockDevice, info: FileSystemInfo) -> FileTree:
    """Open a UDF volume.

    Raises:
        VolumeError: it is not one, it is damaged, or it uses something that is not supported.
    """
    del info
    with reading("the UDF volume descriptors"):
        tree = VolumeTree(UdfVolume(device))
        tree.root()
    return tree


PLUGIN = FileSystemDriver(name="udf", types=frozenset({"udf"}), open=open_udf)
