"""What a test needs from the machine. Missing: the test is skipped, but in CI it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def in_ci() -> bool:
    """Whether nothing may be missing: the environment variable CI is set."""
    return bool(os.environ.get("CI"))


def unavailable(reason: str) -> NoReturn:
    """Skip the running test; in CI fail it, because there nothing may pass by not running."""
    if in_ci():
        pytest.fail(f"needed in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def require_root() -> None:
    """The test attaches loop devices and mounts file systems."""
    if os.geteuid() != 0:
        unavailable("needs root")
    if not Path("/dev/loop-control").exists():
        unavailable("needs loop devices (/dev/loop-control)")


def require_fuse() -> None:
    """The test mounts through FUSE."""
    reason = fuse_missing()
    if reason:
        unavailable(reason)


@cache
def fuse_missing() -> str:
    """Why FUSE cannot be used here; empty when it can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs a usable /dev/fuse"
    return "" if shutil.which("fusermount3") else "needs fusermount3 (package fuse3)"


def require_cutting() -> None:
    """The test cuts the connection of a mount that hangs; users need the kernel's list of them for that."""
    connections = Path("/sys/fs/fuse/connections")
    if os.geteuid() != 0 and not os.path.ismount(connections):
        unavailable(f"needs root, or {connections} mounted")


def require_tool(*names: str) -> None:
    """The test calls these programs."""
    missing = [name for name in names if find_tool(name) is None]
    if missing:
        unavailable(f"needs {', '.join(missing)}")


def find_tool(name: str) -> str | None:
    """Path of a program; the folders of administrators' tools are looked at as well."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
    return shutil.which(name, path=path)


def shared_data_folder() -> Path:
    """The folder of images that other programs made: MOUNTFS_SHARED_DATA, or ../shared/data."""
    named = os.environ.get("MOUNTFS_SHARED_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        unavailable(f"needs the shared test data in {folder} (or name it in MOUNTFS_SHARED_DATA)")
    return folder


def run(*command: str | Path, stdin: bytes | None = None) -> str:
    """Run a program that must succeed; its standard output. The error says what it printed."""
    program = find_tool(str(command[0]))
    if program is None:
        require_tool(str(command[0]))
    done = subprocess.run(
        [str(program), *map(str, command[1:])],
        input=stdin if stdin is not None else b"",
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    if done.returncode:
        printed = (done.stdout + done.stderr).decode(errors="replace").strip()
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {printed}")
    return done.stdout.decode(errors="replace")
