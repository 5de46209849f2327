"""How long until something happens: start-up of commands, and mounts from the command to the file."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import peers, product
from benchmarks.huge import huge_image
from benchmarks.points import many_points
from benchmarks.runner import MIB, Bench, Case, Sample, Target, timed

if TYPE_CHECKING:
    from pathlib import Path

TITLE = "Start-up and mount ready"
INTERPRETER = "python -c pass"
HUGE = "mountfs, 16 TiB"
MANY = "mountfs, 1,000 points"
TARGETS = (
    Target("mountfs --help, ms", "help_ms", product.NAME, (), 150, at_most=True),
    Target("mountfs ls IMAGE:/, ms", "ls_ms", product.NAME, (), 300, at_most=True),
    Target("mount ready, ms", "ready_ms", product.NAME, (), 150, at_most=True),
    Target("mount ready, 16 TiB, ms", "ready_ms", HUGE, (), 150, at_most=True),
    Target("mount ready, 1,000 points, ms", "ready_ms", MANY, (), 150, at_most=True),
)


def run(bench: Bench) -> None:
    """Caches are warm here: cold, the disk below decides."""
    disk, folder = bench.workload.days[0], bench.scratch
    repo, qcow2 = folder / "repo", folder / "full.qcow2"
    product.run(product.backup(disk, repo))
    image = f"{repo}/disk@1"
    many, _, _ = many_points(bench, min(64 * MIB, bench.workload.size), 3 if bench.quick else 1000)
    cases: dict[str, Case] = {
        product.NAME: lambda: {**_ready(bench, image), **_commands(image)},
        MANY: partial(_ready, bench, f"{many}/disk"),
        INTERPRETER: lambda: {"help_ms": _ms([sys.executable, "-c", "pass"])},
    }
    huge = huge_image(bench, folder / "huge")
    if huge is not None:
        cases[HUGE] = partial(_ready, bench, huge)
    if bench.needs(peers.QSD, "qemu-storage-daemon", "qemu-img"):
        product.run(peers.to_qcow2(disk, qcow2))
        cases[peers.QSD] = lambda: _qemu_ready(qcow2, folder / "export.img")
    for case in [] if bench.quick else cases.values():
        case()  # once unmeasured: what is cold now is not what this is about
    bench.run(cases)


def _commands(image: str) -> Sample:
    return {
        "help_ms": _ms(product.command("--help")),
        "ls_ms": _ms(product.command("ls", f"{image}:/")),
        "ls_folder_ms": _ms(product.command("ls", f"{image}:1/logs")),
    }


def _ms(command: list[str]) -> float:
    return timed(command)["seconds"] * 1000


def _ready(bench: Bench, what: str) -> Sample:
    started = time.perf_counter()
    with product.mounted(what, bench.scratch / "mnt") as root:
        next(root.iterdir()).stat()
        return {"ready_ms": (time.perf_counter() - started) * 1000}


def _qemu_ready(qcow2: Path, point: Path) -> Sample:
    with peers.serving(peers.storage_daemon(qcow2, point), point) as (_, seconds):
        return {"ready_ms": seconds * 1000}
