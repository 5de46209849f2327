"""A process that is killed at any step of a snapshot leaves nothing frozen, and nothing for good."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine.snapshots.taking import clean
from support.disks import make_ext4, make_xfs
from support.kernel import kernel_mount, loop_device
from support.product import environment
from support.requirements import find_tool, require_root, require_tool, run

pytestmark = pytest.mark.root
MIB = 1 << 20
PROGRAM = Path(__file__).with_name("one_snapshot.py")
CALLS = ("openat", "write", "fsync", "ioctl", "unlink", "close", "flock", "vfork", "clone", "clone3")


def traced(arguments: list[str], log: Path, *inject: str) -> subprocess.CompletedProcess[bytes]:
    """Run it under strace, which does not follow its children: they are to outlive it."""
    words = ["strace", "-qq", "-y", "-o", str(log), "-e", f"trace={','.join(CALLS)}"]
    words += [word for one in inject for word in ("-e", f"inject={one}")]
    command = [*words, sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, check=False, env=environment(), timeout=60)


def steps(log: Path, state: Path) -> list[tuple[str, int]]:
    """The calls from where the journal is first touched on: name, and how often it was called before."""
    counts: Counter[str] = Counter()
    found: list[tuple[str, int]] = []
    for line in log.read_text("utf-8", "replace").splitlines():
        match = re.match(r"(\w+)\(", line)
        if match:
            counts[match[1]] += 1
            if found or str(state) in line:
                found.append((match[1], counts[match[1]]))
    return found


def assert_running(top: Path) -> None:
    """Nothing holds the file system: fsfreeze can freeze it, and thaw it."""
    until = time.monotonic() + 20
    while subprocess.run(
        [str(find_tool("fsfreeze")), "-f", str(top)], capture_output=True, check=False
    ).returncode:
        assert time.monotonic() < until, "it is still frozen"
        time.sleep(0.01)
    run("fsfreeze", "-u", top)


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        ("freeze", 10),
        ("reflink", 8),
        pytest.param("freeze", 1000, marks=pytest.mark.nightly),
        pytest.param("reflink", 1000, marks=pytest.mark.nightly),
    ],
)
def test_nothing_stays_frozen_and_nothing_is_left(tmp_path: Path, choice: str, count: int) -> None:
    require_root()
    require_tool("strace", "fsfreeze", "mkfs.xfs")
    state = tmp_path / "state"
    with ExitStack() as stack:
        below = stack.enter_context(loop_device(make_xfs(tmp_path / "below", 320 * MIB)))
        folder = stack.enter_context(kernel_mount(below, "xfs", read_only=False))
        disk = make_ext4(folder / "disk.img", 8 * MIB)
        device = stack.enter_context(loop_device(disk))
        top = stack.enter_context(kernel_mount(device, "ext4", read_only=False))
        arguments = [device if choice == "freeze" else str(disk), choice, str(state)]
        assert traced(arguments, tmp_path / "log").stdout == b"done\n"
        found = steps(tmp_path / "log", state)
        assert {"fsync", "ioctl", "unlink"} <= {name for name, _ in found}
        killed = 0
        chosen = found[:: max(1, len(found) // count)]
        for name, number in chosen:
            ended = traced(arguments, tmp_path / "killed", f"{name}:signal=KILL:when={number}")
            # What the kernel tells of itself differs from run to run, and so may the last calls of a kind.
            assert ended.returncode in {0, -9}, f"{name}#{number}: {ended}"
            killed += ended.returncode == -9
            assert_running(top)
            assert {problem for _, problem in clean(state)} <= {None}
            assert list(state.iterdir()) == [], f"{name}#{number}"
            assert [path.name for path in folder.iterdir()] == ["disk.img"]
            (top / "free").write_text(name)
        assert killed * 2 > len(chosen)
