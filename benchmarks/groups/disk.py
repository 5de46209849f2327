"""The first day as a mounted virtual disk, read in all ways."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from benchmarks import peers, product
from benchmarks.reading import measure_disk
from benchmarks.runner import Bench, Case, Target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TITLE = "Virtual disk"
RAW = "the raw file itself"
TARGETS = (
    Target("sequential, cold", "sequential_mib_per_s", product.NAME, (peers.QSD,), 1.8),
    Target("random 4 KiB, cold, 1 reader", "random_cold_1_per_s", product.NAME, (peers.QSD,), 1.1),
    Target("random 4 KiB, cold, 4 readers", "random_cold_4_per_s", product.NAME, (peers.QSD,), 1.4),
    Target("random 4 KiB, block cache hot, 1 reader", "random_hot_1_per_s", product.NAME, (peers.QSD,), 4.0),
    Target("random 4 KiB, block cache hot, 4 readers", "random_hot_4_per_s", product.NAME, (peers.QSD,), 4.0),
    Target("read again, page cache hot", "page_cache_mib_per_s", product.NAME, (peers.QSD,), 8.0),
)


def run(bench: Bench) -> None:
    """Serve the same disk from an image, from qcow2, and not at all."""
    disk, folder = bench.workload.days[0], bench.scratch
    repo, qcow2 = folder / "repo", folder / "full.qcow2"
    product.run(product.backup(disk, repo))
    cases: dict[str, Case] = {
        product.NAME: lambda: measure_disk(bench, lambda: product_disk(f"{repo}/disk@1", folder), repo),
        RAW: lambda: measure_disk(bench, lambda: nullcontext(disk), disk),
    }
    if bench.needs(peers.QSD, "qemu-storage-daemon", "qemu-img"):
        product.run(peers.to_qcow2(disk, qcow2))
        cases[peers.QSD] = lambda: measure_disk(bench, lambda: qemu_disk(qcow2, folder), qcow2)
    if bench.needs(peers.XMOUNT, "xmount", root=True):
        cases[peers.XMOUNT] = lambda: measure_disk(bench, lambda: peers.xmount(disk, folder / "xmount"), disk)
    bench.run(cases)


@contextmanager
def product_disk(what: str, folder: Path) -> Iterator[Path]:
    """Mount a point and give its disk."""
    with product.mounted(what, folder / "mnt", "--disk") as mounted:
        yield mounted / "disk.img"


@contextmanager
def qemu_disk(qcow2: Path, folder: Path) -> Iterator[Path]:
    """Export a qcow2 file and give the disk."""
    point = folder / "export.img"
    with peers.serving(peers.storage_daemon(qcow2, point), point) as (disk, _):
        yield disk
