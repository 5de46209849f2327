"""The product as its users meet it: its command line in processes of its own, and its mounts."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended."""

    code: int
    out: bytes
    err: str
    peak: int = 0
    """Most memory that it held at once, in bytes, if that was asked for."""

    @property
    def facts(self) -> dict[str, Any]:
        """What it said with ``--json``: the one result among its lines."""
        results = [line for line in map(json.loads, self.out.splitlines()) if line["type"] == "result"]
        assert len(results) == 1, self.out
        return dict(results[0])


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: nothing of it lands outside the folder of the run."""
    state = {"XDG_STATE_HOME": str(Path(tempfile.gettempdir(), "state")), "PYTHONPATH": str(REPOSITORY)}
    return {**os.environ, **state, **changes}


def command_line(*arguments: str | Path, measured: bool = False) -> list[str]:
    """What runs a command of the product."""
    start = ["-c", _MEASURED] if measured else ["-m", "mountfs.cli.__main__"]
    return [sys.executable, *start, *map(str, arguments)]


def mountfs(
    *arguments: str | Path,
    code: int = 0,
    measured: bool = False,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Ran:
    """Run a command that must end with ``code``."""
    done = subprocess.run(
        [*prefix, *command_line(*arguments, measured=measured)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=env or environment(),
    )
    err = done.stderr.decode(errors="replace")
    peak = 0
    if measured:
        err, _, text = err.rpartition("peak ")
        peak = int(text or 0) << 10
    shown = done.stdout[-2000:].decode(errors="replace")
    assert done.returncode == code, f"{arguments} ended with {done.returncode}: {err}\n{shown}"
    return Ran(done.returncode, done.stdout, err, peak)


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
