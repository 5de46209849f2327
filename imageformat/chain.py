"""A point and the images it depends on, proven link by link, and resolved newest-first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, ParentMismatchError
from imageformat.layer import Fill, Lost, Older, Piece, refuse_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from imageformat.layer import Ancestor, Ancestry, BlockRef, ImageInfo, ImageLayer, LoadBlock

    Resolved: TypeAlias = tuple[int, int, BlockRef | Fill, int]


class Chain:
    """One image and its ancestors, opened when first needed. Any number of threads may call it at once.

    ``find`` opens an ancestor; it keeps ownership of what it returns. The chain owns nothing.
    """

    def __init__(self, tip: ImageLayer, find: Callable[[Ancestor], ImageLayer]) -> None:
        self.info: ImageInfo = tip.info
        self.depth = tip.info.depth
        self._find = find
        self._layers: dict[int, ImageLayer] = {self.depth: tip}
        self._ancestors: Ancestry | None = None
        self._lock = threading.Lock()

    def ancestors(self) -> Ancestry:
        """Return all ancestors, oldest first."""
        if self._ancestors is None:
            self._ancestors = self._layers[self.depth].ancestors()
        return self._ancestors

    def layer(self, depth: int) -> ImageLayer:
        """Return the layer at ``depth``; 0 is the full.

        Raises:
            ParentMissingError: no file has that image.
            ParentMismatchError: the file that claims to be it holds something else.
        """
        found = self._layers.get(depth)
        if found is not None:
            return found
        with self._lock:
            if depth not in self._layers:
                self._layers[depth] = self._open(depth)
            return self._layers[depth]

    def _open(self, depth: int) -> ImageLayer:
        wanted = self.ancestors()[depth]
        layer = self._find(wanted)
        info = layer.info
        if (info.id, info.root, info.depth) != (wanted.id, wanted.root, depth):
            raise ParentMismatchError(
                f"point {self.info.number}: ancestor {wanted.id} was replaced by an image of other content"
            )
        if not self.ancestors().begins_with(layer.ancestors()):
            raise ParentMismatchError(f"point {self.info.number}: ancestor {wanted.id} has other ancestors")
        return layer

    def prove(self) -> None:
        """Open every ancestor and prove that it is the right one."""
        for depth in range(self.depth):
            self.layer(depth)

    def resolve(self, disk: int, offset: int, size: int) -> Iterator[Resolved]:
        """Yield (offset, length, frame or fill, bytes to skip) for the range, ascending and contiguous.

        Raises:
            CorruptImageError: the index is damaged there.
            ChainError, StorageError: an ancestor, or the storage, fails.
        """
        pending = [(self.depth, offset, size)]
        while pending:
            depth, start, length = pending.pop()
            older: list[tuple[int, int, int]] = []
            for piece in self._pieces(depth, disk, start, length):
                source = piece.source
                if isinstance(source, Older):
                    if not 0 <= source.layer < depth:
                        raise CorruptImageError(
                            f"point {self.info.number}: a layer refers to one that is not older"
                        )
                    rest = start + length - piece.offset - piece.length
                    older = [(depth, piece.offset + piece.length, rest)] if rest else []
                    older.append((source.layer, piece.offset, piece.length))
                    break
                if isinstance(source, Lost):
                    raise source.error
                yield piece.offset, piece.length, source, piece.skip
            pending += older

    def load(self, refs: Sequence[BlockRef], reference: LoadBlock | None = None) -> list[bytes]:
        """Return blocks, each from its layer, neighbours read together.

        ``reference`` gives the older blocks that differences stand on; without it they are read too.

        Raises:
            CorruptImageError: a frame is damaged.
            ChainError, StorageError: an ancestor, or the storage, fails.
        """
        blocks: list[bytes] = []
        start = 0
        for position in range(1, len(refs) + 1):
            if position == len(refs) or refs[position].layer != refs[start].layer:
                layer = self.layer(refs[start].layer)
                blocks.extend(layer.load(refs[start:position], reference or self.load_plain))
                start = position
        return blocks

    def load_plain(self, ref: BlockRef) -> bytes:
        """Return a block that others are differences from, and so is none itself.

        Raises:
            CorruptImageError: it is one, or damaged.
        """
        return self.layer(ref.layer).load((ref,), refuse_difference)[0]

    def _pieces(self, depth: int, disk: int, offset: int, size: int) -> Iterator[Piece]:
        """Ask one layer, whose disk may be smaller: what it does not have reads as zeros."""
        layer = self.layer(depth)
        inside = max(0, min(size, layer.info.disks[disk].size - offset))
        if inside:
            yield from layer.pieces(disk, offset, inside, self.layer)
        if inside < size:
            yield Piece(offset + inside, size - inside, Fill.ZERO, 0)
