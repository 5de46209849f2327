"""The block index: a persistent copy-on-write tree of pages.

A leaf page holds one 32-byte record per block; a directory page holds one 64-byte record per page
below it: where that page is, and the logical digest of what it describes. A page that a point did not
change is a reference into the older image that holds it, so opening and reading depend neither on the
size of the disk nor on the length of the chain.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from imageformat.errors import CorruptImageError
from imageformat.formats.native.structs import (
    DIRECTORY_RECORD_SIZE,
    RECORD_SIZE,
    State,
    fill_record,
    unpack_record,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAVES_KNOWN = 16
STATE_AT = 28
"""Byte of a record that holds its state."""
FILL_STATES = frozenset({State.ZERO, State.UNUSED, State.BAD, State.EXCLUDED})
_LEAF_STATES = FILL_STATES | {State.DATA}
_DIRECTORY_STATES = FILL_STATES | {State.PAGE}


@dataclass(frozen=True, slots=True)
class Geometry:
    """The shape of the tree over a disk of ``size`` bytes."""

    size: int
    block_size: int
    page_bits: int

    @property
    def blocks(self) -> int:
        """Number of blocks; the last may be shorter."""
        return -(-self.size // self.block_size)

    @property
    def height(self) -> int:
        """Number of levels; 0 for an empty disk, 1 when the top page is a leaf."""
        blocks, height = self.blocks, 0
        while blocks > 0:
            height += 1
            blocks = 0 if blocks <= 1 << self.page_bits else -(-blocks >> self.page_bits)
        return height

    def raw_length(self, block: int) -> int:
        """Length of a block in bytes."""
        return min(self.block_size, self.size - block * self.block_size)

    def span(self, level: int) -> int:
        """Blocks that one record of a page at ``level`` covers; a leaf is level 0."""
        return 1 << self.page_bits * level

    def blocks_in(self, level: int, page: int) -> int:
        """Blocks that a page covers."""
        span = self.span(level + 1)
        return min(span, self.blocks - page * span)

    def records_in(self, level: int, page: int) -> int:
        """Records that a page holds."""
        return -(-self.blocks_in(level, page) // self.span(level))

    def page_size(self, level: int, page: int) -> int:
        """Bytes of a page."""
        return self.records_in(level, page) * record_size(level)


def record_size(level: int) -> int:
    """Bytes of one record of a page at ``level``."""
    return DIRECTORY_RECORD_SIZE if level else RECORD_SIZE


def leaf_digest(raw: bytes) -> bytes:
    """Logical digest of a leaf: what its blocks are, not where they are stored."""
    logical = bytearray(len(raw) // RECORD_SIZE * 17)
    logical[0::17] = raw[28::RECORD_SIZE]
    for at in range(16):
        logical[1 + at :: 17] = raw[at::RECORD_SIZE]
    return hashlib.blake2b(logical, digest_size=32, person=b"mfi leaf").digest()


def directory_digest(raw: bytes) -> bytes:
    """Logical digest of a directory page: over the digests of its children."""
    state = hashlib.blake2b(digest_size=32, person=b"mfi node")
    for position in range(RECORD_SIZE, len(raw), DIRECTORY_RECORD_SIZE):
        state.update(raw[position : position + 32])
    return state.digest()


def logical_root(geometry: Geometry, top_digest: bytes) -> bytes:
    """Name the content of a whole point."""
    state = hashlib.blake2b(digest_size=32, person=b"mfi root")
    state.update(geometry.size.to_bytes(8, "little"))
    state.update(geometry.block_size.to_bytes(4, "little"))
    state.update(geometry.page_bits.to_bytes(4, "little"))
    state.update(top_digest)
    return state.digest()


EMPTY_TOP = bytes(RECORD_SIZE) + hashlib.blake2b(digest_size=32, person=b"mfi leaf").digest()
"""The top record of a disk with no blocks."""


@lru_cache(maxsize=256)
def uniform_digest(level: int, blocks: int, page_bits: int, state: int) -> bytes:
    """Logical digest of a page at ``level`` whose ``blocks`` blocks are all one fill."""
    if level == 0:
        return leaf_digest(fill_record(State(state), 0) * blocks)
    span = 1 << page_bits * level
    hasher = hashlib.blake2b(digest_size=32, person=b"mfi node")
    whole, rest = divmod(blocks, span)
    if whole:
        hasher.update(uniform_digest(level - 1, span, page_bits, state) * whole)
    if rest:
        hasher.update(uniform_digest(level - 1, rest, page_bits, state))
    return hasher.digest()


class PageHolder(Protocol):
    """An opened image file that gives its own pages."""

    def page(self, record: bytes, level: int, page: int, size: int) -> bytes:
        """Return the raw bytes of the page that a directory record names, proven down to its logical digest.

        Raises:
            CorruptImageError: what stands there is not that page.
        """
        ...


class ResolvedIndex:
    """The index of one point, across the files of its chain. Thread-safe.

    ``holder`` opens the image of a depth; None says that it is out of reach, which ends a walk there.
    """

    def __init__(self, geometry: Geometry, top: bytes, holder: Callable[[int], PageHolder | None]) -> None:
        self.geometry = geometry
        self.top = top
        self.holder = holder
        self._leaves: dict[int, bytes] = {}

    def known_leaf(self, page: int) -> bytes | None:
        """Return a leaf that was proven a short while ago: most look-ups are near the last ones."""
        return self._leaves.get(page)

    def remember_leaf(self, page: int, raw: bytes) -> None:
        """Keep a proven leaf for `known_leaf`, until some others were."""
        if len(self._leaves) >= _LEAVES_KNOWN:
            self._leaves.clear()
        self._leaves[page] = raw

    def directory_record(self, level: int, page: int) -> bytes | None:
        """Return the 64 bytes that describe a page, or None when the tree has no such page."""
        geometry = self.geometry
        height = geometry.height
        if level >= height or page * geometry.span(level + 1) >= geometry.blocks:
            return None
        record = self.top
        for at in range(height - 1, level, -1):
            record = self._child(record, at, page >> geometry.page_bits * (at - level), page, level)
        return record

    def _child(self, record: bytes, at: int, ancestor: int, page: int, level: int) -> bytes:
        """Step from the page ``ancestor`` at level ``at`` towards ``page`` at ``level``."""
        geometry = self.geometry
        below = page >> geometry.page_bits * (at - 1 - level)
        state = record[STATE_AT]
        if state != State.PAGE:
            blocks = geometry.blocks_in(at - 1, below)
            return record[:RECORD_SIZE] + uniform_digest(at - 1, blocks, geometry.page_bits, state)
        return child_record(self.load(record, at, ancestor), below - (ancestor << geometry.page_bits))

    def leaf(self, page: int) -> bytes:
        """Return the block records of a leaf page, also when it is stored as one fill."""
        known = self._leaves.get(page)
        if known is not None:
            return known
        record = self.directory_record(0, page)
        if record is None:
            return b""
        if record[STATE_AT] != State.PAGE:
            return record[:RECORD_SIZE] * self.geometry.records_in(0, page)
        raw = self.load(record, 0, page)
        self.remember_leaf(page, raw)
        return raw

    def load(self, record: bytes, level: int, page: int) -> bytes:
        """Return the raw bytes of the page that a directory record names, from the file that holds it.

        Raises:
            CorruptImageError: it is damaged, or a fill that the logical digest contradicts.
            ChainError: that file is missing or another one.
        """
        depth = unpack_record(record, 0).layer
        holder = self.holder(depth)
        if holder is None:
            raise LookupError(f"the image at depth {depth} is out of reach")
        return holder.page(record, level, page, self.geometry.page_size(level, page))

    def is_uniform(self, record: bytes, level: int, page: int) -> bool:
        """Tell whether a fill that stands for a whole page is what the page's logical digest names."""
        blocks = self.geometry.blocks_in(level, page)
        return record[RECORD_SIZE:] == uniform_digest(
            level, blocks, self.geometry.page_bits, record[STATE_AT]
        )


def child_record(raw: bytes, position: int) -> bytes:
    """Return a directory record of a directory page."""
    return raw[position * DIRECTORY_RECORD_SIZE : (position + 1) * DIRECTORY_RECORD_SIZE]


def page_digest(raw: bytes, level: int) -> bytes:
    """Logical digest of a page."""
    return directory_digest(raw) if level else leaf_digest(raw)


def has_legal_states(raw: bytes, level: int, depth: int, *, excludes: bool) -> bool:
    """Tell whether every state and layer of a page is legal in an image at ``depth``. Fast.

    ``excludes``: the image names the feature that allows EXCLUDED.
    """
    step, states = record_size(level), _DIRECTORY_STATES if level else _LEAF_STATES
    low, middle, high = (raw[STATE_AT + at :: step] for at in (1, 2, 3))
    if not states.issuperset(raw[STATE_AT::step]) or high.count(0) != len(high):
        return False
    if not excludes and State.EXCLUDED in raw[STATE_AT::step]:
        return False
    if middle.count(0) == len(middle):
        return max(low) <= depth
    return max(layer for layer in map(_join_bytes, low, middle)) <= depth


def _join_bytes(low: int, high: int) -> int:
    return low | high << 8


def check_page(raw: bytes, level: int, depth: int, name: str) -> None:
    """Prove that every record of a page is legal for an image at ``depth``, to the last byte.

    Raises:
        CorruptImageError: a state, layer or length that the format does not allow.
    """
    legal = has_legal_states(raw, level, depth, excludes=True)
    for position in range(0, len(raw), record_size(level)):
        entry = unpack_record(raw, position)
        stored = entry.state in {State.PAGE, State.DATA}
        if stored:
            legal &= entry.length > 0
        else:
            legal &= not (entry.length or entry.offset or any(entry.digest))
    if not legal:
        raise CorruptImageError(f"{name}: index page of level {level} has an illegal record")
