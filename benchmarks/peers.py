"""The command lines of other tools."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks import machine
from benchmarks.product import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QEMU = "qemu-img qcow2 zstd"
QSD = "qemu-storage-daemon qcow2 zstd"
ZSTD = "zstd -3 -T2"
PARTCLONE = "partclone | zstd -3 -T2"
RESTIC = "restic"
BORG = "borg zstd,3"
XMOUNT = "xmount raw"
COPY = "cp --sparse=always"
DD = "dd (reading the disk once)"
_PATIENCE = 30.0


def to_qcow2(source: Path, target: Path) -> list[str]:
    """A compressed full image."""
    return [*_QEMU_CONVERT, str(source), str(target)]


_QEMU_CONVERT = ["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd"]


def compressed_overlay(changes: Path, base: Path, target: Path) -> list[str]:
    """The same overlay once more, compressed: what an increment of qcow2 takes."""
    return [*_QEMU_CONVERT, "-B", str(base), "-F", "qcow2", str(changes), str(target)]


def read_once(source: Path) -> list[str]:
    """The limit of everything that must read the disk."""
    return ["dd", f"if={source}", "of=/dev/null", "bs=1M", "status=none"]


def borg_environment(base: Path) -> dict[str, str]:
    """Keep its caches beside its repository, and its questions to itself."""
    return {
        "BORG_BASE_DIR": str(base),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
    }


def restic(folder: Path, *arguments: str | Path) -> list[str]:
    """Keep its cache beside its repository."""
    start = ["restic", "--quiet", "--repo", f"{folder}/repo", "--cache-dir", f"{folder}/cache"]
    return [*start, *map(str, arguments)]


def fresh_copy(template: Path, target: Path) -> Path:
    """Return a copy that a run may change."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", "--reflink=auto", str(template), str(target)], check=True)
    return target


@contextmanager
def serving(command: list[str], appears: Path) -> Iterator[tuple[Path, float]]:
    """Run a server in the foreground; yield the file that it serves and the seconds until it did."""
    known = appears.stat().st_dev if appears.exists() else None
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=machine.environment())
    try:
        while not appears.exists() or appears.stat().st_dev == known:
            if process.poll() is not None or time.perf_counter() - started > _PATIENCE:
                raise TimeoutError(f"{command[0]} does not serve")
            time.sleep(0.0005)
        yield appears, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def storage_daemon(qcow2: Path, point: Path) -> list[str]:
    """QEMU's FUSE export of a qcow2 file on top of a regular file."""
    point.touch()
    return [
        "qemu-storage-daemon",
        "--blockdev",
        f"driver=qcow2,node-name=disk,read-only=on,file.driver=file,file.filename={qcow2}",
        "--export",
        f"type=fuse,id=export,node-name=disk,mountpoint={point},writable=off",
    ]


def nbd_server(qcow2: Path, socket: Path) -> list[str]:
    """QEMU's server of a qcow2 file, for one client; it ends when that leaves."""
    return ["qemu-nbd", "--read-only", "--format=qcow2", f"--socket={socket}", str(qcow2)]


@contextmanager
def xmount(raw: Path, folder: Path) -> Iterator[Path]:
    """Show a raw image as a raw image (root); it goes to the background by itself."""
    folder.mkdir(exist_ok=True)
    run(["xmount", "--in", "raw", str(raw), "--out", "raw", str(folder)])
    try:
        yield next(folder.glob(f"{raw.stem}.d*"))
    finally:
        run(["umount", str(folder)])


@contextmanager
def kernel_mounted(disk: Path, offset: int, size: int, point: Path) -> Iterator[Path]:
    """Mount the ext4 partition of a disk image with the kernel (root)."""
    point.mkdir(exist_ok=True)
    options = f"ro,noload,loop,offset={offset},sizelimit={size}"
    command = ["mount", "-t", "ext4", "-o", options, str(disk), str(point)]
    run(command)
    try:
        yield point
    finally:
        run(["umount", str(point)])


@contextmanager
def ntfs3g_mounted(partition: Path, point: Path) -> Iterator[Path]:
    """Mount a partition image with ntfs-3g (root)."""
    point.mkdir(exist_ok=True)
    run(["ntfs-3g", "-o", "ro", str(partition), str(point)])
    try:
        yield point
    finally:
        run(["umount", str(point)])


def remove(*paths: Path) -> None:
    """Remove what an earlier round left."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
