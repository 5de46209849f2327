"""What one image file is to the code above it: a layer of a chain.

A layer knows its parent's id, never its parent. It answers, for a byte range of a disk, in which
stored frame each block lies; the chain fetches from the right layer.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, overload
from uuid import UUID

from imageformat.errors import CorruptImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.cache import BlockCache
    from imageformat.device import BlockDevice
    from imageformat.errors import MountfsError
    from imageformat.secrets import Secrets
    from imageformat.siblings import Siblings
    from imageformat.storage import Storage


class ImageType(enum.Enum):
    """How an image relates to the others of its set."""

    FULL = "full"
    """Everything; needs no other image."""
    DIFFERENTIAL = "diff"
    """What changed since the last full."""
    INCREMENTAL = "inc"
    """What changed since the last image of any type."""


class Fill(enum.Enum):
    """What a layer says of a range for which it stores no bytes."""

    ZERO = "zero"
    UNUSED = "unused"
    BAD = "bad"
    EXCLUDED = "excluded"


class Older(NamedTuple):
    """Not changed in this layer (state PARENT): ask the layer at that depth.

    That is the parent, or, when the index knows better, the layer that holds the answer.
    """

    layer: int


class Lost(NamedTuple):
    """The layer's index is damaged or unreadable there: what the range holds cannot be known. Never zeros."""

    error: MountfsError
    """What is wrong, and where; for whoever needs the range."""


class Ancestor(NamedTuple):
    """One older image of a chain."""

    id: UUID
    root: bytes


class Ancestry(Sequence[Ancestor]):
    """All ancestors of an image, oldest first; the position is the depth.

    It stays packed, ``id (16) root (32)`` each, so that comparing two long chains is comparing bytes.
    """

    __slots__ = ("packed",)
    ENTRY_SIZE = 48

    def __init__(self, packed: bytes = b"") -> None:
        if len(packed) % self.ENTRY_SIZE:
            raise ValueError(f"{len(packed)} bytes are no ancestors of {self.ENTRY_SIZE} bytes each")
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed) // self.ENTRY_SIZE

    @overload
    def __getitem__(self, depth: int) -> Ancestor: ...
    @overload
    def __getitem__(self, depth: slice) -> tuple[Ancestor, ...]: ...
    def __getitem__(self, depth: int | slice) -> Ancestor | tuple[Ancestor, ...]:
        if isinstance(depth, slice):
            return tuple(self[at] for at in range(*depth.indices(len(self))))
        start = range(len(self))[depth] * self.ENTRY_SIZE
        return Ancestor(UUID(bytes=self.packed[start : start + 16]), self.packed[start + 16 : start + 48])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ancestry) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash(self.packed)

    def begins_with(self, other: Ancestry) -> bool:
        """Tell whether ``other`` is the older part of this line."""
        return self.packed.startswith(other.packed)

    def followed_by(self, ancestor: Ancestor) -> Ancestry:
        """Return the line of a child of ``ancestor``."""
        return Ancestry(self.packed + ancestor.id.bytes + ancestor.root)


class BlockRef(NamedTuple):
    """Where the frame of one block is stored, and what it must decode to."""

    layer: int
    """Depth of the layer in its chain that holds the frame: 0 is the full."""
    offset: int
    """Of the frame in that layer's file."""
    length: int
    """Of the stored frame."""
    block: int
    """Number of the block on the disk."""
    raw_length: int
    """Length of the decoded block."""
    digest: bytes
    """XXH3-128 of the decoded block, or empty when the format has none."""


LoadBlock: TypeAlias = Callable[[BlockRef], bytes]
"""Returns the proven bytes of one block."""


def refuse_difference(ref: BlockRef) -> bytes:
    """Stand for the reference of a block that is itself one, and so may not be a difference.

    Raises:
        CorruptImageError: always.
    """
    raise CorruptImageError(f"block {ref.block} is stored as a difference from a difference")


class Piece(NamedTuple):
    """What one layer says of the range ``[offset, offset + length)`` of a disk."""

    offset: int
    length: int
    source: BlockRef | Fill | Older | Lost
    skip: int
    """Bytes of the decoded block before ``offset``; 0 for a fill."""


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """One disk of an image as it was at its point in time."""

    size: int
    block_size: int
    sector_size: int = 512
    name: str = "disk"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image says of itself."""

    format: str
    id: UUID
    """Of this file."""
    set_id: UUID
    type: ImageType
    number: int
    """Running number of the point in its set, from 1."""
    created_ns: int
    """When the picture was taken: UTC, nanoseconds since 1970."""
    disks: tuple[DiskInfo, ...]
    root: bytes
    """Logical root: names the content of the point, however it is stored."""
    parent_id: UUID | None = None
    parent_root: bytes | None = None
    depth: int = 0
    """Number of ancestors."""
    stored_size: int = 0
    """Length of the image file."""
    details: Mapping[str, object] = field(default_factory=dict)
    """What else is recorded: source, host, counts, version of the writer."""


class ImageLayer(Protocol):
    """One image file opened alone. Any number of threads may call it at once."""

    @property
    def info(self) -> ImageInfo:
        """What the image says of itself."""
        ...

    @property
    def cache_key(self) -> bytes:
        """What a cache knows the file's blocks by: never equal for files of which any block may differ."""
        ...

    def pieces(
        self,
        disk: int,
        offset: int,
        size: int,
        ancestor: Callable[[int], ImageLayer] | None = None,
    ) -> Iterator[Piece]:
        """Describe the range: ascending, contiguous, covering it exactly.

        A piece may already name a frame in an older layer (`BlockRef.layer`). What this file cannot say
        is `Older`; with ``ancestor``, which opens the layer of a depth, an index that reaches into the
        files of its ancestors is followed there instead. A damaged part of the index is `Lost`.

        Raises:
            ChainError, StorageError: an ancestor, or the storage, fails.
        """
        ...

    def ancestors(self) -> Ancestry:
        """Return all ancestors.

        Raises:
            CorruptImageError: their table is damaged.
        """
        ...

    def load(self, refs: Sequence[BlockRef], reference: LoadBlock) -> tuple[bytes, ...]:
        """Read, prove and decode frames stored in this layer, one range read per run of neighbours.

        ``reference`` gives the block in an older layer that a frame may be stored as a difference from.

        Raises:
            CorruptImageError: a frame is damaged; the message names file, block and offset.
            MountfsError: what ``reference`` raised.
        """
        ...

    def prove(self, ancestor: Callable[[int], ImageLayer] | None = None) -> Iterator[str]:
        """Check what this file's own index says against itself and the root; yield what is wrong.

        With ``ancestor`` also what it says of frames in older files, against the parent's index. Reads
        indexes, not blocks. Does not stop at the first error; what is wrong in an ancestor's file is left
        to the verification of that file.
        """
        ...

    def close(self) -> None:
        """Release the file; idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Opening:
    """A stored file that is to be opened, and what may be needed beside it."""

    device: BlockDevice
    """The file. Whoever opens it owns it from then on, also when that fails."""
    name: str
    """Names the file in errors."""
    cache: BlockCache
    """For index pages and whatever else is decoded and small."""
    siblings: Siblings
    """The only way to other files: parts, parents, backing files."""
    secrets: Secrets
    """What may open an encrypted image."""


@dataclass(frozen=True, slots=True)
class DiskSource:
    """A disk that is to be written as an image of another tool."""

    device: BlockDevice
    sector_size: int = 512
    created_ns: int = 0
    """When the picture was taken: UTC, nanoseconds since 1970."""


@dataclass(frozen=True, slots=True)
class WrittenImage:
    """What became of a disk that was written as an image of another tool."""

    size: int
    """Of all its files."""
    notes: tuple[str, ...] = ()
    """What the user must know of it: bytes that the format has no place for, and the like."""


WriteDisk: TypeAlias = "Callable[[DiskSource, Storage, str, Callable[[int], None]], WrittenImage]"
"""Writes a disk as new objects of a storage, named after the given key, each there only when all is durable.

The last argument is told the place on the disk that was reached. Raises what the disk and the storage raise,
and `UsageError` when the format cannot hold such a disk. Nothing is replaced.
"""


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """The plug-in record of an image format."""

    name: str
    suffixes: tuple[str, ...]
    """In lower case, with the dot."""
    probe: Callable[[BlockDevice], bool]
    """Cheap look at the first and last bytes; never raises for odd content."""
    open: Callable[[Opening], ImageLayer]
    """Open a stored file.

    Raises:
        ImageError: it is damaged, incomplete, or uses what is not known here.
    """
    write: WriteDisk | None = None
    """Writes a disk as an image of this format; None when that cannot be done here."""
    listed: bool = True
    """Whether a file with such a suffix counts as an image when a folder is looked through. If not, it is one
    only when it is named."""
    vague: bool = False
    """Whether its probe only says what an image may hold, not that it is of this format. Such a format is
    taken last: when no other recognises the content, and the suffix says nothing either."""
