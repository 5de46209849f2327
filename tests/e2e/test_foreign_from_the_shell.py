"""Images of other tools as a person meets them: folders of them, several disks, locks, names in a mount."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from imageformat.errors import (
    AmbiguousNameError,
    LockedError,
    NotFoundError,
    TargetHoldsImageError,
    UsageError,
)
from support.disks import Part, make_gpt_disk
from support.images import MadeImage, makers
from support.product import mounted, mountfs
from support.requirements import require_tool

MIB = 1 << 20


@pytest.fixture
def side_by_side(tmp_path: Path) -> Path:
    """A folder of images that have nothing to do with each other."""
    require_tool("qemu-img")
    folder = tmp_path / "vms"
    folder.mkdir()
    (tmp_path / "disk").write_bytes(bytes(range(256)) * 4096)
    for name, kind in (("one.qcow2", "qcow2"), ("two.vmdk", "vmdk")):
        subprocess.run(
            ["qemu-img", "convert", "-f", "raw", "-O", kind, tmp_path / "disk", folder / name], check=True
        )
    return folder


def make(name: str, folder: Path) -> tuple[MadeImage, Path]:
    folder.mkdir()
    made = makers()[name](folder)
    return made, folder / made.name


def test_a_folder_lists_formats_and_files(side_by_side: Path) -> None:
    said = mountfs("list", side_by_side).out.decode()
    header, *rows = said.splitlines()
    assert header.split()[-2:] == ["FORMAT", "FILE"]
    assert sorted(row.split()[-2:] for row in rows) == [["qcow2", "one.qcow2"], ["vmdk", "two.vmdk"]]
    for name in (side_by_side, f"{side_by_side}@1"):
        refused = mountfs("info", name, code=AmbiguousNameError.exit_code).err
        assert "one.qcow2" in refused
        assert "two.vmdk" in refused


def test_info_says_what_is_known_and_nothing_else(side_by_side: Path) -> None:
    said = mountfs("info", side_by_side / "one.qcow2").out.decode()
    assert "Image:            qcow2" in said
    for nonsense in ("Source", "?", "no blocks", "None", "Point"):
        assert nonsense not in said


@pytest.mark.fuse
def test_a_mount_names_images_by_their_files(side_by_side: Path) -> None:
    with mounted(side_by_side) as shown:
        assert sorted(path.name for path in shown.iterdir()) == ["one.qcow2", "two.vmdk"]
        assert (shown / "two.vmdk" / "disk.img").stat().st_size == MIB


@pytest.fixture
def repository(tmp_path: Path, side_by_side: Path) -> Path:
    """A repository with a set, and images of other tools beside it."""
    mountfs("backup", tmp_path / "disk", side_by_side, "--set", "ours")
    return side_by_side


@pytest.mark.fuse
def test_a_repository_stays_one(repository: Path) -> None:
    (facts,) = mountfs("list", repository, "--json").results
    assert [(entry["name"], len(entry["points"])) for entry in facts["sets"]] == [("", 2), ("ours", 1)]
    mountfs("verify", repository)
    refused = mountfs("ls", repository, code=AmbiguousNameError.exit_code).err
    assert refused.endswith("one.qcow2, two.vmdk, ours\n")
    assert mountfs("ls", repository / "ours").out
    with mounted(repository) as shown:
        assert sorted(path.name for path in shown.iterdir()) == ["one.qcow2", "ours", "two.vmdk"]


@pytest.mark.fuse
def test_each_disk_of_an_image_can_be_had(tmp_path: Path) -> None:
    made, image = make("mrimgx-full", tmp_path / "set")
    for command in (("ls",), ("tree",), ("restore",), ("convert",)):
        target = [tmp_path / "out.img"] if command[0] in {"restore", "convert"} else []
        refused = mountfs(*command, image, *target, code=UsageError.exit_code).err
        assert "--disk: 0 (1.3 MiB), 1 (200 KiB)" in refused
        mountfs(*command, image, *target, "--disk", "2", code=NotFoundError.exit_code)
        mountfs(*command, image, *target, "--disk", "0")
        for path in target:
            assert path.read_bytes() == made.disks[0]
            path.unlink()
    mountfs("restore", image, tmp_path / "second", "--disk", "1")
    assert (tmp_path / "second").read_bytes() == made.disks[1]
    (facts,) = mountfs("info", image, "--json").results
    assert [disk["disk"]["size"] for disk in facts["shown"]] == [len(disk) for disk in made.disks]
    with mounted(image) as shown:
        held = [(shown / f"disk{number}" / "disk.img").read_bytes() for number in range(2)]
        assert tuple(held) == made.disks


def test_what_lacks_a_password_is_locked_not_broken(tmp_path: Path) -> None:
    made, image = make("mrimgx-encrypted", tmp_path / "set")
    (tmp_path / "password").write_bytes(made.secrets.given_passwords[0])
    (facts,) = mountfs("list", tmp_path / "set", "--json").results
    assert [point["state"] for point in facts["sets"][0]["points"]] == ["locked"]
    assert "--password-file" in mountfs("info", image, code=LockedError.exit_code).err
    option = ("--password-file", tmp_path / "password")
    (facts,) = mountfs("list", tmp_path / "set", *option, "--json").results
    assert [point["state"] for point in facts["sets"][0]["points"]] == ["ok"]
    mountfs("verify", image, *option)


def test_a_restore_does_not_overwrite_a_part_of_its_image(tmp_path: Path) -> None:
    made, image = make("mrimgx-encrypted", tmp_path / "set")
    (tmp_path / "password").write_bytes(made.secrets.given_passwords[0])
    parts = sorted(path for path in (tmp_path / "set").iterdir() if path != image)
    before = parts[0].read_bytes()
    arguments = ("--disk", "1", "--yes", "--password-file", tmp_path / "password")
    mountfs("restore", image, parts[0], *arguments, code=TargetHoldsImageError.exit_code)
    assert parts[0].read_bytes() == before


def overlay(folder: Path) -> tuple[Path, Path]:
    """An image and, in the same folder, what it stands on."""
    require_tool("qemu-img")
    folder.mkdir()
    (folder / "raw").write_bytes(b"content " * (MIB // 8))
    base, top = folder / "base.qcow2", folder / "top.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", folder / "raw", base], check=True)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top]
    subprocess.run(command, check=True)
    return base, top


def test_a_base_finds_its_own_backing_file(tmp_path: Path) -> None:
    _, top = overlay(tmp_path / "vm")
    changed = bytearray((tmp_path / "vm" / "raw").read_bytes())
    changed[5000:5005] = b"other"
    (tmp_path / "now").write_bytes(changed)
    mountfs("backup", tmp_path / "now", tmp_path / "repo", "--set", "vm", "--base", top)
    mountfs("verify", tmp_path / "repo")
    mountfs("restore", tmp_path / "repo" / "vm", tmp_path / "restored")
    assert (tmp_path / "restored").read_bytes() == changed


def test_a_backing_file_elsewhere_must_be_named(tmp_path: Path) -> None:
    base, top = overlay(tmp_path / "vm")
    (tmp_path / "elsewhere").mkdir()
    moved = base.rename(tmp_path / "elsewhere" / base.name)
    assert "--backing" in mountfs("ls", top, code=20).err
    mountfs("ls", top, "--backing", moved)


def test_what_cannot_be_written_is_not_taken_for_a_folder(side_by_side: Path, tmp_path: Path) -> None:
    refused = mountfs("convert", side_by_side / "one.qcow2", tmp_path / "x.vdi", code=UsageError.exit_code)
    assert "mrimgx, qcow2, vhdx" in refused.err
    assert not (tmp_path / "x.vdi").exists()


def test_an_image_for_macrium_says_what_it_is_and_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(bytes(range(255)) * 4112)
    disk = tmp_path / "disk.img"
    (placed,) = make_gpt_disk(disk, 4 * MIB, [Part(MIB, content=tmp_path / "content")])
    (facts,) = mountfs("convert", disk, tmp_path / "x.mrimgx", "--json").results
    experimental, left_out = facts["notes"]
    assert "experimental" in experimental
    assert "no place for" in left_out
    assert facts["size"] == (tmp_path / "x.mrimgx").stat().st_size
    mountfs("verify", tmp_path / "x.mrimgx")
    mountfs("restore", tmp_path / "x.mrimgx", tmp_path / "back")
    end = placed.offset + MIB
    assert (tmp_path / "back").read_bytes()[:end] == disk.read_bytes()[:end]
    mountfs("convert", disk, tmp_path / "x.img2", "--to", "mrimgx", code=UsageError.exit_code)


def test_doctor_lists_every_format_driver_and_container() -> None:
    said = mountfs("doctor", code=None).out.decode()
    for what in ("format qcow2", "format mrimgx", "driver xfs", "container luks", "cryptography", "lz4"):
        assert what in said
    assert "container _" not in said
