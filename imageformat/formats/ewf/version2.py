"""Version 2 of the evidence file: ``.Ex01``. Source: J. Metz, EWF version 2 specification.

Each section is described behind its data, and the description names the one before: read from the end.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import (
    CorruptImageError,
    IncompleteImageError,
    ParentMismatchError,
    UnsupportedFeatureError,
)
from imageformat.formats.ewf.chunks import ENTRY, MAX_TABLE_ENTRIES, BadSectors, Table, inflate
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
    from imageformat.device import BlockDevice

SIGNATURE = b"EVF2\x0d\x0a\x81\x00"
LOGICAL_SIGNATURE = b"LEF2\x0d\x0a\x81\x00"
_FILE_HEADER = struct.Struct("<8sBBHI16s")
_DESCRIPTOR = struct.Struct("<IIQQII16s12xI")
_DEVICE, _CASE, _TABLE, _ERRORS, _MD5, _SHA1, _KEYS, _DONE = 1, 2, 4, 5, 8, 9, 11, 15
_HASHED, _ENCRYPTED = 1, 2
_NONE, _ZLIB, _BZIP2 = 0, 1, 2
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")
_HEAD = 32
"""Bytes of the header of a table, with its padding."""
_TAGS = {
    "nm": "a",
    "cn": "c",
    "en": "n",
    "ex": "e",
    "nt": "t",
    "av": "av",
    "os": "ov",
    "at": "m",
    "md": "md",
    "sn": "sn",
}
"""Tags of version 1 for those of version 2."""


class Section(NamedTuple):
    """One section of a segment."""

    kind: int
    start: int
    """Of its data."""
    size: int
    digest: bytes
    """MD5 of the data; empty when it is not recorded."""


def sections(name: str, file: BlockDevice) -> list[Section]:
    """Return the sections of a segment in order.

    Raises:
        IncompleteImageError: the file does not end with a section.
        CorruptImageError: the chain of sections is damaged.
        UnsupportedFeatureError: a section is encrypted.
    """
    found: list[Section] = []
    at = file.size - _DESCRIPTOR.size
    while at >= _FILE_HEADER.size:
        block = file.pread(at, _DESCRIPTOR.size)
        kind, flags, previous, size, length, _, digest, _ = _DESCRIPTOR.unpack(block)
        if not adler_fits(block, _DESCRIPTOR.size - 4) or length != _DESCRIPTOR.size:
            if not found:
                raise IncompleteImageError(f"{name}: was cut short: it does not end with a section")
            raise CorruptImageError(f"{name}: the section described at {at} is damaged")
        if flags & _ENCRYPTED or kind == _KEYS:
            raise UnsupportedFeatureError(f"{name}: encrypted evidence, which cannot be read")
        if at - size < _FILE_HEADER.size or (previous and previous + _DESCRIPTOR.size > at - size):
            raise CorruptImageError(f"{name}: the section described at {at} lies over another")
        found.append(Section(kind, at - size, size, digest if flags & _HASHED else b""))
        if not previous:
            return found[::-1]
        if len(found) == MAX_SECTIONS:
            raise CorruptImageError(f"{name}: has too many sections")
        at = previous
    raise IncompleteImageError(f"{name}: was cut short: it does not end with a section")


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
        header = read_exactly(name, file, 0, _FILE_HEADER.size, "header")
        signature, major, _, method, number, set_identity = _FILE_HEADER.unpack(header)
        if signature == LOGICAL_SIGNATURE:
            raise UnsupportedFeatureError(f"{name}: logical evidence (Lx01) holds files and no disk")
        if signature != SIGNATURE:
            raise CorruptImageError(f"{name}: does not begin as an evidence file does")
        if major != 2 or method not in (_NONE, _ZLIB, _BZIP2):
            raise UnsupportedFeatureError(f"{name}: version {major} with compression method {method}")
        if number != self._number:
            raise ParentMismatchError(
                f"{name}: is segment {number} of an image, where {self._number} was looked for"
            )
        if self._number > 1 and set_identity != self.found.set_identity:
            raise ParentMismatchError(f"{name}: is a segment of another image")
        self.found.set_identity = set_identity
        self.found.identity += header
        self.found.bzip2 = method == _BZIP2
        for section in sections(name, file):
            self._add(name, file, section)

    def _add(self, name: str, file: BlockDevice, section: Section) -> None:
        if section.kind in (_DEVICE, _CASE):
            content = self._content(name, file, section, MAX_TEXT)
            try:
                self._values(_text(content))
            except CorruptImageError as error:
                raise CorruptImageError(f"{name}: section at {section.start} {error}") from error
        elif section.kind == _TABLE:
            self._table(name, file, section)
        elif section.kind == _ERRORS:
            self._errors(name, self._content(name, file, section, MAX_BAD * ENTRY.size))
        elif section.kind in (_MD5, _SHA1):
            size = 16 if section.kind == _MD5 else 20
            content = self._content(name, file, section, MAX_TEXT)
            if not adler_fits(content, size):
                self.found.faults.append(f"{name}: the recorded hash at {section.start} is damaged")
            elif section.kind == _MD5:
                self.found.md5 = content[:size]
            else:
                self.found.sha1 = content[:size]
            self.found.identity += content
        elif section.kind == _DONE:
            self.is_done = True

    def _content(self, name: str, file: BlockDevice, section: Section, longest: int) -> bytes:
        if section.size > longest:
            raise CorruptImageError(f"{name}: section at {section.start} of {section.size} bytes")
        content = file.pread(section.start, section.size)
        if section.digest and hashlib.md5(content, usedforsecurity=False).digest() != section.digest:
            raise CorruptImageError(f"{name}: the section at {section.start} is not what its MD5 says")
        return content

    def _values(self, content: bytes) -> None:
        self.found.identity += content
        values = parse_values(content.decode("utf-16", "replace"))
        for tag, known in _TAGS.items():
            if values.get(tag):
                self.found.values.setdefault(known, values[tag])
        for tag, attribute in (("ts", "sectors"), ("bp", "sector_size"), ("sb", "chunk_sectors")):
            value = values.get(tag, "")
            if value.isascii() and value.isdigit() and len(value) < 20 and not getattr(self.found, attribute):
                setattr(self.found, attribute, int(value))

    def _table(self, name: str, file: BlockDevice, section: Section) -> None:
        header = read_exactly(name, file, section.start, _HEAD, "table of chunks")
        first, count = struct.unpack_from("<QI", header)
        held = sum(table.count for table in self.found.tables)
        if not adler_fits(header, 16) or count > MAX_TABLE_ENTRIES or first != held:
            raise CorruptImageError(f"{name}: the table of chunks at {section.start} is damaged")
        if _HEAD + count * ENTRY.size + 4 > section.size:
            raise CorruptImageError(f"{name}: the table of chunks at {section.start} is cut short")
        if count:
            load = partial(_load, name, file, section.start + _HEAD, count)
            self.found.tables.append(Table(name, file, count, load))

    def _errors(self, name: str, content: bytes) -> None:
        count = int.from_bytes(content[:4], "little")
        end = _HEAD + count * ENTRY.size
        if (
            len(content) < end + 4
            or not adler_fits(content, 16)
            or not adler_fits(content[_HEAD:], end - _HEAD)
        ):
            raise CorruptImageError(f"{name}: the list of unreadable sectors is damaged")
        size = self.found.sector_size
        for first, sectors, _ in ENTRY.iter_unpack(content[_HEAD:end]):
            if sectors:
                self.found.bad.append(BadSectors(first * size, (first + sectors) * size))


def _text(content: bytes) -> bytes:
    """Return a text as it was before it was compressed; programs differ in whether bzip2 holds for texts too.

    Raises:
        CorruptImageError: it is damaged; the caller adds the place.
    """
    if content.startswith(_BYTE_ORDER_MARKS):
        return content
    return inflate(content, MAX_TEXT, bzip2=content.startswith(b"BZh"))


def _load(name: str, file: BlockDevice, start: int, count: int) -> bytes:
    """Return the entries of a table.

    Raises:
        CorruptImageError: its checksum does not fit.
    """
    content = file.pread(start, count * ENTRY.size + 4)
    entries = content[:-4]
    if zlib.adler32(entries) != int.from_bytes(content[-4:], "little"):
        raise CorruptImageError(f"{name}: the table of chunks at {start} is damaged")
    return entries
