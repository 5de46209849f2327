"""Going into the background: who hears of what, and what is left behind.

Every case runs in a process of its own: the tests' process has threads, and must not be forked.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import MountError
from mountfs import daemon

if TYPE_CHECKING:
    from pathlib import Path

_CALLER = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by background jobs of a shell
from imageformat.errors import *
import mountfs.daemon
from mountfs.daemon import run_in_background

mountfs.daemon.STOP_S = 0.5
{setup}

def serve(ready):
    note = open({note!r}, "w")
    print(os.getpid(), os.getsid(0), os.getcwd(), file=note, flush=True)
    print("to nobody")
    print("to the log", file=sys.stderr)
{body}

try:
    run_in_background(serve)
except MountfsError as error:
    print("raised", type(error).__name__, error)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(130)
try:
    os.waitpid(-1, os.WNOHANG)
    print("left a child behind")
except ChildProcessError:
    print("returned", flush=True)
"""


_INTERRUPT_THE_FIRST_WAIT = """
wait = os.waitpid
def interrupted(pid, options):
    wait(pid, options)
    while not os.path.exists({note!r}): time.sleep(0.01)
    raise KeyboardInterrupt
os.waitpid = interrupted
"""


class Run:
    """A caller whose server runs ``body``."""

    def __init__(self, tmp_path: Path, body: str, *, setup: str = "") -> None:
        self.note = tmp_path / "note"
        self.log = tmp_path / "mountfs" / "background.log"
        note = str(self.note)
        text = "".join(f"    {line}\n" for line in body.splitlines())
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CALLER.format(note=note, body=text, setup=setup.format(note=note))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            env=os.environ | {"XDG_STATE_HOME": str(tmp_path), "PYTHONUTF8": "1"},
        )

    def result(self) -> tuple[int, str]:
        out, err = self.process.communicate(timeout=20)
        assert err == ""
        return self.process.returncode, out

    def server(self) -> int:
        eventually(lambda: self.note.exists() and self.note.read_text().endswith("\n"))
        return int(self.note.read_text().split()[0])


def eventually(condition) -> None:  # noqa: ANN001 - any callable
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_returns_when_ready_and_the_server_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, "ready()\ntime.sleep(60)")
    assert run.result() == (0, "returned\n")
    server = run.server()
    _, session, folder = run.note.read_text().split()
    assert is_alive(server)
    assert folder == "/"
    assert int(session) not in {server, os.getsid(0)}, "no terminal can become its own"
    os.kill(server, signal.SIGTERM)
    eventually(lambda: not is_alive(server))
    assert run.log.read_text() == "to the log\n"


def test_the_caller_waits_for_ready(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    run = Run(tmp_path, f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)\nready()")
    run.server()
    assert run.process.poll() is None
    gate.touch()
    assert run.result() == (0, "returned\n")


def test_an_error_is_raised_in_the_caller_as_it_was(tmp_path: Path) -> None:
    run = Run(tmp_path, "raise ParentMissingError('no parent \\u00e9 \\x1b and more')")
    code, out = run.result()
    assert (code, out) == (20, "raised ParentMissingError no parent \u00e9 \x1b and more\n")
    assert "no parent" in run.log.read_text()
    code, out = Run(tmp_path, "raise VolumeError('x' * 100_000)").result()
    assert code == 62
    assert "raised VolumeError xxx" in out


def test_a_bug_is_reported_and_its_traceback_logged(tmp_path: Path) -> None:
    code, out = Run(tmp_path, "1 / 0").result()
    assert code == MountError.exit_code
    assert "raised MountError unexpected failure in the background: ZeroDivisionError" in out
    assert "Traceback" in (tmp_path / "mountfs" / "background.log").read_text()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "died before it was ready"),
        ("os._exit(0)", "died before it was ready"),
        ("return", "ended before it was ready"),
        ("sys.exit(3)", "died before it was ready"),
    ],
)
def test_a_silent_death_is_an_error(tmp_path: Path, body: str, said: str) -> None:
    code, out = Run(tmp_path, body).result()
    assert code == MountError.exit_code
    assert said in out


def test_a_failure_after_ready_goes_to_the_log_only(tmp_path: Path) -> None:
    run = Run(tmp_path, "ready()\nready()\nraise CorruptImageError('later')")
    assert run.result() == (0, "returned\n")
    eventually(lambda: "later" in run.log.read_text())


@pytest.mark.parametrize("deaf", [False, True])
def test_ctrl_c_ends_the_server_too(tmp_path: Path, *, deaf: bool) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    run = Run(tmp_path, f"{ignore}print(1, file=note, flush=True)\ntime.sleep(60)")
    eventually(lambda: run.note.exists() and run.note.read_text().count("\n") == 2)
    server = run.server()
    run.process.send_signal(signal.SIGINT)
    code, out = run.result()
    assert (code, out) == (130, "interrupted\n")
    eventually(lambda: not is_alive(server))


def test_ctrl_c_before_the_server_is_known_ends_it_too(tmp_path: Path) -> None:
    run = Run(tmp_path, "time.sleep(60)", setup=_INTERRUPT_THE_FIRST_WAIT)
    assert run.result() == (130, "interrupted\n")
    server = run.server()
    eventually(lambda: not is_alive(server))


def test_it_works_without_a_place_for_the_log(tmp_path: Path) -> None:
    (tmp_path / "mountfs").write_text("a file is in the way")
    assert Run(tmp_path, "ready()").result() == (0, "returned\n")


def test_a_long_log_is_put_aside(tmp_path: Path) -> None:
    log = tmp_path / "mountfs" / "background.log"
    log.parent.mkdir()
    log.write_bytes(bytes(daemon.LOG_LIMIT + 1))
    assert Run(tmp_path, "ready()").result() == (0, "returned\n")
    assert log.read_text() == "to the log\n"
    assert log.with_suffix(".old").stat().st_size == daemon.LOG_LIMIT + 1


def test_threads_do_not_survive_so_they_are_refused() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(MountError, match="threads"):
            daemon.run_in_background(lambda ready: ready())
    finally:
        stop.set()
        thread.join()
