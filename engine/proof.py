"""Which parts of the image files of a set were proven, and when: what is to be proven next. Pure.

A ledger belongs to one copy of one set. Of each image file, by its id, it holds stretches: a part of what
the file stores, when that was read last, and whether it was right then. Places are bytes of the file's own
frames, laid end to end in the order of the disk; what lies beyond the size of the file counts to its last
byte. What no stretch covers was never proven; a lost ledger means that nothing was. Size is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from imageformat.errors import CorruptImageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

_VERSION = 1
MAX_STRETCHES = 128
"""Of one file; more are joined, as if all of them had been read when the first was."""
MAX_LEDGER = 64 << 20
_END = 1 << 63
NEVER = 0


class Stretch(NamedTuple):
    """``[start, end)`` of what a file stores."""

    start: int
    end: int
    read_ns: int
    """When it was read last, UTC."""
    proven: bool
    """Whether it was right then. What was not is read again in its turn, and never counts as proven."""


class Stored(NamedTuple):
    """An image file that is there."""

    id: str
    """Of the image."""
    size: int


class Todo(NamedTuple):
    """A stretch of a file that is to be read."""

    id: str
    start: int
    end: int


Ledger = dict[str, tuple[Stretch, ...]]


class _File(msgspec.Struct, frozen=True):
    version: int
    images: dict[str, list[tuple[int, int, int, bool]]]


def encode_ledger(ledger: Mapping[str, Sequence[Stretch]]) -> bytes:
    """Return the bytes of a ledger."""
    return msgspec.json.encode(_File(_VERSION, {key: list(held) for key, held in ledger.items()}))


def decode_ledger(data: bytes) -> Ledger:
    """Return a ledger.

    Raises:
        CorruptImageError: it is damaged, or of another version.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptImageError(f"the record of what was proven is damaged: {error}") from error
    ledger = {key: tuple(Stretch(*row) for row in rows) for key, rows in file.images.items()}
    if file.version != _VERSION or not all(map(_is_sane, ledger.values())):
        raise CorruptImageError("the record of what was proven is damaged, or of another version")
    return ledger


def _is_sane(held: Sequence[Stretch]) -> bool:
    position = 0
    for stretch in held:
        if not position <= stretch.start < stretch.end <= _END or not 0 <= stretch.read_ns < _END:
            return False
        position = stretch.end
    return len(held) <= MAX_STRETCHES


def recorded(held: Sequence[Stretch], new: Stretch) -> tuple[Stretch, ...]:
    """Return the stretches of a file after one more was read."""
    if new.start >= new.end:
        return tuple(held)
    parts = [cut for old in held for cut in _without(old, new)]
    return _bounded(_joined(sorted((*parts, new))))


def _without(old: Stretch, new: Stretch) -> Iterator[Stretch]:
    if old.start < min(old.end, new.start):
        yield old._replace(end=min(old.end, new.start))
    if max(old.start, new.end) < old.end:
        yield old._replace(start=max(old.start, new.end))


def _joined(parts: Iterable[Stretch]) -> list[Stretch]:
    found: list[Stretch] = []
    for part in parts:
        if found and found[-1].end == part.start and found[-1][2:] == part[2:]:
            found[-1] = found[-1]._replace(end=part.end)
        else:
            found.append(part)
    return found


def _bounded(parts: list[Stretch]) -> tuple[Stretch, ...]:
    """Join neighbours, or forget what has none, until few enough are left; claims no more than is known."""
    while len(parts) > MAX_STRETCHES:
        touching = [at for at in range(len(parts) - 1) if parts[at].end == parts[at + 1].start]
        if not touching:
            parts.remove(min(parts, key=lambda part: part.end - part.start))
            continue
        at = min(touching, key=lambda at: parts[at + 1].end - parts[at].start)
        first, second = parts[at : at + 2]
        joined = Stretch(
            first.start, second.end, min(first.read_ns, second.read_ns), first.proven and second.proven
        )
        parts[at : at + 2] = [joined]
    return tuple(parts)


def kept(ledger: Ledger, ids: Collection[str]) -> Ledger:
    """Return what a ledger holds of the images that are still there."""
    return {key: held for key, held in ledger.items() if key in ids}


def todo(ledger: Ledger, files: Sequence[Stored], now_ns: int, budget: int | None = None) -> Iterator[Todo]:
    """Yield what to read next, what was read longest ago first, each byte once; in all ``budget`` bytes.

    What was never read comes first, in the order of ``files``. A time in the future is none: the clock was
    wrong then, or is now.
    """
    everything = sorted(
        (part.read_ns, number, part.start, part.end)
        for number, file in enumerate(files)
        for part in _covering(ledger.get(file.id, ()), file.size, now_ns)
    )
    left = budget
    for _, number, start, end in everything:
        stop = end if left is None else min(end, start + left)
        if start < stop:
            yield Todo(files[number].id, start, stop)
        if left is not None:
            left -= stop - start
            if left <= 0:
                return


def _covering(held: Sequence[Stretch], size: int, now_ns: int) -> Iterator[Stretch]:
    """Yield stretches that cover a file, with what was never read among them."""
    position = 0
    for part in held:
        start, end = min(part.start, size), min(part.end, size)
        if position < start:
            yield Stretch(position, start, NEVER, proven=False)
        if start < end:
            known = part.read_ns <= now_ns
            yield Stretch(start, end, part.read_ns if known else NEVER, proven=part.proven and known)
        position = max(position, end)
    if position < size:
        yield Stretch(position, size, NEVER, proven=False)


def oldest_proof(ledger: Ledger, files: Sequence[Stored], now_ns: int) -> int | None:
    """Return since when all files are proven: the time of the oldest proof of any byte; UTC, nanoseconds.

    None when some part was never proven, or was damaged when it was read last; also when there are no files.
    """
    parts = [part for file in files for part in _covering(ledger.get(file.id, ()), file.size, now_ns)]
    if not parts or not all(part.proven for part in parts):
        return None
    return min(part.read_ns for part in parts)


def proven_fraction(ledger: Ledger, files: Sequence[Stored], now_ns: int, since_ns: int = 0) -> float:
    """Return which part of all bytes was proven at ``since_ns`` or later: 0 to 1; 1 when there are none."""
    total = sum(file.size for file in files)
    proven = sum(
        part.end - part.start
        for file in files
        for part in _covering(ledger.get(file.id, ()), file.size, now_ns)
        if part.proven and part.read_ns >= since_ns
    )
    return proven / total if total else 1.0
