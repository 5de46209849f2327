"""Commands of the user that run before and after a backup: to quiet a database, to power a disk.

Each has a time limit. Its output is passed on line by line while it runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from imageformat.errors import HookError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LIMIT_S = 600.0
_LONGEST_LINE = 4096
_PIPE_PATIENCE_S = 1.0
"""A hook may leave a server behind that keeps its output open; it is not waited for."""
_GRACE_S = 5.0


def run_hook(
    command: str, variables: Mapping[str, str], tell: Callable[[str], None], limit_s: float = LIMIT_S
) -> None:
    """Run a command line by the shell, with ``variables`` added to the environment.

    Args:
        command: for ``/bin/sh -c``; on Windows for ``cmd /c``.
        variables: what it may want to know.
        tell: is called with each line of its output, from another thread.
        limit_s: after so many seconds it is ended, with all that it has started.

    Raises:
        HookError: it failed, cannot be run, or took too long.
        KeyboardInterrupt: passed on, once the command is ended.
    """
    shell = ["cmd", "/c", command] if sys.platform == "win32" else ["/bin/sh", "-c", command]
    try:
        process = subprocess.Popen(
            shell,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            start_new_session=True,  # ended as a whole, and by nobody but us
        )
    except (OSError, ValueError) as error:
        raise HookError(f"'{command}' cannot be run: {error}") from error
    reader = threading.Thread(target=_pass_on, args=(process.stdout, tell), daemon=True)
    reader.start()
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired as error:
        _stop(process)
        raise HookError(f"'{command}' did not end within {limit_s:.0f} seconds") from error
    except BaseException:
        _stop(process)
        raise
    finally:
        reader.join(_PIPE_PATIENCE_S)
    if code:
        raise HookError(f"'{command}' {_ending(code)}")


if sys.platform == "win32":

    def _stop(process: subprocess.Popen[bytes]) -> None:
        """End it."""
        process.kill()
        process.wait()

else:

    def _stop(process: subprocess.Popen[bytes]) -> None:
        """Ask it and all that it started to end, then end them."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with {code}"


def _pass_on(stream: IO[bytes] | None, tell: Callable[[str], None]) -> None:
    if stream is None:
        return
    with stream:
        while line := stream.readline(_LONGEST_LINE):
            if text := line.decode("utf-8", "replace").rstrip():
                tell(text)
