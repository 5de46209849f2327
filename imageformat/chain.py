"""A point and the images it depends on, proven link by link, and resolved newest-first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, ParentMismatchError
from imageformat.layer import Ancestor, BlockRef, Fill, ImageLayer, Older

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from imageformat.layer import ImageInfo

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
        self._ancestors: tuple[Ancestor, ...] | None = None
        self._lock = threading.Lock()

    def ancestors(self) -> tuple[Ancestor, ...]:
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
        if layer.ancestors() != self.ancestors()[:depth]:
            raise ParentMismatchError(f"point {self.info.number}: ancestor {wanted.id} has other ancestors")
        return layer

    def prove(self) -> None:
        """Open every ancestor and prove that it is the right one."""
        for depth in range(self.depth):
            self.layer(depth)

    def resolve(self, disk: int, offset: int, size: int) -> Iterator[Resolved]:
        """Yield (offset, length, frame or fill, bytes to skip) for the range, ascending and contiguous."""
        yield from self._resolve(self.depth, disk, offset, size)

    def _resolve(self, depth: int, disk: int, offset: int, size: int) -> Iterator[Resolved]:
        for piece in self.layer(depth).pieces(disk, offset, size):
            source = piece.source
            if not isinstance(source, Older):
                yield piece.offset, piece.length, source, piece.skip
                continue
            if not 0 <= source.layer < depth:
                raise CorruptImageError(f"point {self.info.number}: a layer refers to one that is not older")
            yield from self._resolve_older(source.layer, disk, piece.offset, piece.length)

    def _resolve_older(self, depth: int, disk: int, offset: int, size: int) -> Iterator[Resolved]:
        """Ask an older layer, whose disk may be smaller: what it does not have reads as zeros."""
        known = self.layer(depth).info.disks[disk].size
        inside = max(0, min(size, known - offset))
        if inside:
            yield from self._resolve(depth, disk, offset, inside)
        if inside < size:
            yield offset + inside, size - inside, Fill.ZERO, 0
