"""This machine: what it is, which tools it has, and how its caches are emptied."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_DROP = Path("/proc/sys/vm/drop_caches")
_VERSIONS = {
    "qemu-img": ["qemu-img", "--version"],
    "qemu-storage-daemon": ["qemu-storage-daemon", "--version"],
    "zstd": ["zstd", "--version"],
    "partclone": ["partclone.extfs", "--version"],
    "restic": ["restic", "version"],
    "borg": ["borg", "--version"],
    "ntfs-3g": ["ntfs-3g", "--version"],
    "xmount": ["dpkg-query", "-W", "-f", "${Version}", "xmount"],
    "cp": ["cp", "--version"],
}
_SPARE_OTHERS: list[bool] = []
_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def has(*tools: str) -> bool:
    """Whether all of these programs are installed."""
    return all(shutil.which(tool, path=_PATH) for tool in tools)


def environment() -> dict[str, str]:
    """The environment of everything we run: administrators' tools are found, messages are English.

    Python keeps what it compiled, as in every installation, also where developers told it not to.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PATH": _PATH, "LC_ALL": "C.UTF-8"}


def is_root() -> bool:
    """Whether loop devices, kernel mounts and dropping the whole page cache are open to us."""
    return os.geteuid() == 0 and os.access(_DROP, os.W_OK)


def spare_others() -> None:
    """From now on leave the page cache of everyone else alone: for runs that hardly measure."""
    _SPARE_OTHERS.append(True)


def cold(paths: Iterable[Path]) -> None:
    """Make the next read of these files come from the disk.

    As root the whole page cache goes. Others can drop only the pages of files that they name, which leaves
    the folders and inodes of the file system below warm.
    """
    for path in paths:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                _forget(file)
    if is_root() and not _SPARE_OTHERS:
        os.sync()
        _DROP.write_text("3")


def _forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def scratch_root() -> Path:
    """Where the disks and everything made of them go unless told otherwise."""
    return Path(tempfile.gettempdir()) / f"mountfs-bench-{os.getuid()}"


def facts() -> dict[str, object]:
    """What a reader must know to judge the figures."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "root": is_root(),
        "load": os.getloadavg(),
        "product": _first_line(["git", "describe", "--always", "--dirty"]),
        "versions": {name: _first_line(command) for name, command in _VERSIONS.items() if has(command[0])},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    return next(iter((ended.stdout or ended.stderr).splitlines()), "?").strip()
