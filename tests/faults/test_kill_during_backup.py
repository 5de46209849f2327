"""A backup that is killed at any system call loses no acknowledged point, and the next one succeeds."""

from __future__ import annotations

import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from imageformat.layer import ImageType
from support.content import mixture, noise
from support.points import Kept, digest_of
from support.product import mountfs
from support.tracing import Call, calls_in, run_traced, spread, strace, touching

DISK = 3 << 20
ENGINE = (sys.executable, str(Path(__file__).with_name("one_backup.py")))


def change(source: Path, seed: int, pieces: int = 40) -> None:
    """Write here and there."""
    chance = random.Random(seed)
    with source.open("r+b") as disk:
        for number in range(pieces):
            disk.seek(chance.randrange(DISK - 5000))
            disk.write(bytes(5000) if number % 4 == 0 else noise(seed * 1000 + number, 5000))


@dataclass(frozen=True)
class Scenario:
    """What stands before a backup, and which backup it is that gets killed."""

    prepare: Callable[[Kept], None]
    kind: str
    points: int
    """Kill points in the default run."""


def nothing(kept: Kept) -> None:
    """The very first image: even the repository's folder is missing."""


def chain(kept: Kept) -> None:
    """A full, a differential on it, an incremental; the disk has changed since."""
    for number, kind in enumerate((ImageType.FULL, ImageType.DIFFERENTIAL, ImageType.INCREMENTAL)):
        kept.back_up(kind)
        change(kept.source, number)


def killed_before(kept: Kept) -> None:
    """A chain, and what a killed backup left of an image and of a catalogue."""
    chain(kept)
    (kept.folder / ".0004-inc-20200101T000000Z-00000000.mfi.part").write_bytes(noise(9, 70_000))
    (kept.folder / ".catalog.json.4242.part").write_bytes(b"{")


SCENARIOS = {
    "first full": Scenario(nothing, "", 16),
    "incremental": Scenario(chain, "inc", 16),
    "differential after a kill": Scenario(killed_before, "diff", 14),
    "another full": Scenario(chain, "full", 14),
}


def prepared(folder: Path, scenario: Scenario) -> Kept:
    folder.mkdir()
    source = folder / "disk.img"
    source.write_bytes(mixture(4, DISK))
    kept = Kept(source, folder / "repo")
    scenario.prepare(kept)
    return kept


def copy_of(kept: Kept, place: Path) -> Kept:
    """The same source, and a repository to break."""
    if kept.place.exists():
        shutil.copytree(kept.place, place, dirs_exist_ok=True)
    return Kept(kept.source, place, kept.set_name, dict(kept.digests))


def engine_command(kept: Kept, kind: str) -> list[str]:
    return [*ENGINE, str(kept.source), str(kept.place), kept.set_name, kind]


def kill_and_check(kept: Kept, command: list[str], call: Call) -> bool:
    """Kill before a call, look, go on. Whether the image had its name already."""
    known = len(images(kept))
    ended = run_traced(command, inject=[f"{call.name}:signal=KILL:when={call.number}"], trace=(call.name,))
    assert ended.returncode == -9, f"{call} was never reached: {ended}"
    return check_and_go_on(kept, known, call)


def check_and_go_on(kept: Kept, known: int, what: object) -> bool:
    """After a kill: nothing is lost, and the next backup succeeds. Whether the image had its name already."""
    if kept.folder.exists():
        kept.check()
    published = len(images(kept)) > known
    number = kept.back_up()
    assert kept.leftovers() == [], f"{what}: the next backup cleans up"
    kept.check()
    assert number == known + 1 + published, what
    return published


def images(kept: Kept) -> list[Path]:
    return sorted(kept.folder.glob("*.mfi")) if kept.folder.exists() else []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in {"first full", "incremental"} else [pytest.mark.nightly])
        for name in SCENARIOS
    ],
)
def test_a_killed_backup_loses_nothing(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    kept = prepared(tmp_path / "kept", scenario)
    recorded = copy_of(kept, tmp_path / "recorded")
    ended = run_traced(engine_command(recorded, scenario.kind), log=tmp_path / "log")
    assert ended.returncode == 0, ended
    calls = touching(calls_in(tmp_path / "log"), recorded.place)
    assert {"pwrite64", "fsync", "renameat2", "openat"} <= {call.name for call in calls}
    chosen = chosen_calls(calls, scenario.points)
    published = []
    for number, call in enumerate(chosen):
        broken = copy_of(kept, tmp_path / f"broken{number}")
        published.append(kill_and_check(broken, engine_command(broken, scenario.kind), call))
        shutil.rmtree(broken.place)
    assert published == sorted(published), "before the rename there is no image, after it there is one"
    assert {False, True} == set(published), "both sides of the rename were tried"


def chosen_calls(calls: list[Call], count: int) -> list[Call]:
    """Every step of publishing, and the rest of the calls evenly."""
    rename = next(number for number, call in enumerate(calls) if call.name == "renameat2")
    steps = set(range(rename - 3, rename + 4))
    others = [call for number, call in enumerate(calls) if number not in steps]
    kept = {id(call) for call in spread(others, count - len(steps))}
    return [call for number, call in enumerate(calls) if number in steps or id(call) in kept]


def test_the_command_line_loses_nothing_either(tmp_path: Path) -> None:
    """The same through `mountfs backup`, judged by `mountfs list`, `verify` and `restore`."""
    kept = prepared(tmp_path / "kept", SCENARIOS["incremental"])
    recorded = copy_of(kept, tmp_path / "recorded")
    arguments = ["backup", str(kept.source), "--threads", "1"]
    log = tmp_path / "log"
    mountfs(*arguments, recorded.place, prefix=strace(log=log))
    calls = touching(calls_in(log), recorded.place)
    rename = next(number for number, call in enumerate(calls) if call.name == "renameat2")
    for number, call in enumerate([calls[rename - 4], calls[rename], calls[rename + 1], calls[-1]]):
        broken = copy_of(kept, tmp_path / f"broken{number}")
        wrapper = strace(inject=[f"{call.name}:signal=KILL:when={call.number}"], trace=(call.name,))
        killed = mountfs(*arguments, broken.place, prefix=wrapper, code=-signal.SIGKILL)
        assert killed.out == b"", f"{call}: {killed}"
        told = mountfs("list", "--json", broken.place).facts
        assert [point["state"] for point in told["sets"][0]["points"]] == ["ok"] * len(images(broken))
        mountfs("verify", broken.place)
        for point, digest in kept.digests.items():
            target = tmp_path / "restored.img"
            mountfs("restore", f"{broken.folder}@{point}", target, "--yes")
            assert digest_of(target) == digest, f"{call}: point {point} is lost"
        mountfs(*arguments, broken.place)
        assert broken.leftovers() == []
        broken.check()


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_six_hundred_kills(tmp_path: Path, name: str) -> None:
    """At 150 calls of any kind each, also those that store nothing."""
    scenario = SCENARIOS[name]
    kept = prepared(tmp_path / "kept", scenario)
    recorded = copy_of(kept, tmp_path / "recorded")
    ended = run_traced(engine_command(recorded, scenario.kind), log=tmp_path / "log", trace=("all",))
    assert ended.returncode == 0, ended
    calls = [call for call in calls_in(tmp_path / "log") if call.name not in {"exit_group", "rt_sigreturn"}]
    mine = [call for call in calls if call.thread == calls[0].thread]
    first = next(number for number, call in enumerate(mine) if str(recorded.place) in call.text)
    missed = 0
    for number, call in enumerate(spread(mine[first:], 150)):
        broken = copy_of(kept, tmp_path / f"broken{number}")
        known = len(images(broken))
        inject = [f"{call.name}:signal=KILL:when={call.number}"]
        ended = run_traced(engine_command(broken, scenario.kind), inject=inject, trace=(call.name,))
        if ended.returncode == 0:  # how often memory is asked for, or a lock waited for, differs a little
            missed += 1
        else:
            assert ended.returncode == -9, ended
            check_and_go_on(broken, known, call)
        shutil.rmtree(broken.place, ignore_errors=True)
    assert missed < 15
