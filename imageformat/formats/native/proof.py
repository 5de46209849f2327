"""Proving the index of an image: against itself, its root, and the index of its parent."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import CorruptImageError
from imageformat.formats.native.index import STATE_AT, check_page, child_record
from imageformat.formats.native.structs import (
    DIRECTORY_RECORD_SIZE,
    RECORD_SIZE,
    STORED_STATES,
    State,
    unpack_record,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.formats.native.index import ResolvedIndex


class _Page(NamedTuple):
    record: bytes
    level: int
    page: int


def index_faults(alone: ResolvedIndex, parent: ResolvedIndex | None, depth: int, name: str) -> Iterator[str]:
    """Yield what is wrong with the pages that the image at ``depth`` holds itself.

    ``alone`` is its index without its ancestors. With ``parent``, what it says of frames in older files
    must be what the parent says; where the parent's own index is damaged, that is the parent's fault.
    """
    pending = [_Page(alone.top, alone.geometry.height - 1, 0)] if alone.geometry.blocks else []
    while pending:
        here = pending.pop()
        what = f"{name}: index page {here.page} of level {here.level}"
        entry = unpack_record(here.record, 0)
        if entry.state != State.PAGE:
            if not alone.is_uniform(*here):
                yield f"{what} is not what the root names"
        elif entry.layer != depth:
            if parent is not None and not _is_parents_page(parent, here):
                yield f"{what} is not the parent's"
        else:
            try:
                raw = alone.load(*here)
                check_page(raw, here.level, depth, name)
            except CorruptImageError as error:
                yield str(error)
                continue
            pending.extend(_children(alone, raw, here))
            if parent is not None and here.level == 0:
                blocks = _foreign_blocks(parent, raw, here.page, depth)
                yield from (
                    f"{what} has another frame than the parent's for block {block}" for block in blocks
                )


def _children(index: ResolvedIndex, raw: bytes, here: _Page) -> Iterator[_Page]:
    if here.level:
        first = here.page << index.geometry.page_bits
        for at in range(len(raw) // DIRECTORY_RECORD_SIZE):
            yield _Page(child_record(raw, at), here.level - 1, first + at)


def _is_parents_page(parent: ResolvedIndex, here: _Page) -> bool:
    try:
        return parent.directory_record(here.level, here.page) == here.record
    except CorruptImageError:
        return True


def _foreign_blocks(parent: ResolvedIndex, raw: bytes, page: int, depth: int) -> Iterator[int]:
    """Yield the blocks of a leaf whose inherited frame is not the one that the parent has for them."""
    try:
        known = parent.leaf(page)
    except CorruptImageError:
        return
    for at in range(0, len(raw), RECORD_SIZE):
        record = raw[at : at + RECORD_SIZE]
        inherited = record[STATE_AT] in STORED_STATES and unpack_record(record, 0).layer != depth
        if inherited and record != known[at : at + RECORD_SIZE]:
            yield (page << parent.geometry.page_bits) + at // RECORD_SIZE
