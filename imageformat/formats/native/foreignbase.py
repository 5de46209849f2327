"""Standing on an image of another tool: what a new image finds in it, block by block.

Such an image has no index of ours, so the first native image on it names every block that it leaves there,
with its place on that disk and its checksum. The chain opens, verifies and restores as one, and finds out
when the base was changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imageformat.codec import digest
from imageformat.errors import UsageError
from imageformat.foreign import ForeignLayer
from imageformat.formats.native.structs import Record, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageformat.layer import ImageLayer


class Reference(NamedTuple):
    """A block that stays in the base."""

    block: int
    record: Record


class BaseBlocks:
    """The blocks of an image of another tool, cut as a new image cuts its disk. Thread-safe."""

    def __init__(self, layer: ForeignLayer, block_size: int) -> None:
        self._device = layer.device(0)
        self._block_size = block_size

    def same(self, block: int, raw_digest: bytes, raw_length: int) -> Reference | None:
        """Return where the base has just these bytes; None when it has others.

        Raises:
            ImageError, StorageError: the base cannot be read there.
        """
        offset = block * self._block_size
        if offset + raw_length > self._device.size:
            return None
        if digest(self._device.pread(offset, raw_length)) != raw_digest:
            return None
        return Reference(block, Record(raw_digest, offset, raw_length, State.DATA, 0))


def foreign_base(tip: ImageLayer) -> ForeignLayer | None:
    """Return the layer as a base if it is an image of another tool.

    Raises:
        UsageError: it has several disks, and a chain holds one.
    """
    if not isinstance(tip, ForeignLayer):
        return None
    if len(tip.info.disks) != 1:
        raise UsageError(
            f"the base has {len(tip.info.disks)} disks and a chain holds one; convert that disk first"
        )
    return tip


def stands_on_foreign(layer: Callable[[int], ImageLayer]) -> bool:
    """Tell whether depth 0 of a chain is an image of another tool."""
    return isinstance(layer(0), ForeignLayer)
