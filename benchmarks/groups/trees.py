"""Files: 20,000 small ones, an NTFS tree, and a big one; through the kernel and through our own tree."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from benchmarks import machine, peers, product
from benchmarks.groups.disk import RAW, product_disk, qemu_disk
from benchmarks.runner import MIB, Bench, Case, Sample, Target, shell, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

TITLE = "Files"
KERNEL = "mountfs disk, kernel ext4"
QEMU_KERNEL = f"{peers.QSD}, kernel ext4"
RAW_KERNEL = f"{RAW}, kernel ext4"
TREE = "mountfs file tree"
NTFS3G = "ntfs-3g on the raw partition"
RESTORE = "mountfs restore"
TARGETS = (
    Target("tar of small files", "ext4_tar_seconds", KERNEL, (QEMU_KERNEL,), 1.5),
    Target("tar of small files, no root", "ext4_tar_seconds", TREE, (QEMU_KERNEL,), 1.0),
    Target("tar of NTFS", "ntfs_tar_seconds", TREE, (NTFS3G,), 0.7),
    Target("one big file, cold", "big_mib_per_s", TREE, (RESTORE,), 0.9),
)


def run(bench: Bench) -> None:
    """Every measurement begins with dropped caches and a fresh mount."""
    disk, folder = bench.workload.days[0], bench.scratch
    repo, qcow2 = folder / "repo", folder / "full.qcow2"
    product.run(product.backup(disk, repo))
    image = f"{repo}/disk@1"
    cases: dict[str, Case] = {
        TREE: lambda: _tree(repo, image, folder),
        RESTORE: lambda: _restore(bench, repo, image),
    }
    if bench.needs("kernel ext4", "mount", root=True):
        cases[KERNEL] = lambda: _kernel(bench, repo, lambda: product_disk(image, folder))
        cases[RAW_KERNEL] = lambda: _kernel(bench, disk, lambda: nullcontext(disk))
        if bench.needs(QEMU_KERNEL, "qemu-storage-daemon", "qemu-img"):
            product.run(peers.to_qcow2(disk, qcow2))
            cases[QEMU_KERNEL] = lambda: _kernel(bench, qcow2, lambda: qemu_disk(qcow2, folder))
    if bench.needs(NTFS3G, "ntfs-3g", root=True):
        cases[NTFS3G] = lambda: _ntfs3g(bench)
    bench.run(cases)


def _tar(folder: Path) -> float:
    """Through a pipe: tar sees when its output is /dev/null, and then reads nothing."""
    return shell(f"tar -C '{folder}' -cf - . | cat >/dev/null")["seconds"]


def _kernel(bench: Bench, stored: Path, serve: Callable[[], AbstractContextManager[Path]]) -> Sample:
    offset, size = bench.workload.ext4
    machine.cold([stored])
    with serve() as disk, peers.kernel_mounted(disk, offset, size, bench.scratch / "ext4") as root:
        return {"ext4_tar_seconds": _tar(root / "small")}


def _ntfs3g(bench: Bench) -> Sample:
    partition = bench.workload.ntfs_image
    machine.cold([partition])
    with peers.ntfs3g_mounted(partition, bench.scratch / "ntfs") as root:
        return {"ntfs_tar_seconds": _tar(root)}


@contextmanager
def _fresh_tree(repo: Path, image: str, folder: Path) -> Iterator[Path]:
    machine.cold([repo])
    with product.mounted(image, folder / "mnt") as root:
        yield root


def _tree(repo: Path, image: str, folder: Path) -> Sample:
    found: dict[str, float] = {}
    with _fresh_tree(repo, image, folder) as root:
        found["ext4_tar_seconds"] = _tar(next(root.glob("1-*")) / "small")
    with _fresh_tree(repo, image, folder) as root:
        found["ntfs_tar_seconds"] = _tar(next(root.glob("2-*")))
    with _fresh_tree(repo, image, folder) as root:
        big = next(root.glob("1-*")) / "data/database.db"
        size = big.stat().st_size
        found["big_mib_per_s"] = size / MIB / timed(peers.read_once(big))["seconds"]
    return found


def _restore(bench: Bench, repo: Path, image: str) -> Sample:
    """Holes do not count as restored: the big file has none either."""
    out = bench.scratch / "out.raw"
    peers.remove(out)
    machine.cold([repo])
    seconds = timed(product.command("restore", "--quiet", "--yes", image, out))["seconds"]
    return {"big_mib_per_s": bench.workload.days[0].stat().st_blocks * 512 / MIB / seconds}
