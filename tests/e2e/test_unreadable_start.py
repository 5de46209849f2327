"""A partition table or the start of a partition that cannot be read: said by every command, with its code."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from imageformat.errors import CorruptImageError, VolumeError
from support.product import mounted, mountfs

MIB = 1 << 20
FIRST = 16
"""Block of 64 KiB in which the first partition begins."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MBR disk with an ext4 and a FAT."""
    folder = tmp_path_factory.mktemp("starts")
    files = folder / "files"
    files.mkdir()
    (files / "hello").write_text("hello\n")
    disk, ext4, fat = folder / "disk.img", folder / "ext4", folder / "fat"
    for path, size in ((disk, 8), (ext4, 2), (fat, 2)):
        with path.open("wb") as file:
            file.truncate(size * MIB)
    table = "label: dos\nstart=2048,size=4096,type=83\nstart=8192,size=4096,type=6\n"
    subprocess.run(["sfdisk", "--quiet", disk], input=table.encode(), check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", files, ext4], check=True)
    subprocess.run(["mkfs.vfat", fat], check=True, capture_output=True)
    with disk.open("r+b") as file:
        for number, content in enumerate((ext4, fat)):
            file.seek((1 + 3 * number) * MIB)
            file.write(content.read_bytes())
    mountfs("backup", disk, folder / "repo")
    return folder


def damaged(made: Path, place: Path, block: int) -> str:
    """A copy of the set in which the frame of a block is damaged."""
    shutil.copytree(made / "repo", place)
    (image,) = (place / "disk").glob("*.mfi")
    content = bytearray(image.read_bytes())
    at = content.find(b"MFfr")
    while int.from_bytes(content[at + 16 : at + 24], "little") != block:
        at = content.index(b"MFfr", at + 4)
    content[at + 100] ^= 1
    image.write_bytes(content)
    return f"{place}/disk"


def refused(words: str, *arguments: str | Path) -> str:
    """The command fails for the damaged block, in one line with these words; what it wrote all the same."""
    done = mountfs(*arguments, code=CorruptImageError.exit_code)
    errors = [line for line in done.err.splitlines() if line.startswith("mountfs: error:")]
    assert len(errors) == 1, done.err
    assert words in errors[0]
    assert "block " in errors[0]
    return done.out.decode()


def test_a_partition_table_that_cannot_be_read(made: Path, tmp_path: Path) -> None:
    place, words = damaged(made, tmp_path / "repo", 0), "the partition table cannot be read"
    assert refused(words, "ls", place).split() == ["README", "disk.img"]
    assert "disk.img" in refused(words, "ls", "-l", place)
    assert "disk.img" in refused(words, "tree", place)
    assert "8.0 MiB" in refused(words, "info", place)
    for command in ("ls", "tree", "cat"):
        assert refused(words, command, f"{place}:1/hello") == ""
    assert refused(words, "cp", f"{place}:1/hello", tmp_path / "out") == ""
    refused("block 0", "cat", f"{place}:disk.img")
    mountfs("restore", f"{place}:1", tmp_path / "out", code=CorruptImageError.exit_code)
    assert not (tmp_path / "out").exists()
    told = mountfs("ls", place, "--json", code=CorruptImageError.exit_code)
    assert len(json.loads(told.out)["entries"]) == 2
    assert json.loads(told.err)["error"] == "CorruptImageError"


def test_the_start_of_a_partition_that_cannot_be_read(made: Path, tmp_path: Path) -> None:
    place, words = damaged(made, tmp_path / "repo", FIRST), "the start of partition 1 cannot be read"
    assert refused(words, "ls", place).split() == ["1", "2-fat12", "disk.img"]
    assert refused(words, "ls", f"{place}:1").split() == ["README", "partition.img"]
    assert "2-fat12" in refused(words, "tree", place)
    assert "2-fat12" in refused(words, "info", place)
    assert refused(words, "cat", f"{place}:1/hello") == ""
    assert refused(words, "cp", f"{place}:1/hello", tmp_path / "out") == ""
    refused(words, "cp", f"{place}:1", tmp_path / "raw")
    assert mountfs("ls", f"{place}:2").err == "", "the other partition is as good as ever"
    assert b"README" not in mountfs("ls", f"{place}:2").out
    assert b"cannot be shown" in mountfs("cat", f"{place}:1/README").out


def test_a_file_system_that_its_driver_refuses(made: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes((made / "ext4").read_bytes())
    with disk.open("r+b") as file:
        file.seek(2048)
        file.write(bytes(MIB))  # all but the superblock
    mountfs("backup", disk, tmp_path / "repo")
    place = f"{tmp_path}/repo/disk"
    done = mountfs("ls", f"{place}:0", code=VolumeError.exit_code)
    assert done.out.split() == [b"README", b"partition.img"]
    assert "the files of 0-ext4 cannot be read" in done.err
    mountfs("cat", f"{place}:0/hello", code=VolumeError.exit_code)
    mountfs("cp", f"{place}:0/partition.img", tmp_path / "rescued")
    assert (tmp_path / "rescued").read_bytes() == disk.read_bytes()
    assert mountfs("ls", place).err == "", "nothing was looked into"


def test_a_kind_that_nobody_reads_is_no_failure(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(2 * MIB)
    subprocess.run(["mkswap", disk], check=True, capture_output=True)
    mountfs("backup", disk, tmp_path / "repo")
    done = mountfs("ls", f"{tmp_path}/repo/disk:0")
    assert (done.out.split(), done.err) == ([b"README", b"partition.img"], "")


@pytest.mark.fuse
def test_a_mount_goes_on_with_what_can_be_read(made: Path, tmp_path: Path) -> None:
    with mounted(damaged(made, tmp_path / "repo", FIRST) + "@1") as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["1", "2-fat12", "disk.img"]
        assert "cannot be read" in (folder / "1" / "README").read_text()
