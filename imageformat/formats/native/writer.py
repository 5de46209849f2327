"""Writing one native image: append-only, nothing visible before `commit`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from imageformat.cache import BlockCache
from imageformat.codec import Codec, digest, encode, encode_delta
from imageformat.errors import VerificationError
from imageformat.formats.native.builder import IndexBuilder
from imageformat.formats.native.index import FILL_STATES, Geometry, ResolvedIndex, logical_root
from imageformat.formats.native.reader import open_native
from imageformat.formats.native.structs import (
    FOOTER_SIZE,
    RECORD_SIZE,
    Counts,
    Footer,
    FrameHeader,
    FrameKind,
    Header,
    Record,
    State,
    pack_footer,
    pack_frame,
    pack_header,
    pack_record,
    page_number,
)
from imageformat.layer import Ancestry

if TYPE_CHECKING:
    from imageformat.device import BlockDevice
    from imageformat.formats.native.older import OlderBlock
    from imageformat.layer import ImageInfo
    from imageformat.storage import ObjectWriter

NO_ANCESTORS = Ancestry()


_CLEARLY_SMALLER = 8
"""A difference below this part of a block is taken without trying whether the plain frame is smaller."""


class EncodedBlock(NamedTuple):
    """A block ready to be appended; made by worker threads."""

    block: int
    digest: bytes
    raw_length: int
    frame: bytes


def encode_block(
    image_id: bytes,
    block: int,
    raw: bytes | memoryview,
    raw_digest: bytes,
    level: int,
    older: OlderBlock | None = None,
) -> EncodedBlock:
    """Compress and frame one block, as what differs from ``older`` when that is smaller. Thread-safe."""
    codec: Codec
    payload: bytes | memoryview
    difference = _encode_difference(raw, older) if older is not None else None
    if difference is not None and len(difference[1]) <= len(raw) // _CLEARLY_SMALLER:
        codec, payload = difference
    else:
        codec, payload = encode(raw, level)
        if difference is not None and len(difference[1]) < len(payload):
            codec, payload = difference
    frame = _frame(image_id, FrameKind.BLOCK, block, len(raw), raw_digest, codec, payload)
    return EncodedBlock(block, raw_digest, len(raw), frame)


def _encode_difference(raw: bytes | memoryview, older: OlderBlock) -> tuple[Codec, bytes]:
    return Codec.DELTA, pack_record(older.record) + encode_delta(raw, older.raw)


def _frame(
    image_id: bytes,
    kind: FrameKind,
    number: int,
    raw_length: int,
    raw_digest: bytes,
    codec: Codec,
    payload: bytes | memoryview,
) -> bytes:
    header = FrameHeader(kind, codec, len(payload), raw_length, number, image_id, raw_digest)
    return pack_frame(header, payload)


class NativeWriter:
    """Appends blocks in ascending order and publishes the image at the end. One thread.

    Blocks neither written, referred to nor filled are inherited from ``parent``. A block of zeros must be
    filled as ZERO, never written, so that equal disks have equal roots.
    """

    def __init__(
        self,
        target: ObjectWriter,
        header: Header,
        parent: ResolvedIndex | None = None,
        ancestors: Ancestry = NO_ANCESTORS,
    ) -> None:
        self._target = target
        self._header = header
        self._header_bytes = pack_header(header)
        self._ancestors = ancestors
        self.image_id = header.image_id.bytes
        self.geometry = Geometry(header.disk_size, header.block_size, header.page_bits)
        self._builder = IndexBuilder(self.geometry, header.depth, parent, self._emit_page)
        self._counts = dict.fromkeys((State.DATA, *sorted(FILL_STATES)), 0)
        self._raw_bytes = 0
        self._stored_bytes = 0
        target.append(self._header_bytes)

    def write(self, encoded: EncodedBlock) -> None:
        """Append one block; blocks come in ascending order."""
        offset = self._target.position
        self._target.append(encoded.frame)
        record = Record(encoded.digest, offset, len(encoded.frame), State.DATA, self._header.depth)
        self._builder.put(encoded.block, record)
        self._counts[State.DATA] += 1
        self._raw_bytes += encoded.raw_length
        self._stored_bytes += len(encoded.frame)

    def refer(self, block: int, record: Record) -> None:
        """Say that an older file holds a block, where no parent's index says so; in ascending order."""
        self._builder.put(block, record)

    def fill(self, first: int, count: int, state: State) -> int:
        """Say what ``count`` blocks are without storing them; return how many of them that changes."""
        changed = self._builder.fill(first, count, state)
        self._counts[state] += changed
        return changed

    def commit(self) -> ImageInfo:
        """Finish the index, make the image durable, prove it by reading back, and publish it."""
        top = self._builder.finish()
        ancestors_offset = ancestors_length = 0
        if self._ancestors:
            ancestors_offset = self._target.position
            ancestors_length = self._append_table()
        footer = Footer(
            image_id=self._header.image_id,
            file_size=self._target.position + FOOTER_SIZE,
            root=logical_root(self.geometry, top[RECORD_SIZE:]),
            top=top,
            ancestors_offset=ancestors_offset,
            ancestors_length=ancestors_length,
            height=self.geometry.height,
            counts=self._own_counts(),
            finished_ns=time.time_ns(),
            header_digest=digest(self._header_bytes),
        )
        self._target.append(pack_footer(footer))
        published: list[ImageInfo] = []
        self._target.commit(lambda device: published.append(self._read_back(device, footer)))
        return published[0]

    def _own_counts(self) -> Counts:
        return Counts(
            data_blocks=self._counts[State.DATA],
            zero_blocks=self._counts[State.ZERO],
            unused_blocks=self._counts[State.UNUSED],
            bad_blocks=self._counts[State.BAD],
            raw_bytes=self._raw_bytes,
            stored_bytes=self._stored_bytes,
            excluded_blocks=self._counts[State.EXCLUDED],
        )

    def abort(self) -> None:
        """Forget the image; harmless after `commit`."""
        self._target.abort()

    def _append_table(self) -> int:
        raw = self._ancestors.packed
        frame = _frame(self.image_id, FrameKind.ANCESTORS, 0, len(raw), digest(raw), Codec.STORED, raw)
        self._target.append(frame)
        return len(frame)

    def _emit_page(self, level: int, page: int, raw: bytes) -> tuple[int, int]:
        number, offset = page_number(level, page), self._target.position
        frame = _frame(self.image_id, FrameKind.PAGE, number, len(raw), digest(raw), *encode(raw))
        self._target.append(frame)
        return offset, len(frame)

    def _read_back(self, device: BlockDevice, footer: Footer) -> ImageInfo:
        layer = open_native(device, "the image just written", BlockCache(0))
        if layer.footer != footer or layer.header != self._header or layer.ancestors() != self._ancestors:
            raise VerificationError("the image just written does not read back; the destination is failing")
        if self.geometry.size:
            for _ in layer.pieces(0, self.geometry.size - 1, 1):
                pass
        return layer.info
