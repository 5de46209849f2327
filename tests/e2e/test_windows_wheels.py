"""Every dependency of the core has a wheel for Windows, for every Python that the project claims."""

from __future__ import annotations

import subprocess

import pytest

from support.requirements import REPOSITORY


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_every_core_dependency_has_a_wheel_for_windows() -> None:
    done = subprocess.run([REPOSITORY / ".ci" / "wheels"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       3.11 winfspy" in done.stdout
