"""The product as its users meet it: its command line in processes of its own, and its mounts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.requirements import REPOSITORY, require_fuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# The memory of this program alone: what the kernel reports of a child begins with that of its parent.
_MEASURED = """
import sys
from mountfs.cli.__main__ import run
code = run(sys.argv[1:])
sys.stdout.flush()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(f"peak {peak}", file=sys.stderr)
sys.exit(code)
"""


PATIENCE = 120.0
"""No command of these tests may take longer; most take less than a second."""
_CONTROLS = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")
"""What must never reach a terminal; C1 controls as UTF-8 has them."""


_INTERNAL_ERROR = 99


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended."""

    code: int
    out: bytes
    err: str
    peak: int = 0
    """Most memory that it held at once, in bytes, if that was asked for."""

    @property
    def errors(self) -> list[str]:
        """The lines that tell people of a failure."""
        return [line for line in self.err.splitlines() if line.startswith("mountfs: error:")]

    @property
    def facts(self) -> dict[str, Any]:
        """What it said with ``--json``: the one result among its lines."""
        assert len(self.results) == 1, self.out
        return self.results[0]

    @property
    def results(self) -> list[dict[str, Any]]:
        """All results that it gave with ``--json``; nothing else is on standard output."""
        told: list[dict[str, Any]] = [json.loads(line) for line in self.out.splitlines()]
        assert {line["type"] for line in told} <= {"result"}, self.out
        return told


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: plain, and nothing of it lands outside the folder of the run."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    known = {
        "XDG_STATE_HOME": str(Path(tempfile.gettempdir(), "state")),
        "PYTHONPATH": str(REPOSITORY),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }
    return {**inherited, **known, **changes}


def command_line(*arguments: str | Path, measured: bool = False) -> list[str]:
    """What runs a command of the product."""
    start = ["-c", _MEASURED] if measured else ["-m", "mountfs"]
    return [sys.executable, *start, *map(str, arguments)]


def mountfs(
    *arguments: str | Path,
    code: int | None = 0,
    measured: bool = False,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    patience: float = PATIENCE,
) -> Ran:
    """Run a command that must end with ``code`` (None: any), and keep to what every command must.

    It may not hang, show a traceback, or write raw control characters. ``prefix`` is a command line that
    runs it: ``setpriv ...``, ``strace ...``.
    """
    process = start(*arguments, measured=measured, prefix=prefix, env=env, cwd=cwd)
    return finish(process, *arguments, code=code, measured=measured, patience=patience)


def start(
    *arguments: str | Path,
    measured: bool = False,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, so that all of it can be ended; see `finish`."""
    return subprocess.Popen(
        [*prefix, *command_line(*arguments, measured=measured)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env or environment(),
        cwd=cwd,
        start_new_session=True,
    )


def finish(
    process: subprocess.Popen[bytes],
    *arguments: str | Path,
    code: int | None = 0,
    measured: bool = False,
    patience: float = PATIENCE,
) -> Ran:
    """Wait for a command and judge what every command must keep to; see `mountfs`."""
    try:
        out, told = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and do not wait: on a dead mount it may stay for ever
        pytest.fail(f"mountfs {arguments} hangs")
    err = told.decode(errors="replace")
    peak = 0
    if measured:
        err, _, text = err.rpartition("peak ")
        peak = int(text or 0) << 10
    shown = f"{arguments} ended with {process.returncode}: {err}\n{out[-2000:].decode(errors='replace')}"
    assert process.returncode == code or code is None, shown
    assert process.returncode != _INTERNAL_ERROR, shown
    assert b"Traceback" not in told, shown
    assert b"Exception ignored" not in told, shown
    assert not _CONTROLS.search(told), f"control characters on standard error: {told!r}"
    if "cat" not in arguments:
        assert not _CONTROLS.search(out), f"control characters on standard output: {out!r}"
    return Ran(process.returncode, out, err, peak)


@contextlib.contextmanager
def mounted(place: str | Path, *options: str) -> Iterator[Path]:
    """Mount what is named with ``mountfs mount``; the folder. Ended with ``mountfs umount``."""
    require_fuse()
    folder = Path(tempfile.mkdtemp(prefix="fuse-"))
    mountfs("mount", place, folder, *options)
    try:
        yield folder
    finally:
        mountfs("umount", folder)
        folder.rmdir()
