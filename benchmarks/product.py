"""The product as its users call it: its command line."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "mountfs"


def command(verb: str, *arguments: str | Path) -> list[str]:
    """The installed command; from a checkout without one, the module."""
    installed = Path(sys.executable).with_name(NAME)
    start = [str(installed)] if installed.exists() else [sys.executable, "-m", NAME]
    return [*start, verb, *map(str, arguments)]


def backup(source: Path, repo: Path) -> list[str]:
    """Image a day into the set that all days share."""
    return command("backup", "--raw", "--quiet", "--set", "disk", source, repo)


def run(words: list[str]) -> None:
    """Run to the end, unmeasured."""
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=machine.environment())


@contextmanager
def mounted(what: str, point: Path, *options: str) -> Iterator[Path]:
    """Mount, and unmount at the end."""
    point.mkdir(exist_ok=True)
    run(command("mount", "--quiet", *options, what, point))
    try:
        yield point
    finally:
        _unmount(point)


def _unmount(point: Path) -> None:
    """Try again for a while: the kernel lets a loop device go only after the command that ended it."""
    for _ in range(50):
        ended = subprocess.run(
            command("umount", "--quiet", point), capture_output=True, check=False, env=machine.environment()
        )
        if ended.returncode == 0:
            return
        time.sleep(0.1)
    raise TimeoutError(f"{point} stays mounted: {ended.stderr.decode()}")
