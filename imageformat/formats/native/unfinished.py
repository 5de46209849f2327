"""What an unfinished image file holds already: frames that prove themselves, in the order of their blocks.

Its first part is a header, and frames up to the first that is not whole. Each run that appended to it did so
in ascending order of blocks, so that the file is as many ascending stretches as it had runs, and reading them
side by side needs one frame of each in memory. docs/format.md, section 9.1.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple, Protocol

from imageformat.codec import Codec
from imageformat.errors import CorruptImageError, DestinationError, MountfsError
from imageformat.formats.native.index import Geometry
from imageformat.formats.native.structs import (
    FRAME_HEADER_SIZE,
    HEADER_SIZE,
    MAX_BLOCK_SIZE,
    FrameHeader,
    FrameKind,
    Header,
    pack_frame,
    peek_frame,
    unpack_frame,
    unpack_header,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_RUNS = 64
"""Stretches of an unfinished image that are gone on with; what is behind them is made anew."""
_LONGEST = FRAME_HEADER_SIZE + MAX_BLOCK_SIZE + (1 << 20)
_WINDOW = 16 << 20
_STEP = 256 << 10


class StoredFrame(NamedTuple):
    """The frame of a block in an unfinished image."""

    block: int
    offset: int
    length: int
    raw_length: int
    digest: bytes
    codec: int = 0


class UnfinishedFile(Protocol):
    """The part of `ResumableWriter` that is needed here."""

    @property
    def position(self) -> int:
        """Length of what is there."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of what is there."""
        ...

    def overwrite(self, offset: int, data: bytes) -> None:
        """Replace bytes of what is there."""
        ...


class Survey(NamedTuple):
    """What of an unfinished image can be gone on with."""

    end: int
    """Of the last whole frame."""
    starts: tuple[int, ...]
    """File offsets at which the block numbers begin again: one for each run that wrote."""
    blocks: int
    """Blocks up to the last one that is stored."""


def read_unfinished_header(file: UnfinishedFile) -> Header | None:
    """Return the header of an unfinished image; None when it has none that is known here."""
    try:
        return unpack_header(file.read(0, min(HEADER_SIZE, file.position)), "the unfinished image")
    except MountfsError:
        return None


def survey(file: UnfinishedFile, header: Header) -> Survey:
    """Prove every frame, from the first on, until one is not whole.

    Raises:
        DestinationError: the file cannot be read.
    """
    geometry = Geometry(header.disk_size, header.block_size, header.page_bits)
    position, starts, last, furthest = HEADER_SIZE, [HEADER_SIZE], -1, 0
    window, start = b"", HEADER_SIZE
    while True:
        if position + _LONGEST > start + len(window) and start + len(window) < file.position:
            start = position
            window = file.read(start, min(_WINDOW, file.position - start))
        found = _whole_frame(window, position - start, header.image_id.bytes, geometry)
        if found is None or len(starts) > MAX_RUNS:
            return Survey(position, tuple(starts), furthest)
        if found.kind == FrameKind.BLOCK:
            if found.number <= last:
                starts.append(position)
            last, furthest = found.number, max(furthest, found.number + 1)
        position += FRAME_HEADER_SIZE + found.payload_length


def _whole_frame(window: bytes, at: int, image_id: bytes, geometry: Geometry) -> FrameHeader | None:
    header = peek_frame(window[at : at + FRAME_HEADER_SIZE])
    if header is None or header.image_id != image_id:
        return None
    length = FRAME_HEADER_SIZE + header.payload_length
    if length > _LONGEST or at + length > len(window):
        return None
    try:
        unpack_frame(memoryview(window)[at : at + length])
    except CorruptImageError:
        return None
    if header.kind == FrameKind.BLOCK and (
        header.number >= geometry.blocks or header.raw_length != geometry.raw_length(header.number)
    ):
        return None
    return header


class StoredFrames:
    """The frames of an unfinished image that was surveyed, in ascending order of blocks. One thread.

    Pages and tables, which are made anew, are voided on the way.
    """

    def __init__(self, file: UnfinishedFile, found: Survey) -> None:
        self._file = file
        ends = (*found.starts[1:], found.end)
        walks = [self._walk(start, end) for start, end in zip(found.starts, ends, strict=True)]
        self._frames = heapq.merge(*walks, key=lambda frame: frame.block)
        self._next = next(self._frames, None)

    def before(self, block: int) -> Iterator[StoredFrame]:
        """Yield what is stored of the blocks before ``block`` and was not yielded yet."""
        while self._next is not None and self._next.block < block:
            frame = self._next
            self._next = next(self._frames, None)
            yield frame

    def _walk(self, start: int, end: int) -> Iterator[StoredFrame]:
        window, at = b"", start
        while start < end:
            if start + FRAME_HEADER_SIZE > at + len(window):
                window, at = self._file.read(start, min(_STEP, end - start)), start
            header = self._proven(peek_frame(window[start - at : start - at + FRAME_HEADER_SIZE]), start)
            length = FRAME_HEADER_SIZE + header.payload_length
            if header.kind == FrameKind.BLOCK:
                yield StoredFrame(
                    header.number, start, length, header.raw_length, header.digest, header.codec
                )
            elif header.kind != FrameKind.VOID:
                self._void(header, start, length)
            start += length

    def void(self, frame: StoredFrame) -> None:
        """Make a frame say nothing.

        Raises:
            DestinationError
        """
        header = peek_frame(self._file.read(frame.offset, FRAME_HEADER_SIZE))
        self._void(self._proven(header, frame.offset), frame.offset, frame.length)

    @staticmethod
    def _proven(header: FrameHeader | None, offset: int) -> FrameHeader:
        if header is None:
            raise DestinationError(f"the unfinished image has changed at file offset {offset}; start again")
        return header

    def _void(self, header: FrameHeader, offset: int, length: int) -> None:
        payload = self._file.read(offset + FRAME_HEADER_SIZE, length - FRAME_HEADER_SIZE)
        voided = FrameHeader(
            FrameKind.VOID, Codec.STORED, header.payload_length, 0, 0, header.image_id, bytes(16)
        )
        self._file.overwrite(offset, pack_frame(voided, payload)[:FRAME_HEADER_SIZE])
