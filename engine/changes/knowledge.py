"""From what a tracker claims to the blocks that are inherited unread: tied, narrowed, sampled.

A block is inherited only when all of it is claimed, the parent stores it or says that it is zeros, and it
would be read otherwise. A sample of those is read and compared with the parent on each run. One that
differs means that the tracker lies: then nothing that it says is used.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from engine.changes import CHANGES_KEY, ChangesUnknownError
from engine.plan import block_runs
from engine.sampling import Sampling, positions
from imageformat.codec import digest, zero_digest
from imageformat.errors import SourceReadError
from imageformat.extent import ExtentKind
from imageformat.formats.native.index import STATE_AT
from imageformat.formats.native.structs import RECORD_SIZE, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from engine.changes import ChangeTracker, Mark
    from engine.plan import Run
    from imageformat.device import BlockDevice
    from imageformat.extent import Extent
    from imageformat.formats.native.index import Geometry
    from imageformat.formats.native.older import ParentBlocks
    from imageformat.layer import ImageInfo
    from imageformat.repository import ImageSet

_MAX_RANGES = 4 << 20
"""More would fill the memory, and bring little: what lies behind them is read."""
_LONG = 1 << 30
_INHERITABLE = bytes(state in {State.DATA, State.ZERO} for state in range(256))


class BlockRanges:
    """Ascending, disjoint ranges ``(first, end)`` of blocks, 16 bytes each."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._bounds = array("Q")
        for first, end in ranges:
            if self._bounds and self._bounds[-1] == first:
                self._bounds[-1] = end
            elif len(self._bounds) < 2 * _MAX_RANGES:
                self._bounds.extend((first, end))
            else:
                break

    def __iter__(self) -> Iterator[tuple[int, int]]:
        bounds = iter(self._bounds)
        return zip(bounds, bounds, strict=True)

    @property
    def blocks(self) -> int:
        """How many blocks they hold."""
        return sum(self._bounds[1::2]) - sum(self._bounds[::2])


NOTHING_INHERITED = BlockRanges()


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What of a source need not be read, and how far that was tested."""

    tracker: str = "scan"
    mark: Mark | None = None
    """What the next backup can begin from."""
    inherited: BlockRanges = NOTHING_INHERITED
    sampled: int = 0
    missed: tuple[int, ...] = ()
    """Sampled blocks that had changed although the tracker says otherwise."""
    reason: str = ""
    """Why everything is read although a tracker was asked."""
    expected: bool = False
    """That was to be expected: nothing was recorded to begin from."""

    def facts(self) -> dict[str, object]:
        """Return what the image remembers of it."""
        known: dict[str, object] = {
            "by": self.tracker,
            "mark": dict(self.mark) if self.mark else None,
            "inherited": self.inherited.blocks,
            "sampled": self.sampled,
            "missed": list(self.missed),
            "reason": self.reason,
        }
        return {key: value for key, value in known.items() if value}

    def origin(self) -> dict[str, object]:
        """Return that under its key; nothing when no tracker was asked."""
        return {} if self.tracker == "scan" else {CHANGES_KEY: self.facts()}


NOTHING_KNOWN = Knowledge()


def _mark_of(info: ImageInfo) -> Mark | None:
    """Return the mark that an image recorded; a foreign or hostile one may have anything there."""
    changes = info.details.get(CHANGES_KEY)
    mark = changes.get("mark") if isinstance(changes, dict) else None
    return mark if isinstance(mark, dict) else None


def marks_of(image_set: ImageSet) -> tuple[Mark | None, ...]:
    """Return the mark of each readable image of a set, the newest last, whatever tracker it is for."""
    return tuple(_mark_of(point.info) for point in image_set.points if point.info is not None)


class Tracking:
    """One backup's use of a tracker: its mark begins with the block, and what is not needed ends with it."""

    def __init__(self, tracker: ChangeTracker | None = None, sampling: Sampling | None = None) -> None:
        self._tracker = tracker
        self._sampling = sampling or Sampling()
        self._mark: Mark | None = None
        self.knowledge = NOTHING_KNOWN
        """The last answer of `ask`."""

    def __enter__(self) -> Self:
        self._mark = self._tracker.begin() if self._tracker is not None else None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._tracker is not None:
            self._tracker.settle(published=kind is None)

    def ask(
        self,
        source: BlockDevice,
        extents: Callable[[], Iterable[Extent]],
        parent: ParentBlocks | None,
        info: ImageInfo | None,
    ) -> Knowledge:
        """Ask the tracker what may be inherited from the parent, and test it.

        Args:
            source: What is imaged.
            extents: Describes the source as it is now.
            parent: The parent's blocks; None: there is none that has its own.
            info: The facts of the parent, if there is one.

        Raises:
            SourceError, ImageError
        """
        if self._tracker is not None and not self.knowledge.missed:
            asked = Knowledge(self._tracker.name, self._mark)
            self.knowledge = _answer(self._tracker, asked, source, extents, parent, info, self._sampling)
        return self.knowledge


def _answer(
    tracker: ChangeTracker,
    asked: Knowledge,
    source: BlockDevice,
    extents: Callable[[], Iterable[Extent]],
    parent: ParentBlocks | None,
    info: ImageInfo | None,
    sampling: Sampling,
) -> Knowledge:
    mark = _mark_of(info) if info is not None else None
    if parent is None or mark is None or mark.get("tracker") != tracker.name:
        return replace(asked, reason="the parent recorded no mark", expected=True)
    geometry = parent.index.geometry
    try:
        if geometry.size != source.size:
            raise ChangesUnknownError("the source has another size now")
        runs = block_runs(extents(), source.size, geometry.block_size, _LONG)
        claimed = _known_blocks(_whole_blocks(tracker.unchanged(mark), geometry), parent)
        inherited = BlockRanges(_common(_data(runs), claimed))
        sampled, missed = _sample(inherited, source, parent, sampling)
    except ChangesUnknownError as error:
        return replace(asked, reason=str(error))
    if missed:
        reason = f"{len(missed)} of {sampled} sampled blocks had changed although it says they had not"
        return replace(asked, sampled=sampled, missed=missed, reason=reason)
    return replace(asked, inherited=inherited, sampled=sampled)


def without(runs: Iterable[Run], inherited: BlockRanges) -> Iterator[Run]:
    """Leave inherited blocks out of the runs that are read; both ascend."""
    ranges = iter(inherited)
    known = next(ranges, None)
    for run in runs:
        position, end = run.first, run.first + run.blocks
        while run.kind is ExtentKind.DATA and position < end:
            while known is not None and known[1] <= position:
                known = next(ranges, None)
            if known is None or known[0] >= end:
                break
            if known[0] > position:
                yield run._replace(first=position, blocks=known[0] - position)
            position = min(known[1], end)
        if position < end:
            yield run._replace(first=position, blocks=end - position)


def _whole_blocks(claimed: Iterable[tuple[int, int]], geometry: Geometry) -> Iterator[tuple[int, int]]:
    """Cut byte ranges to the blocks that lie wholly in them; neighbours count as one."""
    start = stop = 0
    for offset, end in claimed:
        if not stop <= offset <= end <= geometry.size:
            raise ChangesUnknownError("it describes another disk than this one")
        if offset > stop:
            yield from _inside(start, stop, geometry)
            start = offset
        stop = end
    yield from _inside(start, stop, geometry)


def _inside(start: int, stop: int, geometry: Geometry) -> Iterator[tuple[int, int]]:
    first = -(-start // geometry.block_size)
    end = geometry.blocks if stop == geometry.size else stop // geometry.block_size
    if first < end:
        yield first, end


def _known_blocks(ranges: Iterable[tuple[int, int]], parent: ParentBlocks) -> Iterator[tuple[int, int]]:
    """Narrow ranges of blocks to those of which the parent knows the content."""
    bits = parent.index.geometry.page_bits
    for first, end in ranges:
        for page in range(first >> bits, (end - 1 >> bits) + 1):
            at = page << bits
            begin, stop = max(first - at, 0), min(end - at, 1 << bits)
            states = bytes(parent.index.leaf(page)[STATE_AT::RECORD_SIZE])[begin:stop]
            known = states.translate(_INHERITABLE)
            position = known.find(1)
            while position >= 0:
                gap = known.find(0, position)
                gap = len(known) if gap < 0 else gap
                yield at + begin + position, at + begin + gap
                position = known.find(1, gap)


def _data(runs: Iterable[Run]) -> Iterator[tuple[int, int]]:
    return ((run.first, run.first + run.blocks) for run in runs if run.kind is ExtentKind.DATA)


def _common(left: Iterator[tuple[int, int]], right: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Intersect ascending ranges."""
    one, other = next(left, None), next(right, None)
    while one is not None and other is not None:
        first, end = max(one[0], other[0]), min(one[1], other[1])
        if first < end:
            yield first, end
        if one[1] <= other[1]:
            one = next(left, None)
        else:
            other = next(right, None)


def _sample(
    inherited: BlockRanges, source: BlockDevice, parent: ParentBlocks, sampling: Sampling
) -> tuple[int, tuple[int, ...]]:
    """Read some of the blocks; return how many, and which differ from the parent's."""
    geometry = parent.index.geometry
    chosen = sampling.choose(inherited.blocks)
    missed = []
    for block in positions(inherited, chosen):
        length = geometry.raw_length(block)
        try:
            raw = digest(source.pread(block * geometry.block_size, length))
        except SourceReadError as error:
            raise ChangesUnknownError(f"a sampled block cannot be read: {error}") from error
        record = parent.record(block, length)
        known = None
        if record is not None:
            known = record.digest if record.state == State.DATA else zero_digest(length)
        if raw != known:
            missed.append(block)
    return len(chosen), tuple(missed)
