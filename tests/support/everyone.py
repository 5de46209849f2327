"""A Python and a copy of the product that any user of this machine can run.

The interpreter and the checkout of the tests may lie where only their owner can look.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from support.requirements import REPOSITORY, unavailable

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all")
_PARTS = ("imageformat", "engine", "mountfs", "tests")


@functools.cache
def python_for_everyone() -> str:
    """An interpreter of the same version that ``nobody`` can run, with `environment_for_everyone`."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/python{version}", "/usr/bin/python3"):
        code = "import sys, mountfs.cli.__main__; print('%d.%d' % sys.version_info[:2])"
        done = as_nobody(candidate, "-c", code)
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return unavailable(f"there is no Python {version} here that every user can run")


@functools.cache
def environment_for_everyone() -> dict[str, str]:
    """The environment in which it finds a copy of the product and of the libraries."""
    folder = Path(tempfile.mkdtemp(prefix="everyone-"))
    folder.chmod(0o755)
    libraries = folder / "libraries"
    unneeded = shutil.ignore_patterns("mypy*", "ruff*", "pip*", "hypothesis*", "coverage*")
    shutil.copytree(sysconfig.get_paths()["purelib"], libraries, symlinks=True, ignore=unneeded)
    for part in _PARTS:
        shutil.copytree(REPOSITORY / part, folder / part)
    known = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return {**known, "PYTHONPATH": f"{folder}:{libraries}", "HOME": "/nonexistent"}


def copied(path: str | Path) -> Path:
    """Where ``nobody`` finds the copy of a file of the repository."""
    folder = environment_for_everyone()["PYTHONPATH"].split(":")[0]
    return Path(folder) / Path(path).resolve().relative_to(REPOSITORY)


def as_nobody(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user without any rights."""
    return subprocess.run(
        [*AS_NOBODY, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment_for_everyone(),
        cwd="/",
    )
