"""The most memory that a backup and a mount ever held (VmHWM), at the size and at 16 TiB."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import machine, peers, product
from benchmarks.huge import HUGE, huge_image
from benchmarks.reading import warm
from benchmarks.runner import MIB, Bench, Case, Sample, Target, timed

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLE = "Memory"
LARGE = "mountfs, 16 TiB"
CACHE_MIB = 64
TARGETS = (
    Target("backup, MiB", "backup_peak_mib", product.NAME, (), 150, at_most=True),
    Target("backup, 16 TiB, MiB", "backup_peak_mib", LARGE, (), 150, at_most=True),
    Target("mount, MiB", "mount_peak_mib", product.NAME, (), CACHE_MIB + 80, at_most=True),
    Target("mount, 16 TiB, MiB", "mount_peak_mib", LARGE, (), CACHE_MIB + 80, at_most=True),
)


def run(bench: Bench) -> None:
    """Back up, then read the whole disk of a mount; of 16 TiB a thousand pieces."""
    disk, folder = bench.workload.days[0], bench.scratch
    repo = folder / "repo"

    def ours() -> Sample:
        peers.remove(repo)
        found = {"backup_peak_mib": peak_mib(product.backup(disk, repo))}
        return {**found, "mount_peak_mib": _mount_peak(f"{repo}/disk@1", folder / "mnt")}

    cases: dict[str, Case] = {product.NAME: ours}
    image = huge_image(bench, folder / "huge")
    if image is not None:
        source, again = folder / "huge/huge.img", folder / "again"

        def huge() -> Sample:
            peers.remove(again)
            found = {"backup_peak_mib": peak_mib(product.backup(source, again))}
            return {**found, "mount_peak_mib": _mount_peak(image, folder / "mnt")}

        cases[LARGE] = huge
    if bench.needs(peers.QEMU, "qemu-img"):
        qcow2 = folder / "full.qcow2"
        cases[peers.QEMU] = lambda: {"backup_peak_mib": peak_mib(peers.to_qcow2(disk, qcow2))}
    bench.run(cases)


def peak_mib(command: Sequence[str]) -> float:
    """Run to the end; ask again and again, because the figure goes away with the process."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=machine.environment())
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _high_water(process.pid))
        time.sleep(0.002)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


def _high_water(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii")
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def _mount_peak(what: str, point: Path) -> float:
    """In the foreground, so that the process which serves is the one that we started."""
    point.mkdir(exist_ok=True)
    device = point.stat().st_dev
    command = product.command("mount", "--quiet", "--foreground", "--cache", str(CACHE_MIB), what, point)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=machine.environment())
    try:
        while process.poll() is None and point.stat().st_dev == device:
            time.sleep(0.005)
        disk = point / "disk.img"
        size = disk.stat().st_size
        if size < HUGE // 512:
            timed(peers.read_once(disk))
        else:
            warm(disk, range(0, size - MIB, size // 1000 // MIB * MIB), MIB)
        return _high_water(process.pid)
    finally:
        product.run(product.command("umount", "--quiet", point))
        process.wait(30)
