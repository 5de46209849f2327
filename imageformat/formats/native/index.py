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
    Record,
    State,
    fill_record,
    unpack_record,
)

if TYPE_CHECKING:
    from collections.abc import Callable


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
    state = hashlib.blake2b(digest_size=32, person=b"mfi leaf")
    for position in range(0, len(raw), RECORD_SIZE):
        state.update(raw[position + 28 : position + 29])
        state.update(raw[position : position + 16])
    return state.digest()


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

    def page(self, record: Record, level: int, page: int, size: int) -> bytes:
        """Return the proven raw bytes of a page stored in this file."""
        ...


class ResolvedIndex:
    """The whole index of one point, across the files of its chain. Thread-safe."""

    def __init__(self, geometry: Geometry, top: bytes, holder: Callable[[int], PageHolder]) -> None:
        self.geometry = geometry
        self.top = top
        self._holder = holder

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
        entry = unpack_record(record, 0)
        if entry.state != State.PAGE:
            blocks = geometry.blocks_in(at - 1, below)
            return record[:RECORD_SIZE] + uniform_digest(at - 1, blocks, geometry.page_bits, entry.state)
        raw = self._load(entry, at, ancestor)
        position = (below - (ancestor << geometry.page_bits)) * DIRECTORY_RECORD_SIZE
        return raw[position : position + DIRECTORY_RECORD_SIZE]

    def leaf(self, page: int) -> bytes:
        """Return the block records of a leaf page, also when it is stored as one fill."""
        record = self.directory_record(0, page)
        if record is None:
            return b""
        entry = unpack_record(record, 0)
        if entry.state != State.PAGE:
            return record[:RECORD_SIZE] * self.geometry.records_in(0, page)
        return self._load(entry, 0, page)

    def _load(self, entry: Record, level: int, page: int) -> bytes:
        return self._holder(entry.layer).page(entry, level, page, self.geometry.page_size(level, page))


def check_page(raw: bytes, level: int, depth: int, name: str) -> None:
    """Prove that every record of a page is legal for an image at ``depth``.

    Raises:
        CorruptImageError: a state, layer or length that the format does not allow.
    """
    allowed = {State.ZERO, State.UNUSED, State.BAD, State.PAGE if level else State.DATA}
    for position in range(0, len(raw), record_size(level)):
        entry = unpack_record(raw, position)
        stored = entry.state in {State.PAGE, State.DATA}
        if (
            entry.state not in allowed
            or entry.layer > depth
            or (stored and not entry.length)
            or (not stored and (entry.length or entry.offset or any(entry.digest)))
        ):
            raise CorruptImageError(f"{name}: index page of level {level} has an illegal record")
