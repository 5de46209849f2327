"""Writing a point anew on another ancestor: stored frames are copied, the index is made new.

The blocks that differ from the new parent are copied with a new header. A difference keeps its payload when
the new parent has its reference too, and names where that is now; else the block is encoded again.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from engine.plan import image_name
from imageformat.codec import DEFAULT_LEVEL, MIN_DELTA_LENGTH, Codec
from imageformat.errors import UnsupportedFeatureError, VerificationError
from imageformat.formats.native.index import STATE_AT
from imageformat.formats.native.older import ParentBlocks
from imageformat.formats.native.reader import native_layers, resolved_index
from imageformat.formats.native.structs import (
    DELTA_FRAMES,
    DELTA_FRAMES_NAME,
    EXCLUDED_FILES,
    EXCLUDED_FILES_NAME,
    FOREIGN_BASE,
    NO_ROOT,
    NO_UUID,
    RECORD_SIZE,
    ExtensionType,
    Header,
    Record,
    State,
    pack_frame,
    pack_record,
    unpack_record,
)
from imageformat.formats.native.writer import NO_ANCESTORS, EncodedBlock, NativeWriter, encode_block
from imageformat.layer import Ancestor, BlockRef, ImageType

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from imageformat.chain import Chain
    from imageformat.formats.native.older import OlderBlock
    from imageformat.layer import ImageInfo
    from imageformat.storage import ObjectWriter


def new_name(info: ImageInfo, image_id: UUID, *, on_parent: bool) -> str:
    """Return the file name of a point that is written anew."""
    return image_name(info.number, _type(info.type, on_parent=on_parent), info.created_ns, image_id)


def _type(kind: ImageType, *, on_parent: bool) -> ImageType:
    return kind if on_parent else ImageType.FULL


def rewrite(
    target: ObjectWriter, image_id: UUID, old: Chain, kept: int | None, parent: Chain | None
) -> ImageInfo:
    """Write the point of ``old`` to ``target`` as a child of the point of ``parent``, and publish it.

    ``kept`` is the depth in the old chain of the point that ``parent`` is, or is the new form of; both None
    make a full image. Number, time, set, origin and logical root stay.

    Raises:
        VerificationError: the new image is not the same point.
        UnsupportedFeatureError: an image of the chain is of another format, or stands on one.
        CorruptImageError, StorageError: what is to be copied cannot be proven or read.
        DestinationError: writing failed.
    """
    job = _Rewriting(target, image_id, old, kept, parent)
    info = job.run()
    if info.root != old.info.root:
        raise VerificationError(
            f"point {info.number}: its merged image is not what it was; nothing was changed"
        )
    return info


class _Rewriting:
    """One point being written anew. One thread."""

    def __init__(
        self, target: ObjectWriter, image_id: UUID, old: Chain, kept: int | None, parent: Chain | None
    ) -> None:
        self._old = old
        self._layer = native_layers(old.layer)
        self._index = resolved_index(self._layer(old.depth), old.layer)
        self._kept_index = None if kept is None else resolved_index(self._layer(kept), old.layer)
        self._parent: ParentBlocks | None = None
        parent_index, ancestors = None, NO_ANCESTORS
        if parent is not None:
            parent_index = resolved_index(parent.layer(parent.depth), parent.layer)
            self._parent = ParentBlocks(parent_index, native_layers(parent.layer))
            ancestors = parent.ancestors().followed_by(Ancestor(parent.info.id, parent.info.root))
        first = 0 if kept is None else kept + 1
        differences = parent is not None and any(
            self._layer(depth).header.incompatible & DELTA_FRAMES for depth in range(first, old.depth + 1)
        )
        header = _header(self._layer(old.depth).header, image_id, parent, differences=differences)
        self._differences = differences
        self._writer = NativeWriter(target, header, parent_index, ancestors)

    def run(self) -> ImageInfo:
        geometry = self._index.geometry
        if geometry.blocks:
            self._subtree(geometry.height - 1, 0)
        return self._writer.commit()

    def _subtree(self, level: int, page: int) -> None:
        """Write what of the blocks below a page differs from the point that stays."""
        geometry = self._index.geometry
        record = self._index.directory_record(level, page)
        if record is None or self._is_inherited(record, level, page):
            return
        if record[STATE_AT] != State.PAGE:
            first = page * geometry.span(level + 1)
            self._writer.fill(first, geometry.blocks_in(level, page), State(record[STATE_AT]))
        elif level == 0:
            self._leaf(page)
        else:
            below = page << geometry.page_bits
            for child in range(below, below + geometry.records_in(level, page)):
                self._subtree(level - 1, child)

    def _is_inherited(self, record: bytes, level: int, page: int) -> bool:
        """Tell whether the point that stays has the very same blocks there."""
        kept = self._kept_index
        known = kept.directory_record(level, page) if kept is not None else None
        if kept is None or known is None or known[RECORD_SIZE:] != record[RECORD_SIZE:]:
            return False
        last = page * kept.geometry.span(level + 1) + kept.geometry.blocks_in(level, page) - 1
        same_blocks = kept.geometry.blocks_in(level, page) == self._index.geometry.blocks_in(level, page)
        return same_blocks and kept.geometry.raw_length(last) == self._index.geometry.raw_length(last)

    def _leaf(self, page: int) -> None:
        first = page << self._index.geometry.page_bits
        leaf = self._index.leaf(page)
        pairs = zip(_records(leaf), self._kept_records(page, len(leaf)), strict=True)
        for block, (mine, kept) in enumerate(pairs, first):
            raw_length = self._index.geometry.raw_length(block)
            if mine.state != State.DATA:
                self._writer.fill(block, 1, State(mine.state))
            elif kept is None or (kept.state, kept.digest) != (State.DATA, mine.digest):
                ref = BlockRef(mine.layer, mine.offset, mine.length, block, raw_length, mine.digest)
                self._writer.write(self._copied(ref))

    def _kept_records(self, page: int, size: int) -> Iterator[Record | None]:
        """Yield the records of the point that stays, None where it has no block of that length."""
        kept = self._kept_index
        known = kept.leaf(page) if kept is not None else b""
        first = page << self._index.geometry.page_bits
        for at in range(0, size, RECORD_SIZE):
            block = first + at // RECORD_SIZE
            same = (
                kept is not None
                and at < len(known)
                and kept.geometry.raw_length(block) == self._index.geometry.raw_length(block)
            )
            yield unpack_record(known, at) if same else None

    def _copied(self, ref: BlockRef) -> EncodedBlock:
        header, payload = self._layer(ref.layer).frame(ref)
        if header.codec == Codec.DELTA:
            base = unpack_record(bytes(payload[:RECORD_SIZE]), 0)
            older = self._older(ref)
            if older is None or older.record.digest != base.digest:
                return self._encoded(ref, older)
            payload = memoryview(pack_record(older.record) + bytes(payload[RECORD_SIZE:]))
        moved = dataclasses.replace(header, image_id=self._writer.image_id)
        return EncodedBlock(ref.block, ref.digest, ref.raw_length, pack_frame(moved, payload))

    def _encoded(self, ref: BlockRef, older: OlderBlock | None) -> EncodedBlock:
        raw = self._old.load((ref,))[0]
        return encode_block(self._writer.image_id, ref.block, raw, ref.digest, DEFAULT_LEVEL, older)

    def _older(self, ref: BlockRef) -> OlderBlock | None:
        """Return the plain block that a difference in the new image can stand on."""
        if self._parent is None or not self._differences or ref.raw_length < MIN_DELTA_LENGTH:
            return None
        known = self._parent.record(ref.block, ref.raw_length)
        if known is None or known.state != State.DATA:
            return None
        return self._parent.older(ref.block, ref.raw_length, known)


def _records(leaf: bytes) -> Iterator[Record]:
    return (unpack_record(leaf, at) for at in range(0, len(leaf), RECORD_SIZE))


def _header(old: Header, image_id: UUID, parent: Chain | None, *, differences: bool) -> Header:
    if old.incompatible & FOREIGN_BASE:
        raise UnsupportedFeatureError(
            f"point {old.number} stands on an image of another tool; such a chain cannot be merged"
        )
    features = {EXCLUDED_FILES: EXCLUDED_FILES_NAME} if old.incompatible & EXCLUDED_FILES else {}
    if differences:
        features[DELTA_FRAMES] = DELTA_FRAMES_NAME
    kept = tuple(entry for entry in old.extensions if entry[0] != ExtensionType.FEATURE_NAME)
    return dataclasses.replace(
        old,
        image_id=image_id,
        type=_type(old.type, on_parent=parent is not None),
        parent_id=parent.info.id if parent else NO_UUID,
        parent_root=parent.info.root if parent else NO_ROOT,
        depth=parent.depth + 1 if parent else 0,
        incompatible=sum(features),
        extensions=(*features.values(), *kept),
    )
