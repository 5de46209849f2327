"""Looking a byte range up in the index of an image, alone or through the files of its chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, StorageError
from imageformat.formats.native.index import STATE_AT, child_record
from imageformat.formats.native.structs import RECORD_SIZE, State, unpack_record
from imageformat.layer import BlockRef, Fill, Lost, Older, Piece

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.formats.native.index import ResolvedIndex

FILLS = {
    State.ZERO: Fill.ZERO,
    State.UNUSED: Fill.UNUSED,
    State.BAD: Fill.BAD,
    State.EXCLUDED: Fill.EXCLUDED,
}


def index_pieces(index: ResolvedIndex, name: str, offset: int, size: int) -> Iterator[Piece]:
    """Describe a range of the disk: see `ImageLayer.pieces`.

    Every page on the way was proven against the logical digest that its directory record states, up to
    the root; a fill that stands for many blocks is held against it too.
    """
    geometry, end = index.geometry, offset + size
    while offset < end:
        found, level = _descend(index, name, offset // geometry.block_size)
        span = geometry.span(level) * geometry.block_size
        stop = min(end, (offset // span + 1) * span)
        if isinstance(found, bytes):
            yield from _leaf_pieces(index, found, offset, stop)
        else:
            yield Piece(offset, stop - offset, found, 0)
        offset = stop


def _descend(index: ResolvedIndex, name: str, block: int) -> tuple[bytes | Fill | Older | Lost, int]:
    """Follow the pages towards ``block``; return a leaf, or what ends the way, and the level it spans."""
    bits, record = index.geometry.page_bits, index.top
    known = index.known_leaf(block >> bits)
    if known is not None:
        return known, 1
    for level in range(index.geometry.height - 1, -1, -1):
        page = block >> bits * (level + 1)
        entry = unpack_record(record, 0)
        if entry.state != State.PAGE:
            if index.is_uniform(record, level, page):
                return FILLS[State(entry.state)], level + 1
            what = f"{name}: index page {page} of level {level} is not what the root names"
            return Lost(CorruptImageError(what)), level + 1
        if index.holder(entry.layer) is None:
            return Older(entry.layer), level + 1
        try:
            raw = index.load(record, level, page)
        except (CorruptImageError, StorageError) as error:
            return Lost(error), level + 1
        if level == 0:
            index.remember_leaf(page, raw)
            return raw, 1
        record = child_record(raw, (block >> bits * level) - (page << bits))
    raise CorruptImageError(f"{name}: the index of an empty disk was asked for a block")


def _leaf_pieces(index: ResolvedIndex, raw: bytes, offset: int, end: int) -> Iterator[Piece]:
    """Describe a range inside one leaf, joining neighbours of the same fill."""
    geometry = index.geometry
    mask = (1 << geometry.page_bits) - 1
    while offset < end:
        block = offset // geometry.block_size
        start = block * geometry.block_size
        position = (block & mask) * RECORD_SIZE
        state = raw[position + STATE_AT]
        if state == State.DATA:
            raw_length = geometry.raw_length(block)
            stop = min(end, start + raw_length)
            entry = unpack_record(raw, position)
            ref = BlockRef(entry.layer, entry.offset, entry.length, block, raw_length, entry.digest)
            yield Piece(offset, stop - offset, ref, offset - start)
        else:
            last = block
            while raw[position + STATE_AT : position + STATE_AT + 1] == bytes((state,)):
                position, last = position + RECORD_SIZE, last + 1
            stop = min(end, last * geometry.block_size)
            yield Piece(offset, stop - offset, FILLS[State(state)], 0)
        offset = stop
