"""The record of what was written to one target: how far a run came, and a digest of every unit.

It makes three things possible: a run that was killed goes on, a run that was not finished is known as such,
and the next one need not read what provably still stands there. It lies beside the user's other state, never
on the target.

    magic (8)  length (4)  crc of the facts (4)  facts (JSON)
    unit: offset (8)  length (8)  digest (16)  crc of these (4)      appended at each checkpoint
    end:  2^64-1      length      digest of the stamp  crc           finished; the stamp (text) follows

Little-endian. A record that ends anywhere, also in the middle of a unit, is a run that came so far.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from imageformat import system
from imageformat.errors import AccessDeniedError, DestinationError, DestinationFullError, MountfsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

_MAGIC = b"MFTARG\x00\x01"
_HEAD = struct.Struct("<8sII")
_UNIT = struct.Struct("<QQ16sI")
_END = (1 << 64) - 1
_MOST_FACTS = 1 << 16
_MOST_STAMP = 1 << 12
_MOST_BYTES = 1 << 30
"""A record of 28 TiB."""


class Kept(NamedTuple):
    """One unit as an earlier run left it."""

    offset: int
    length: int
    digest: bytes


class RecordFacts(msgspec.Struct, frozen=True):
    """What a record is about."""

    source: str
    """Names the content that is written; the same text, the same bytes, unless the source is a live disk."""
    target: str
    size: int
    """Bytes of the target that the run covers."""


class Earlier:
    """What an earlier run recorded, in memory. Never an error: what is not readable is not there."""

    def __init__(self, path: Path) -> None:
        self.facts: RecordFacts | None = None
        self.stamp: str | None = None
        """What vouched for the target when the run was finished; None when it was not."""
        self._raw, self._start = b"", 0
        try:
            if path.stat().st_size <= _MOST_BYTES:
                self._raw = path.read_bytes()
            self.facts, self._start = _read_facts(self._raw)
        except (OSError, msgspec.DecodeError, struct.error):
            return
        end = self._start
        for _ in self.units():
            end += _UNIT.size
        self.stamp = self._stamp_at(end)

    @property
    def interrupted(self) -> bool:
        """Whether it tells of a run that was not finished."""
        return self.facts is not None and self.stamp is None

    def units(self) -> Iterator[Kept]:
        """Yield the units in ascending order; ends where the record does, or makes no sense."""
        reach, position = 0, self._start
        while (found := self._unit_at(position)) is not None and reach <= found.offset < _END:
            reach = found.offset + found.length
            position += _UNIT.size
            yield found

    def _unit_at(self, position: int) -> Kept | None:
        raw = self._raw[position : position + _UNIT.size]
        if self.facts is None or len(raw) < _UNIT.size:
            return None
        offset, length, digest, crc = _UNIT.unpack(raw)
        return Kept(offset, length, digest) if crc == zlib.crc32(raw[:-4]) else None

    def _stamp_at(self, position: int) -> str | None:
        found = self._unit_at(position)
        if found is None or found.offset != _END or found.length > _MOST_STAMP:
            return None
        stamp = self._raw[position + _UNIT.size :][: found.length]
        return stamp.decode("utf-8", "replace") if _digest(stamp) == found.digest else None


class WriteRecord:
    """The record of the run that is under way. One thread."""

    def __init__(self, path: Path, facts: RecordFacts) -> None:
        self.path = path
        self._facts = facts
        self._file: BinaryIO | None = None

    def begin(self) -> None:
        """Replace what an earlier run recorded: from now on the target counts as unfinished. Durable.

        Raises:
            DestinationError: the record cannot be written.
        """
        facts = msgspec.json.encode(self._facts)
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | system.PRIVATE, 0o600)
            try:
                system.pwrite(fd, _HEAD.pack(_MAGIC, len(facts), zlib.crc32(facts)) + facts, 0)
                os.fsync(fd)
            finally:
                os.close(fd)
            system.replace(part, self.path)
            system.sync_folder(self.path.parent)
            self.close()
            self._file = self.path.open("ab")
        except OSError as error:
            raise _failure(self.path, error) from error

    def add(self, units: Iterable[Kept]) -> None:
        """Append units that are durable, and proven, on the target.

        A record that cannot be written any more ends here, and is true of what it names.
        """
        if self._file is not None:
            self._append(b"".join(_packed(unit) for unit in units))

    def finish(self, stamp: str) -> None:
        """Say that the run is finished, and what vouches for the target from now on."""
        text = stamp.encode()[:_MOST_STAMP]
        if self._file is not None:
            self._append(_packed(Kept(_END, len(text), _digest(text))) + text)
            self.close()

    def _append(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(data)
            self._file.flush()
            system.sync_data(self._file.fileno())
        except OSError:
            self.close()

    def remove(self) -> None:
        """Forget it: there is nothing to go on with."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; idempotent."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def record_path(folder: Path, target: str) -> Path:
    """Where the record of a target lies."""
    return folder / f"{hashlib.sha256(target.encode()).hexdigest()[:32]}.record"


def _packed(unit: Kept) -> bytes:
    raw = _UNIT.pack(*unit, 0)[:-4]
    return raw + struct.pack("<I", zlib.crc32(raw))


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()[:16]


def _read_facts(raw: bytes) -> tuple[RecordFacts | None, int]:
    """Return the facts, and where the units begin."""
    magic, length, crc = _HEAD.unpack_from(raw)
    facts = raw[_HEAD.size : _HEAD.size + length]
    if magic != _MAGIC or length > _MOST_FACTS or zlib.crc32(facts) != crc:
        return None, 0
    return msgspec.json.decode(facts, type=RecordFacts), _HEAD.size + length


def _failure(path: Path, error: OSError) -> MountfsError:
    if isinstance(error, PermissionError):
        return AccessDeniedError(f"{path}, the record of this run, may not be written by this user")
    kind = DestinationFullError if error.errno == errno.ENOSPC else DestinationError
    return kind(f"cannot write {path}, the record of this run: {error.strerror}")
