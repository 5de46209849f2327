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

HOT = 24 * MIB
"""Fits into every block cache that is compared."""
_CHUNK = 64 << 10


def measure_disk(
    bench: Bench,
    serve: Callable[[], AbstractContextManager[Path]],
    stored: Path,
    *,
    workload: Workload | None = None,
) -> Sample:
    """Read the disk cold and hot, in sequence and at random; each figure begins with a fresh server."""
    workload = workload or bench.workload
    few = 50 if bench.quick else 1
    found: dict[str, float] = {}
    with _fresh(serve, stored) as disk:
        for kind in ("sequential", "page_cache"):
            found[f"{kind}_mib_per_s"] = _mib_per_s(disk, workload.size)
    for readers in (4,) if bench.quick else (1, 4):
        places = _places(workload.changeable, _cold_reads(workload) // few, readers)
        with _fresh(serve, stored) as disk:
            found[f"random_cold_{readers}_per_s"] = random_reads(disk, places)
    chunks = _hot_chunks(workload)
    with _fresh(serve, stored) as disk:
        warm(disk, chunks, _CHUNK)
        for readers in (1, 4):
            places = _places([(chunk, _CHUNK) for chunk in chunks], 10_000 // few, readers)
            found[f"random_hot_{readers}_per_s"] = random_reads(disk, places, direct=True)
    return found


def _fresh(serve: Callable[[], AbstractContextManager[Path]], stored: Path) -> AbstractContextManager[Path]:
    machine.cold([stored])
    return serve()


def _mib_per_s(disk: Path, size: int) -> float:
    return size / MIB / timed(peers.read_once(disk))["seconds"]


def _places(parts: Sequence[tuple[int, int]], reads: int, readers: int) -> list[list[int]]:
    """Offsets of blocks inside the parts, for each reader its own; four readers read twice as much."""
    blocks = [block for offset, size in parts for block in range(offset, offset + size, BLOCK)]
    chance = random.Random(f"{reads} {readers}")
    return [chance.choices(blocks, k=reads // max(1, readers // 2)) for _ in range(readers)]


def _cold_reads(workload: Workload) -> int:
    """More than this would find most of what they want in the page cache."""
    return min(4000, sum(size for _, size in workload.changeable) // BLOCK // 8)


def _hot_chunks(workload: Workload) -> list[int]:
    """Pieces from all over the file contents: zeros or random data alone would cost some servers nothing."""
    chunks = [
        chunk
        for offset, size in workload.changeable
        for chunk in range(-(-offset // _CHUNK) * _CHUNK, offset + size - _CHUNK + 1, _CHUNK)
    ]
    chosen = random.Random(4).sample(chunks, min(len(chunks), HOT // _CHUNK))
    return sorted(chosen)


def warm(disk: Path, places: Sequence[int], length: int) -> None:
    """Have the server read some places, past the kernel's page cache."""
    descriptor = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, length) as buffer:
        for place in places:
            os.preadv(descriptor, [buffer], place)
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
