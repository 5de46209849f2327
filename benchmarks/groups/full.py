"""A full image of the first day: time and size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import machine, peers, product
from benchmarks.runner import Bench, Case, Sample, Target, shell, stored_mib, timed

if TYPE_CHECKING:
    from pathlib import Path

TITLE = "Full image"
TARGETS = (
    Target("full image, time", "seconds", product.NAME, (peers.QEMU,), 2.0),
    Target("full image, time", "seconds", product.NAME, (peers.ZSTD,), 1.4),
    Target("full image, time", "seconds", product.NAME, (peers.PARTCLONE,), 2.0),
    Target("full image, size", "mib", product.NAME, (peers.ZSTD,), 1.05, at_most=True),
)


def run(bench: Bench) -> None:
    """Everyone reads the disk cold and writes one image."""
    disk, folder = bench.workload.days[0], bench.scratch
    parts = (bench.workload.ext4_image, bench.workload.ntfs_image)
    outputs = [folder / name for name in ("repo", "full.qcow2", "full.zst", "ext4.zst", "ntfs.zst")]
    repo, qcow2, zst, ext4, ntfs = outputs

    def measured(made: tuple[Path, ...], command: list[str] | str) -> Sample:
        peers.remove(*outputs)
        machine.cold([disk, *parts])
        sample = shell(command) if isinstance(command, str) else timed(command)
        return {**sample, "mib": stored_mib(*made)}

    cases: dict[str, Case] = {
        product.NAME: lambda: measured((repo,), product.backup(disk, repo)),
        peers.DD: lambda: measured((), peers.read_once(disk)),
    }
    if bench.needs(peers.QEMU, "qemu-img"):
        cases[peers.QEMU] = lambda: measured((qcow2,), peers.to_qcow2(disk, qcow2))
    if bench.needs(peers.ZSTD, "zstd"):
        cases[peers.ZSTD] = lambda: measured((zst,), ["zstd", "-q", "-3", "-T2", str(disk), "-o", str(zst)])
    if bench.needs(peers.PARTCLONE, "partclone.extfs", "partclone.ntfs", "zstd"):
        # Its progress thread sleeps through its interval before the program may end: none is asked for.
        script = " && ".join(
            f"partclone.{kind} -c -B -f 0 -L /dev/null -s '{source}' | zstd -q -3 -T2 -o '{target}'"
            for kind, source, target in (("extfs", parts[0], ext4), ("ntfs", parts[1], ntfs))
        )
        cases[peers.PARTCLONE] = lambda: measured((ext4, ntfs), script)
    bench.run(cases)
