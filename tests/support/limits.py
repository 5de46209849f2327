"""Bounds on what a child process may take, enforced so that also code in C cannot pass them."""

from __future__ import annotations

import faulthandler
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

from support.requirements import REPOSITORY

SECONDS = 10.0
"""For each image."""
MOST_MEMORY = 512 << 20
_ADDRESS_SPACE = 2 << 30
"""Ends a blow-up before it harms the machine; threads reserve far more than they use."""


def restart_clock(seconds: float = SECONDS) -> None:
    """In the child: end the process, showing where it stands, unless called again in time.

    A thread in C does it; a signal would wait until a library returns.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)


def bound_memory() -> None:
    """In the child: fail what asks for far too much."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))


def tell_peak() -> None:
    """In the child, at its end: stop the clock, and say how much memory was held at once."""
    faulthandler.cancel_dump_traceback_later()
    print("peak", peak_of(os.getpid()), file=sys.stderr)


def peak_of(pid: int) -> int:
    """Most memory that a running process held at once."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def run_limited(script: str, *arguments: str | Path, patience: float = 280.0) -> None:
    """Run a script that uses the functions above; it must succeed within them, and raise nothing."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=patience,
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr, done.stderr
    told = re.search(r"^peak (\d+)$", done.stderr, re.MULTILINE)
    assert told, f"it did not come to its end: {done.stderr[-2000:]}"
    assert int(told[1]) < MOST_MEMORY, f"{int(told[1]) >> 20} MiB were held at once"
