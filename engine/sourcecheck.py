"""Holding a new point against the disk that it was made of, while that still stands still."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from engine.pipeline import default_threads, ordered_map
from imageformat.errors import VerificationError
from imageformat.extent import Extent, ExtentKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageformat.device import BlockDevice

_STEP = 1 << 20
_COMPARED = frozenset({ExtentKind.DATA, ExtentKind.ZERO})
"""What was left out, or could not be read, is not in the image."""


def compare_with_source(
    view: BlockDevice,
    source: BlockDevice,
    *,
    threads: int = 0,
    report: Callable[[int], None] = lambda _: None,
) -> int:
    """Read a point and its source again and compare them; return how many bytes were compared.

    ``report`` is told the place that was reached. Holes of the source are known to be zeros.

    Raises:
        VerificationError: names the first place where they differ.
        CorruptImageError: the image cannot prove a block.
        SourceReadError
    """

    def work(extent: Extent) -> Extent:
        wanted = bytes(extent.length) if extent.kind is ExtentKind.ZERO else None
        wanted = view.pread(extent.offset, extent.length) if wanted is None else wanted
        found = source.pread(extent.offset, extent.length)
        if found != wanted:
            at = next(at for at, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
            raise VerificationError(
                f"the source has other bytes than the image at disk offset {extent.offset + at}: it changed "
                "meanwhile, or one of both is failing; image a snapshot, or check the disks"
            )
        return extent

    compared = 0
    steps = _steps(view, source)
    with contextlib.closing(ordered_map(work, steps, threads=threads or default_threads() + 1)) as done:
        for extent in done:
            compared += extent.length
            report(extent.end)
    return compared


def _steps(view: BlockDevice, source: BlockDevice) -> Iterator[Extent]:
    """Cut what is compared into pieces for one worker each."""
    if source.size != view.size:
        raise VerificationError(f"the source has {source.size} bytes, the image {view.size}")
    for extent in view.extents(0, view.size):
        parts = [extent] if extent.kind in _COMPARED else []
        if extent.kind is ExtentKind.ZERO:
            there = source.extents(extent.offset, extent.length)
            parts = [
                part._replace(kind=ExtentKind.ZERO) for part in there if part.kind is not ExtentKind.ZERO
            ]
        for part in parts:
            for start in range(part.offset, part.end, _STEP):
                yield Extent(start, min(_STEP, part.end - start), part.kind)
