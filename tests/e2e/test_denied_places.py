"""Places that a user may not look at, read or write: exit code 77, one line, whatever the command."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from imageformat.errors import AccessDeniedError, MountPointError, UsageError
from support.everyone import NOBODY, as_nobody, python_for_everyone
from support.product import mountfs

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def place() -> Path:
    """A repository for everyone, and files and folders of root beside it."""
    folder = Path(tempfile.mkdtemp(prefix="denied-"))
    folder.chmod(0o755)
    disk = folder / "disk.img"
    disk.write_bytes(os.urandom(1 << 20))
    mountfs("backup", disk, folder / "repo")
    (folder / "secret").write_text("secret")
    (folder / "secret").chmod(0o600)
    (folder / "shut").mkdir(mode=0o700)
    (folder / "shut" / "file").write_text("")
    (folder / "mine").mkdir()
    os.chown(folder / "mine", NOBODY, NOBODY)
    return folder


def denied(code: int, *arguments: str | Path) -> str:
    done = as_nobody(python_for_everyone(), "-m", "mountfs", *arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("mountfs: error: ") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("target", ["secret", "shut/file", "shut/new", "shut/a/b", "new", "/proc/1/root"])
def test_a_target_that_may_not_be_looked_at_or_written(place: Path, target: str) -> None:
    said = denied(AccessDeniedError.exit_code, "restore", place / "repo" / "disk", place / target, "--yes")
    assert "choose another place" in said or "run this as root" in said
    assert (place / "secret").read_text() == "secret"


@pytest.mark.parametrize("repository", ["shut", "shut/repo", "shut/a/b", "made"])
def test_a_repository_that_may_not_be_written(place: Path, repository: str) -> None:
    denied(AccessDeniedError.exit_code, "backup", place / "disk.img", place / repository)


@pytest.mark.parametrize("command", ["list", "info", "ls", "verify"])
@pytest.mark.parametrize("name", ["shut", "shut/file", "shut/none", "secret"])
def test_images_that_may_not_be_looked_at(place: Path, command: str, name: str) -> None:
    if (command, name) in {("list", "secret"), ("verify", "secret")}:
        done = as_nobody(python_for_everyone(), "-m", "mountfs", command, place / name)
        assert "permission denied" in done.stdout + done.stderr
        return
    denied(AccessDeniedError.exit_code, command, place / name)


def test_a_source_and_a_mount_point(place: Path) -> None:
    denied(AccessDeniedError.exit_code, "backup", place / "secret", place / "mine" / "repo")
    denied(MountPointError.exit_code, "mount", place / "repo", place / "shut")
    denied(MountPointError.exit_code, "umount", place / "shut" / "file")


def test_a_target_with_a_slash_at_its_end_is_no_file(place: Path) -> None:
    done = mountfs("restore", place / "repo" / "disk", f"{place}/mine/new/", code=UsageError.exit_code)
    assert "names a folder" in done.err
    assert list((place / "mine").iterdir()) == []
