"""The program itself: version, help, completion, and that it loads only what a command needs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mountfs import __version__
from mountfs.cli.__main__ import COMMANDS
from support.product import environment, mountfs
from support.requirements import REPOSITORY

DOCUMENT = (REPOSITORY / "docs" / "cli.md").read_text("utf-8")


def test_version() -> None:
    assert mountfs("--version").out.decode() == f"mountfs {__version__}\n"


def test_help_names_every_command_and_says_the_same_as_the_command() -> None:
    listed = mountfs("--help").out.decode()
    for name, summary in COMMANDS.items():
        assert f"\n  {name} " in listed
        assert summary[:30] in listed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples_as_documented(name: str) -> None:
    text = mountfs(name, "--help", env=environment(COLUMNS="80")).out.decode()
    assert "--json" in text
    assert "--verbose" in text
    assert f"Examples:\n    mountfs {name}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert f"```\n{text}```\n" in DOCUMENT, "docs/cli.md has another text"


def test_a_person_who_types_no_command_sees_the_help() -> None:
    done = mountfs(code=2)
    assert done.out == mountfs("--help").out
    assert done.err == ""
    assert b"..." not in done.out.partition(b"Commands:")[2], "every summary is whole"


@pytest.mark.parametrize("arguments", [("--help",), ("ls", "--help"), ("--version",), ()])
def test_help_that_cannot_be_written(arguments: tuple[str, ...]) -> None:
    shell = ["sh", "-c", 'exec "$@" >/dev/full', "sh"]
    assert "no space" in mountfs(*arguments, prefix=shell, code=41).err.lower()


@pytest.mark.parametrize(
    ("words", "expected"), [("mountfs rest", {"restore"}), ("mountfs restore --v", {"--verify", "--verbose"})]
)
def test_completion(words: str, expected: set[str]) -> None:
    asked = {"_MOUNTFS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert set(mountfs(env=environment(**asked)).out.decode().split()) == expected


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    (folder / "disk.img").write_bytes(bytes(1 << 20))
    mountfs("backup", folder / "disk.img", folder / "repo")
    return folder / "repo"


@pytest.mark.parametrize(
    ("closed", "code"), [("<&-", 0), (">&-", 40), ("2>&-", 0), ("<&- >&- 2>&-", 40), (">/dev/full", 41)]
)
@pytest.mark.parametrize("arguments", [("list",), ("list", "--json"), ("verify",), ("tree",)])
def test_standard_streams_that_are_closed_or_full(
    repo: Path, arguments: tuple[str, ...], closed: str, code: int
) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    done = mountfs(*arguments, f"{repo}/disk", prefix=shell, code=code)
    told = done.err.count("cannot write to standard output")
    assert told == (1 if code and "2>" not in closed else 0), done.err


def test_no_disk_gets_the_number_of_a_stream(repo: Path, tmp_path: Path) -> None:
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    mountfs("restore", f"{repo}/disk", tmp_path / "out.img", prefix=shell, code=40)
    assert (tmp_path / "out.img").read_bytes() == bytes(1 << 20)
    mountfs("backup", tmp_path / "out.img", tmp_path / "repo", prefix=shell, code=40)
    mountfs("verify", tmp_path / "repo")


@pytest.mark.parametrize("arguments", [("backup", "x", "repo"), ("umount", "x"), ("restore", "{}", "x")])
def test_a_current_folder_that_is_gone(repo: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    shell = [
        "sh",
        "-c",
        f'mkdir "{tmp_path}/gone"; cd "{tmp_path}/gone"; rmdir "{tmp_path}/gone"; exec "$@"',
        "sh",
    ]
    done = mountfs(*(word.format(f"{repo}/disk") for word in arguments), prefix=shell, code=60)
    assert "the current folder is gone" in done.err


def test_listing_loads_no_library_that_it_does_not_need() -> None:
    code = (
        "import sys; from mountfs.cli.__main__ import application; application(['list']); "
        "print(*[name for name in ('rich', 'mfusepy', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=True)
    assert done.stdout.strip() == b""


@pytest.mark.parametrize("delay", [0.02, 0.05, 0.1, 0.2])
def test_ctrl_c_while_the_program_is_loaded_is_no_crash(delay: float) -> None:
    start = "import os, signal, sys; signal.signal(2, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", start, sys.executable, "-m", "mountfs", "doctor"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode in {-signal.SIGINT, 130, 0, 1}
    assert "mountfs/cli" not in err, err
