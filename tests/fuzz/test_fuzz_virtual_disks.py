"""Damaged virtual disks: no hang, no unbounded memory, only errors of ours. They run in subprocesses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("virtual_disk_worker.py")
MAKERS = [
    "vhdx",
    "vhdx-logged",
    "vhdx-chain",
    "vhd",
    "vhd-chain",
    "vmdk",
    "vmdk-stream",
    "ewf",
    "ewf-ex01",
    "dmg",
    "dmg-plain",
]
ROUNDS = 120
SLOW_ROUNDS = 30
"""Of VHDX, whose checksums are slow to make."""


@pytest.mark.parametrize("maker", MAKERS)
def test_damaged_disks(maker: str) -> None:
    first = os.environ.get("MOUNTFS_FUZZ_SEED", "0")
    rounds = os.environ.get("MOUNTFS_FUZZ_ROUNDS", str(SLOW_ROUNDS if "vhdx" in maker else ROUNDS))
    result = subprocess.run(
        [sys.executable, str(WORKER), maker, first, rounds],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = result.stdout.splitlines()[-1:]
    assert (result.returncode, last) == (0, ["done"]), json.dumps([last, result.stderr[-2000:]])
