"""Building the index of a new image while its blocks stream by, in ascending order.

Memory is one open page per level, whatever the size of the disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.codec import digest
from imageformat.formats.native.index import (
    EMPTY_TOP,
    FILL_STATES,
    Geometry,
    ResolvedIndex,
    directory_digest,
    leaf_digest,
    record_size,
    uniform_digest,
)
from imageformat.formats.native.structs import (
    RECORD_SIZE,
    Record,
    State,
    fill_record,
    pack_record,
    unpack_record,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class IndexBuilder:
    """Turns records in ascending order into pages. One thread.

    What is neither `put` nor `fill`-ed is inherited from ``parent``.
    """

    def __init__(
        self,
        geometry: Geometry,
        depth: int,
        parent: ResolvedIndex | None,
        emit: Callable[[int, int, bytes], tuple[int, int]],
    ) -> None:
        self._geometry = geometry
        self._depth = depth
        self._parent = parent
        self._emit = emit
        self._height = geometry.height
        self._blocks = geometry.blocks
        self._cursor = 0
        self._open = [bytearray() for _ in range(self._height)]
        self._changed = [False] * self._height
        self._top = EMPTY_TOP

    def put(self, block: int, record: Record) -> None:
        """Record a block that this image stores."""
        self._inherit_until(block)
        self._append(0, pack_record(record), changed=True)

    def fill(self, first: int, count: int, state: State) -> int:
        """Record ``count`` blocks as one fill; return how many of them were not that before."""
        self._inherit_until(first)
        end, changed = first + count, 0
        while self._cursor < end:
            level = self._widest(end)
            covered = self._covered(level)
            if level == 0:
                record = self._parent_record() or b""
                same = bool(record) and unpack_record(record, 0).state == state
                record = record if same else fill_record(state, self._depth)
            else:
                logical = uniform_digest(level - 1, covered, self._geometry.page_bits, state)
                record = self._parent_page(level) or b""
                same = record[RECORD_SIZE:] == logical
                record = record if same else fill_record(state, self._depth) + logical
            changed += 0 if same else covered
            self._append(level, record, changed=not same)
        return changed

    def finish(self) -> bytes:
        """Inherit what is left and return the top directory record (64 bytes)."""
        self._inherit_until(self._blocks)
        return self._top

    def _inherit_until(self, end: int) -> None:
        if not self._cursor <= end <= self._blocks:
            raise ValueError(f"block {end} is not in ascending order, or outside the disk")
        while self._cursor < end:
            level = self._widest(end)
            record = self._parent_page(level) if level else None
            while level and record is None:
                level -= 1
                record = self._parent_page(level) if level else None
            if record is None:
                self._inherit_blocks(end)
            else:
                self._append(level, record, changed=False)

    def _inherit_blocks(self, end: int) -> None:
        """Copy the parent's records from the cursor up to ``end`` or the end of the leaf, at once."""
        bits, block = self._geometry.page_bits, self._cursor
        end = min(end, (block >> bits) + 1 << bits)
        if self._parent is not None and end < self._parent.geometry.blocks:
            leaf = self._parent.leaf(block >> bits)
            first = (block & (1 << bits) - 1) * RECORD_SIZE
            if end - block > 1:
                stop = first + (end - block - 1) * RECORD_SIZE
                self._open[0] += leaf[first:stop]
                self._cursor = end - 1
        self._append(0, self._parent_block(), changed=False)

    def _widest(self, end: int) -> int:
        """Return the highest level whose record starts at the cursor and does not pass ``end``."""
        level = 0
        while level < self._height:
            span = self._geometry.span(level + 1)
            if self._cursor % span or min(self._cursor + span, self._blocks) > end:
                break
            level += 1
        return level

    def _covered(self, level: int) -> int:
        return min(self._geometry.span(level), self._blocks - self._cursor)

    def _parent_page(self, level: int) -> bytes | None:
        """Return the parent's record for the subtree at the cursor, when it covers the same blocks."""
        if self._parent is None:
            return None
        page = self._cursor // self._geometry.span(level)
        geometry = self._parent.geometry
        record = self._parent.directory_record(level - 1, page)
        if record is None or geometry.blocks_in(level - 1, page) != self._covered(level):
            return None
        last = self._cursor + self._covered(level) - 1
        same_tail = geometry.raw_length(last) == self._geometry.raw_length(last)
        return record if same_tail or unpack_record(record, 0).state in FILL_STATES else None

    def _parent_record(self) -> bytes | None:
        """Return the parent's record of the block at the cursor, whatever its length was."""
        block, bits = self._cursor, self._geometry.page_bits
        if self._parent is None or block >= self._parent.geometry.blocks:
            return None
        position = (block & (1 << bits) - 1) * RECORD_SIZE
        return self._parent.leaf(block >> bits)[position : position + RECORD_SIZE]

    def _parent_block(self) -> bytes:
        """Return the parent's record of the block at the cursor, which must still hold."""
        block, record = self._cursor, self._parent_record()
        if self._parent is None or record is None:
            raise ValueError(f"block {block} was never described and there is no parent to inherit it from")
        resized = self._parent.geometry.raw_length(block) != self._geometry.raw_length(block)
        if resized and unpack_record(record, 0).state == State.DATA:
            raise ValueError(f"block {block} changed its length and was not described")
        return record

    def _append(self, level: int, record: bytes, *, changed: bool) -> None:
        """Add a record to the open page of ``level`` and close what is full."""
        first = self._cursor
        self._cursor += self._covered(level)
        while level < self._height:
            page = first // self._geometry.span(level + 1)
            self._open[level] += record
            self._changed[level] |= changed
            if len(self._open[level]) < self._geometry.page_size(level, page):
                return
            raw, changed = bytes(self._open[level]), self._changed[level]
            self._open[level].clear()
            self._changed[level] = False
            record, changed = self._close(level, page, raw, changed=changed)
            level += 1
        self._top = record

    def _close(self, level: int, page: int, raw: bytes, *, changed: bool) -> tuple[bytes, bool]:
        """Return the directory record of a finished page, and whether it differs from the parent's."""
        if not changed and (inherited := self._same_in_parent(level, page)) is not None:
            return inherited, False
        logical = directory_digest(raw) if level else leaf_digest(raw)
        step = record_size(level)
        first = raw[:RECORD_SIZE]
        if unpack_record(first, 0).state in FILL_STATES and all(
            raw[at : at + RECORD_SIZE] == first for at in range(step, len(raw), step)
        ):
            return first + logical, True
        offset, length = self._emit(level, page, raw)
        return pack_record(Record(digest(raw), offset, length, State.PAGE, self._depth)) + logical, True

    def _same_in_parent(self, level: int, page: int) -> bytes | None:
        if self._parent is None:
            return None
        record = self._parent.directory_record(level, page)
        if record is None or self._parent.geometry.blocks_in(level, page) != self._geometry.blocks_in(
            level, page
        ):
            return None
        return record
