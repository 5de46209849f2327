"""EWF: evidence files of EnCase and other forensic tools, ``.E01`` and ``.Ex01``, in any number of segments.

Every byte of the disk is proven by the checksum of its chunk, every table and section by its own; `verify`
also holds the whole disk against the MD5 and SHA-1 that were recorded. Source: J. Metz, Expert Witness
Compression Format specification, versions 1 and 2.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imageformat.errors import CorruptImageError, UnsupportedFeatureError
from imageformat.foreign import ForeignDisk, ForeignImage, ForeignLayer
from imageformat.formats._identity import file_identity
from imageformat.formats._stretches import StretchDevice
from imageformat.formats.ewf import version1, version2
from imageformat.formats.ewf.chunks import Chunks
from imageformat.formats.ewf.evidence import Evidence, check_shape, segment_names
from imageformat.layer import ImageFormat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imageformat.device import BlockDevice
    from imageformat.layer import ImageLayer, Opening

_MIN_BLOCK, _MAX_BLOCK = 1 << 16, 1 << 20
_HASH_STEP = 1 << 20
_SIGNATURES = (
    version1.SIGNATURE,
    version1.LOGICAL_SIGNATURE,
    version2.SIGNATURE,
    version2.LOGICAL_SIGNATURE,
)
_SHOWN = {
    "c": "case",
    "n": "evidence",
    "a": "label",
    "e": "examiner",
    "t": "comment",
    "md": "model",
    "sn": "serial",
    "av": "software",
    "ov": "system",
}


def probe(device: BlockDevice) -> bool:
    """Tell whether a file begins as an evidence file does."""
    return device.pread(0, min(8, device.size)) in _SIGNATURES


def _open(opening: Opening) -> ImageLayer:
    with ExitStack() as stack:
        stack.callback(opening.device.close)
        found, stored_size = _read_segments(opening, stack)
        check_shape(opening.name, found)
        chunks = Chunks(found.tables, found.size, found.chunk_size, found.bad, bzip2=found.bzip2)
        files = stack.pop_all()
    device = StretchDevice(found.size, _block_size(found), chunks.locate)
    whole = StretchDevice(found.size, _MIN_BLOCK, chunks.stored)
    details: dict[str, object] = {
        shown: found.values[tag] for tag, shown in _SHOWN.items() if found.values.get(tag)
    }
    details |= {key: value.hex() for key, value in (("md5", found.md5), ("sha1", found.sha1)) if value}
    return ForeignLayer(
        opening.name,
        ForeignImage(
            "ewf",
            (ForeignDisk(device, found.sector_size),),
            found.identity if found.md5 or found.sha1 else file_identity(opening, found.identity),
            created_ns=_created_ns(found.values) or opening.siblings.modified_ns,
            stored_size=stored_size,
            details=details,
            checks=lambda: _check(opening.name, found, whole),
            close=files.close,
        ),
    )


def _read_segments(opening: Opening, stack: ExitStack) -> tuple[Evidence, int]:
    """Open and read all segments; ``stack`` closes them."""
    start = opening.device.pread(0, min(8, opening.device.size))
    is_second = start in (version2.SIGNATURE, version2.LOGICAL_SIGNATURE)
    reader = version2.Reader() if is_second else version1.Reader()
    if opening.name.lower().endswith(".s01"):
        raise UnsupportedFeatureError(f"{opening.name}: an image of SMART (.s01), which cannot be read")
    reader.add(opening.name, opening.device)
    stored_size = opening.device.size
    names = segment_names(opening.name)
    while not reader.is_done:
        segment = opening.siblings.open(next(names))
        stack.callback(segment.device.close)
        reader.add(segment.name, segment.device)
        stored_size += segment.device.size
    return reader.found, stored_size


def _block_size(found: Evidence) -> int:
    """Return a unit that holds whole chunks, and of which none is partly unreadable."""
    size = max(_MIN_BLOCK, min(_MAX_BLOCK, 1 << (found.chunk_size - 1).bit_length()))
    for start, end in found.bad:
        for edge in (start, end):
            if edge:
                size = min(size, edge & -edge)
    return max(size, 512)


def _created_ns(values: Mapping[str, str]) -> int:
    """Return when the disk was acquired: a number of seconds, or local time, which is taken as UTC."""
    text = values.get("m", "").strip()
    if not text.isascii():
        return 0
    if text.isdigit() and len(text) <= 10:
        return int(text) * 10**9
    try:
        year, month, day, hour, minute, second = (int(part) for part in text.split())
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return 0
    return max(0, int(moment.timestamp())) * 10**9


def _check(name: str, found: Evidence, whole: BlockDevice) -> Iterator[str]:
    """Yield what is damaged beside the chunks, and which recorded hash the disk does not have."""
    yield from found.faults
    recorded = {"MD5": found.md5, "SHA-1": found.sha1}
    running = {
        "MD5": hashlib.md5(usedforsecurity=False),
        "SHA-1": hashlib.sha1(usedforsecurity=False),
    }
    if not any(recorded.values()):
        return
    try:
        for offset in range(0, whole.size, _HASH_STEP):
            content = whole.pread(offset, min(_HASH_STEP, whole.size - offset))
            for kind, value in recorded.items():
                if value:
                    running[kind].update(content)
    except CorruptImageError as error:
        yield f"{name}: the recorded hash of the disk cannot be compared: {error}"
        return
    for kind, value in recorded.items():
        held = running[kind].digest()
        if value and held != value:
            yield f"{name}: the {kind} of the disk is {held.hex()}, and {value.hex()} was recorded"


PLUGIN = ImageFormat("ewf", (".e01", ".ex01"), probe, _open)
