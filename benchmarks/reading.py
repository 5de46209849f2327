"""Reads a virtual disk in every way that figures compare, whoever serves it."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import time
from typing import TYPE_CHECKING

from benchmarks import machine, peers
from benchmarks.runner import MIB, Bench, Sample, timed
from benchmarks.workload import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benchmarks.workload import Workload

HOT_RANGE = 32 * MIB
"""Fits into every block cache that is compared."""


def measure_disk(bench: Bench, serve: Callable[[], AbstractContextManager[Path]], stored: Path) -> Sample:
    """Read the disk cold and hot, in sequence and at random; each figure begins with a fresh server."""
    workload = bench.workload
    few = 50 if bench.quick else 1
    found: dict[str, float] = {}
    with _fresh(serve, stored) as disk:
        for kind in ("sequential", "page_cache"):
            found[f"{kind}_mib_per_s"] = _mib_per_s(disk, workload.size)
    for readers in (1, 4):
        places = _places(workload, 4000 // few, readers)
        with _fresh(serve, stored) as disk:
            found[f"random_cold_{readers}_per_s"] = random_reads(disk, places)
    start, length = hot_range(workload)
    with _fresh(serve, stored) as disk:
        warm(disk, start, length)
        for readers in (1, 4):
            places = _places(workload, 10_000 // few, readers, start, length)
            found[f"random_hot_{readers}_per_s"] = random_reads(disk, places, direct=True)
    return found


def _fresh(serve: Callable[[], AbstractContextManager[Path]], stored: Path) -> AbstractContextManager[Path]:
    machine.cold([stored])
    return serve()


def _mib_per_s(disk: Path, size: int) -> float:
    return size / MIB / timed(peers.read_once(disk))["seconds"]


def _places(
    workload: Workload, reads: int, readers: int, start: int = 0, length: int | None = None
) -> list[list[int]]:
    """Offsets of blocks that hold file contents, for each reader its own."""
    end = workload.size if length is None else start + length
    blocks = [
        block
        for offset, size in workload.changeable
        for block in range(max(offset, start), min(offset + size, end), BLOCK)
    ]
    if length is None:
        reads = min(reads, len(blocks) // 8)  # more would find most of it in the page cache
    chance = random.Random(f"{reads} {readers} {start}")
    return [chance.choices(blocks, k=reads // max(1, readers // 2)) for _ in range(readers)]


def hot_range(workload: Workload) -> tuple[int, int]:
    """The stretch of the disk that holds most file contents: a cache of zeros proves nothing."""
    length = min(HOT_RANGE, workload.size // 4)
    best = max(workload.changeable, key=lambda place: _covered(workload, place[0], length))
    return best[0], min(length, workload.size - best[0])


def _covered(workload: Workload, start: int, length: int) -> int:
    ends = ((max(offset, start), min(offset + size, start + length)) for offset, size in workload.changeable)
    return sum(max(0, last - first) for first, last in ends)


def warm(disk: Path, start: int, length: int) -> None:
    """Have the server read a range, past the kernel's page cache."""
    descriptor = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, MIB) as buffer:
        for offset in range(start, start + length, MIB):
            os.preadv(descriptor, [buffer], offset)
    os.close(descriptor)


def random_reads(disk: Path, places: Sequence[Sequence[int]], *, direct: bool = False) -> float:
    """Read 4 KiB at each place, one process for each list; return reads per second of all together."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(places))
    times = context.Array("d", 2 * len(places))
    readers = [
        context.Process(target=_read, args=(disk, offsets, direct, number, barrier, times))
        for number, offsets in enumerate(places)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    if any(reader.exitcode for reader in readers):
        raise OSError(f"reading {disk} failed")
    return sum(map(len, places)) / (max(times[1::2]) - min(times[::2]))


def _read(disk: Path, offsets: Sequence[int], direct: bool, number: int, barrier, times) -> None:  # noqa: ANN001, FBT001 - multiprocessing's own types have no names
    descriptor = os.open(disk, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    buffers = [mmap.mmap(-1, BLOCK)]
    barrier.wait()
    times[2 * number] = time.perf_counter()
    for offset in offsets:
        if os.preadv(descriptor, buffers, offset) != BLOCK:
            raise OSError(f"short read at {offset}")
    times[2 * number + 1] = time.perf_counter()
