"""File trees: what a mount, `ls`, `cat` and `cp` show.

A tree is defined once here and served by thin adapters, so what an image looks like does not depend
on how it is looked at.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from imageformat.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from imageformat.device import BlockDevice
    from imageformat.extent import Extent


class NodeKind(enum.Enum):
    """What a node is."""

    DIRECTORY = "directory"
    FILE = "file"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"


UNLISTED_XATTRS = "system.ntfs_"
"""Extended attributes that only NTFS has, under ntfs-3g's names. As there, a mount answers for them but does
not list them, and a copy to another file system is not the poorer for it."""
NOT_COPIED_XATTRS = frozenset({"system.ntfs_reparse_data"})
"""They say how the original keeps its content; a copy holds the content itself."""


@dataclass(frozen=True, slots=True)
class Node:
    """One entry of a tree. Values only: it stays valid when its tree is closed and opened again."""

    name: bytes
    """As the file system stores it, UTF-8 where it stores Unicode; b"" for a root. Unescaped: never
    trust it."""
    kind: NodeKind
    key: Hashable
    """What the tree knows it by (an inode number, a path); opaque to everyone else."""
    size: int = 0
    mode: int = 0
    """Permission bits with set-id and sticky, no type bits."""
    uid: int = 0
    gid: int = 0
    links: int = 1
    inode: int = 0
    """Equal for hard links of one file, and for nothing else in the tree; 0 when unknown. A tree made of
    trees maps the numbers so that this stays true."""
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    birth_ns: int = 0
    """0 when unknown."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""
    volatile: bool = False
    """May vanish, or stand for something else, while the tree is open; whoever remembers it asks again.
    What lies below a volatile node lives only as long as that node keeps its key."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A named stream beside the main data of a file (NTFS alternate data streams, resource forks)."""

    name: bytes
    size: int


class FileTree(Protocol):
    """A read-only tree of nodes. Any number of threads may call it at once.

    Every method raises a `MountfsError` (mostly `VolumeError`, `NotFoundError`, `CorruptImageError`)
    and nothing else, however hostile the content is.
    """

    def root(self) -> Node:
        """Return the top directory."""
        ...

    def child(self, parent: Node, name: bytes) -> Node | None:
        """Look up one name in a directory; None when it is not there."""
        ...

    def children(self, parent: Node) -> Iterator[Node]:
        """List a directory, without ``.`` and ``..``, each name once."""
        ...

    def read(self, node: Node, offset: int, size: int, stream: bytes | None = None) -> bytes:
        """Read from a file or one of its named streams; short only at its end."""
        ...

    def extents(self, node: Node) -> Iterator[Extent]:
        """Describe a file as DATA and ZERO (holes), covering its size."""
        ...

    def placements(self, node: Node) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of where a file or directory lies on the device below the tree.

        As far as it is known, named streams included; to name what a damaged block belongs to.
        """
        ...

    def readlink(self, node: Node) -> bytes:
        """Return the target of a symbolic link, verbatim."""
        ...

    def xattrs(self, node: Node) -> Mapping[str, bytes]:
        """Return the extended attributes."""
        ...

    def streams(self, node: Node) -> tuple[Stream, ...]:
        """Return the named streams, without the main one."""
        ...

    def close(self) -> None:
        """Release what is held; idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class FileSystemInfo:
    """What a volume says of itself."""

    type: str
    """"ext4", "ntfs", "fat32", "exfat", "iso9660", "hfs+", "apfs", "xfs", "btrfs", "swap", "lvm2" ..."""
    label: str = ""
    uuid: str = ""
    note: str = ""
    """Shown beside it: "dirty: the journal was not replayed"."""


@dataclass(frozen=True, slots=True)
class FileSystemDriver:
    """The plug-in record of a file-system driver."""

    name: str
    types: frozenset[str]
    """The `FileSystemInfo.type` values it can open."""
    open: Callable[[BlockDevice, FileSystemInfo], FileTree]
    """Open a volume; the caller closes tree and device. Raises `VolumeError` with the reason."""
    note: Callable[[BlockDevice, FileSystemInfo], str] | None = None
    """Say what opening makes of a volume that has a note: whether its journal can be replayed. The answer
    stands in place of the note. Cheaper than opening it; raises `MountfsError` when nothing can be said."""


def walk(tree: FileTree, path: bytes) -> Node:
    """Resolve a path of names joined by ``/`` from the root; symbolic links are not followed.

    Raises:
        NotFoundError: a name is not there, or something on the way is not a directory.
    """
    node = tree.root()
    for name in path.split(b"/"):
        if name in {b"", b"."}:
            continue
        if name == b"..":
            raise UsageError("a path inside an image cannot contain '..'")
        if node.kind is not NodeKind.DIRECTORY:
            raise NotFoundError(f"{node.name!r} is not a directory")
        found = tree.child(node, name)
        if found is None:
            raise NotFoundError(f"no such file in the image: {name!r}")
        node = found
    return node
