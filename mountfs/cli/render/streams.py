"""Where output goes: streams that never fail over an encoding, and end quietly when nobody reads on."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import threading
from typing import TYPE_CHECKING, TextIO

from imageformat.errors import DestinationError, DestinationFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BROKEN_PIPE_EXIT = 141
"""What a shell reports of a program that SIGPIPE ended."""


_ENCODING = "utf-8" if sys.platform == "win32" else None
"""None: that of the locale."""


class OutputClosedError(Exception):
    """Whoever read standard output has gone (``| head``). Not an error of ours: stop, and say nothing."""


class Output:
    """Standard output, one line at a time. Any number of threads may call it at once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = harden(stream)
        self._lock = threading.Lock()
        self.is_terminal = is_terminal(stream)

    @property
    def stream(self) -> TextIO:
        """The stream itself, for a library that draws."""
        return self._stream

    def write(self, text: str, *, flush: bool = False) -> None:
        """Write a line.

        Raises:
            OutputClosedError: nobody reads it any more.
            DestinationError: it is a file, and cannot be written.
        """
        with self._lock, written_to_output():
            self._stream.write(text + "\n")
            if flush:
                self._stream.flush()

    def flush(self) -> None:
        """Hand on what is still buffered; raises as `write` does."""
        with self._lock, written_to_output():
            self._stream.flush()


class Messages:
    """Standard error: what cannot be written there is dropped, since nobody is left to tell."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = harden(stream)
        self._lock = threading.Lock()
        self.is_terminal = is_terminal(stream)

    @property
    def stream(self) -> TextIO:
        """The stream itself, for a library that draws."""
        return self._stream

    def write(self, text: str, end: str = "\n") -> None:
        """Write a line."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(text + end)
            self._stream.flush()


@contextlib.contextmanager
def written_to_output() -> Iterator[None]:
    """Turn what the system says of a write to standard output into our errors."""
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosedError from error
    except OSError as error:
        kind = DestinationFullError if error.errno == errno.ENOSPC else DestinationError
        raise kind(f"cannot write to standard output: {os.strerror(error.errno or errno.EIO)}") from error


def harden(stream: TextIO) -> TextIO:
    """Make a stream write what its encoding lacks as escapes, where others would raise.

    On Windows it becomes UTF-8: a console takes that anyway, and of a pipe or file nobody else is asked.
    What was written before is flushed by that; where it fails, the next write fails too, and is told.
    """
    encoding = _ENCODING or getattr(stream, "encoding", None)
    wanted = (encoding, "backslashreplace")
    if isinstance(stream, io.TextIOWrapper) and (stream.encoding, stream.errors) != wanted:
        with contextlib.suppress(OSError):
            stream.reconfigure(encoding=_ENCODING, errors="backslashreplace")
    return stream


def is_terminal(stream: TextIO) -> bool:
    """Tell whether a person is at the other end; False for a stream that is closed."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def run_to_exit_code(main: Callable[[], int]) -> int:
    """Run a program to its exit code; when its reader goes away, end quietly with 141.

    The streams are flushed here, since an error at the interpreter's own last flush cannot be caught. A
    program that wants to tell of one calls `flush_output` itself.
    """
    code = 0
    try:
        code = main()
        flush_output()
    except OutputClosedError:
        _discard_output()
        return BROKEN_PIPE_EXIT
    except DestinationError as error:
        _discard_output()
        return code or error.exit_code
    return code


def flush_output() -> None:
    """Hand on what is still buffered.

    Raises:
        OutputClosedError, DestinationError: as of `Output.write`.
    """
    with written_to_output():
        sys.stdout.flush()


def _discard_output() -> None:
    """Point standard output to nowhere, so that what is still buffered can go somewhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
