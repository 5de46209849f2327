"""The first day back to a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import machine, peers, product
from benchmarks.runner import Bench, Case, Sample, Target, shell, timed

if TYPE_CHECKING:
    from pathlib import Path

TITLE = "Restore to a file"
COPY_SYNCED = f"{peers.COPY}, synced"
TARGETS = (
    Target("restore, time", "seconds", product.NAME, (peers.QEMU,), 1.5),
    Target("restore, time", "seconds", product.NAME, (peers.COPY,), 1.3, at_most=True),
    Target("restore, time, durable as ours is", "seconds", product.NAME, (COPY_SYNCED,), 1.3, at_most=True),
)


def run(bench: Bench) -> None:
    """Everyone writes a new file from a cold image; `cp` copies the disk itself."""
    disk = bench.workload.days[0]
    repo, qcow2, out = (bench.scratch / name for name in ("repo", "full.qcow2", "out.raw"))
    product.run(product.backup(disk, repo))

    def measured(stored: Path, command: list[str] | str) -> Sample:
        peers.remove(out)
        machine.cold([stored])
        sample = shell(command) if isinstance(command, str) else timed(command)
        return {**sample, "mib_per_s": bench.workload.size / (1 << 20) / sample["seconds"]}

    restore = product.command("restore", "--quiet", "--yes", f"{repo}/disk@1", out)
    copy = ["cp", "--sparse=always", str(disk), str(out)]
    synced = f"cp --sparse=always '{disk}' '{out}' && sync '{out}'"
    cases: dict[str, Case] = {
        product.NAME: lambda: measured(repo, restore),
        peers.COPY: lambda: measured(disk, copy),
        COPY_SYNCED: lambda: measured(disk, synced),
    }
    if bench.needs(peers.QEMU, "qemu-img"):
        product.run(peers.to_qcow2(disk, qcow2))
        convert = ["qemu-img", "convert", "-O", "raw", str(qcow2), str(out)]
        cases[peers.QEMU] = lambda: measured(qcow2, convert)
    bench.run(cases)
