"""A backup that is killed, gone on with, killed again: in the end it is the image of its source."""

from __future__ import annotations

import shutil
import sys
from contextlib import closing
from pathlib import Path

import pytest

from faults.test_kill_during_backup import DISK, SCENARIOS, change, chosen_calls, copy_of, prepared
from imageformat.storage.local import LocalStorage
from support.points import Kept
from support.product import environment, mountfs
from support.tracing import Call, calls_in, run_traced, spread, strace, touching

ENGINE = (sys.executable, str(Path(__file__).with_name("one_small_backup.py")))


def command(kept: Kept) -> list[str]:
    return [*ENGINE, str(kept.source), str(kept.place), kept.set_name]


def calls_of(kept: Kept, log: Path) -> list[Call]:
    """What the next backup of a set asks the system for, seen on the set itself."""
    ended = run_traced(command(kept), log=log)
    assert ended.returncode == 0, ended
    return touching(calls_in(log), kept.place)


def kill(kept: Kept, call: Call) -> None:
    ended = run_traced(
        command(kept), inject=[f"{call.name}:signal=KILL:when={call.number}"], trace=(call.name,)
    )
    assert ended.returncode == -9, f"{call} was never reached: {ended}"


def finish(kept: Kept, what: object) -> None:
    """The next backup, in this process: nothing lost, nothing left, and the disk as it is now."""
    if kept.folder.exists():
        kept.check()
    kept.back_up()
    assert kept.leftovers() == [], what
    kept.check()


def run_kills(tmp_path: Path, name: str, kills: int) -> int:
    """Kill at calls spread over a backup, half of the times once more while it goes on; how often it did."""
    kept = prepared(tmp_path / "kept", SCENARIOS[name])
    recorded = copy_of(kept, tmp_path / "recorded")
    calls = calls_of(recorded, tmp_path / "log")
    writes = [call for call in calls if call.name == "pwrite64"]
    chosen = chosen_calls(calls, kills) if kills > 10 else spread(writes[2:], kills)
    original, went_on = kept.source.read_bytes(), 0
    for number, call in enumerate(chosen):
        kept.source.write_bytes(original)
        broken = copy_of(kept, tmp_path / f"broken{number}")
        kill(broken, call)
        unfinished = LocalStorage(broken.place).unfinished(f"{broken.set_name}/")
        went_on += bool(unfinished)
        if number % 3 == 1 and unfinished:
            change(kept.source, 900 + number, pieces=3)
        if number % 2 and unfinished:
            again = copy_of(broken, tmp_path / "again")
            later = spread(calls_of(again, tmp_path / f"log{number}"), 7)[1 + number % 5]
            kill(broken, later)
            shutil.rmtree(again.place)
        finish(broken, call)
        shutil.rmtree(broken.place)
    return went_on


@pytest.mark.parametrize("name", ["first full", "incremental"])
def test_killed_backups_are_gone_on_with(tmp_path: Path, name: str) -> None:
    assert run_kills(tmp_path, name, 4) == 4


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_hundred_kills(tmp_path: Path, name: str) -> None:
    assert run_kills(tmp_path, name, 50) >= 10


def test_the_command_line_goes_on_and_says_so(tmp_path: Path) -> None:
    kept = prepared(tmp_path / "kept", SCENARIOS["first full"])
    with kept.source.open("r+b") as disk:
        disk.truncate(8 * DISK)
        for at in range(1, 8):
            disk.seek(at * DISK)
            disk.write(kept.source.read_bytes()[:DISK])
    wrapper = strace(inject=["pwrite64:signal=KILL:when=5"], trace=("pwrite64",))
    killed = mountfs("backup", kept.source, kept.place, "--threads", "1", prefix=wrapper, code=-9)
    assert killed.out == b""
    (part,) = kept.leftovers()
    told = mountfs("backup", kept.source, kept.place, env=environment()).err
    name = part.removeprefix(".").removesuffix(".resume.part")
    assert f"continuing {name}: " in told
    assert " % was there" in told
    assert kept.leftovers() == []
    with closing(kept.repository()) as repository:
        assert len(repository.image_set(kept.set_name).points) == 1
    kept.digests = {}
    kept.check()
