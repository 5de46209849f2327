"""A program that goes on writing into a folder while something else looks at it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCRIPT = """
import hashlib, os, sys
top, number = sys.argv[1], 0
while True:
    number += 1
    content = hashlib.sha256(str(number).encode()).digest() * 400
    part = os.path.join(top, "part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(part, os.path.join(top, f"{number % 40:02}"))
    with open(os.path.join(top, "last"), "w") as file:
        file.write(str(number))
        file.flush()
        os.fsync(file.fileno())
"""
_PATIENCE = 20.0


@contextlib.contextmanager
def writing(top: Path) -> Iterator[Path]:
    """Let a program write whole files under final names, each durable before the next; where it counts."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(top)])
    counter = top / "last"
    until = time.monotonic() + _PATIENCE
    try:
        while not counter.exists() or counter.stat().st_size == 0:
            assert process.poll() is None, "the writer died"
            assert time.monotonic() < until, "the writer does not write"
            time.sleep(0.01)
        yield counter
        assert process.poll() is None, "the writer died"
    finally:
        process.kill()
        process.wait()


def check_written(top: Path) -> int:
    """Every file under a final name is whole; how many there are."""
    names = [path for path in top.iterdir() if path.name not in {"part", "last", "lost+found"}]
    for path in names:
        content = path.read_bytes()
        assert len(content) == 32 * 400, f"{path.name} is torn"
        assert content == content[:32] * 400, f"{path.name} is torn"
    return len(names)
