"""FAT12, FAT16, FAT32 and exFAT, read without a library.

libtsk applies the machine's time zone, ignores the one that exFAT stores, and refuses FAT32 volumes with
few clusters. What the format does not know is answered as the kernel's drivers do: root owns everything,
mode 0755, 0555 for what is marked read-only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError
from mountfs.drivers._content import RunContent, RunList
from mountfs.drivers._fat_entries import ENTRY, FatEntry, Problem, exfat_entries, fat_entries
from mountfs.drivers._fat_layout import ClusterChains, read_layout
from mountfs.drivers._tree import Listing, ListingBuilder, VolumeTree, reading
from mountfs.tree import FileSystemDriver, Node, NodeKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import Content
    from mountfs.tree import FileSystemInfo, FileTree, Stream

_MAX_DIRECTORY = 256 << 20
"""The exFAT limit; FAT's own is 2 MiB."""

_INODE_ROOT = 1


class FatKey(NamedTuple):
    """All that is needed to read a node again."""

    position: int
    """Of its entry on the volume; 0 for the root."""
    cluster: int
    size: int
    valid_size: int
    contiguous: bool


class FatVolume:
    """A `Volume` over FAT or exFAT."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._layout = read_layout(device)
        self._chains = ClusterChains(device, self._layout)

    def root(self) -> Node:
        """See `Volume.root`."""
        key = FatKey(0, self._layout.root_cluster, 0, 0, contiguous=False)
        return Node(b"", NodeKind.DIRECTORY, key, mode=0o755, links=2, inode=_INODE_ROOT)

    def listing(self, node: Node) -> Listing:
        """See `Volume.listing`."""
        key = _key(node)
        runs = self._directory_runs(key)
        content = RunContent(self._device, runs, runs.end)
        raw = content.read(0, content.size)
        found = ListingBuilder()
        for entry in exfat_entries(raw) if self._layout.is_exfat else fat_entries(raw):
            if isinstance(entry, Problem):
                found.damaged(entry.text)
            else:
                (run,) = runs.between(entry.position, ENTRY)
                found.add(_node(entry, run.source))
        return found.done()

    def content(self, node: Node, stream: bytes | None) -> Content | None:
        """See `Volume.content`; there are no named streams."""
        if stream is not None:
            return None
        key = _key(node)
        runs = self._chains.runs(key.cluster, key.size, contiguous=key.contiguous)
        if key.valid_size < key.size:
            runs = _cut(runs, key.valid_size)
        return RunContent(self._device, runs, key.size)

    def readlink(self, node: Node) -> bytes:
        """There are no symbolic links."""
        raise VolumeError(f"{node.name!r} is not a node of this file system")

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """Always empty."""
        del node
        return {}

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """Always empty."""
        del node
        return ()

    def close(self) -> None:
        """Nothing is held."""

    def _directory_runs(self, key: FatKey) -> RunList:
        if not key.position and not self._layout.root_cluster:
            runs = RunList()
            runs.add(0, self._layout.root_size, self._layout.root_offset)
            return runs
        if self._layout.is_exfat and key.position:
            if key.size > _MAX_DIRECTORY:
                raise VolumeError(f"a directory of {key.size} bytes")
            return self._chains.runs(key.cluster, key.size, contiguous=key.contiguous)
        return self._chains.directory_runs(key.cluster, _MAX_DIRECTORY)


def _cut(runs: RunList, size: int) -> RunList:
    shorter = RunList()
    for run in runs.between(0, size):
        shorter.add(*run)
    return shorter


def _key(node: Node) -> FatKey:
    if not isinstance(node.key, FatKey):
        raise VolumeError(f"{node.name!r} is not a node of this file system")
    return node.key


def _node(entry: FatEntry, position: int) -> Node:
    return Node(
        name=entry.name,
        kind=NodeKind.DIRECTORY if entry.is_directory else NodeKind.FILE,
        key=FatKey(position, entry.cluster, entry.size, entry.valid_size, entry.contiguous),
        size=entry.size,
        mode=0o555 if entry.is_read_only and not entry.is_directory else 0o755,
        links=2 if entry.is_directory else 1,
        inode=_INODE_ROOT + position // ENTRY,
        atime_ns=entry.atime_ns,
        mtime_ns=entry.mtime_ns,
        ctime_ns=entry.mtime_ns,
        birth_ns=entry.birth_ns,
    )


def open_fat(device: BlockDevice, info: FileSystemInfo) -> FileTree:
    """Open a FAT or exFAT volume.

    Raises:
        VolumeError: it is neither, or damaged.
    """
    del info
    with reading("the boot sector"):
        return VolumeTree(FatVolume(device))


PLUGIN = FileSystemDriver(name="fat", types=frozenset({"fat12", "fat16", "fat32", "exfat"}), open=open_fat)
