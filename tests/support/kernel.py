"""Loop devices and kernel mounts that surely go away again. Needs root."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from support.requirements import require_root, run

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE = 10.0
_FUSE = {"ntfs-3g": "ntfs-3g", "exfat-fuse": "mount.exfat-fuse"}
"""File systems that are mounted by a driver of their own."""


@contextlib.contextmanager
def loop_device(
    path: Path, sector_size: int = 512, *, partscan: bool = False, read_only: bool = False
) -> Iterator[str]:
    """Attach a file to a loop device; its path. With ``partscan`` partitions are ``<path>p1`` and on."""
    require_root()
    options = ["--sector-size", str(sector_size), *(["--read-only"] if read_only else [])]
    options += ["--partscan"] if partscan else []
    device = run("losetup", "--find", "--show", *options, path).strip()
    try:
        if partscan:
            # Some kernels cannot read a GPT; partx tells them what it reads itself.
            run("partx", "--update", "--sector-size", str(sector_size), device)
        yield device
    finally:
        _detach(device, path)


def _detach(device: str, path: Path) -> None:
    if partition_folders(device):
        run("partx", "--delete", device)
    run("losetup", "--detach", device)
    # The kernel detaches when the last user is gone; a scanner of new devices may hold it for a moment.
    until = time.monotonic() + _PATIENCE
    while _is_attached(device, path):
        if time.monotonic() > until:
            raise RuntimeError(f"{device} is still attached: something holds it open")
        time.sleep(0.02)


def _is_attached(device: str, path: Path) -> bool:
    """Whether it is ours still: a parallel run may have taken the device for a file of its own."""
    try:
        stored_in = Path("/sys/block", Path(device).name, "loop", "backing_file").read_text()
    except OSError:
        return False
    return Path(stored_in.strip()) == path.resolve()


def partition_folders(device: str) -> list[Path]:
    """What the kernel shows of the partitions of a device."""
    name = Path(device).name
    return sorted(Path("/sys/block", name).glob(f"{name}p*"))


@contextlib.contextmanager
def kernel_mount(
    device: str, file_system: str, *, read_only: bool = True, options: tuple[str, ...] = ()
) -> Iterator[Path]:
    """Mount a device; the folder. ``ntfs-3g`` and ``exfat-fuse`` are programs."""
    require_root()
    folder = Path(tempfile.mkdtemp(prefix="mnt-"))
    try:
        with mounted_at(device, folder, file_system, read_only=read_only, options=options):
            yield folder
    finally:
        folder.rmdir()


@contextlib.contextmanager
def mounted_at(
    device: str,
    folder: Path,
    file_system: str = "ext4",
    *,
    read_only: bool = True,
    options: tuple[str, ...] = (),
) -> Iterator[None]:
    """Mount a device over an existing folder."""
    given = ",".join(("ro" if read_only else "rw", *options))
    if file_system in _FUSE:
        run(_FUSE[file_system], "-o", given, device, folder)
    else:
        run("mount", "-t", file_system, "-o", given, device, folder)
    try:
        yield
    finally:
        _unmount(folder)


def _unmount(folder: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        done = subprocess.run(["umount", str(folder)], capture_output=True, check=False)
        if done.returncode == 0:
            return
        if time.monotonic() > until:
            raise RuntimeError(f"cannot unmount {folder}: {done.stderr.decode().strip()}")
        time.sleep(0.05)
