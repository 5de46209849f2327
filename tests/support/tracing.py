"""System calls of a process: seen in order, and made to fail, to be cut short or to kill at a chosen one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from support.product import environment
from support.requirements import require_tool

if TYPE_CHECKING:
    from collections.abc import Sequence

WRITING = (
    "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "openat", "unlink",
    "unlinkat", "mkdir", "ftruncate", "linkat", "flock",
)  # fmt: skip
"""Calls that change what is stored, or begin to."""
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")


@dataclass(frozen=True, slots=True)
class Call:
    """One system call of the traced process, and how often its thread had made it before."""

    name: str
    number: int
    """Counted from 1 over all calls of that name in its thread: what ``when=`` means."""
    thread: int
    text: str

    def __str__(self) -> str:
        return f"{self.name}#{self.number}"


def strace(
    *, log: Path | None = None, trace: Sequence[str] = WRITING, inject: Sequence[str] = ()
) -> list[str]:
    """The command line that runs another one under strace."""
    require_tool("strace")
    injections = [word for item in inject for word in ("-e", f"inject={item}")]
    where = str(log) if log is not None else os.devnull
    return ["strace", "-f", "-y", "-qq", "-o", where, "-e", f"trace={','.join(trace)}", *injections]


def calls_in(log: Path) -> list[Call]:
    """Read what strace wrote; calls that were interrupted by another thread count where they began."""
    counts: Counter[tuple[int, str]] = Counter()
    found: list[Call] = []
    for line in log.read_text("utf-8", "replace").splitlines():
        match = _LINE.match(line)
        if match:
            thread, name = int(match[1]), match[2]
            counts[thread, name] += 1
            found.append(Call(name, counts[thread, name], thread, match[3]))
    return found


def touching(calls: Sequence[Call], place: Path) -> list[Call]:
    """The calls of the first thread that name a file below a folder, by path or by descriptor."""
    first = calls[0].thread
    return [call for call in calls if call.thread == first and str(place) in call.text]


def run_traced(
    command: Sequence[str | Path],
    *,
    log: Path | None = None,
    inject: Sequence[str] = (),
    trace: Sequence[str] = WRITING,
    patience: float = 60.0,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command under strace to its end."""
    process = subprocess.Popen(
        [*strace(log=log, trace=trace, inject=inject), *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise AssertionError(f"{command} hangs with {inject}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def spread(items: Sequence[Call], count: int) -> list[Call]:
    """``count`` of the items, evenly over all of them, the first and the last among them."""
    if count >= len(items):
        return list(items)
    step = (len(items) - 1) / (count - 1)
    return [items[round(number * step)] for number in range(count)]
