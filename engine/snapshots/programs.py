"""Running the programs of others that make snapshots: by name, with an argument list, and a time limit."""

from __future__ import annotations

import os
import shutil
import subprocess

from imageformat.errors import SnapshotError

TIMEOUT_S = 120.0
_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_MOST_SAID = 400


def find(program: str) -> str | None:
    """Return the path of a program; the folders of administrators' tools are looked at as well."""
    return shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_FOLDERS)))


def run(*command: str, stdin: str = "") -> str:
    """Run a program to its end, with ``stdin`` as its input, and return what it printed.

    It is never ended from here: killed in its middle, it could leave a device suspended for good. Ctrl-C is
    heeded when it has ended.

    Raises:
        SnapshotError: it is not there, fails (with what it said), or takes too long.
    """
    program = find(command[0])
    if program is None:
        raise SnapshotError(f"{command[0]} is not installed")
    try:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        raise SnapshotError(f"{command[0]} cannot be run: {error.strerror}") from error
    out, said = _to_its_end(process, command[0], stdin.encode())
    if process.returncode:
        reason = " ".join(said.decode("utf-8", "replace").split())[:_MOST_SAID]
        raise SnapshotError(f"{command[0]} failed: {reason or f'it ended with {process.returncode}'}")
    return out.decode("utf-8", "replace")


def _to_its_end(process: subprocess.Popen[bytes], name: str, stdin: bytes) -> tuple[bytes, bytes]:
    given: bytes | None = stdin
    interrupted: KeyboardInterrupt | None = None
    while True:
        try:
            out, said = process.communicate(given, TIMEOUT_S)
        except KeyboardInterrupt as signal:
            given, interrupted = None, signal
        except subprocess.TimeoutExpired as error:
            raise SnapshotError(f"{name} does not end; it is left to itself") from error
        else:
            break
    if interrupted is not None:
        raise interrupted
    return out, said
