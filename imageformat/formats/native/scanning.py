"""Finding the frames of an image without its index. docs/format.md, section 8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageformat.errors import MountfsError
from imageformat.formats.native.structs import (
    FRAME_HEADER_SIZE,
    FRAME_MAGIC,
    HEADER_SIZE,
    MAX_BLOCK_SIZE,
    FrameHeader,
    peek_frame,
    unpack_frame,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

_SCAN_WINDOW = 1 << 20
_SLACK = 1 << 16
"""What a payload may be longer than the largest block: a map of BAD sectors, and zstd's own."""


def scan_frames(device: BlockDevice, image_id: bytes) -> Iterator[tuple[int, FrameHeader]]:
    """Yield (offset, header) of every intact frame of an image, from the file alone.

    Damaged parts are stepped over by searching the next frame header of the same image. A length that a
    damaged header claims is not believed beyond the largest block.
    """
    position, window, start = HEADER_SIZE, b"", 0
    while position + FRAME_HEADER_SIZE <= device.size:
        if position + FRAME_HEADER_SIZE > start + len(window):
            start = position
            window = device.pread(start, min(_SCAN_WINDOW, device.size - start))
        found = window.find(FRAME_MAGIC, position - start)
        if found < 0:
            position = start + len(window) - len(FRAME_MAGIC) + 1
            continue
        position = start + found
        header = peek_frame(window[found : found + FRAME_HEADER_SIZE])
        if header is not None:
            intact = _is_intact(device, position, header, image_id)
            if intact:
                yield position, header
            position += FRAME_HEADER_SIZE + header.payload_length if intact else 1


def _is_intact(device: BlockDevice, offset: int, header: FrameHeader, image_id: bytes) -> bool:
    length = FRAME_HEADER_SIZE + header.payload_length
    if (
        header.image_id != image_id
        or header.payload_length > MAX_BLOCK_SIZE + _SLACK
        or offset + length > device.size
    ):
        return False
    try:
        unpack_frame(device.pread(offset, length))
    except MountfsError:
        return False
    return True
