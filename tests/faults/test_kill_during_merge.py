"""A merge that is killed at any system call loses no point, and the next one clears up and succeeds."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from engine.merge import plan_removal, remove_points
from imageformat.layer import ImageType
from support.content import noise
from support.points import Kept
from support.tracing import Call, calls_in, run_traced, spread, touching

ENGINE = (sys.executable, str(Path(__file__).with_name("one_merge.py")))
WRITING = {"openat", "pwrite64", "write", "fsync", "fdatasync", "renameat2", "rename", "unlink", "unlinkat"}


def prepared(folder: Path) -> Kept:
    """A full, two increments on it, and a differential with an increment; point 2 stands under point 3."""
    folder.mkdir()
    source = folder / "disk.img"
    source.write_bytes(noise(1, 300_000))
    kept = Kept(source, folder / "repo")
    kinds = (ImageType.FULL, ImageType.INCREMENTAL, ImageType.INCREMENTAL, ImageType.DIFFERENTIAL)
    for number, kind in enumerate((*kinds, ImageType.INCREMENTAL)):
        with source.open("r+b") as disk:
            disk.seek(number * 40_000)
            disk.write(noise(number + 7, 9000))
        kept.back_up(kind)
    return kept


def copy_of(kept: Kept, place: Path) -> Kept:
    shutil.copytree(kept.place, place)
    return Kept(kept.source, place, kept.set_name, dict(kept.digests))


def command(kept: Kept, *numbers: int) -> list[str]:
    return [*ENGINE, str(kept.place), kept.set_name, *map(str, numbers)]


def remove(kept: Kept, *numbers: int) -> None:
    repository = kept.repository()
    image_set = repository.image_set(kept.set_name)
    gone = {point.key for point in image_set.points if point.number in numbers}
    if gone:
        remove_points(repository, kept.set_name, plan_removal(image_set, gone))
    repository.close()


def numbers_of(kept: Kept) -> list[int]:
    repository = kept.repository()
    found = [point.number for point in repository.image_set(kept.set_name).points]
    repository.close()
    return found


def kill_and_check(kept: Kept, gone: tuple[int, ...], call: Call) -> bool:
    """Kill before a call, look, back up, go on. Whether the points had gone already."""
    inject = [f"{call.name}:signal=KILL:when={call.number}"]
    ended = run_traced(command(kept, *gone), inject=inject, trace=(call.name,))
    if ended.returncode == 0:
        return False
    assert ended.returncode == -9, f"{call}: {ended}"
    found = numbers_of(kept)
    every = sorted(kept.digests)
    after = [number for number in every if number not in gone]
    assert found in (every, after), f"{call}: no point is seen twice, and none is missing"
    removed = found == after
    for number in gone if removed else ():
        del kept.digests[number]
    kept.check()
    added = kept.back_up()
    kept.check()
    remove(kept, *(number for number in gone if not removed))
    remove(kept, after[-1])  # whatever is removed next, it clears up
    for number in {after[-1], *gone} & set(kept.digests):
        del kept.digests[number]
    kept.check()
    assert numbers_of(kept) == [*after[:-1], added]
    assert list(kept.folder.glob("*.journal")) == [], f"{call}: the next merge clears up"
    assert len(list(kept.folder.glob("*.mfi"))) == len(after), f"{call}: and leaves no file behind"
    assert kept.leftovers() == []
    return removed


@pytest.mark.parametrize(
    "most", [10, pytest.param(100_000, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("gone", [(2,), (1, 2)])
def test_a_killed_merge_loses_nothing(tmp_path: Path, gone: tuple[int, ...], most: int) -> None:
    kept = prepared(tmp_path / "kept")
    recorded = copy_of(kept, tmp_path / "recorded")
    ended = run_traced(command(recorded, *gone), log=tmp_path / "log")
    assert ended.returncode == 0, ended
    calls = [call for call in touching(calls_in(tmp_path / "log"), recorded.place) if call.name in WRITING]
    assert sum(call.name == "renameat2" for call in calls) >= 3
    steps = [call for call in calls if call.name in {"renameat2", "unlink", "unlinkat"}]
    others = [call for call in calls if call not in steps]
    chosen = [*spread(steps, most // 2), *spread(others, most // 2)]
    removed = []
    for number, call in enumerate(chosen):
        broken = copy_of(kept, tmp_path / f"broken{number}")
        removed.append(kill_and_check(broken, gone, call))
        shutil.rmtree(broken.place)
    assert set(removed) == {False, True}, "both sides of the step were tried"
