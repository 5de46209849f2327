"""One step of a run as a process of its own: what it says is read while it runs, and kept in bounds."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from mountfs.plans.records import StepRecord
from mountfs.plans.steps import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from mountfs.plans.steps import Step

WARNING_EXIT = 3
STOP_S = 60.0
"""A step that was told to stop has so long to clean up behind itself."""
_MAX_LINE = 1 << 20
_MAX_OUTPUT = 1 << 20
"""Longer results are not kept with a run; they are for whoever runs the command alone."""
_MAX_TOLD = 50
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")


class Told(NamedTuple):
    """What a step said while it ran."""

    message: str
    warnings: tuple[str, ...]


def run_step(
    step: Step, keep_open: int, progress: Callable[[int, int | None, str], None] = lambda *_: None
) -> StepRecord:
    """Run a step to its end; ``keep_open`` is a descriptor that it inherits: that of the lock.

    Raises:
        KeyboardInterrupt: as of its caller; the step was stopped first.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        try:
            process = _start(step, output, keep_open)
        except OSError as error:
            return _record(step, started, 127, Told(f"cannot be started: {error.strerror or error}", ()), {})
        try:
            told = _listen(process, progress, program=step.kind != "hook")
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
        result = _result(output) if step.kind != "hook" else {}
    return _record(step, started, code, told, result)


def redacted(text: str) -> str:
    """Return a text without the user names and passwords of the URLs in it."""
    return _URL_LOGIN.sub("***", text)


def _start(step: Step, output: IO[bytes], keep_open: int) -> subprocess.Popen[bytes]:
    hook = step.kind == "hook"
    words = list(step.words) if hook else [sys.executable, "-m", PROGRAM, *step.words[1:], "--json"]
    prefix = step.prefix if step.prefix and shutil.which(step.prefix[0]) else ()
    return subprocess.Popen(
        step.words[0] if step.shell else [*prefix, *words],
        shell=step.shell,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if hook else output,
        stderr=subprocess.STDOUT if hook else subprocess.PIPE,
        pass_fds=() if sys.platform == "win32" else (keep_open,),
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def _listen(
    process: subprocess.Popen[bytes], progress: Callable[[int, int | None, str], None], *, program: bool
) -> Told:
    stream = process.stderr if program else process.stdout
    message, warnings, last = "", list[str](), deque[str](maxlen=5)
    while stream is not None and (line := stream.readline(_MAX_LINE)):
        event = _event(line) if program else None
        match event:
            case {"type": "progress", "done": int(done), "label": str(label), "total": int() | None as total}:
                progress(done, total, label)
            case {"type": "warning", "message": str(said)}:
                warnings = [*warnings, redacted(said)][:_MAX_TOLD]
            case {"type": "error", "message": str(said)}:
                message = redacted(said)
            case None:
                last.append(redacted(line.decode("utf-8", "replace").strip()[:1000]))
            case _:
                pass
    return Told(message or " | ".join(filter(None, last)), tuple(warnings))


def _event(line: bytes) -> dict[str, object] | None:
    try:
        return msgspec.json.decode(line, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _result(output: IO[bytes]) -> dict[str, object]:
    """Return the one result of a command; nothing when there are several, or it is long."""
    output.seek(0)
    content = output.read(_MAX_OUTPUT + 1)
    if len(content) > _MAX_OUTPUT or content.count(b"\n") != 1:
        return {}
    return _event(content) or {}


def _record(step: Step, started: float, code: int, told: Told, result: dict[str, object]) -> StepRecord:
    outcome = "ok" if code == 0 else "failed"
    if code == WARNING_EXIT and step.kind != "hook":
        outcome = "warning"
    if outcome == "ok" and told.warnings:
        outcome = "warning"
    message = told.message if outcome == "failed" or step.kind == "hook" else ""
    if outcome == "failed" and not message:
        message = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return StepRecord(
        name=step.name,
        kind=step.kind,
        command=redacted(step.typed),
        outcome=outcome,
        code=code,
        seconds=round(time.monotonic() - started, 3),
        message=message,
        warnings=told.warnings,
        result=result,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        process.terminate()
    try:
        process.wait(STOP_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
    finally:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
