"""The check that a run cleans up, and the policy on missing things: both must be able to fail a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.disks import MIB, make_ext4
from support.kernel import kernel_mount, loop_device
from support.leftovers import SESSION, find_leftovers
from support.requirements import REPOSITORY

LEAK = """
import subprocess, sys
from pathlib import Path

def test_that_forgets_its_daemon():
    daemon = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path({record!r}).write_text(str(daemon.pid))
    daemon.returncode = 0
"""

NEEDS_ROOT = """
import pytest
from support import requirements

@pytest.mark.root
def test_that_needs_root():
    pass
"""


def _run(folder: Path, source: str, *options: str, ci: bool = False) -> subprocess.CompletedProcess[str]:
    """Run one test module with this suite's own conftest."""
    path = folder / "test_inner.py"
    path.write_text(source)
    environment = {key: value for key, value in os.environ.items() if key not in {"CI", SESSION}}
    environment |= {"PYTHONPATH": str(REPOSITORY / "tests"), "TMPDIR": str(folder)} | (
        {"CI": "1"} if ci else {}
    )
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-c", str(REPOSITORY / "pyproject.toml")]
    command += ["-p", "no:cacheprovider", f"--rootdir={folder}", *options, str(path)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [(), ("-n", "1")])
def test_a_forgotten_daemon_fails_the_run_and_is_ended(tmp_path: Path, options: tuple[str, ...]) -> None:
    record = tmp_path / "pid"
    done = _run(tmp_path, LEAK.format(record=str(record)), *options)
    assert "1 passed" in done.stdout
    assert "LEFT BEHIND" in done.stdout
    assert f"still running: {record.read_text()}" in done.stdout
    assert done.returncode == 1
    assert not Path("/proc", record.read_text(), "exe").exists()


def test_what_is_missing_skips_here_and_fails_in_ci(tmp_path: Path) -> None:
    """Root is taken away by pretending; the inner run decides by its own policy."""
    pretend = NEEDS_ROOT + "\nrequirements.os.geteuid = lambda: 1000\n"
    here, ci = _run(tmp_path, pretend), _run(tmp_path, pretend, ci=True)
    assert (here.returncode, ci.returncode) == (0, 1)
    assert "1 skipped" in here.stdout
    assert "needed in CI: needs root" in ci.stdout


@pytest.mark.root
def test_mounts_and_loop_devices_are_found_while_they_stand(tmp_path: Path) -> None:
    with loop_device(make_ext4(tmp_path / "volume", 2 * MIB)) as device:
        with kernel_mount(device, "ext4") as folder:
            assert str(folder) in find_leftovers(folder.parent, patience=0).mounts
            assert device in find_leftovers(tmp_path, patience=0).loops
        assert str(folder) not in find_leftovers(tmp_path, patience=0).mounts
    assert not find_leftovers(tmp_path, patience=0)
