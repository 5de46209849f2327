"""The command line as a person has it: a process of its own, judged by what it says and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from support.requirements import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PATIENCE = 60.0
"""No command of these tests may take longer; most take less than a second."""
COMMAND = (sys.executable, "-m", "mountfs.cli.__main__")
_CONTROLS = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")
"""What must never reach a terminal; C1 controls as UTF-8 has them."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    command: str
    code: int
    raw_out: bytes
    raw_err: bytes

    @property
    def out(self) -> str:
        return self.raw_out.decode("utf-8", "replace")

    @property
    def err(self) -> str:
        return self.raw_err.decode("utf-8", "replace")

    def __str__(self) -> str:
        return (
            f"mountfs {self.command}\nended with {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"
        )

    @property
    def errors(self) -> list[str]:
        """The lines that tell of a failure."""
        return [line for line in self.err.splitlines() if line.startswith("mountfs: error:")]

    @property
    def results(self) -> list[dict[str, Any]]:
        """What ``--json`` told, line by line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def ok(self, code: int = 0) -> Ended:
        """It succeeded, or ended with a code that is not a failure to do the thing (3: with a warning)."""
        assert self.code == code, str(self)
        assert not self.errors, str(self)
        return self

    def failed(self, code: int, *words: str) -> Ended:
        """It failed as it should: the documented code, one line that has all the words."""
        assert self.code == code, str(self)
        assert len(self.errors) == 1, str(self)
        for word in words:
            assert word.casefold() in self.errors[0].casefold(), f"{word!r} is not said:\n{self}"
        return self


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command: the code under test, and a terminal of the plainest kind."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("LC_", "MOUNTFS_TEST_CLI"))
    }
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    known = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    return inherited | known | dict(extra or {})


def mountfs(
    *arguments: str | Path | bytes,
    stdin: bytes = b"",
    wrapper: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    patience: float = PATIENCE,
) -> Ended:
    """Run one command to its end; it may not hang, show a traceback, or write raw control characters.

    ``wrapper`` is a command line that runs it: ``setpriv --reuid 65534``, ``strace ...``.
    """
    process = start(*arguments, wrapper=wrapper, env=env, cwd=cwd, stdin=subprocess.PIPE)
    return finish(process, arguments, stdin=stdin, patience=patience)


def start(
    *arguments: str | Path | bytes,
    wrapper: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, so that all of it can be ended; see `finish`."""
    return subprocess.Popen(
        [*wrapper, *COMMAND, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(env),
        cwd=cwd,
        start_new_session=True,
    )


def finish(
    process: subprocess.Popen[bytes],
    arguments: Sequence[object] = (),
    *,
    stdin: bytes | None = None,
    patience: float = PATIENCE,
    binary: bool = False,
) -> Ended:
    """Wait for a command and judge what every command must keep to."""
    try:
        out, err = process.communicate(stdin, timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"mountfs {arguments} hangs: {out!r} {err!r}") from None
    ended = Ended(" ".join(map(str, arguments)), process.returncode, out, err)
    assert b"Traceback" not in err, str(ended)
    assert b"Exception ignored" not in err, str(ended)
    assert not _CONTROLS.search(err), f"control characters on standard error: {err!r}"
    if not binary and "cat" not in arguments:
        assert not _CONTROLS.search(out), f"control characters on standard output: {out!r}"
    assert ended.code != 99, str(ended)
    return ended
