"""What all figures share: cases run one after the other in every round, so that noise falls on all alike.

A case is a function that does one thing and returns what it measured. Ratios are taken within a round, and
their median is what counts: a slow moment of the machine then slows both sides of a ratio.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import machine
from benchmarks.workload import Workload, prepare

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20

_SLOW = frozenset({"restic", "borg", "partclone.extfs"})
"""Take seconds to start and to end, however small the disk is."""

Sample = Mapping[str, float]
"""Measure -> value; names end with the unit: `seconds`, `cpu_seconds`, `mib`, `mib_per_s`, `per_s`, `ms`."""
Case = Callable[[], Sample]


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table: ours against theirs in one measure, and what has to come out."""

    title: str
    measure: str
    ours: str
    theirs: tuple[str, ...]
    """The best of these counts; none: the value itself is compared with the goal."""
    goal: float
    at_most: bool = False
    """False: how many times better than theirs, at least. True: ours divided by theirs, at most."""


@dataclass(slots=True)
class Bench:
    """One run of one group of figures."""

    name: str
    workload: Workload
    scratch: Path
    rounds: int
    quick: bool = False
    """For tests: as little as still passes through everything."""
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def run(self, cases: Mapping[str, Case]) -> None:
        """Run A B C, A B C, ... and keep every sample."""
        for number in range(self.rounds):
            for name, case in cases.items():
                self.say(f"round {number + 1} of {self.rounds}: {name}")
                for measure, value in case().items():
                    self.samples.setdefault(measure, {}).setdefault(name, []).append(value)

    def needs(self, what: str, *tools: str, root: bool = False) -> bool:
        """Whether a peer can run here; if not, say so in the results."""
        missing = [tool for tool in tools if not machine.has(tool)]
        if root and not machine.is_root():
            missing.append("root")
        if self.quick and _SLOW.intersection(tools):
            missing.append("more time than a quick run has")
        if missing:
            self.left_out.append(f"{what}: needs {', '.join(missing)}")
        return not missing

    def say(self, text: str) -> None:
        """Tell a person what is going on."""
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)


def timed(command: Sequence[str | Path], **environment: str) -> dict[str, float]:
    """Run a command to its end; return wall and processor seconds, its children's included."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**machine.environment(), **environment},
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, stderr=said)
    return {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime}


def shell(script: str, **environment: str) -> dict[str, float]:
    """`timed` for a pipeline."""
    return timed(["bash", "-o", "pipefail", "-c", script], **environment)


def stored_mib(*places: Path) -> float:
    """What files and folders take, in MiB, holes not counted."""
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]
    return (
        sum(min(file.stat().st_size, file.stat().st_blocks * 512) for file in files if file.is_file()) / MIB
    )


def ratios(samples: Mapping[str, Mapping[str, Sequence[float]]], target: Target) -> list[float]:
    """The ratio of every round; empty when one side did not run."""
    values = samples.get(target.measure, {})
    ours = values.get(target.ours)
    peers = [values[name] for name in target.theirs if name in values]
    if not ours or (target.theirs and not peers):
        return []
    if not target.theirs:
        return list(ours)
    more_is_better = target.measure.endswith("per_s")
    best = [max(each) if more_is_better else min(each) for each in zip(*peers, strict=True)]
    pairs = zip(ours, best, strict=True)
    if target.at_most or more_is_better:
        return [mine / other for mine, other in pairs]
    return [other / mine for mine, other in pairs]


def conclude(bench: Bench, title: str, targets: Sequence[Target], seconds: float) -> dict[str, object]:
    """Everything that was found, ready to be kept."""
    outcomes: list[dict[str, object]] = []
    for target in targets:
        each = ratios(bench.samples, target)
        if not each:
            continue
        median = statistics.median(each)
        met = median <= target.goal if target.at_most else median >= target.goal
        outcomes.append(
            {**asdict(target), "median": median, "min": min(each), "max": max(each), "met": met, "each": each}
        )
    return {
        "name": bench.name,
        "title": title,
        "size_mib": bench.workload.size // MIB,
        "rounds": bench.rounds,
        "seconds": round(seconds, 1),
        "workload_sha256": bench.workload.digest,
        "machine": machine.facts(),
        "left_out": bench.left_out,
        "targets": outcomes,
        "samples": bench.samples,
    }


def prepared(name: str, work: Path, size: int, rounds: int, *, quick: bool = False) -> Bench:
    """Return a run of a group, with its disk made."""
    work.mkdir(parents=True, exist_ok=True)
    workload = prepare(work, size)
    scratch = work / f"{name}-{os.getpid()}"
    scratch.mkdir()
    return Bench(name, workload, scratch, rounds, quick)


def keep(result: Mapping[str, object], folder: Path) -> Path:
    """Write the result of a group; the newest one of a size replaces the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['name']}-{result['size_mib']}MiB.json"
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return path
