"""Going on with a backup that was interrupted.

Nothing of the source's earlier state gets into the image: every block is read from the source again and
hashed, and a frame that is stored already is used only when it holds just these bytes. What that saves is
compressing and writing. docs/decisions/0013-resume.md says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from imageformat.errors import (
    ChainError,
    DestinationFullError,
    ImageError,
    VerificationError,
)
from imageformat.extent import ExtentKind
from imageformat.formats.native.structs import HEADER_SIZE, KNOWN_INCOMPATIBLE, PARTIAL_BLOCKS
from imageformat.formats.native.unfinished import (
    StoredFrame,
    StoredFrames,
    Survey,
    read_unfinished_header,
    survey,
)
from imageformat.storage.unfinished import ResumableStorage, ResumableWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from uuid import UUID

    from engine.plan import Run
    from imageformat.extent import Extent
    from imageformat.formats.native.structs import Header
    from imageformat.storage import ObjectWriter, Storage

_MIB = 1 << 20


class Started(NamedTuple):
    """An image that is being written, by a new writer or an earlier one's."""

    target: ObjectWriter
    header: Header
    kept: Kept | None
    """What is stored already."""


def start_image(
    storage: Storage,
    prefix: str,
    header: Header,
    name: Callable[[UUID], str],
    *,
    resume: bool,
    tell: Callable[[str], None],
) -> Started:
    """Start an image, or go on with what was left of one like it; ``tell`` is told so.

    ``name`` gives its file name by its id. What else was left unfinished in the set is removed, and that one
    too unless ``resume``. The set is locked meanwhile.

    Raises:
        DestinationError, StorageError, AccessDeniedError
    """
    if not isinstance(storage, ResumableStorage):
        return Started(storage.create(f"{prefix}{name(header.image_id)}"), header, None)
    resumed = _find(storage, prefix, header, name, resume=resume)
    if resumed is None:
        return Started(storage.create_resumable(f"{prefix}{name(header.image_id)}"), header, None)
    tell(f"continuing {resumed.name}: {resumed.percent} % was there")
    try:
        kept = Kept(resumed)
    except BaseException:
        resumed.target.suspend()
        raise
    return Started(resumed.target, dataclasses.replace(header, image_id=resumed.image_id), kept)


class Resumed(NamedTuple):
    """An unfinished image that is gone on with."""

    target: ResumableWriter
    image_id: UUID
    found: Survey
    name: str
    """Of the file that it was to be."""
    percent: int
    """How much of the disk the earlier runs had passed."""


def _find(
    storage: ResumableStorage, prefix: str, header: Header, name: Callable[[UUID], str], *, resume: bool
) -> Resumed | None:
    chosen: Resumed | None = None
    for key in storage.unfinished(prefix):
        if chosen is None and resume:
            chosen = _opened(storage, prefix, key, header, name)
            if chosen is not None:
                continue
        storage.discard(key)
    return chosen


def _opened(
    storage: ResumableStorage, prefix: str, key: str, header: Header, name: Callable[[UUID], str]
) -> Resumed | None:
    old = None
    target = storage.resume(key, key)
    try:
        old = read_unfinished_header(target)
    finally:
        target.suspend()
    if old is None or not _continues(old, header):
        return None
    target = storage.resume(key, f"{prefix}{name(old.image_id)}")
    try:
        found = survey(target, old)
        target.cut(found.end)
    except BaseException:
        target.suspend()
        raise
    percent = min(100, found.blocks * old.block_size * 100 // max(1, old.disk_size))
    return Resumed(target, old.image_id, found, key.removeprefix(prefix), percent)


def _continues(old: Header, new: Header) -> bool:
    """Tell whether frames of an image are those that another one of the same source would have."""
    same = all(
        getattr(old, field) == getattr(new, field)
        for field in ("disk_size", "sector_size", "block_size", "page_bits", "parent_id", "parent_root")
    )
    needed = KNOWN_INCOMPATIBLE & ~PARTIAL_BLOCKS  # which is said when all is read
    return same and not old.incompatible & ~new.incompatible & needed and _same_source(old, new)


def _same_source(old: Header, new: Header) -> bool:
    """Compare by serial number where both are known, else by path."""
    before, now = _origin(old), _origin(new)
    for fact in ("serial", "source"):
        if before.get(fact) and now.get(fact):
            return before[fact] == now[fact]
    return False


def _origin(header: Header) -> dict[str, object]:
    try:
        return msgspec.json.decode(header.origin, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


class Kept:
    """What is stored already, handed to the workers with the runs of blocks it belongs to. One thread."""

    def __init__(self, resumed: Resumed) -> None:
        self._frames = StoredFrames(resumed.target, resumed.found)

    def lead(self, runs: Iterable[Run]) -> Iterator[Run]:
        """Yield the runs, those that are read with what is stored of them.

        What is stored of blocks that hold nothing now is voided.
        """
        for run in runs:
            stored = self._frames.before(run.first + run.blocks)
            if run.kind is ExtentKind.DATA:
                yield run._replace(stored=tuple(stored))
                continue
            for frame in stored:
                self._frames.void(frame)
            yield run
        for frame in self._frames.before(sys.maxsize):
            self._frames.void(frame)

    def settle(self, run: Run, used: Iterable[object]) -> None:
        """Void what was stored of a run and is not used."""
        if run.stored:
            places = {frame.offset for frame in used if isinstance(frame, StoredFrame)}
            for frame in run.stored:
                if frame.offset not in places:
                    self._frames.void(frame)


@contextlib.contextmanager
def kept_when_interrupted(
    target: ObjectWriter, tell: Callable[[str], None], still_needed: Callable[[], int]
) -> Iterator[None]:
    """Keep what is stored when the context ends early for a reason that does not speak against it.

    ``still_needed`` estimates how many bytes are missing when the place is full.
    """
    try:
        yield
    except (ImageError, ChainError, VerificationError):
        raise
    except DestinationFullError as error:
        advice = f"about {_amount(still_needed())} more are needed"
        if _suspend(target):
            advice += "; what is stored is kept, and the same command goes on from there"
        raise DestinationFullError(f"{error}: {advice}") from error
    except BaseException:
        if _suspend(target):
            tell("what is stored is kept; the same command goes on from there")
        raise
    finally:
        target.abort()


def _suspend(target: ObjectWriter) -> bool:
    worth_it = target.position > HEADER_SIZE
    return worth_it and isinstance(target, ResumableWriter) and target.suspend()


def _amount(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{max(1, -(-size // _MIB))} MiB"


def data_left(extents: Iterable[Extent], done: int, stored: int) -> int:
    """Estimate what the rest of a disk will take, from what the part before ``done`` took."""
    before = after = 0
    for extent in extents:
        if extent.kind is ExtentKind.DATA:
            passed = max(0, min(extent.length, done - extent.offset))
            before, after = before + passed, after + extent.length - passed
    return after * min(stored, before) // before if before else after
