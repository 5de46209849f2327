"""Plans that really run: images of a real disk in a real repository, and everything that can come between."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mountfs.plans.folders import state_folder
from support import sshd
from support.content import noise
from support.kernel import loop_device
from support.product import Ran, environment, finish, mountfs, start
from support.requirements import require_tool

if TYPE_CHECKING:
    from collections.abc import Iterator

GOALS = "[status]\ncopies = 2\nmedia = 1\noffsite = 0\n"
DAILY = '[[schedule]]\ntype = "inc"\nevery = "day"\n'


class Place:
    """A folder with a disk, a repository, and plans."""

    def __init__(self, folder: Path, size: int = 2 << 20) -> None:
        self.folder = folder
        self.disk = folder / "disk.img"
        self.repository = folder / "repo"
        self.plans = folder / "plans"
        self.state = folder / "state"
        self.plans.mkdir()
        self.disk.write_bytes(noise(7, size))

    def plan(self, more: str = DAILY, name: str = "laptop", *, goals: str = GOALS) -> None:
        """Write a plan."""
        head = f'sources = ["{self.disk}"]\nrepository = "{self.repository}"\n'
        (self.plans / f"{name}.toml").write_text(head + more + goals)

    def env(self, **more: str) -> dict[str, str]:
        return environment(MOUNTFS_STATE=str(self.state), **more)

    def run(self, *words: str, code: int | None = 0, prefix: tuple[str, ...] = ()) -> Ran:
        return mountfs(*words, "--plans", self.plans, "--json", code=code, env=self.env(), prefix=prefix)

    def started(self, *words: str) -> subprocess.Popen[bytes]:
        return start(*words, "--plans", self.plans, "--json", env=self.env())

    def records(self, name: str = "laptop") -> list[dict[str, Any]]:
        """What is remembered on disk, in order."""
        paths = self.state.glob(f"plans/*/{name}/*.json")
        return sorted((json.loads(path.read_text()) for path in paths), key=lambda record: record["started"])

    def points(self) -> list[str]:
        found = mountfs("list", self.repository, "--json", env=self.env()).facts
        return [point["kind"] for image_set in found["sets"] for point in image_set["points"]]

    def change(self, seed: int) -> None:
        with self.disk.open("r+b") as disk:
            disk.seek(seed * 70_000)
            disk.write(noise(seed, 50_000))

    def is_latest(self) -> bool:
        """Whether the newest point is the disk as it is."""
        target = self.folder / "back.img"
        mountfs("restore", f"{self.repository}/disk@latest", target, "--yes", env=self.env())
        return hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(self.disk.read_bytes()).digest()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def outcomes(ran: Ran) -> dict[str, str]:
    return {step["name"]: step["outcome"] for step in ran.facts["steps"]}


def test_a_disk_is_imaged_again_and_again_and_old_points_go(place: Place) -> None:
    full = (
        '[[schedule]]\ntype = "full"\nevery = "day"\n[retention]\nlast = 1\n[limits]\nnice = 5\nio = "idle"\n'
    )
    place.plan(full + '[verify]\nbudget = "1GiB"\n')
    first = place.run("plan", "run", "laptop")
    assert outcomes(first) == {"backup disk": "ok", "verify disk": "ok", "retention disk": "ok"}
    assert place.run("status", code=89).facts["plans"][0]["sets"][0]["proven"] == 1.0
    place.change(3)
    second = place.run("plan", "run", "laptop")
    assert place.points() == ["full"]
    assert place.is_latest()
    kept = {point["number"] for point in second.facts["points"]}
    assert kept == {2}
    report = Path(second.facts["report"])
    assert "<svg" in report.read_text()
    assert "retention disk" in report.with_suffix(".txt").read_text()
    assert [record["outcome"] for record in place.records()] == ["ok", "ok"]
    mountfs("verify", place.repository, env=place.env())


@pytest.mark.nightly
def test_what_is_due_is_run_and_what_was_missed_is_caught_up_once(place: Place) -> None:
    require_tool("faketime")
    place.plan('template = "grandfather-father-son"\nzone = "Europe/Berlin"\n[retention]\n')

    def due(when: str) -> str:
        found = place.run("plan", "run", "laptop", "--due", prefix=("faketime", when)).facts
        return str(found["run"] if found["ran"] else found["reason"])

    assert due("2026-10-15 12:00:00") == "full"
    assert due("2026-10-15 12:05:00") == "nothing is due"
    assert due("2026-10-17 12:00:00") == "inc"
    place.change(5)
    assert due("2026-10-25 02:30:00") == "diff"  # a Sunday on which this hour comes twice in Berlin
    assert due("2026-10-25 03:30:00") == "nothing is due"
    assert due("2026-11-20 12:00:00") == "full"
    assert due("2036-11-20 12:00:00") == "full"
    assert due("2026-11-21 12:00:00") == "inc"  # the clock is right again
    assert place.points() == ["full", "inc", "diff", "full", "full", "inc"]
    assert place.is_latest()


def wait_until(what: Any) -> None:
    for _ in range(600):
        if what():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen")


def test_a_second_run_ends_at_once_and_a_killed_one_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.disk.write_bytes(place.disk.read_bytes() * 20)
    place.plan(DAILY + "[limits]\nrate = 1\n")
    running = place.started("plan", "run", "laptop")
    wait_until(lambda: place.records() and place.records()[-1]["steps"][0]["outcome"] == "running")
    second = place.run("plan", "run", "laptop", code=81)
    assert "is running already" in second.err
    place.run("plan", "run", "laptop", "--due", code=81)
    assert place.run("plan", "list").facts["plans"][0]["last"] == "running"

    os.kill(running.pid, signal.SIGKILL)  # the run alone: its backup goes on, and with it the lock
    running.communicate()
    place.run("plan", "run", "laptop", code=81)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    wait_until(lambda: place.run("plan", "list").facts["plans"][0]["last"] == "interrupted")
    health = place.run("status", code=85).facts["plans"][0]
    assert "was interrupted" in health["findings"][0]["message"]

    place.plan()
    assert outcomes(place.run("plan", "run", "laptop", "--due")) == {"backup disk": "ok"}
    assert [record["outcome"] for record in place.records()][-1] == "ok"
    assert place.points() == ["full"]
    assert place.is_latest()


def test_a_run_that_is_told_to_stop_stops_its_step_and_says_so(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.disk.write_bytes(place.disk.read_bytes() * 20)
    place.plan(DAILY + '[hooks]\nafter = "touch after"\n[limits]\nrate = 1\n')
    running = place.started("plan", "run", "laptop")
    wait_until(lambda: place.records() and place.records()[-1]["steps"][0]["outcome"] == "running")
    time.sleep(0.5)
    os.kill(running.pid, signal.SIGTERM)
    finish(running, "plan", code=130)
    record = place.records()[-1]
    assert (record["outcome"], record["steps"][0]["outcome"]) == ("interrupted", "interrupted")
    assert not list(place.repository.rglob("*.mfi"))
    assert "interrupted" in next(place.state.rglob("*.txt")).read_text()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.root
def test_a_full_and_a_read_only_repository_delete_nothing_and_say_why(place: Place, small: Path) -> None:
    place.repository = small / "repo"
    more = DAILY + '[retention]\nlast = 1\n[hooks]\nfailed = "echo failed; exit 7"\n'
    place.plan(more)
    full = place.run("plan", "run", "laptop", code=41)
    assert outcomes(full) == {"backup disk": "failed", "retention disk": "skipped", "failed 1": "failed"}
    assert "no space left" in full.facts["steps"][0]["message"]
    assert "no space left" in place.run("status", code=85).facts["plans"][0]["findings"][0]["message"]
    assert place.run("plan", "run", "laptop", "--due").facts["ran"] is False  # not again at once

    place.disk.write_bytes(noise(8, 200_000).ljust(2 << 20, b"\0"))
    place.run("plan", "run", "laptop")
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    refused = place.run("plan", "run", "laptop", code=42)
    assert "read-only" in refused.facts["steps"][0]["message"]
    assert place.points() == ["full"]


@pytest.mark.root
def test_a_state_folder_that_is_full_is_said_before_anything_is_done(place: Place, small: Path) -> None:
    place.plan()
    with contextlib.suppress(OSError):
        (small / "filler").write_bytes(bytes(2 << 20))
    place.state = small
    place.run("plan", "run", "laptop", code=41)
    assert not place.repository.exists()


@pytest.mark.nightly
def test_hooks_run_around_all_and_a_failing_one_stops_it(place: Place) -> None:
    log = place.folder / "log"
    place.plan(
        DAILY + f'[hooks]\nbefore = "echo before >>{log}"\nafter = [["sh", "-c", "echo after >>{log}"]]\n'
    )
    assert set(outcomes(place.run("plan", "run", "laptop")).values()) == {"ok"}
    assert log.read_text() == "before\nafter\n"
    place.plan(DAILY + f'[hooks]\nbefore = "echo broken >&2; exit 5"\nfailed = "echo failed >>{log}"\n', "b")
    ran = place.run("plan", "run", "b", code=1)
    assert outcomes(ran) == {"before 1": "failed", "backup disk": "skipped", "failed 1": "ok"}
    assert ran.facts["steps"][0]["message"] == "broken"
    assert "broken" in ran.err
    seen = f"$MOUNTFS_SET $MOUNTFS_RESULT $(ls {place.repository}/disk | grep -c mfi$) >>{log}'"
    around = f"[backup]\nbefore = 'echo begin {seen}\nafter = 'echo end {seen}\n[verify]\neach = 'source'\n"
    place.plan(DAILY + around, "d")
    log.write_text("")
    place.run("plan", "run", "d")
    assert log.read_text() == "begin disk 1\nend disk ok 2\n"
    place.plan(DAILY + around.replace("echo begin", "exit 5 #"), "d")
    refused = place.run("plan", "run", "d", code=82)
    assert outcomes(refused) == {"backup disk": "failed"}
    assert log.read_text().endswith("end disk failed 2\n")
    place.plan(DAILY + '[hooks]\nbefore = [["no-such-program-here"]]\n', "c")
    assert "cannot be started" in place.run("plan", "run", "c", code=1).facts["steps"][0]["message"]


@pytest.mark.nightly
def test_one_source_that_fails_does_not_keep_the_others_away(place: Place) -> None:
    place.plan()
    text = (place.plans / "laptop.toml").read_text()
    missing = place.folder / "gone.img"
    (place.plans / "laptop.toml").write_text(
        text.replace("sources = [", f'sources = ["{missing}", ') + "\n[retention]\nlast = 1\n"
    )
    ran = place.run("plan", "run", "laptop", code=None)
    assert ran.code == next(step["code"] for step in ran.facts["steps"] if step["outcome"] == "failed")
    assert outcomes(ran) == {
        "backup gone": "failed",
        "backup disk": "ok",
        "retention gone": "skipped",
        "retention disk": "skipped",
    }


def test_status_tells_late_unproven_and_lacking_copies_apart(place: Place) -> None:
    require_tool("faketime")
    place.plan()

    def status(days: int, code: int) -> dict[str, Any]:
        found: dict[str, Any] = place.run("status", code=code, prefix=("faketime", "-f", f"+{days}d")).facts
        return found["plans"][0]

    assert status(3, 86)["last_outcome"] == "never"
    place.run("plan", "run", "laptop")
    assert "same file system" in status(0, 89)["places"][1]["problem"]
    place.plan(goals="[status]\ncopies = 1\nmedia = 1\noffsite = 0\nlate_after = '50y'\n")
    assert status(0, 0)["findings"] == []
    aged = status(40, 88)["sets"][0]
    assert (aged["unproven"], aged["proven"]) == (1, 0.0)
    mountfs("verify", place.repository, env=place.env())
    assert status(0, 0)["sets"][0]["proven"] == 1.0
    shutil.move(place.repository, place.folder / "away")
    assert "is it not mounted?" in status(0, 87)["findings"][0]["message"]
    place.plan()
    assert status(5, 86)["late_since"] is not None


@pytest.mark.root
def test_three_copies_on_two_media_in_two_places(place: Place, small: Path) -> None:
    require_tool("faketime")
    place.repository = small / "repo"
    place.disk.write_bytes(noise(7, 100_000).ljust(1 << 20, b"\0"))
    other = place.folder / "other"
    other.mkdir()
    place.plan(DAILY + f'[[copies]]\nto = "{other}/copy"\nmedia = "usb"\noffsite = true\n', goals="")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", other], check=True)
    try:
        ran = place.run("plan", "run", "laptop")
        assert outcomes(ran) == {"backup disk": "ok", f"copy {other}/copy": "ok"}
        health = place.run("status").facts["plans"][0]
        assert (health["copies"], health["media"], health["offsite"]) == (3, ["disk", "usb"], 1)
        mountfs("verify", other / "copy", env=place.env())
        place.change(2)
        mountfs("backup", place.disk, place.repository, "--set", "disk", env=place.env())
        found = place.run("status", code=86, prefix=("faketime", "-f", "+3d")).facts["plans"][0]
        assert "it lacks the newest points of disk" in found["places"][2]["problem"]
        shutil.rmtree(other / "copy")
        assert "no such folder" in place.run("status", code=89).facts["plans"][0]["places"][2]["problem"]
    finally:
        subprocess.run(["umount", other], check=True)


def test_a_plan_from_its_beginning_to_its_end(place: Place) -> None:
    words = (
        "--template",
        "incremental-forever",
        "--source",
        str(place.disk),
        "--repository",
        str(place.repository),
    )
    made = place.run("plan", "new", "own", *words).facts
    assert Path(made["file"]) == place.plans / "own.toml"
    place.run("plan", "new", "own", *words, code=40)
    place.run("plan", "new", "other", "--template", "none", code=2)
    place.run("plan", "new", "other", code=2)
    checked = place.run("plan", "check").facts
    assert [step["command"].split()[:2] for step in checked["runs"]["inc"]] == [
        ["mountfs", "backup"],
        ["mountfs", "retention"],
    ]
    assert len(place.run("plan", "next", "--count", "7").facts["runs"]) == 7
    for way, files in (("systemd", 2), ("windows", 1)):
        told = place.run("plan", "install", "own", "--as", way, "--dry-run").facts
        assert len(told["files"]) == files
    (place.plans / "bad.toml").write_text("sources = 3\n")
    assert "bad.toml:1:1: " in place.run("plan", "check", "bad", code=80).err
    listed = place.run("plan", "list").facts["plans"]
    assert [entry["plan"] for entry in listed] == ["bad", "own"]
    assert place.run("plan", "run", "nothing", code=60).code == 60
    assert place.run("plan", "run", "own", "--type", "clone", code=2).code == 2
    shown = mountfs("plan", "run", "own", "--dry-run", "--plans", place.plans, env=place.env())
    assert shown.out.decode().startswith(f"mountfs backup {place.disk} {place.repository} --set disk\n")


@pytest.mark.nightly
def test_the_wake_up_that_is_installed_runs_the_plan(place: Place) -> None:
    place.plan()
    units = place.folder / "units"
    place.run("plan", "install", "laptop", "--as", "cron", "--into", str(units))
    line = next(
        line for line in (units / "mountfs-plan-laptop.cron").read_text().splitlines() if line[0] != "#"
    )
    command = line.split(maxsplit=5)[5].replace("\\%", "%")
    for _ in range(2):
        subprocess.run(["sh", "-c", command], check=True, env=place.env(), capture_output=True, cwd="/")
        assert len(place.records()) == 1
    assert place.run("plan", "remove", "laptop", "--as", "cron", "--into", str(units)).facts["done"]
    assert list(units.iterdir()) == []


@pytest.mark.nightly
def test_only_so_many_runs_are_remembered(place: Place) -> None:
    place.plan(DAILY + '[reports]\nkeep = 2\n[hooks]\nbefore = "exit 1"\n')
    for _ in range(3):
        place.run("plan", "run", "laptop", code=1)
        time.sleep(1.1)  # names of records begin with their second
    assert len(place.records()) == 2
    suffixes = sorted(path.suffix for path in place.state.rglob("*.*"))
    assert suffixes == [".html", ".html", ".json", ".json", ".txt", ".txt"]


@pytest.mark.nightly
def test_a_failure_is_notified_and_its_secret_is_nowhere(place: Place) -> None:
    secret = "hunter2secret"
    place.plan(DAILY + f'[hooks]\nbefore = "exit 1"\n[notify]\nurls = "json://user:{secret}@127.0.0.1:9/"\n')
    ran = place.run("plan", "run", "laptop", code=1)
    assert ran.facts["warnings"] == ["notification 1 (json) could not be delivered"]
    told = [
        ran,
        place.run("plan", "check"),
        place.run("status", code=None),
        place.run("plan", "run", "laptop", "-n"),
    ]
    told.append(place.run("plan", "run", "laptop", "-v", code=1))
    for said in told:
        assert secret not in said.err
        assert secret.encode() not in said.out
    for path in place.state.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes()
    assert Path(tempfile.gettempdir()) in place.folder.parents


def test_a_copy_keeps_what_its_own_rules_say(place: Place) -> None:
    there = place.folder / "there"
    full = '[[schedule]]\ntype = "full"\nevery = "day"\n'
    copy = f"[[copies]]\nto = '{there}'\n[copies.retention]\nlast = 1\n"
    place.plan(full + copy + "[retention]\nlast = 2\n[verify]\neach = 'source'\n")

    def numbers(where: Path) -> list[int]:
        found = mountfs("list", where, "--json", env=place.env()).facts
        return [point["number"] for image_set in found["sets"] for point in image_set["points"]]

    for _ in range(2):
        ran = place.run("plan", "run", "laptop")
    assert set(outcomes(ran).values()) == {"ok"}
    assert list(outcomes(ran)) == [
        "backup disk",
        f"copy {there}",
        f"retention disk at {there}",
        "retention disk",
    ]
    assert (numbers(place.repository), numbers(there)) == ([1, 2], [2])


def test_a_plan_that_is_not_valid_hides_no_other(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.plan(goals="[status]\ncopies = 1\nmedia = 1\noffsite = 0\n")
    place.plan("sorces = 3\n" + DAILY, "broken")
    found = place.run("status", code=80)
    assert [(plan["plan"], "problem" in plan) for plan in found.facts["plans"]] == [
        ("broken", True),
        ("laptop", False),
    ]
    assert "broken.toml:3:1: unknown key 'sorces'" in found.err
    shown = mountfs("status", "--plans", place.plans, code=80, env=place.env())
    assert b"not valid" in shown.out
    assert b"laptop" in shown.out
    assert "laptop" in mountfs("plan", "next", "--plans", place.plans, code=80, env=place.env()).out.decode()
    monkeypatch.setenv("MOUNTFS_STATE", str(place.state))
    runs = state_folder(place.plans) / "laptop"
    runs.parent.mkdir(parents=True)
    runs.write_bytes(b"no folder")
    told = place.run("status", "laptop", code=87).err
    assert "its runs cannot be read" in told
    assert "broken" not in told


@pytest.mark.root
@pytest.mark.parametrize("device", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_a_disk_is_cloned_each_night_and_only_what_changed_is_written(place: Place, *, device: bool) -> None:
    backing = place.folder / "target.img"
    backing.write_bytes(bytes(place.disk.stat().st_size))
    with loop_device(backing) if device else contextlib.nullcontext(backing) as target:
        words = ["--template", "clone-nightly", "--source", str(place.disk), "--target", str(target)]
        if device:
            place.run("plan", "new", "night", *words, code=2)  # nobody is there to be asked for its serial
            words += ["--target-serial", str(place.disk.stat().st_size)]
        place.run("plan", "new", "night", *words)
        first = place.run("plan", "run", "night", "--due").facts
        assert [step["outcome"] for step in first["steps"]] == ["ok"]
        assert "--delta" in first["steps"][0]["command"]
        assert Path(target).read_bytes() == place.disk.read_bytes()
        assert place.run("plan", "run", "night", "--due").facts["ran"] is False
        place.change(9)
        second = place.run("plan", "run", "night").facts
        assert 0 < second["steps"][0]["result"]["written"] < 1 << 20
        assert Path(target).read_bytes() == place.disk.read_bytes()
        place.run("status", "night")
        if device:
            plan = place.plans / "night.toml"
            plan.write_text(plan.read_text().replace(words[-1], "12345"))
            assert "is not the disk that was demanded" in place.run("plan", "run", "night", code=None).err


@pytest.mark.nightly
def test_a_remote_copy_is_asked_and_only_a_silent_one_is_believed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd.use(monkeypatch)
    there = place.folder / "there"
    there.mkdir()
    to = sshd.server().url(there)
    copy = f"[[copies]]\nto = '{to}'\nmedia = 'nas'\n[copies.retention]\nlast = 1\n"
    goals = "[status]\ncopies = 2\nmedia = 2\noffsite = 0\nlate_after = '0h'\n"
    place.plan('[[schedule]]\ntype = "full"\nevery = "year"\n' + copy, goals=goals)

    def status(code: int) -> dict[str, Any]:
        found: dict[str, Any] = place.run("status", code=code).facts["plans"][0]["places"][2]
        return found

    ran = place.run("plan", "run", "laptop")
    assert set(outcomes(ran).values()) == {"ok"}
    assert (status(0)["current"], status(0)["unasked"]) == (True, "")
    (image,) = there.rglob("*.mfi")
    image.rename(there / "hidden")
    assert status(89)["problem"] == "it has no sound point of disk"
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        port = silent.getsockname()[1]
        for text in (*place.plans.glob("*.toml"), *place.state.rglob("*.json")):
            text.write_text(text.read_text().replace(f":{to.split(':')[2].split('/')[0]}/", f":{port}/"))
        believed = status(0)
    assert believed["current"]
    assert "no answer within" in believed["unasked"]


@pytest.mark.nightly
def test_a_copy_of_a_chain_that_is_merged_each_time_does_not_grow(place: Place) -> None:
    there = place.folder / "there"
    copy = f"[[copies]]\nto = '{there}'\n[copies.retention]\nlast = 2\nmax_share = 90\n"
    place.plan(DAILY + copy + "[retention]\nlast = 2\nmerge = true\n")
    for number in range(7):
        place.change(number)
        assert set(outcomes(place.run("plan", "run", "laptop")).values()) == {"ok"}
        listed = mountfs("list", there, "--json", env=place.env()).facts
        assert len(listed["sets"][0]["points"]) <= 6
    assert len(place.points()) == 2
    mountfs("verify", there, env=place.env())
    assert place.is_latest()
