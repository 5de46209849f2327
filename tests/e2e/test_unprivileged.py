"""The whole way as a user without any rights: from an image file to the mount and back."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imageformat.errors import AccessDeniedError
from support.content import make_tree, noise, tree_digests
from support.disks import MIB, Part, make_ext4, make_fat, make_gpt_disk
from support.everyone import NOBODY, as_nobody, python_for_everyone
from support.points import digest_of
from support.requirements import require_fuse, require_root

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Home:
    """A folder of ``nobody`` with a disk image in it, and what it holds."""

    folder: Path
    files: dict[str, str]

    @property
    def disk(self) -> Path:
        return self.folder / "disk.img"

    @property
    def repository(self) -> Path:
        return self.folder / "repository"


def user(*arguments: str | Path, code: int = 0) -> str:
    """Run a command of the product as ``nobody``; what it said."""
    done = as_nobody(python_for_everyone(), "-m", "mountfs.cli.__main__", *arguments)
    assert done.returncode == code, f"{arguments} ended with {done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if not code else done.stderr


def facts(*arguments: str | Path) -> dict[str, Any]:
    lines = map(json.loads, user(*arguments, "--json").splitlines())
    return next(line for line in lines if line["type"] == "result")


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Two images of a disk with ext4 and FAT, made by nobody; nothing of it belongs to another user."""
    require_root()
    folder = Path(tempfile.mkdtemp(prefix="home-"))
    source = folder / "files"
    source.mkdir()
    files = make_tree(source, symlinks=False)
    ext, fat = make_ext4(folder / "e", 16 * MIB, "E", source), make_fat(folder / "f", 16 * MIB, "F", source)
    make_gpt_disk(folder / "disk.img", 36 * MIB, [Part(16 * MIB, content=ext), Part(16 * MIB, content=fat)])
    shutil.rmtree(source)
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o700 if path.is_dir() else 0o400)
    made = Home(folder, files)
    assert facts("backup", made.disk, made.repository, "--raw")["number"] == 1
    with made.disk.open("r+b") as disk:
        disk.seek(14 * MIB)
        disk.write(noise(1, 5000))
    assert facts("backup", made.disk, made.repository, "--raw")["changed_blocks"] in {1, 2}
    yield made
    shutil.rmtree(folder)


def test_everything_that_was_made_belongs_to_the_user(home: Home) -> None:
    for path in (home.repository, *home.repository.rglob("*")):
        assert path.stat().st_uid == NOBODY, path


def test_the_points_can_be_listed_and_looked_into(home: Home, tmp_path: Path) -> None:
    (found,) = facts("list", home.repository)["sets"]
    assert [(point["number"], point["state"]) for point in found["points"]] == [(1, "ok"), (2, "ok")]
    volumes = facts("info", home.repository / "disk")["volumes"]
    assert [volume["file_system"]["type"] for volume in volumes] == ["ext4", "fat16"]
    for number in (1, 2):
        place = f"{home.repository}/disk@latest:{number}"
        assert "hello.txt" in user("ls", place).split()
        assert user("cat", f"{place}/etc/motd") == "welcome back\n"
        assert "still.bin" in user("tree", place)


def test_files_are_copied_out_and_belong_to_the_user(home: Home) -> None:
    target = home.folder / "copied"
    told = facts("cp", f"{home.repository}/disk@1:1", f"{home.repository}/disk@1:2", f"{target}/")
    assert told["failures"] == []
    for number in ("1", "2"):
        (folder,) = target.glob(f"{number}*")
        assert {**tree_digests(folder)} == home.files
    assert {path.stat().st_uid for path in target.rglob("*")} == {NOBODY}


@pytest.mark.fuse
def test_it_is_mounted_and_unmounted(home: Home) -> None:
    require_fuse()
    point = Path(tempfile.mkdtemp(prefix="user-mount-"))
    os.chown(point, NOBODY, NOBODY)
    user("mount", home.repository, point)
    try:
        looked = as_nobody("find", point, "-name", "motd")
        assert len(looked.stdout.split()) >= 4, looked
        for name in ("0001-*", "0002-*"):
            compared = as_nobody("sh", "-c", f'sha256sum < "$(echo {point}/disk/{name}/disk.img)"')
            if name == "0002-*":
                assert compared.stdout.split()[0] == digest_of(home.disk)
            assert compared.returncode == 0, compared
        with pytest.raises(PermissionError):
            list(point.iterdir())  # not even root may look, unless the user allows it
        assert [
            mount["state"] for mount in facts("mounts")["mounts"] if mount["mountpoint"] == str(point)
        ] == ["ok"]
    finally:
        user("umount", point)
    assert not os.path.ismount(point)
    point.rmdir()


def test_it_is_verified(home: Home) -> None:
    assert "2 images" in user("verify", home.repository)
    (found,) = facts("list", home.repository)["sets"]
    assert {point["state"] for point in found["points"]} == {"verified"}


def test_it_is_restored(home: Home) -> None:
    target = home.folder / "restored.img"
    user("restore", "--verify", f"{home.repository}/disk", target)
    assert digest_of(target) == digest_of(home.disk)
    assert target.stat().st_uid == NOBODY
    assert stat.S_IMODE(target.stat().st_mode) & 0o077 == 0, "others may not read a whole disk"


@pytest.fixture
def roots() -> Iterator[Path]:
    """A folder of root, which others may look into; pytest's own may nobody else."""
    folder = Path(tempfile.mkdtemp(prefix="roots-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_what_the_user_may_not_do_is_refused_in_one_line(home: Home, roots: Path) -> None:
    """A source, a repository and a target of another user."""
    foreign = roots / "foreign.img"
    foreign.write_bytes(noise(2, MIB))
    foreign.chmod(0o600)
    refusals = [
        user("backup", foreign, home.repository, code=AccessDeniedError.exit_code),
        user("backup", home.disk, roots / "repository", code=AccessDeniedError.exit_code),
        user("restore", f"{home.repository}/disk", roots / "new.img", code=AccessDeniedError.exit_code),
    ]
    for told in refusals:
        assert told.count("mountfs: error:") == 1, told
    assert foreign.read_bytes() == noise(2, MIB)
    assert sorted(path.name for path in roots.iterdir()) == ["foreign.img"]
    assert len(list((home.repository / "disk").glob("*.mfi"))) == 2


def test_a_target_of_another_user(home: Home, roots: Path) -> None:
    foreign = roots / "foreign.img"
    foreign.write_bytes(noise(2, MIB))
    foreign.chmod(0o600)
    user("restore", "--yes", f"{home.repository}/disk", foreign, code=AccessDeniedError.exit_code)


@pytest.mark.parametrize(
    "command",
    [
        ("list", "{shut}/repository"),
        ("info", "{shut}/image.mfi"),
        ("restore", "{home}/repository/disk", "{shut}/new.img"),
        ("cp", "{home}/repository/disk@1:1/hello.txt", "{shut}/copy"),
        ("backup", "{shut}/source.img", "{home}/repository"),
        ("backup", "{home}/disk.img", "{shut}/folder/repository"),
    ],
    ids=" ".join,
)
def test_a_folder_that_the_user_may_not_enter(home: Home, roots: Path, command: tuple[str, ...]) -> None:
    roots.chmod(0o700)
    arguments = [word.format(home=home.folder, shut=roots) for word in command]
    told = user(*arguments, code=AccessDeniedError.exit_code)
    assert told.count("mountfs: error:") == 1, told
