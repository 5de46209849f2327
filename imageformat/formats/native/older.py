"""What a new image finds in its parent: what a block was, and its bytes, to store what differs from them.

The older version must be stored plainly itself, so that a read decodes two frames at most, at any chain
length. When it cannot be had, the block is stored plainly: a damaged parent is no reason to fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import MountfsError
from imageformat.formats.native.structs import RECORD_SIZE, STORED_STATES, Record, State, unpack_record
from imageformat.layer import BlockRef, refuse_difference

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageformat.formats.native.index import ResolvedIndex
    from imageformat.formats.native.reader import NativeLayer


class OlderBlock(NamedTuple):
    """A plainly stored block: where it is, and its bytes."""

    record: Record
    raw: bytes


class ParentBlocks:
    """What the parent of a new image says of each block; ``layer`` opens its chain by depth. Thread-safe."""

    def __init__(self, index: ResolvedIndex, layer: Callable[[int], NativeLayer]) -> None:
        self.index = index
        self._layer = layer

    def record(self, block: int, raw_length: int) -> Record | None:
        """Return the record of a block; None when it says nothing of a block of that length."""
        geometry = self.index.geometry
        if block >= geometry.blocks:
            return None
        bits = geometry.page_bits
        entry = unpack_record(self.index.leaf(block >> bits), (block & (1 << bits) - 1) * RECORD_SIZE)
        if entry.state in STORED_STATES and geometry.raw_length(block) != raw_length:
            return None
        return entry

    def older(self, block: int, raw_length: int, record: Record) -> OlderBlock | None:
        """Return what ``record`` names, or what that is a difference from; None when it cannot be had."""
        ref = BlockRef(record.layer, record.offset, record.length, block, raw_length, record.digest)
        try:
            found = self._layer(ref.layer).load_stored(ref)
            if isinstance(found, BlockRef):
                ref = found
                found = self._layer(ref.layer).load((ref,), refuse_difference)[0]
        except MountfsError:
            return None
        return OlderBlock(Record(ref.digest, ref.offset, ref.length, State.DATA, ref.layer), found)
