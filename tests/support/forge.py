"""Rewriting native images as a forger would: what is changed is hashed again, so that checksums agree.

The root stays, unless asked for: it names what the point was. Differences are kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from imageformat.codec import Codec, decode, digest, encode
from imageformat.formats.native.structs import (
    DIRECTORY_RECORD_SIZE,
    FOOTER_SIZE,
    FRAME_HEADER_SIZE,
    HEADER_SIZE,
    RECORD_SIZE,
    FrameHeader,
    FrameKind,
    Header,
    State,
    pack_footer,
    pack_frame,
    pack_header,
    pack_record,
    peek_frame,
    unpack_footer,
    unpack_frame,
    unpack_header,
    unpack_record,
)

Change = Callable[[int, int, bytes], bytes]
"""Kind and number of a frame and its decoded bytes; returns what shall stand there."""


def nothing(_kind: int, _number: int, raw: bytes) -> bytes:
    return raw


def forge(
    image: bytes,
    change: Change = nothing,
    *,
    header: Callable[[Header], Header] = lambda same: same,
    top: Callable[[bytes], bytes] = lambda same: same,
    root: bytes | None = None,
) -> bytes:
    """Return the image with changed contents, moved frames, and every checksum right again."""
    old_header = unpack_header(image[:HEADER_SIZE], "forged")
    footer = unpack_footer(image[-FOOTER_SIZE:], len(image), "forged")
    new_header = header(old_header)
    out = bytearray(pack_header(new_header))
    moved: dict[int, tuple[int, int, bytes]] = {}
    position = HEADER_SIZE
    while position < len(image) - FOOTER_SIZE:
        peeked = peek_frame(image[position : position + FRAME_HEADER_SIZE])
        assert peeked is not None
        end = position + FRAME_HEADER_SIZE + peeked.payload_length
        frame, payload = unpack_frame(image[position:end])
        if frame.codec == Codec.DELTA:
            moved[position] = (len(out), end - position, frame.digest)
            out += pack_frame(replace(frame, image_id=new_header.image_id.bytes), payload)
            position = end
            continue
        raw = decode(frame.codec, payload, frame.raw_length)
        if frame.kind == FrameKind.PAGE:
            raw = _repointed(raw, 64 if frame.number >> 56 else 32, old_header.depth, moved)
        raw = change(frame.kind, frame.number, raw)
        codec, packed = encode(raw)
        if frame.kind == FrameKind.ANCESTORS:
            codec, packed = Codec.STORED, raw
        written = pack_frame(
            FrameHeader(
                frame.kind,
                codec,
                len(packed),
                len(raw),
                frame.number,
                new_header.image_id.bytes,
                digest(raw),
            ),
            packed,
        )
        moved[position] = (len(out), len(written), digest(raw))
        out += written
        position = end
    new_top = top(_repointed(footer.top, DIRECTORY_RECORD_SIZE, old_header.depth, moved))
    ancestors = moved.get(footer.ancestors_offset, (0, 0, b""))
    out += pack_footer(
        replace(
            footer,
            image_id=new_header.image_id,
            file_size=len(out) + FOOTER_SIZE,
            top=new_top,
            ancestors_offset=ancestors[0],
            ancestors_length=ancestors[1],
            root=footer.root if root is None else root,
            header_digest=digest(bytes(out[:HEADER_SIZE])),
        )
    )
    return bytes(out)


def _repointed(raw: bytes, step: int, depth: int, moved: dict[int, tuple[int, int, bytes]]) -> bytes:
    """Records of the image's own frames, pointing to where these stand now."""
    page = bytearray(raw)
    for at in range(0, len(page), step):
        record = unpack_record(raw, at)
        if record.layer == depth and record.state in {State.DATA, State.PAGE} and record.offset in moved:
            offset, length, raw_digest = moved[record.offset]
            changed = record._replace(offset=offset, length=length, digest=raw_digest)
            page[at : at + RECORD_SIZE] = pack_record(changed)
    return bytes(page)
