"""The makers of test disks, checked by other tools: a wrong maker would make wrong tests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import content, disks
from support.kernel import kernel_mount, loop_device
from support.requirements import run

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = (
    disks.Part(5 * disks.MIB, disks.EFI_SYSTEM, "EFI"),
    disks.Part(9 * disks.MIB + 4096, disks.LINUX, "Größe"),
    disks.Part(8 * disks.MIB, disks.BASIC_DATA),
)


def _sfdisk(path: str | Path) -> dict[str, Any]:
    return json.loads(run("sfdisk", "--json", path))["partitiontable"]


def test_a_gpt_disk_is_what_sfdisk_and_sgdisk_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    placed = disks.make_gpt_disk(path, 40 * disks.MIB, PARTS)
    table = _sfdisk(path)
    seen = [
        (p["start"] * 512, p["size"] * 512, p["type"].lower(), p["uuid"].lower(), p.get("name", ""))
        for p in table["partitions"]
    ]
    assert seen == [(p.offset, p.size, p.type_id, p.uuid, p.name) for p in placed]
    assert table["label"] == "gpt"
    assert "No problems found" in run("sgdisk", "--verify", path)


@pytest.mark.root
def test_a_gpt_disk_of_large_sectors_is_what_sfdisk_reads(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    placed = disks.make_gpt_disk(path, 40 * disks.MIB, PARTS, 4096)
    with loop_device(path, 4096, partscan=True) as device:
        table = _sfdisk(device)
        assert table["sectorsize"] == 4096
        assert [(p["start"] * 4096, p["size"] * 4096) for p in table["partitions"]] == [
            (p.offset, p.size) for p in placed
        ]
        assert "No problems found" in run("sgdisk", "--verify", device)
        assert [Path(f"{device}p{p.number}").is_block_device() for p in placed] == [True] * 3
    assert not Path(f"{device}p1").exists()


def test_partition_content_lies_at_its_place_and_the_disk_is_sparse(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.write_bytes(content.mixture(7, 3 * disks.MIB))
    part = disks.Part(4 * disks.MIB, content=inside)
    (placed,) = disks.make_gpt_disk(tmp_path / "disk.img", 64 * disks.MIB, [part])
    with (tmp_path / "disk.img").open("rb") as disk:
        disk.seek(placed.offset)
        assert disk.read(3 * disks.MIB) == inside.read_bytes()
    assert (tmp_path / "disk.img").stat().st_blocks * 512 < 5 * disks.MIB
    again = disks.make_gpt_disk(tmp_path / "again.img", 64 * disks.MIB, [part])
    assert again == (placed,)
    assert (tmp_path / "again.img").read_bytes() == (tmp_path / "disk.img").read_bytes()


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        disks.make_gpt_disk(tmp_path / "disk.img", 10 * disks.MIB, [disks.Part(9 * disks.MIB)])


@pytest.mark.root
@pytest.mark.parametrize(
    ("make", "kind", "size"),
    [
        (disks.make_ext4, "ext4", 16 * disks.MIB),
        (disks.make_xfs, "xfs", 64 * disks.MIB),
        (disks.make_btrfs, "btrfs", 128 * disks.MIB),
        pytest.param(disks.make_ntfs, "ntfs-3g", 16 * disks.MIB, marks=pytest.mark.fuse),
    ],
)
def test_a_filled_volume_mounts_and_holds_the_files(
    tmp_path: Path, make: Callable[..., Path], kind: str, size: int
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    expected = content.make_tree(folder)
    image = make(tmp_path / "volume", size, "label", folder)
    with loop_device(image, read_only=True) as device, kernel_mount(device, kind) as mounted:
        assert content.tree_digests(mounted) == expected


def test_flat_ntfs_and_fat_hold_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    expected = content.make_tree(folder, symlinks=False)
    fat = disks.make_fat(tmp_path / "fat", 40 * disks.MIB, "FAT", folder, bits=32)
    data = tmp_path / "photo"
    run("mcopy", "-Q", "-i", fat, "::photo.jpg", data)
    assert hashlib.sha256(data.read_bytes()).hexdigest() == expected["photo.jpg"]
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "a.txt").write_bytes(content.text(1, 5000))
    ntfs = disks.make_ntfs(tmp_path / "ntfs", 16 * disks.MIB, "NTFS", flat)
    assert run("ntfscat", ntfs, "a.txt").encode() == content.text(1, 5000)
    exfat = disks.make_exfat(tmp_path / "exfat", 16 * disks.MIB, "EX")
    assert exfat.read_bytes()[3:11] == b"EXFAT   "


def test_content_is_the_same_in_every_run() -> None:
    digests = [
        hashlib.sha256(make(5, 100_001)).hexdigest()[:12]
        for make in (content.noise, content.text, content.mixture)
    ]
    assert digests == ["cbf572039791", "6b746ac9e5e9", "901173e8c512"]


def test_damage_flips_one_bit_and_refuses_what_it_cannot_reach(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    content.damage(path, 1)
    assert path.read_bytes() == b"acc"
    content.damage(path, -1, mask=0x80)
    assert path.read_bytes() == b"ac\xe3"
    with pytest.raises(ValueError, match="no byte"):
        content.damage(path, 3)
