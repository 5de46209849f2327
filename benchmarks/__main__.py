"""``make bench``: backup, incremental, restore and a mounted read, beside qemu-img and cp.

Product and peers run one after the other in every round, so that a noisy machine is noisy for all; the
table shows medians and what the product takes of the peer's time. The results are kept as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.workload import MIB, change_blocks, make_disk

RESULTS = Path(__file__).parent / "results"


def timed(command: list[str]) -> float:
    """Run a command to its end and return the seconds it took."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def mountfs(verb: str, *arguments: str) -> list[str]:
    """Return the command line of the product."""
    return [sys.executable, "-m", "mountfs.cli.__main__", verb, "--quiet", *arguments]


def one_round(folder: Path, disk: Path, number: int, seconds: dict[str, list[float]]) -> dict[str, int]:
    """Run everything once; return sizes in bytes."""

    def note(name: str, command: list[str]) -> None:
        seconds.setdefault(name, []).append(timed(command))

    repo, qcow2, raw = folder / "repo", folder / "full.qcow2", folder / "out.raw"
    shutil.rmtree(repo, ignore_errors=True)
    note("full: mountfs", mountfs("backup", str(disk), str(repo)))
    note(
        "full: qemu-img",
        ["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", str(disk), str(qcow2)],
    )
    full_bytes = next((repo / "disk").glob("0001-*.mfi")).stat().st_size
    change_blocks(disk, 0.02, seed=100 + number)
    note("incremental: mountfs", mountfs("backup", str(disk), str(repo)))
    note("incremental: reading the disk once", ["dd", f"if={disk}", "of=/dev/null", "bs=1M", "status=none"])
    note("restore: mountfs", mountfs("restore", f"{repo}/disk@1", str(raw)))
    raw.unlink()
    note("restore: qemu-img", ["qemu-img", "convert", "-O", "raw", str(qcow2), str(raw)])
    raw.unlink()
    note("restore: cp --sparse", ["cp", "--sparse=always", str(disk), str(raw)])
    raw.unlink()
    note("verify: mountfs", mountfs("verify", str(repo)))
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        point = folder / "mnt"
        point.mkdir(exist_ok=True)
        note("mount until ready: mountfs", mountfs("mount", f"{repo}/disk@2", str(point)))
        try:
            note(
                "mounted read, first: mountfs",
                ["dd", f"if={point}/disk.img", "of=/dev/null", "bs=1M", "status=none"],
            )
        finally:
            subprocess.run(mountfs("umount", str(point)), check=True)
    note("list (start-up): mountfs", mountfs("list", str(repo)))
    return {
        "disk": disk.stat().st_size,
        "full image": full_bytes,
        "full qcow2": qcow2.stat().st_size,
        "incremental image": next((repo / "disk").glob("0002-*.mfi")).stat().st_size,
    }


def main() -> None:
    """Measure, print and keep."""
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument("--size", type=int, default=512, help="of the disk, in MiB")
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    if shutil.which("qemu-img") is None:
        sys.exit("qemu-img is missing: install qemu-utils")
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="mountfs-bench-") as name:
        folder = Path(name)
        disk = folder / "disk.img"
        make_disk(disk, chosen.size)
        for number in range(chosen.rounds):
            sizes = one_round(folder, disk, number, seconds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"{chosen.size} MiB disk, {chosen.rounds} rounds, {os.cpu_count()} cores; seconds: median (min..max)"
    )
    for name, values in seconds.items():
        print(f"{name:36} {medians[name]:7.2f} ({min(values):.2f}..{max(values):.2f})")
    for label, ours, theirs in (
        ("full / qemu-img", "full: mountfs", "full: qemu-img"),
        ("incremental / reading once", "incremental: mountfs", "incremental: reading the disk once"),
        ("restore / qemu-img", "restore: mountfs", "restore: qemu-img"),
        ("restore / cp --sparse", "restore: mountfs", "restore: cp --sparse"),
    ):
        print(f"{label:36} {medians[ours] / medians[theirs]:7.2f}")
    for name, size in sizes.items():
        print(f"{name:36} {size / MIB:7.1f} MiB")
    RESULTS.mkdir(exist_ok=True)
    facts = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "python": platform.python_version(),
        "size_mib": chosen.size,
        "rounds": chosen.rounds,
        "seconds": seconds,
        "sizes": sizes,
    }
    (RESULTS / "backup_and_mount.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
