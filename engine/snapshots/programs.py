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

    Raises:
        SnapshotError: it is not there, fails (with what it said), or takes too long.
    """
    program = find(command[0])
    if program is None:
        raise SnapshotError(f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            [program, *command[1:]],
            input=stdin.encode(),
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,  # Ctrl-C is for us: a half-done change of a volume group helps nobody
        )
    except OSError as error:
        raise SnapshotError(f"{command[0]} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise SnapshotError(f"{command[0]} did not end within {TIMEOUT_S:.0f} seconds") from error
    if done.returncode:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[:_MOST_SAID]
        raise SnapshotError(f"{command[0]} failed: {said or f'it ended with {done.returncode}'}")
    return done.stdout.decode("utf-8", "replace")
