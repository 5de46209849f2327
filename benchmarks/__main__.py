"""``python -m benchmarks NAME...``: measure groups of figures, keep the results, show them.

Without a name all groups are measured. ``report`` writes docs/performance.md from the kept results.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import groups, machine
from benchmarks.runner import RESULTS, conclude, keep, prepared

_UNITS = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size_of(text: str) -> int:
    """Bytes of `64MiB`, `1GiB`, or a bare number of MiB."""
    letters = text.lstrip("0123456789")
    unit = letters.removesuffix("iB").removesuffix("B").upper()
    if unit not in _UNITS or letters == text:
        raise argparse.ArgumentTypeError(f"{text}: a size is written as 64MiB or 1GiB")
    return int(text.removesuffix(letters)) * _UNITS[unit]


def measure(name: str, work: Path, size: int, rounds: int, *, quick: bool = False) -> dict[str, Any]:
    """Run one group and return its result; what it made is removed."""
    group = importlib.import_module(f"benchmarks.groups.{name}")
    bench = prepared(name, work, size, rounds, quick=quick)
    started = time.perf_counter()
    try:
        group.run(bench)
    finally:
        shutil.rmtree(bench.scratch, ignore_errors=True)
    return conclude(bench, group.TITLE, group.TARGETS, time.perf_counter() - started)


def show(result: dict[str, Any]) -> None:
    """Print medians with their spread, then the ratios."""
    print(f"\n{result['title']}: {result['size_mib']} MiB, {result['rounds']} rounds, {result['seconds']} s")
    for kind, cases in result["samples"].items():
        for name, values in cases.items():
            middle = statistics.median(values)
            print(f"  {name:44} {kind:14} {middle:10.2f} ({min(values):.2f}..{max(values):.2f})")
    for target in result["targets"]:
        against = " / ".join(target["theirs"]) or "itself"
        sign = "<=" if target["at_most"] else ">="
        spread = f"{target['median']:.2f} ({target['min']:.2f}..{target['max']:.2f})"
        verdict = "met" if target["met"] else "MISSED"
        print(f"  {target['title']}, {against}: {spread}, target {sign} {target['goal']}: {verdict}")
    for line in result["left_out"]:
        print(f"  left out: {line}")


def main() -> None:
    """Measure, print and keep."""
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(groups.NAMES)}, report")
    options.add_argument("--size", type=size_of, default=1 << 30, help="of the disk: 1GiB (default)")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--work", type=Path, default=machine.scratch_root(), help="keeps the disks")
    options.add_argument("--quick", action="store_true", help="hardly measure: does everything run?")
    options.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    chosen = options.parse_args()
    names = chosen.names or [*groups.NAMES, "report"]
    unknown = set(names) - {*groups.NAMES, "report"}
    if unknown:
        options.error(f"no such figures: {', '.join(sorted(unknown))}")
    if chosen.quick:
        machine.spare_others()
    for name in names:
        if name == "report":
            importlib.import_module("benchmarks.report").write(chosen.results)
            continue
        result = measure(name, chosen.work, chosen.size, chosen.rounds, quick=chosen.quick)
        keep(result, chosen.results)
        show(result)


if __name__ == "__main__":
    main()
