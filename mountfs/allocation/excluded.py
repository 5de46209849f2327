"""Where the files lie that are left out of an image, volume by volume.

Two kinds of files are: what the user's patterns name, and, unless everything is imaged, what an operating
system writes anew when it starts (page and swap files). Only volumes whose free space was proven are looked
into, with the same drivers that a mount uses; a file is left out only when it is known where all of it lies,
when every name it has is one to be left out, and when no other file can share its blocks. Any doubt keeps it.

Source of the marks: hiberfil.sys as ntfs-3g's manual describes it ("hibr" at its start while Windows is
hibernated); mkswap(8).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from imageformat.device import Slice
from imageformat.errors import MountfsError, VolumeError
from imageformat.extent import ExtentKind
from imageformat.leftout import DEFAULT, LeftOut
from imageformat.plugins import discover
from mountfs import allocation
from mountfs.allocation._freemap import MAX_RANGES, FreeMap
from mountfs.allocation.disk import TABLE_AREA
from mountfs.disktree import DiskTree
from mountfs.drivers._tree import ChunkReader
from mountfs.drivers._xfs_inode import read_inode
from mountfs.drivers._xfs_layout import read_superblock
from mountfs.excludes import Matcher
from mountfs.names import safe_text
from mountfs.traversal import Visit, Walk
from mountfs.tree import NodeKind

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from imageformat.device import BlockDevice
    from mountfs.allocation.disk import DiskAllocation, VolumeAllocation
    from mountfs.excludes import Pattern, Positions
    from mountfs.tree import FileSystemDriver, FileTree, Node
    from mountfs.volumeslot import VolumeSlot

_NO_CASE = frozenset({"ntfs", "fat12", "fat16", "fat32", "exfat"})
_FOLLOWED = _NO_CASE | {"ext2", "ext3", "ext4", "xfs"}
"""Where a file's extents are its own, or are known not to be."""
_PAGE_FILES = frozenset({b"pagefile.sys", b"hiberfil.sys", b"swapfile.sys"})
_HIBERNATION = b"hiberfil.sys"
_HIBERNATED = frozenset({b"hibr", b"HIBR"})
_SWAP_FILES = frozenset({b"swapfile", b"swap.img"})
_SWAP_PAGES = (4096, 8192, 16_384, 32_768, 65_536)
_SWAP_MAGIC = b"SWAPSPACE2"
_MAX_FILES = 4_000_000


@dataclass(frozen=True, slots=True)
class ExcludedFiles:
    """What is left out of a disk although it holds something."""

    extents: FreeMap
    """EXCLUDED, in bytes of the disk."""
    found: tuple[LeftOut, ...]
    """By volume and pattern."""
    warnings: tuple[str, ...]
    """Sentences: where nothing was left out although patterns might have matched, and why."""

    def __bool__(self) -> bool:
        return bool(self.extents.total)


class _File(NamedTuple):
    node: Node
    pattern: str
    names: int
    """How many of its names are to be left out."""
    start: int = 0
    """Bytes at its beginning that stay."""


def find_excluded(
    device: BlockDevice,
    free: DiskAllocation,
    patterns: Sequence[Pattern],
    drivers: Sequence[FileSystemDriver],
    sector_size: int | None = None,
) -> ExcludedFiles:
    """Find the files of a disk that are left out of an image, at this moment.

    ``free`` is what was found of its free space at the same moment. Never raises a `MountfsError`: a volume
    that cannot be looked through keeps all its files, and a warning says so where patterns were given.
    """
    tree = DiskTree(Slice(device, 0, device.size), drivers, sector_size=sector_size)
    try:
        return _Search(tree, device.size, free, tuple(patterns)).run()
    finally:
        tree.close()


class _Search:
    """One search of one disk. One use, one thread."""

    def __init__(
        self, tree: DiskTree, size: int, free: DiskAllocation, patterns: tuple[Pattern, ...]
    ) -> None:
        self._free = free
        self._patterns = patterns
        self._slots = {
            slot.volume.offset: slot for slot in tree.contents().slots.values() if not slot.volume.parents
        }
        edge = TABLE_AREA if tree.table.partitions else 0
        self._area = edge, size - edge
        self._hibernated = any(map(self._is_hibernated, free.volumes))

    def run(self) -> ExcludedFiles:
        places: list[tuple[int, int]] = []
        found: list[LeftOut] = []
        warnings: list[str] = []
        for volume in self._free.volumes:
            slot = self._slots.get(volume.offset)
            if slot is None or not volume.type:
                continue
            try:
                here, left_out = self._volume(volume, slot)
                if len(places) + len(here) > MAX_RANGES:
                    raise VolumeError("its files to be left out lie in too many pieces")
            except MountfsError as error:
                if self._patterns:
                    warnings.append(f"no file of {volume.name} is left out: {error}")
                continue
            places += here
            found += left_out
        warnings += self._unmatched(found)
        extents = FreeMap(ExtentKind.EXCLUDED)
        for start, length in places:
            extents.add(start, length)
        return ExcludedFiles(extents, tuple(found), tuple(warnings))

    def _unmatched(self, found: Iterable[LeftOut]) -> Iterator[str]:
        matched = {entry.pattern for entry in found}
        for pattern in self._patterns:
            if pattern.text not in matched:
                yield f"--exclude {pattern.text}: no file was left out by it"

    def _volume(
        self, volume: VolumeAllocation, slot: VolumeSlot
    ) -> tuple[list[tuple[int, int]], list[LeftOut]]:
        """Return the places on the disk, ascending and apart, and whose they are."""
        matcher = Matcher(self._patterns, ignore_case=volume.type in _NO_CASE)
        begun = matcher.step(matcher.start(), slot.volume.name)
        wanted = Matcher.is_open(begun)
        if volume.reason or volume.type not in _FOLLOWED:
            if wanted:
                raise VolumeError(volume.reason or f"its files may share what they hold ({volume.type})")
            return [], []
        tree, root = slot.tree()
        if slot.failure is not None:
            raise slot.failure
        files = {_identity(file.node): file for file in self._system_files(volume, tree, root)}
        if wanted:
            for node, pattern in _matching(tree, root, matcher, begun):
                known = files.get(_identity(node))
                names = 0 if known is None or known.pattern.startswith(DEFAULT) else known.names
                files[_identity(node)] = _File(node, pattern.text, names + 1)
                if len(files) > _MAX_FILES:
                    raise VolumeError(f"more than {_MAX_FILES} files are to be left out")
        return self._places(volume, slot, tree, root, files)

    def _places(
        self,
        volume: VolumeAllocation,
        slot: VolumeSlot,
        tree: FileTree,
        root: Node,
        files: dict[Hashable, _File],
    ) -> tuple[list[tuple[int, int]], list[LeftOut]]:
        others = _other_names(tree, root, files)
        shares = _sharing(volume, slot)
        places: list[tuple[int, int]] = []
        sums: dict[str, tuple[int, int]] = {}
        for identity, file in files.items():
            if others.get(identity) or shares(file.node):
                continue
            mine = [self._on_disk(volume, *place) for place in _placed(tree, file)]
            if not mine:
                continue
            places += mine
            count, size = sums.get(file.pattern, (0, 0))
            sums[file.pattern] = count + 1, size + sum(length for _, length in mine)
        places.sort()
        if places:
            self._prove(volume, places, _structures(volume, slot))
        return places, [LeftOut(volume.offset, pattern, *facts) for pattern, facts in sums.items()]

    def _on_disk(self, volume: VolumeAllocation, start: int, length: int) -> tuple[int, int]:
        """Move a place from the volume to the disk, and keep away from where the partition tables are."""
        start += volume.offset
        first, end = max(start, self._area[0]), min(start + length, self._area[1])
        return first, max(0, end - first)

    def _prove(self, volume: VolumeAllocation, places: list[tuple[int, int]], structures: FreeMap) -> None:
        """Raise `VolumeError` when what the files say cannot be true together with the rest."""
        for (start, length), (following, _) in pairwise(places):
            if start + length > following:
                raise VolumeError(f"two of its files lie at byte {following - volume.offset}")
        for start, length in places:
            if start + length > volume.offset + volume.size:
                raise VolumeError("a file lies behind its end")
            if self._free.unused.meets(start, length):
                raise VolumeError(f"a file lies in free space, at byte {start - volume.offset}")
            if structures.meets(start - volume.offset, length):
                raise VolumeError(f"a file lies in its metadata, at byte {start - volume.offset}")

    def _system_files(self, volume: VolumeAllocation, tree: FileTree, root: Node) -> Iterator[_File]:
        """Yield what systems write anew when they start, in the root of a volume."""
        if volume.type == "ntfs" and not self._hibernated:
            for node in tree.children(root):
                if node.kind is NodeKind.FILE and node.name.lower() in _PAGE_FILES:
                    yield _File(node, f"{DEFAULT}{safe_text(node.name)}", 1)
        elif volume.type not in _NO_CASE:
            for node in tree.children(root):
                if node.kind is NodeKind.FILE and node.name in _SWAP_FILES:
                    header = _swap_header(tree, node)
                    if header:
                        yield _File(node, f"{DEFAULT}{safe_text(node.name)}", 1, header)

    def _is_hibernated(self, volume: VolumeAllocation) -> bool:
        """Tell whether a volume holds a sleeping Windows, which needs its page files; also when in doubt."""
        slot = self._slots.get(volume.offset)
        if volume.type != "ntfs" or slot is None:
            return False
        try:
            tree, root = slot.tree()
            return any(
                node.name.lower() == _HIBERNATION and tree.read(node, 0, 4) in _HIBERNATED
                for node in tree.children(root)
            )
        except MountfsError:
            return True


def _structures(volume: VolumeAllocation, slot: VolumeSlot) -> FreeMap:
    """Return what is no content of files, in bytes of the volume."""
    found = FreeMap()
    device = slot.part.device
    for reader in discover(allocation).available:
        if volume.type in reader.types and device is not None:
            for start, length in sorted(reader.structures(device)):
                found.add(start, length)
    return found


def _identity(node: Node) -> Hashable:
    return node.inode or ("key", node.key)


def _matching(
    tree: FileTree, root: Node, matcher: Matcher, begun: Positions
) -> Iterator[tuple[Node, Pattern]]:
    """Yield the files that patterns name, once for each name.

    Raises:
        VolumeError: a folder cannot be read: what lies in it may be another name of a file.
    """
    walk = Walk(tree, root, b"")
    way: list[tuple[Positions, Pattern | None]] = []
    for step in walk:
        if step.visit is Visit.REFUSED:
            raise step.error or VolumeError("a folder cannot be read")
        if step.visit is Visit.LEAVE:
            way.pop()
            continue
        is_folder = step.visit is Visit.ENTER
        positions, pattern = way[-1] if way else (begun, None)
        if way:
            positions = matcher.step(positions, step.node.name)
        pattern = pattern or matcher.match(positions, is_folder=is_folder)
        if not is_folder:
            if pattern is not None and step.node.kind is NodeKind.FILE:
                yield step.node, pattern
        elif pattern is None and not Matcher.is_open(positions):
            walk.prune()
        else:
            way.append((positions, pattern))


def _other_names(tree: FileTree, root: Node, files: dict[Hashable, _File]) -> dict[Hashable, int]:
    """Count the names of files that are not to be left out; looks for them only where there may be some."""
    missing = {key: -file.names for key, file in files.items() if file.node.links > file.names}
    if not missing:
        return {}
    for step in Walk(tree, root, b""):
        if step.visit is Visit.REFUSED:
            raise step.error or VolumeError("a folder cannot be read")
        if step.visit is Visit.ENTRY and _identity(step.node) in missing:
            missing[_identity(step.node)] += 1
    return missing


def _sharing(volume: VolumeAllocation, slot: VolumeSlot) -> _Sharing:
    return _Sharing(slot.part.device if volume.type == "xfs" else None)


class _Sharing:
    """Tells whether blocks of a file may be those of others, too: XFS says so of each file that ever did."""

    def __init__(self, device: BlockDevice | None) -> None:
        self._device = device
        self._chunks = ChunkReader(device) if device is not None else None
        self._layout = read_superblock(device) if device is not None else None

    def __call__(self, node: Node) -> bool:
        if self._chunks is None or self._layout is None:
            return False
        return not isinstance(node.key, int) or read_inode(self._chunks, self._layout, node.key).may_share


def _placed(tree: FileTree, file: _File) -> list[tuple[int, int]]:
    """Return where a file lies on its volume, without what stays; nothing when that is not known."""
    try:
        places = list(tree.placements(file.node))
    except MountfsError:
        return []
    kept, left = file.start, []
    for start, length in places:
        cut = min(kept, length)
        kept -= cut
        if length > cut:
            left.append((start + cut, length - cut))
    return left


def _swap_header(tree: FileTree, node: Node) -> int:
    """Return the size of the first page of a swap file, which describes it; 0 when it is none, or in use."""
    try:
        head = tree.read(node, 0, _SWAP_PAGES[-1])
    except MountfsError:
        return 0
    return next((page for page in _SWAP_PAGES if head[page - 10 : page] == _SWAP_MAGIC), 0)
