"""What a test run must not leave behind: loop devices, mounts and processes of its own.

Its own are those that use a file below the folder of the run, or that inherited its environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SESSION = "MOUNTFS_TEST_SESSION"
"""The environment variable with the folder of the run."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What still stands at the end of a run."""

    mounts: tuple[str, ...]
    loops: tuple[str, ...]
    processes: tuple[int, ...]

    def __bool__(self) -> bool:
        return bool(self.mounts or self.loops or self.processes)

    def describe(self) -> list[str]:
        """One line for each."""
        return [
            *(f"still mounted: {point}" for point in self.mounts),
            *(f"still attached: {device}" for device in self.loops),
            *(f"still running: {pid} ({_command(pid)})" for pid in self.processes),
        ]


def find_leftovers(folder: Path, *, patience: float = 5.0) -> Leftovers:
    """Look for what the run left; what is just ending gets some seconds."""
    until = time.monotonic() + patience
    while True:
        found = Leftovers(_mounts(folder), _loops(folder), _processes(folder))
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.1)


def remove_leftovers(found: Leftovers) -> None:
    """End what was found, so that the machine is as it was; failures are ignored, the run failed anyhow."""
    for point in reversed(found.mounts):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
    for device in found.loops:
        subprocess.run(["losetup", "--detach", device], capture_output=True, check=False)
    for pid in found.processes:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _mounts(folder: Path) -> tuple[str, ...]:
    points = [
        line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    ]
    decoded = [point.encode().decode("unicode_escape") if "\\" in point else point for point in points]
    return tuple(point for point in decoded if folder in Path(point).parents)


def _loops(folder: Path) -> tuple[str, ...]:
    found: list[str] = []
    for loop in sorted(Path("/sys/block").glob("loop*")):
        with contextlib.suppress(OSError):
            stored_in = (loop / "loop" / "backing_file").read_text().strip().removesuffix(" (deleted)")
            if folder in Path(stored_in).parents:
                found.append(f"/dev/{loop.name}")
    return tuple(found)


def _processes(folder: Path) -> tuple[int, ...]:
    """Processes that inherited the environment of the run; this one set it too late to show it."""
    running = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    environments = [f"/proc/{pid}/environ" for pid in running if int(pid) != os.getpid()]
    wanted = f"{SESSION}={folder}"
    try:
        found = _search(wanted, environments, 2.0)
    except subprocess.TimeoutExpired:
        found = []
        for environment in environments:
            with contextlib.suppress(subprocess.TimeoutExpired):
                found += _search(wanted, [environment], 0.5)
    return tuple(sorted(int(name.split("/")[2]) for name in found))


def _search(wanted: str, environments: list[str], patience: float) -> list[str]:
    """Which of the environments hold the variable.

    A process that hangs while it starts a program cannot be looked at: the reader hangs as well, so the
    reader is a program that can be given up.
    """
    command = ["grep", "-lszxF", "--", wanted, *environments]
    return subprocess.run(command, capture_output=True, check=False, timeout=patience).stdout.decode().split()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "ended"
