"""What every test shares: its needs, its data, and the proof that it cleaned up."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from support import servers
from support.leftovers import SESSION, Leftovers, find_leftovers, remove_leftovers
from support.requirements import in_ci, require_fuse, require_root, shared_data_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

# Two busy cores and the measuring of coverage make single examples slow at random.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", settings.get_profile("default"), derandomize=True, database=None, print_blob=True
)
settings.load_profile("ci" if in_ci() else "default")

_left_behind = pytest.StashKey[Leftovers]()


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a folder of its own; all temporary files of tests and their processes go there."""
    for number in (signal.SIGINT, signal.SIGHUP):
        # Started in the background, they are ignored, and so they would be in every process under test.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if not _is_worker(config):
        folder = str(Path(tempfile.mkdtemp(prefix="mountfs-tests-")).resolve())
        Path(folder).chmod(0o711)  # tests that become another user must get to their own folders in it
        os.environ[SESSION] = os.environ["TMPDIR"] = folder
        tempfile.tempdir = None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A marked test runs only where it can; in CI it must."""
    if item.get_closest_marker("root"):
        require_root()
    if item.get_closest_marker("fuse"):
        require_fuse()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fail the run when a loop device, a mount or a process is left of it."""
    servers.end_all()
    yield
    if _is_worker(session.config):
        return
    folder = Path(os.environ[SESSION])
    left = session.config.stash[_left_behind] = find_leftovers(folder)
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    elif session.exitstatus == pytest.ExitCode.OK:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what was left behind, and end it."""
    left = config.stash.get(_left_behind, None)
    if left:
        terminalreporter.section("LEFT BEHIND: THE RUN FAILED", red=True, bold=True)
        for line in left.describe():
            terminalreporter.line(line, red=True)
        remove_leftovers(left)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of images that other programs made."""
    return shared_data_folder()
