"""The last point of a chain of 100, with and without differences, against a full image of the same disk."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import machine, peers, product
from benchmarks.groups.disk import product_disk
from benchmarks.points import many_points, single_full
from benchmarks.reading import measure_disk
from benchmarks.runner import MIB, Bench, Sample, Target, stored_mib, timed

if TYPE_CHECKING:
    from pathlib import Path

TITLE = "Chain of 100 against a single full"
FULL = "single full"
_READS = {
    "sequential_mib_per_s": "sequential, cold",
    "random_cold_1_per_s": "random 4 KiB, cold, 1 reader",
    "random_cold_4_per_s": "random 4 KiB, cold, 4 readers",
    "random_hot_1_per_s": "random 4 KiB, hot, 1 reader",
    "random_hot_4_per_s": "random 4 KiB, hot, 4 readers",
    "page_cache_mib_per_s": "page cache hot",
}
CHAIN = "chain of 100"
WHOLE = "chain of 100, whole blocks"
_TARGETS = {
    **_READS,
    "restore_seconds": "restore",
    "increment_seconds": "incremental on top",
}
TARGETS = (
    *(
        Target(f"{chain}, {title}", measure, chain, (FULL,), 0.95)
        for chain in (CHAIN, WHOLE)
        for measure, title in _TARGETS.items()
    ),
    Target(f"{CHAIN}, mount ready, ms more than a full", "ready_more_ms", CHAIN, (), 20.0, at_most=True),
)


def run(bench: Bench) -> None:
    """A quarter of the size: making the chain reads the disk a hundred times."""
    size = max(min(64 * MIB, bench.workload.size), bench.workload.size // 4)
    count = 3 if bench.quick else 100
    repo, disk, workload = many_points(bench, size, count)
    whole, same_disk, _ = many_points(bench, size, count, "--whole-blocks")
    alone = bench.scratch / "alone"
    point = f"{repo}/disk@latest"
    full = single_full(disk, alone)

    def measured(what: str, stored: Path, disk: Path = disk) -> Sample:
        serve = partial(product_disk, what, bench.scratch)
        found = measure_disk(bench, serve, stored, workload=workload)
        return {**found, **_restored(bench, what, stored), **_increment(bench, stored, disk)}

    def chain() -> Sample:
        more = statistics.median(
            _ready(point, bench) - _ready(full, bench) for _ in range(1 if bench.quick else 3)
        )
        return {**measured(point, repo), "ready_more_ms": more * 1000, "mib": stored_mib(repo)}

    bench.run(
        {
            CHAIN: chain,
            WHOLE: lambda: {
                **measured(f"{whole}/disk@latest", whole, same_disk),
                "mib": stored_mib(whole),
            },
            FULL: lambda: {**measured(full, alone), "mib": stored_mib(alone)},
        }
    )


def _restored(bench: Bench, what: str, stored: Path) -> Sample:
    out = bench.scratch / "out.raw"
    peers.remove(out)
    machine.cold([stored])
    return {"restore_seconds": timed(product.command("restore", "--quiet", "--yes", what, out))["seconds"]}


def _increment(bench: Bench, stored: Path, disk: Path) -> Sample:
    """Nothing has changed: what is left is finding that out."""
    repo = peers.fresh_copy(stored, bench.scratch / "copy")
    machine.cold([disk, repo])
    return {"increment_seconds": timed(product.backup(disk, repo))["seconds"]}


def _ready(what: str, bench: Bench) -> float:
    started = time.perf_counter()
    with product.mounted(what, bench.scratch / "mnt", "--disk"):
        return time.perf_counter() - started
