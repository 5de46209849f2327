"""Run a server in the background, and come back only when it serves, or say why it does not.

``mountfs mount`` must not return before the files are there, and must not hide a failure in a log that
nobody reads: the background process reports to the one that waits, over a pipe, and only then lets go.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import platformdirs

from imageformat.errors import MountError, MountfsError, error_classes

if TYPE_CHECKING:
    from collections.abc import Callable

LOG_LIMIT = 4 << 20
"""A log that is longer when a server starts is kept as ``.old``, and a new one is begun."""
STOP_S = 5.0

_MESSAGE_LIMIT = 1 << 16
_log = logging.getLogger(__name__)


def log_path() -> Path:
    """Return where background servers of this user write their log."""
    return Path(platformdirs.user_state_dir("mountfs", appauthor=False)) / "background.log"


def run_in_background(serve: Callable[[Callable[[], None]], None]) -> None:
    """Run ``serve(ready)`` in a process of its own; return when it has called ``ready()``.

    The process has no terminal, ``/`` as its working directory (so every path that ``serve`` uses must be
    absolute), ``/dev/null`` as input and output, and `log_path` as its error output and log. It ends when
    ``serve`` returns or raises. Call it before any thread is started: threads do not survive a fork.

    Raises:
        MountfsError: what ``serve`` raised before it was ready, as the same class with the same message.
        MountError: the process died before it was ready, or threads are running already.
        KeyboardInterrupt: Ctrl-C while waiting; the process is ended first.
    """
    if threading.active_count() > 1:
        raise MountError("a server cannot be put into the background once threads are running")
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _detach(serve, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        server = 0
        try:
            os.waitpid(child, 0)
            server = int(pipe.readline(_MESSAGE_LIMIT) or b"0")
            _check(pipe.readline(_MESSAGE_LIMIT))
        except KeyboardInterrupt:
            _stop(server or int(pipe.readline(_MESSAGE_LIMIT) or b"0"))
            raise


def _check(line: bytes) -> None:
    """Return when the server said that it is ready; raise what it said instead."""
    if not line:
        raise MountError(f"the background process died before it was ready; its log is {log_path()}")
    message: dict[str, str] = json.loads(line)
    if "error" in message:
        classes = {cls.__name__: cls for cls in error_classes()}
        raise classes.get(message["error"], MountError)(message["text"])


def _stop(server: int) -> None:
    """End a server that is not ready yet: gently, then not."""
    if not server:
        return
    try:
        os.kill(server, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        while time.monotonic() < deadline:
            os.kill(server, 0)
            time.sleep(0.02)
        os.kill(server, signal.SIGKILL)
    except ProcessLookupError:
        return


def _detach(serve: Callable[[Callable[[], None]], None], writer: int) -> NoReturn:
    """Become a process without terminal and parent, and serve. Never returns into the caller's code."""
    code = 1
    try:
        os.setsid()
        if os.fork():
            code = 0
        else:
            os.write(writer, b"%d\n" % os.getpid())
            code = _serve(serve, writer)
    finally:
        logging.shutdown()
        os._exit(code)


def _serve(serve: Callable[[Callable[[], None]], None], writer: int) -> int:
    report = _Report(writer)
    try:
        os.chdir("/")
        _redirect()
        serve(report.ready)
    except MountfsError as error:
        _log.error("%s", error)
        report.failed(type(error).__name__, str(error))
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the one who waits must hear of it
        _log.exception("the background process failed")
        text = f"unexpected failure in the background: {type(error).__name__}: {error}; see {log_path()}"
        report.failed(MountError.__name__, text)
        return 1
    report.failed(MountError.__name__, "the mount ended before it was ready")
    return 0


class _Report:
    """The server's end of the pipe: one message, then it is closed."""

    def __init__(self, writer: int) -> None:
        self._writer: int | None = writer

    def ready(self) -> None:
        self._send({"ready": "yes"})

    def failed(self, name: str, text: str) -> None:
        """Send a failure; nothing when the server was ready before."""
        self._send({"error": name, "text": text[: _MESSAGE_LIMIT // 16]})

    def _send(self, message: dict[str, str]) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            os.write(writer, json.dumps(message).encode("ascii") + b"\n")
        except BrokenPipeError:
            _log.warning("nobody waits for the background process any more")
        finally:
            os.close(writer)


def _redirect() -> None:
    """Give the process its own standard files and send the log to a file, where one can be written."""
    null = os.open(os.devnull, os.O_RDWR)
    errors = _open_log(otherwise=null)
    for number, target in enumerate((null, null, errors)):
        os.dup2(target, number)
    for opened in {null, errors} - {0, 1, 2}:
        os.close(opened)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]


def _open_log(*, otherwise: int) -> int:
    path = log_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_suffix(".old"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        return otherwise
