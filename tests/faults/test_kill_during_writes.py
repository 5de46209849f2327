"""A restore or clone that is killed anywhere is known as unfinished, and the same command finishes it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from faults.killed_writes import SCENARIOS
from support.content import mixture, noise
from support.disks import MIB, Part, make_gpt_disk
from support.kernel import loop_device
from support.product import environment, mountfs
from support.tracing import calls_in, run_traced, spread

PROGRAM = (sys.executable, str(Path(__file__).with_name("killed_writes.py")))


def prepared(folder: Path) -> None:
    """A disk with a table, an image of it, and a target on which a third of it is other bytes."""
    content = folder / "content"
    content.write_bytes(mixture(3, MIB + MIB // 2))
    make_gpt_disk(folder / "source", 4 * MIB, [Part(MIB + MIB // 2, content=content)])
    before = bytearray((folder / "source").read_bytes())
    for at in range(MIB, 2 * MIB + 400_000, 400_000):
        before[at : at + 100_000] = noise(at, 100_000)
    (folder / "before").write_bytes(before)
    mountfs("backup", folder / "source", folder / "repo", "--raw", "--set", "s")


@pytest.mark.root
@pytest.mark.parametrize("most", [9, pytest.param(60, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_run_is_finished_by_the_next(tmp_path: Path, name: str, most: int) -> None:
    prepared(tmp_path)
    with ExitStack() as stack:
        if SCENARIOS[name][2]:
            disk = tmp_path / "disk"
            disk.write_bytes((tmp_path / "before").read_bytes())
            (tmp_path / "device").symlink_to(stack.enter_context(loop_device(disk)))
        done = subprocess.run(
            [*PROGRAM, name, str(tmp_path), str(most)],
            capture_output=True,
            check=False,
            env=environment(XDG_STATE_HOME=str(tmp_path / "state")),
        )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert int(done.stdout) >= min(most, 24), "a run has no more steps than that"


@pytest.mark.parametrize(
    "most", [1, pytest.param(200, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])]
)
def test_the_command_line_goes_on_after_kills_at_system_calls(tmp_path: Path, most: int) -> None:
    prepared(tmp_path)
    target = tmp_path / "clone.img"
    command = [sys.executable, "-m", "mountfs", "clone", tmp_path / "source", target, "--same-ids"]
    state = Path(environment()["XDG_STATE_HOME"], "mountfs", "targets")
    assert run_traced(command, log=tmp_path / "log").returncode == 0
    places = (str(tmp_path), str(state))
    calls = [call for call in calls_in(tmp_path / "log") if any(place in call.text for place in places)]
    main = [call for call in calls if call.name in {"pwrite64", "fsync", "fdatasync", "renameat2", "rename"}]
    for call in spread(main[3:], most) if most > 1 else main[len(main) // 2 :][:1]:
        target.unlink(missing_ok=True)
        ended = run_traced(
            command, inject=[f"{call.name}:signal=KILL:when={call.number}"], trace=(call.name,)
        )
        assert ended.returncode in {-9, 0}, ended
        assert ended.returncode == 0 or not target.exists() or call.name in {"fsync", "fdatasync", "pwrite64"}
        if not target.exists():
            assert run_traced(command, trace=("rename",)).returncode == 0
        assert target.read_bytes() == (tmp_path / "source").read_bytes()
