"""Version 1 of the evidence file: ``.E01``. Source: J. Metz, Expert Witness Compression Format specification.

Segments are chains of sections, each with its own checksum. The chunks of a ``sectors`` section are found
through the ``table`` behind it, and its copy ``table2``; in the oldest variant, the table holds its chunks.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import (
    CorruptImageError,
    IncompleteImageError,
    ParentMismatchError,
    UnsupportedFeatureError,
)
from imageformat.formats.ewf.chunks import (
    CHECKSUMED,
    COMPRESSED,
    ENTRY,
    MAX_TABLE_ENTRIES,
    BadSectors,
    Table,
    inflate,
)
from imageformat.formats.ewf.evidence import (
    MAX_BAD,
    MAX_SECTIONS,
    MAX_TEXT,
    Evidence,
    adler_fits,
    parse_values,
    read_exactly,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

SIGNATURE = b"EVF\x09\x0d\x0a\xff\x00"
LOGICAL_SIGNATURE = b"LVF\x09\x0d\x0a\xff\x00"
_ENCRYPTED_SIGNATURE = b"ADCRYPT\x00"
_FILE_HEADER = struct.Struct("<8sBHH")
_SECTION = struct.Struct("<16sQQ40xI")
_VOLUME = struct.Struct("<4xIIIQ")
_OLD_VOLUME = struct.Struct("<4xIIII")
_VOLUME_SIZE, _OLD_VOLUME_SIZE = 1052, 94
_TABLE_HEADER = struct.Struct("<I4xQ4xI")
_ERROR_HEADER_SIZE = 520
_HASH_SIZE, _DIGEST_SIZE = 36, 80
_COMPRESSED_BIT = 1 << 31


class Section(NamedTuple):
    """One section of a segment."""

    kind: str
    start: int
    """Of its data."""
    end: int


class _Copy(NamedTuple):
    """One of the two places where the entries of a table stand."""

    start: int
    entries: int
    base: int
    has_checksum: bool


@dataclass(slots=True)
class _Group:
    """A table and its copy."""

    data_end: int
    copies: list[_Copy] = field(default_factory=list)


def sections(name: str, file: BlockDevice, number: int) -> Iterator[Section]:
    """Yield the sections of segment ``number``; the last one is ``next`` or ``done``.

    Raises:
        CorruptImageError, IncompleteImageError: the chain of sections is damaged.
        ParentMismatchError: the file is another segment.
    """
    header = read_exactly(name, file, 0, _FILE_HEADER.size, "header")
    signature, _, found, _ = _FILE_HEADER.unpack(header)
    if signature == LOGICAL_SIGNATURE:
        raise UnsupportedFeatureError(f"{name}: logical evidence (L01) holds files and no disk")
    if header.startswith(_ENCRYPTED_SIGNATURE):
        raise UnsupportedFeatureError(f"{name}: evidence with AD encryption, which cannot be read")
    if signature != SIGNATURE:
        raise CorruptImageError(f"{name}: does not begin as an evidence file does")
    if found != number:
        raise ParentMismatchError(f"{name}: is segment {found} of an image, where {number} was looked for")
    at = _FILE_HEADER.size
    for _ in range(MAX_SECTIONS):
        block = read_exactly(name, file, at, _SECTION.size, "section")
        kind, following, size, _ = _SECTION.unpack(block)
        if not adler_fits(block, _SECTION.size - 4):
            raise CorruptImageError(f"{name}: the section at {at} has a damaged header")
        text = kind.rstrip(b"\0").decode("latin-1")
        if text in {"next", "done"}:
            yield Section(text, at + _SECTION.size, at + _SECTION.size)
            return
        if following < at + _SECTION.size or following - at != size:
            raise CorruptImageError(
                f"{name}: section {text} at {at} of {size} bytes does not end at {following}"
            )
        if following > file.size:
            raise IncompleteImageError(f"{name}: was cut short: section {text} at {at} ends at {following}")
        yield Section(text, at + _SECTION.size, following)
        at = following
    raise CorruptImageError(f"{name}: has too many sections")


class Reader:
    """Collects what the segments hold, in order."""

    def __init__(self) -> None:
        self.found = Evidence()
        self.is_done = False
        self._number = 0

    def add(self, name: str, file: BlockDevice) -> None:
        """Read the next segment.

        Raises:
            ImageError, ChainError: it is damaged, cut short, or no segment of this image.
        """
        self._number += 1
        group: _Group | None = None
        data_end = 0
        for section in sections(name, file, self._number):
            if section.kind == "sectors":
                data_end = section.end
            elif section.kind == "table":
                self._close(name, file, group)
                group = _Group(data_end or section.end)
                self._add_copy(name, file, section, group, holds_chunks=not data_end)
                data_end = 0
            elif section.kind == "table2" and group is not None:
                self._add_copy(name, file, section, group, holds_chunks=False)
            else:
                self._other(name, file, section)
        self._close(name, file, group)

    def _add_copy(
        self, name: str, file: BlockDevice, section: Section, group: _Group, *, holds_chunks: bool
    ) -> None:
        header = read_exactly(name, file, section.start, _TABLE_HEADER.size, section.kind)
        count, base, _ = _TABLE_HEADER.unpack(header)
        start = section.start + _TABLE_HEADER.size
        end = start + 4 * count + (0 if holds_chunks else 4)
        if not adler_fits(header, _TABLE_HEADER.size - 4) or count > MAX_TABLE_ENTRIES or end > section.end:
            self.found.faults.append(f"{name}: {section.kind} at {section.start} is damaged")
            return
        group.copies.append(_Copy(start, count, base, not holds_chunks))

    def _close(self, name: str, file: BlockDevice, group: _Group | None) -> None:
        """Add the table that is complete now."""
        if group is None:
            return
        if not group.copies or len({copy.entries for copy in group.copies}) > 1:
            raise CorruptImageError(f"{name}: a table of chunks and its copy are damaged")
        count = group.copies[0].entries
        if count:
            self.found.tables.append(Table(name, file, count, partial(_load, name, file, group)))

    def _other(self, name: str, file: BlockDevice, section: Section) -> None:
        size = section.end - section.start
        if section.kind in {"header", "header2"}:
            if size <= MAX_TEXT:
                self._text(name, section, file.pread(section.start, size))
        elif section.kind in {"volume", "disk", "data"}:
            content = file.pread(section.start, min(size, _VOLUME_SIZE))
            self._volume(name, content, section.kind)
        elif section.kind in {"hash", "digest"}:
            self._hashes(name, section.kind, file.pread(section.start, min(size, _DIGEST_SIZE)))
        elif section.kind == "error2":
            self._errors(name, file, section)
        elif section.kind == "ltree":
            raise UnsupportedFeatureError(f"{name}: logical evidence holds files and no disk")
        elif section.kind == "done":
            self.is_done = True

    def _text(self, name: str, section: Section, content: bytes) -> None:
        try:
            text = inflate(content, MAX_TEXT)
        except CorruptImageError as error:
            self.found.faults.append(f"{name}: {section.kind} at {section.start} {error}")
            return
        self.found.identity += content
        encoding = "utf-16" if text[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
        for tag, value in parse_values(text.decode(encoding, "replace")).items():
            if section.kind == "header2":
                self.found.values[tag] = value
            else:
                self.found.values.setdefault(tag, value)

    def _volume(self, name: str, content: bytes, kind: str) -> None:
        is_old = len(content) == _OLD_VOLUME_SIZE
        if len(content) not in (_VOLUME_SIZE, _OLD_VOLUME_SIZE) or not adler_fits(content, len(content) - 4):
            if self.found.sectors:
                self.found.faults.append(f"{name}: section {kind} is damaged")
                return
            raise CorruptImageError(f"{name}: section {kind}, which tells the size of the disk, is damaged")
        if is_old and content[85:90] == b"SMART":
            raise UnsupportedFeatureError(f"{name}: an image of SMART (.s01), which cannot be read")
        set_identity = b"" if is_old else content[64:80]
        if self.found.sectors:
            if set_identity != self.found.set_identity:
                raise ParentMismatchError(f"{name}: is a segment of another image")
            return
        layout = _OLD_VOLUME if is_old else _VOLUME
        _, self.found.chunk_sectors, self.found.sector_size, self.found.sectors = layout.unpack_from(content)
        self.found.set_identity = set_identity
        self.found.identity += content

    def _hashes(self, name: str, kind: str, content: bytes) -> None:
        size = _HASH_SIZE if kind == "hash" else _DIGEST_SIZE
        if len(content) < size or not adler_fits(content, size - 4):
            self.found.faults.append(f"{name}: section {kind} is damaged")
            return
        self.found.identity += content[:size]
        if any(content[:16]):
            if self.found.md5 not in (b"", content[:16]):
                self.found.faults.append(f"{name}: two different MD5 of the disk are recorded")
            self.found.md5 = content[:16]
        if kind == "digest" and any(content[16:36]):
            self.found.sha1 = content[16:36]

    def _errors(self, name: str, file: BlockDevice, section: Section) -> None:
        header = read_exactly(name, file, section.start, _ERROR_HEADER_SIZE, section.kind)
        count = int.from_bytes(header[:4], "little")
        start = section.start + _ERROR_HEADER_SIZE
        if (
            not adler_fits(header, _ERROR_HEADER_SIZE - 4)
            or count > MAX_BAD
            or start + 8 * count > section.end
        ):
            raise CorruptImageError(f"{name}: the list of unreadable sectors is damaged")
        content = read_exactly(name, file, start, 8 * count + 4, section.kind)
        if count and not adler_fits(content, 8 * count):
            raise CorruptImageError(f"{name}: the list of unreadable sectors is damaged")
        size = self.found.sector_size
        for first, sectors in struct.iter_unpack("<II", content[: 8 * count]):
            if sectors:
                self.found.bad.append(BadSectors(first * size, (first + sectors) * size))


def _load(name: str, file: BlockDevice, group: _Group) -> bytes:
    """Return the entries of a table: from its copy when they are damaged.

    Raises:
        CorruptImageError
    """
    for copy in group.copies:
        size = 4 * copy.entries
        content = file.pread(copy.start, size + (4 if copy.has_checksum else 0))
        if not copy.has_checksum or zlib.adler32(content[:size]) == int.from_bytes(content[size:], "little"):
            return _packed(content[:size], copy, group.data_end)
    raise CorruptImageError(f"{name}: the table of chunks at {group.copies[0].start} is damaged")


def _packed(content: bytes, copy: _Copy, data_end: int) -> bytes:
    """Bring entries to the common form: each chunk ends where the next one begins.

    EnCase 6.7 writes more than 2 GiB of chunks: past that, places have 32 bits, and nothing is compressed.
    """
    places: list[int] = []
    flags: list[int] = []
    is_past, last = False, 0
    for entry in struct.unpack(f"<{copy.entries}I", content):
        place = entry & ~_COMPRESSED_BIT
        is_past = is_past or place < last
        last = place
        places.append(copy.base + (entry if is_past else place))
        flags.append(COMPRESSED if entry & _COMPRESSED_BIT and not is_past else CHECKSUMED)
    found = bytearray(copy.entries * ENTRY.size)
    for at, place in enumerate(places):
        following = places[at + 1] if at + 1 < copy.entries else data_end
        length = following - place if place < following <= place + 0xFFFF_FFFF else 0
        ENTRY.pack_into(found, at * ENTRY.size, place, length, flags[at])
    return bytes(found)
