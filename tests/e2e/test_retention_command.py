"""`mountfs retention`: what it shows is what it does, it asks, and what is left is whole."""

from __future__ import annotations

import contextlib
import shutil
import time
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path

import pytest

from engine.backup import BackupOptions, backup
from engine.devices.source import open_source
from imageformat.layer import ImageType
from support.content import noise
from support.points import Kept, digest_of
from support.product import environment, mountfs
from support.requirements import require_root, require_tool, run
from support.tracing import calls_in, spread, strace, touching

HOUR = 3600 * 10**9
NEWEST = time.time_ns() - HOUR
PLAIN = ("--keep-last", "2", "--max-share", "100")


def add(kept: Kept, kind: ImageType, created_ns: int) -> None:
    """Image a disk that has changed, with a clock of ours."""
    number = len(kept.digests) + 1
    with kept.source.open("r+b") as disk:
        disk.seek(number * 4096)
        disk.write(noise(number, 5000))
    with closing(kept.repository()) as repository, closing(open_source(str(kept.source))) as device:
        options = BackupOptions(type=kind, block_size=4096, threads=1)
        origin: dict[str, object] = {"source": str(kept.source)}
        backup(device, repository, kept.set_name, options, origin=origin, clock_ns=lambda: created_ns)
    kept.digests[number] = digest_of(kept.source)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Ten points, a day apart: a full every third, and increments."""
    folder = tmp_path_factory.mktemp("retention")
    (folder / "disk.img").write_bytes(bytes(100_000))
    kept = Kept(folder / "disk.img", folder / "repo")
    for number in range(10):
        kind = ImageType.INCREMENTAL if number % 3 else ImageType.FULL
        add(kept, kind, NEWEST - (9 - number) * 24 * HOUR)
    return kept


@pytest.fixture
def kept(made: Kept, tmp_path: Path) -> Kept:
    shutil.copytree(made.place, tmp_path / "repo")
    return Kept(made.source, tmp_path / "repo", made.set_name, dict(made.digests))


def numbers(kept: Kept) -> list[int]:
    return sorted(int(path.name[:4]) for path in kept.folder.glob("*.mfi"))


def check(kept: Kept) -> None:
    """What is left reads back to the byte."""
    left = set(numbers(kept))
    Kept(kept.source, kept.place, kept.set_name, {n: d for n, d in kept.digests.items() if n in left}).check()


def test_a_dry_run_equals_the_run_and_a_second_run_deletes_nothing(kept: Kept) -> None:
    arguments = ("retention", kept.place, "--keep-daily", "5", "--max-share", "60", "--json")
    told = mountfs(*arguments, "--dry-run").facts
    assert numbers(kept) == list(range(1, 11)), "a dry run deletes nothing"
    done = mountfs(*arguments, "--yes").facts
    assert done == {**told, "dry_run": False}
    assert [point["action"] for point in done["points"]] == ["delete"] * 3 + ["needed"] * 2 + ["keep"] * 5
    assert done["deletions"] == [str(path) for path in sorted(done["deletions"], reverse=True)]
    assert numbers(kept) == [4, 5, 6, 7, 8, 9, 10]
    check(kept)
    assert mountfs(*arguments, "--yes").facts["deletions"] == []
    assert "nothing to delete" in mountfs("retention", kept.folder, "--keep-daily", "5").out.decode()


def test_nothing_is_deleted_unless_somebody_agrees(kept: Kept) -> None:
    done = mountfs("retention", kept.place, *PLAIN, code=53)
    assert "nothing was deleted" in done.err
    assert "delete 6 points" not in done.out.decode()
    assert numbers(kept) == list(range(1, 11))


def test_the_table_says_what_becomes_of_each_point_and_why(kept: Kept) -> None:
    rows = [line.split() for line in mountfs("retention", kept.place, *PLAIN, "-n").out.decode().splitlines()]
    assert [row[6] for row in rows[1:11]] == ["delete"] * 6 + ["needed"] * 2 + ["keep"] * 2
    assert rows[8][7:] == ["point", "9", "stands", "on", "it"]
    assert rows[11][:2] == ["6", "points"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no rule"),
        (("--keep-last", "0"), "no rule"),
        (("--keep-within", "7"), "no span of time"),
        (("--keep-within", "999999999y"), "no span of time"),
        (("--keep-last", "1", "--free", "lots"), "no size"),
        (("--keep-last", "1", "--free", "9999999P"), "more than there can be"),
        (("--keep-last", "1", "--zone", "Mars/Base"), "no time zone"),
        (("--keep-last", "1", "--zone", "../etc"), "no time zone"),
        (("--keep-last", "1", "--svg", "x.svg"), "simulate"),
        (("--keep-last", "-1"), "keep-last"),
    ],
)
def test_what_makes_no_sense_is_refused(kept: Kept, arguments: tuple[str, ...], words: str) -> None:
    assert words in mountfs("retention", kept.place, *arguments, "--yes", code=2).err
    assert len(numbers(kept)) == 10


def test_it_judges_sets_not_points(kept: Kept) -> None:
    assert "whole sets" in mountfs("retention", f"{kept.folder}@3", *PLAIN, code=2).err
    assert "whole sets" in mountfs("retention", kept.file_of(3), *PLAIN, code=2).err


def test_a_pinned_point_stays(kept: Kept) -> None:
    mountfs("retention", kept.place, *PLAIN, "--pin", "2", "--yes")
    assert numbers(kept) == [1, 2, 7, 8, 9, 10]
    check(kept)
    assert "no such point" in mountfs("retention", kept.place, *PLAIN, "--pin", "3", code=60).err


def test_the_last_verified_point_stays(kept: Kept) -> None:
    mountfs("verify", f"{kept.folder}@5")
    mountfs("retention", kept.place, *PLAIN, "--yes")
    assert numbers(kept) == [4, 5, 7, 8, 9, 10]


def test_too_much_and_wrong_clocks_and_unreadable_files_stop_it(kept: Kept) -> None:
    refused = mountfs("retention", kept.place, "--keep-last", "1", "--yes", code=53)
    assert "9 of 10" in refused.err
    assert "--despite mass" in refused.err
    add(kept, ImageType.INCREMENTAL, time.time_ns() + 48 * HOUR)
    assert "ahead of the clock" in mountfs("retention", kept.place, *PLAIN, "--yes", code=53).err
    (kept.folder / "0099-inc-odd.mfi").write_bytes(b"odd")
    both = mountfs("retention", kept.place, *PLAIN, "--yes", "--json", code=53)
    assert [refusal["trouble"] for refusal in both.facts["refusals"]] == ["clock", "unreadable"]
    assert numbers(kept) == [*range(1, 12), 99]
    despite = ("--despite", "clock", "--despite", "unreadable", "--despite", "mass")
    mountfs("retention", kept.place, "--keep-last", "1", "--yes", *despite)
    assert numbers(kept) == [10, 11, 99]


def test_a_clock_that_was_set_back_or_jumped_is_noticed(kept: Kept) -> None:
    require_tool("faketime")
    for moment in ("-1y", "+10y"):
        prefix = ("faketime", "-f", moment)
        done = mountfs("retention", kept.place, *PLAIN, "--yes", prefix=prefix, code=53, env=environment())
        assert "a clock is wrong" in done.err
    assert len(numbers(kept)) == 10


def test_images_of_other_tools_stay(kept: Kept) -> None:
    (kept.folder / "machine.qcow2").write_bytes(b"anything")
    mountfs("retention", kept.place, *PLAIN, "--yes")
    assert (kept.folder / "machine.qcow2").read_bytes() == b"anything"
    assert numbers(kept) == [7, 8, 9, 10]


def test_sets_that_lose_nothing_are_not_touched(kept: Kept) -> None:
    other = kept.place / "machines"
    other.mkdir()
    (other / "machine.qcow2").write_bytes(b"anything")
    mountfs("retention", kept.place, *PLAIN, "--yes")
    assert [path.name for path in other.iterdir()] == ["machine.qcow2"]
    assert numbers(kept) == [7, 8, 9, 10]


def test_a_chain_that_does_not_open_stops_it(kept: Kept) -> None:
    with kept.file_of(9).open("r+b") as image:
        image.seek(-600, 2)
        image.write(bytes(40))  # its ancestor table; the catalogue does not look at it
    assert mountfs("retention", kept.place, *PLAIN, "--yes", code=13).err
    assert numbers(kept) == list(range(1, 11))


@pytest.mark.parametrize("most", [4, pytest.param(1000, marks=pytest.mark.nightly)])
def test_killed_at_any_deletion_all_that_is_left_is_whole_and_the_next_run_ends_it(
    kept: Kept, tmp_path: Path, most: int
) -> None:
    log = tmp_path / "log"
    recorded = Kept(kept.source, tmp_path / "recorded")
    shutil.copytree(kept.place, recorded.place)
    mountfs("retention", recorded.place, *PLAIN, "--yes", prefix=strace(log=log))
    wanted = {"unlink", "unlinkat", "fsync", "rename", "renameat", "renameat2"}
    calls = [call for call in touching(calls_in(log), recorded.place) if call.name in wanted]
    assert sum(call.name.startswith("unlink") for call in calls) >= 6
    for number, call in enumerate(spread(calls, most)):
        broken = Kept(kept.source, tmp_path / f"broken{number}", kept.set_name, kept.digests)
        shutil.copytree(kept.place, broken.place)
        inject = strace(inject=[f"{call.name}:signal=KILL:when={call.number}"], trace=(call.name,))
        mountfs("retention", broken.place, *PLAIN, "--yes", prefix=inject, code=-9)
        assert {7, 8, 9, 10} <= set(numbers(broken))
        check(broken)
        mountfs("retention", broken.place, *PLAIN, "--yes")
        assert numbers(broken) == [7, 8, 9, 10]
        check(broken)
        shutil.rmtree(broken.place)


def test_a_deletion_that_fails_is_told_and_leaves_whole_chains(kept: Kept) -> None:
    inject = strace(inject=["unlink:error=EIO:when=3"], trace=("unlink",))
    done = mountfs("retention", kept.place, *PLAIN, "--yes", prefix=inject, code=40)
    assert "2 points of 6 were deleted before" in done.err
    assert len(numbers(kept)) == 8
    check(kept)


def test_merging_leaves_only_what_a_rule_keeps(kept: Kept) -> None:
    arguments = ("retention", kept.place, *PLAIN, "--merge", "--json")
    told = mountfs(*arguments, "--dry-run").facts
    assert [Path(name).name[:4] for name in told["merges"]] == ["0007", "0008"]
    assert mountfs(*arguments, "--yes").facts == {**told, "dry_run": False}
    assert numbers(kept) == [9, 10]
    check(kept)
    again = mountfs(*arguments, "--yes").facts
    assert [point["action"] for point in again["points"]] == ["keep", "keep"]


def test_merge_and_delete(kept: Kept) -> None:
    assert "nothing was removed" in mountfs("merge", f"{kept.folder}@4..6", code=53).err
    done = mountfs("merge", f"{kept.folder}@4..6", "--yes", "--json").facts
    assert (done["removed"], done["rewritten"]) == ([4, 5], [6])
    listed = mountfs("list", f"{kept.folder}@6", "--json").facts["sets"][0]["points"][0]
    assert (listed["kind"], listed["state"], listed["depth"]) == ("full", "verified", 0)
    done = mountfs("delete", f"{kept.folder}@1", "--yes", "--json").facts
    assert (done["removed"], done["rewritten"]) == ([1], [2, 3])
    assert "point 9 removed" in mountfs("delete", f"{kept.folder}@9", "--yes").out.decode()
    assert numbers(kept) == [2, 3, 6, 7, 8, 10]
    check(kept)
    (kept.folder / "0099-inc-odd.mfi").write_bytes(b"odd")
    mountfs("delete", f"{kept.folder}@0099-inc-odd.mfi", "--yes")
    assert numbers(kept) == [2, 3, 6, 7, 8, 10]
    mountfs("merge", f"{kept.folder}@3..2", "--yes", code=2)
    mountfs("merge", f"{kept.folder}@3", "--yes", code=2)
    mountfs("delete", kept.folder, "--yes", code=2)
    mountfs("delete", f"{kept.folder}@1", "--yes", code=60)


@pytest.mark.root
def test_a_disk_without_a_free_byte_is_freed(kept: Kept, tmp_path: Path) -> None:
    require_root()
    place = tmp_path / "small"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=2M", "none", place)
    try:
        full = Kept(kept.source, place / "repo", kept.set_name, dict(kept.digests))
        shutil.copytree(kept.place, full.place)
        with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        assert shutil.disk_usage(place).free == 0
        mountfs("retention", full.place, *PLAIN, "--free", "50K", "--yes")
        assert numbers(full) == [7, 8, 9, 10]
        check(full)
    finally:
        run("umount", place)


def test_simulation_of_years(tmp_path: Path) -> None:
    svg = tmp_path / "years.svg"
    policy = ("--keep-daily", "7", "--keep-weekly", "4", "--keep-monthly", "12", "--zone", "UTC")
    sizes = ("--full-every", "7", "--full-size", "10G", "--inc-size", "1G")
    told = mountfs("retention", "simulate", "--years", "5", *policy, *sizes, "--svg", svg, "--json").facts
    days = told["days"]
    assert len(days) == 5 * 365
    assert all(day["points"] <= 7 * 7 + 7 + 12 * 7 for day in days)
    assert len({day["stored"] for day in days[800:]}) < 60, "it has settled"
    assert days[0] == {**days[0], "points": 1, "stored": 10 << 30, "deleted": 0, "merged": 0}
    drawn = ET.fromstring(svg.read_text("utf-8"))
    curves = [node for node in drawn if node.tag.endswith("polyline")]
    assert [len(curve.attrib["points"].split()) for curve in curves] == [5 * 365] * 2
    folded = mountfs("retention", "simulate", "--years", "2", *policy, "--merge", "--json").facts["days"]
    assert folded[-1]["points"] <= 7 + 4 + 12
    text = mountfs("retention", "simulate", "--years", "1", *policy).out.decode()
    assert len(text.splitlines()) in {14, 15}
    assert "after 1 year" in text


def test_simulation_with_nowhere_to_draw(tmp_path: Path) -> None:
    where = tmp_path / "missing" / "x.svg"
    mountfs("retention", "simulate", "--years", "1", "--keep-last", "3", "--svg", where, code=40)
