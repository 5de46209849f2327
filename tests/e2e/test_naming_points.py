"""Points by name: every command takes them, none ignores them; what is broken is told once, by its cause."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from imageformat.errors import NotFoundError, ParentMissingError, UsageError
from support.product import mounted, mountfs

MIB = 1 << 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of five points; the file ``day`` in each says which it is."""
    folder = tmp_path_factory.mktemp("points")
    disk = folder / "disk.img"
    for day in range(1, 6):
        files = folder / f"files{day}"
        files.mkdir()
        (files / "day").write_text(f"day {day}\n")
        disk.write_bytes(b"")
        os.truncate(disk, 2 * MIB)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", files, disk], check=True)
        mountfs("backup", disk, folder / "repo")
    return folder


@pytest.fixture
def repo(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "repo", tmp_path / "repo")
    return tmp_path / "repo"


def listed(*arguments: str | Path) -> list[int]:
    found = mountfs("list", *arguments, "--json").facts
    return [point["number"] for image_set in found["sets"] for point in image_set["points"]]


NAMED = [("@2",), ("", "--point", "2"), ("", "-p", "2"), ("", "--at", "2")]


@pytest.mark.parametrize("name", NAMED)
def test_no_command_ignores_the_point_that_was_named(
    made: Path, tmp_path: Path, name: tuple[str, ...]
) -> None:
    suffix, *options = name
    place = f"{made}/repo/disk{suffix}"
    assert listed(place, *options) == [2]
    shown = mountfs("list", place, *options).out.decode().splitlines()
    assert [line.split()[1] for line in shown[1:]] == ["2"]
    assert mountfs("info", place, *options, "--json").facts["number"] == 2
    verified = mountfs("verify", place, *options, "--json").results
    assert [report["number"] for report in verified] == [1, 2]
    assert mountfs("cat", f"{place}:0/day", *options).out == b"day 2\n"
    assert b"day" in mountfs("ls", f"{place}:0", *options).out
    assert b"day" in mountfs("tree", f"{place}:0", *options).out
    mountfs("cp", "-r", f"{place}:0/day", tmp_path / "copied", *options)
    assert (tmp_path / "copied").read_text() == "day 2\n"
    mountfs("restore", place, tmp_path / "restored.img", *options)
    mountfs("restore", f"{made}/repo/disk@2", tmp_path / "same.img")
    assert (tmp_path / "restored.img").read_bytes() == (tmp_path / "same.img").read_bytes()


@pytest.mark.fuse
@pytest.mark.parametrize("name", NAMED)
def test_a_mount_shows_the_point_that_was_named(made: Path, name: tuple[str, ...]) -> None:
    with mounted(f"{made}/repo/disk{name[0]}", *name[1:]) as folder:
        assert (folder / "0" / "day").read_text() == "day 2\n"


def test_a_repository_with_one_set_has_points_too(made: Path) -> None:
    assert listed(f"{made}/repo@latest") == [5]
    assert listed(made / "repo") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("command", ["list", "info", "verify", "ls", "tree", "cat", "mount", "restore"])
def test_names_of_no_point(made: Path, tmp_path: Path, command: str) -> None:
    more = {"mount": [tmp_path], "restore": [tmp_path / "out"]}.get(command, [])
    some = [("disk@99", NotFoundError, "no point number 99"), ("disk@", UsageError, "the point is empty")]
    more_names = [
        ("disk@someday", UsageError, "names no point"),
        ("disk@2 --point=2", UsageError, "named twice"),
        ("disk --at=2001-01-01", NotFoundError, "no point at or before"),
        ("disk --at=", UsageError, "the point is empty"),
    ]
    for name, kind, words in some + (more_names if command == "info" else []):
        place, *options = name.split(" ")
        assert words in mountfs(command, f"{made}/repo/{place}", *more, *options, code=kind.exit_code).err, (
            name
        )


def test_an_image_file_is_one_point(made: Path) -> None:
    image = sorted((made / "repo" / "disk").glob("*.mfi"))[1]
    assert listed(image) == [2]
    for command in ("list", "info", "verify"):
        assert "is one image" in mountfs(command, f"{image}@2", code=UsageError.exit_code).err


def test_a_differential_is_made_since_a_full(repo: Path, made: Path) -> None:
    arguments = ("backup", made / "disk.img", repo, "--set", "disk", "--type", "diff", "--parent")
    assert "full" in mountfs(*arguments, "2", code=UsageError.exit_code).err
    assert len(list((repo / "disk").glob("*.mfi"))) == 5
    mountfs(*arguments, "1")
    newest = mountfs("info", repo / "disk", "--json").facts
    assert (newest["kind"], [image["number"] for image in newest["chain"]]) == ("diff", [1, 6])


def test_a_missing_parent_is_told_once_with_the_name_of_the_file(repo: Path) -> None:
    files = sorted((repo / "disk").glob("*.mfi"))
    files[1].unlink()
    shown = mountfs("list", repo).err.splitlines()
    assert len(shown) == 1
    assert files[2].name in shown[0]
    assert shown[0].endswith("points 4-5 depend on it")
    assert len(mountfs("list", f"{repo}/disk@1").err) == 0
    assert mountfs("list", f"{repo}/disk@4").err.endswith("point 4 depends on it\n")
    told = mountfs("verify", repo, code=ParentMissingError.exit_code).out.decode().splitlines()
    assert [line.split()[0] for line in told[:2]] == ["ok", "DAMAGED"]
    assert files[2].name in told[1]
    assert told[2].split() == ["points", "4-5", "depend", "on", "it"]
    assert told[3].endswith("1 image damaged, 2 more depend on that")
    assert len(told) == 4
    for command in ("info", "ls"):
        said = mountfs(command, f"{repo}/disk@5", code=ParentMissingError.exit_code).err
        assert files[4].name in said
        assert "point 3" in said


def test_damage_of_its_own_is_told_of_an_image_whose_parent_is_missing_too(repo: Path) -> None:
    files = sorted((repo / "disk").glob("*.mfi"))
    files[1].unlink()
    content = bytearray(files[3].read_bytes())
    content[content.index(b"MFfr") + 200] ^= 1
    files[3].write_bytes(content)
    told = mountfs("verify", repo, code=13).out.decode()
    assert told.count("put its file back") == 1
    assert [line for line in told.splitlines() if line.startswith("DAMAGED") and files[3].name in line]
