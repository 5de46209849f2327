"""Restoring a point to a disk, a partition or a file, byte for byte.

The first mebibyte, with boot sector and partition table, is written last: a restore that was interrupted
never looks bootable. Only what was proven is written; one damaged block ends the restore.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from engine.pipeline import default_threads, ordered_map
from imageformat.errors import TargetTooSmallError, VerificationError
from imageformat.extent import NOT_STORED, Extent, ExtentKind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from imageformat.device import BlockDevice, WritableDevice

HEAD = 1 << 20
"""Written last."""
_STEP = 1 << 20
"""What a worker decodes and writes at a time: shorter direct writes cost more than they gain."""


class RestoreProgress(NamedTuple):
    """How far a restore is, in bytes of the disk."""

    label: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """A finished restore."""

    size: int
    written: int
    """Bytes of data; the rest was made to read as zeros."""
    verified: bool
    seconds: float


def restore(
    view: BlockDevice,
    target: WritableDevice,
    *,
    threads: int = 0,
    check: bool = False,
    report: Callable[[RestoreProgress], None] = lambda _: None,
) -> RestoreResult:
    """Make the first ``view.size`` bytes of ``target`` equal to ``view``, and flush.

    With ``check``, everything is read back from the target and compared.

    Raises:
        TargetTooSmallError: before anything is written.
        CorruptImageError, UnreadableBlockError: the image cannot prove a block.
        DestinationError: the target failed.
        VerificationError: the target does not give back what was written.
    """
    if target.size < view.size:
        raise TargetTooSmallError(
            f"the target has {target.size} bytes, the disk in the image {view.size}; use a larger one"
        )
    started = time.monotonic()
    written = done = 0
    for part in _body_then_head(view.size):
        with contextlib.closing(_written(view, target, threads, part)) as extents:
            for extent in extents:
                if extent.kind in NOT_STORED:
                    target.zero(extent.offset, extent.length)
                else:
                    written += extent.length
                done += extent.length
                report(RestoreProgress("restore", done, view.size))
    target.flush()
    if check:
        target.evict()
        compare(view, target, threads=threads, report=report)
    return RestoreResult(view.size, written, check, time.monotonic() - started)


def _body_then_head(size: int) -> tuple[tuple[int, int], ...]:
    head = min(HEAD, size)
    return (head, size - head), (0, head)


def _written(
    view: BlockDevice, target: WritableDevice, threads: int, part: tuple[int, int]
) -> Generator[Extent]:
    """Decode and write the data of a part in parallel; yield every extent, in order, once it is written.

    What reads as zeros is left to the caller.
    """

    def work(extent: Extent) -> Extent:
        if extent.kind not in NOT_STORED:
            target.pwrite(extent.offset, view.pread(extent.offset, extent.length))
        return extent

    # A worker waits for the medium while it writes: one more than there are cores keeps these busy.
    return ordered_map(work, _steps(view, part), threads=threads or default_threads() + 1)


def _proven(view: BlockDevice, threads: int) -> Generator[tuple[Extent, bytes | None]]:
    """Yield (extent, bytes), with None for what reads as zeros; decoded in parallel, in order."""

    def work(extent: Extent) -> tuple[Extent, bytes | None]:
        return extent, None if extent.kind in NOT_STORED else view.pread(extent.offset, extent.length)

    return ordered_map(work, _steps(view, (0, view.size)), threads=threads or default_threads())


def _steps(view: BlockDevice, part: tuple[int, int]) -> Iterator[Extent]:
    """Cut what is stored of a part into pieces for one worker each; what reads as zeros stays whole."""
    for extent in view.extents(*part):
        step = extent.length if extent.kind in NOT_STORED else _STEP
        for start in range(extent.offset, extent.end, step):
            yield Extent(start, min(step, extent.end - start), extent.kind)


def compare(
    view: BlockDevice,
    target: BlockDevice,
    *,
    threads: int = 0,
    report: Callable[[RestoreProgress], None] = lambda _: None,
) -> None:
    """Read everything back from ``target`` and compare it with ``view``.

    Raises:
        VerificationError: names the first range that differs.
    """
    done = 0
    with contextlib.closing(_proven(view, threads)) as pieces:
        for extent, data in pieces:
            for start, length in _to_be_read(target, extent):
                got = target.pread(start, length)
                at = start - extent.offset
                expected = bytes(length) if data is None else data[at : at + length]
                if xxhash.xxh3_128_digest(got) != xxhash.xxh3_128_digest(expected):
                    raise VerificationError(
                        f"the target gives back other bytes at offset {start}: it is failing; do not use it"
                    )
            done += extent.length
            report(RestoreProgress("compare", done, view.size))


def _to_be_read(target: BlockDevice, extent: Extent) -> Iterator[tuple[int, int]]:
    """Cut a range into steps; where zeros are expected, the holes of the target need no reading."""
    ranges = [extent]
    if extent.kind in NOT_STORED:
        there = target.extents(extent.offset, extent.length)
        ranges = [part for part in there if part.kind is not ExtentKind.ZERO]
    for part in ranges:
        for start in range(part.offset, part.end, _STEP):
            yield start, min(_STEP, part.end - start)
