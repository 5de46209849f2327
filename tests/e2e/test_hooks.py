"""Commands before and after a backup, by the command line."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from engine.hooks import run_hook
from imageformat.errors import HookError
from support.product import finish, mountfs, start

PRINT = 'echo "$MOUNTFS_HOOK $MOUNTFS_SOURCE $MOUNTFS_SET $MOUNTFS_RESULT $MOUNTFS_EXIT_CODE" >>'


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 4096)
    return path


def test_they_know_what_is_imaged_and_how_it_went(tmp_path: Path, disk: Path) -> None:
    log, repo = tmp_path / "log", tmp_path / "repo"
    hooks = ("--before", f"{PRINT} {log}; echo quiet now", "--after", f"{PRINT} {log}; echo loud >&2")
    said = mountfs("backup", disk, repo, *hooks)
    assert "before: quiet now" in said.err
    assert "after: loud" in said.err
    mountfs("backup", disk, disk / "no", *hooks, "--set", "other", code=None)
    mountfs("backup", tmp_path / "none", repo, *hooks, code=60)
    first, *lines = log.read_text().splitlines()
    assert first == f"before {disk} disk  "
    assert lines[0] == f"after {disk} disk ok 0"
    assert lines[2].startswith(f"after {disk} other failed ")
    assert lines[4] == f"after {tmp_path / 'none'} none failed 60"


def test_a_failing_one_stops_the_backup_or_warns(tmp_path: Path, disk: Path) -> None:
    log, repo = tmp_path / "log", tmp_path / "repo"
    said = mountfs("backup", disk, repo, "--before", "echo no; exit 4", "--after", f"{PRINT} {log}", code=82)
    assert "before: no" in said.err
    assert "ended with 4" in said.errors[0]
    assert not repo.exists()
    assert log.read_text() == f"after {disk} disk failed 82\n"
    said = mountfs("backup", disk, repo, "--after", "kill -9 $$", code=3)
    assert "was ended by signal 9" in said.err
    assert len(list(repo.rglob("*.mfi"))) == 1
    slow = ("--before", f"sleep 60 & echo $! >{tmp_path / 'pid'}; wait", "--hook-limit", "1")
    said = mountfs("backup", disk, repo, *slow, code=82)
    assert "did not end within 1 seconds" in said.errors[0]
    assert not _lives((tmp_path / "pid").read_text().strip()), "what it started goes with it"


def _lives(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_interrupted_backup_runs_the_one_after(tmp_path: Path, disk: Path) -> None:
    log, repo = tmp_path / "log", tmp_path / "repo"
    begun = tmp_path / "begun"
    process = start("backup", disk, repo, "--before", f"touch {begun}; sleep 60", "--after", f"{PRINT} {log}")
    until = time.monotonic() + 60
    while not begun.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    finish(process, code=130)
    assert log.read_text() == f"after {disk} disk interrupted 130\n"
    assert not repo.exists()


def test_output_of_any_kind_is_passed_on_in_lines_of_bounded_length() -> None:
    told: list[str] = []
    run_hook("head -c 10000 /dev/zero | tr '\\0' x; printf '\\n\\377\\n\\n'", {}, told.append)
    assert "".join(told) == "x" * 10_000 + "�"
    assert max(map(len, told)) <= 4096
    with pytest.raises(HookError, match="ended with 127"):
        run_hook("no-such-program-anywhere", {}, told.append)
