"""Clones of real disks, judged by sgdisk, sfdisk, checkers of file systems, and the kernel's mounts."""

from __future__ import annotations

import os
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.devices.source import open_source
from engine.writing import MARK
from imageformat.errors import (
    DestinationFullError,
    IncompleteImageError,
    NotFoundError,
    TargetHoldsImageError,
    TargetTooSmallError,
    UnsupportedFeatureError,
)
from imageformat.partitions import read_table
from support.content import make_tree, noise, tree_digests
from support.disks import BASIC_DATA, EFI_SYSTEM, LINUX, MIB, Part, Placed, make_ext4, make_fat, make_gpt_disk
from support.kernel import kernel_mount, loop_device
from support.product import Ran, mountfs
from support.requirements import require_tool, run

pytestmark = pytest.mark.root
DRIVERS = {1: "ext4", 2: "ntfs-3g", 3: ""}
CHECKS = {1: ("e2fsck", "-fn"), 2: ("ntfsfix", "-n"), 3: ("fsck.fat", "-n")}


@dataclass(frozen=True)
class Made:
    disk: Path
    parts: tuple[Placed, ...]
    files: dict[int, dict[str, str]]


def small_ntfs(path: Path, size: int) -> Path:
    """An NTFS in sectors of 4096 bytes."""
    os.truncate(shutil.copyfile(os.devnull, path), size)
    run("mkfs.ntfs", "-q", "-F", "-Q", "-s", "4096", "-p", "0", "-H", "16", "-S", "63", "-L", "N", path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """ext4, NTFS and FAT, all of which can live on sectors of 4096 bytes; garbage in the gaps."""
    require_tool("sgdisk", "mkfs.ntfs", "fsck.fat")
    folder = tmp_path_factory.mktemp("source")
    files = folder / "files"
    files.mkdir()
    digests = make_tree(files, symlinks=False)
    ext = make_ext4(folder / "ext4", 40 * MIB, "root", files, options=("-b", "4096"))
    ntfs = small_ntfs(folder / "ntfs", 16 * MIB)
    with loop_device(ntfs) as device, kernel_mount(device, "ntfs-3g", read_only=False) as top:
        shutil.copytree(files, top, dirs_exist_ok=True)
    fat = folder / "fat"
    os.truncate(shutil.copyfile(os.devnull, fat), 40 * MIB)
    run("mkfs.vfat", "-S", "4096", "-s", "1", "-F", "16", fat)
    run("mcopy", "-s", "-Q", "-i", fat, *sorted(files.iterdir()), "::")
    disk = folder / "disk.img"
    parts = make_gpt_disk(
        disk,
        112 * MIB,
        [
            Part(40 * MIB, LINUX, "root", ext),
            Part(16 * MIB, BASIC_DATA, "data", ntfs),
            Part(40 * MIB, EFI_SYSTEM, "esp", fat),
        ],
    )
    with disk.open("r+b") as file:
        file.seek(100_000)
        file.write(b"boot loader")
        file.seek(98 * MIB)
        file.write(noise(1, MIB))
    return Made(disk, parts, dict.fromkeys((1, 2, 3), digests))


def check_table(path: Path | str) -> None:
    told = run("sgdisk", "-v", path)
    assert "No problems found" in told, told


def check_volume(place: Path | str, number: int, wanted: dict[str, str], folder: Path) -> None:
    """Sound, and with all files; a device or a file."""
    run(*CHECKS[number], place)
    if not DRIVERS[number]:
        copied = folder / "copied"
        copied.mkdir()
        run("mcopy", "-Q", "-n", "-s", "-i", place, "::*", copied)
        found = {name.casefold(): digest for name, digest in tree_digests(copied).items()}
        assert found == wanted, "FAT keeps short names in capitals"
        shutil.rmtree(copied)
    elif isinstance(place, Path):
        with loop_device(place, read_only=True) as device, kernel_mount(device, DRIVERS[number]) as top:
            assert tree_digests(top) == wanted
    else:
        with kernel_mount(place, DRIVERS[number]) as top:
            assert tree_digests(top) == wanted


def cut_out(disk: Path, part: Placed, place: Path) -> Path:
    run(
        *("dd", f"if={disk}", f"of={place}", "bs=1M", "conv=sparse", "status=none"),
        *(f"skip={part.offset // MIB}", f"count={part.size // MIB}"),
    )
    os.truncate(place, part.size)
    return place


def guids(path: Path | str) -> list[str]:
    """All identities that sgdisk knows of a disk with three partitions."""
    told = run("sgdisk", "-p", "-i", "1", "-i", "2", "-i", "3", path)
    return re.findall(r"(?:identifier \(GUID\)|unique GUID): ([0-9A-F-]{36})", told)


def clone(*arguments: str | Path, code: int = 0) -> Ran:
    return mountfs("clone", *arguments, "--yes", code=code)


def refused(kind: type[Exception], *arguments: str | Path) -> str:
    (line,) = clone(*arguments, code=kind.exit_code).errors  # type: ignore[attr-defined]
    return line


def test_a_larger_image_has_a_whole_table_and_every_file(made: Made, tmp_path: Path) -> None:
    target = tmp_path / "larger.img"
    target.write_bytes(b"")
    os.truncate(target, 150 * MIB)
    told = clone(made.disk, target, "--json").facts
    assert target.stat().st_size == 150 * MIB
    check_table(target)
    assert len({*guids(made.disk), *guids(target)}) == 8, "none is the same"
    for part in made.parts:
        volume = cut_out(target, part, tmp_path / f"volume{part.number}")
        check_volume(volume, part.number, made.files[part.number], tmp_path)
    assert run("sgdisk", "-i", "1", target).count("'root'") == 1
    with target.open("rb") as file:
        file.seek(100_000)
        assert file.read(11) == b"boot loader"
        file.seek(98 * MIB)
        assert not any(file.read(MIB)), "behind the partitions nothing is copied"
    assert told["written"] < 40 * MIB, "only what is used"
    again = clone(made.disk, target, "--delta", "--json").facts
    assert again["written"] == again["zeroed"] == 0


def test_a_disk_with_large_sectors(made: Made, tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(noise(3, MIB) * 128)
    with loop_device(backing, 4096) as device:
        mountfs("clone", made.disk, device, "--target-serial", device)
    with loop_device(backing, 4096, partscan=True) as device:
        check_table(device)
        for part in made.parts:
            assert int(run("blockdev", "--getsize64", f"{device}p{part.number}")) == part.size
            check_volume(f"{device}p{part.number}", part.number, made.files[part.number], tmp_path)
        # And back, by the kernel's counting of sectors, with the same identities.
        clone(device, tmp_path / "back.img", "--same-ids")
        assert guids(tmp_path / "back.img")
    volume = cut_out(backing, made.parts[0], tmp_path / "volume")
    check_volume(volume, 1, made.files[1], tmp_path)


def test_what_counts_in_smaller_sectors_is_refused(made: Made, tmp_path: Path) -> None:
    fat = make_fat(tmp_path / "fat", 8 * MIB)
    disk = tmp_path / "small.img"
    make_gpt_disk(disk, 24 * MIB, [Part(8 * MIB, content=fat), Part(8 * MIB)])
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xee" * (32 * MIB))
    with loop_device(backing, 4096) as device:
        line = refused(UnsupportedFeatureError, disk, device, "--target-serial", device)
        assert "partition 1 (fat12) counts in sectors of 512 bytes" in line
        assert set(backing.read_bytes()) == {0xEE}
        clone(disk, device, "--target-serial", device, "--partitions", "2")
        check_table(device)


@pytest.mark.parametrize("forget", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_second_clone_writes_what_changed(tmp_path: Path, forget: bool) -> None:
    """After a change of 1 % at most 1.2 % of what is used is written, by both ways of knowing."""
    files, disk, target = tmp_path / "files", tmp_path / "disk.img", tmp_path / "clone.img"
    files.mkdir()
    for number in range(24):
        (files / f"file{number}").write_bytes(noise(number, 6 * MIB))
    volume = make_ext4(tmp_path / "ext4", 200 * MIB, "", files, options=("-b", "4096"))
    (part,) = make_gpt_disk(disk, 210 * MIB, [Part(200 * MIB, content=volume)])
    first = clone(disk, target, "--json").facts
    used = first["written"]
    assert 144 * MIB < used < 160 * MIB
    ids = guids(target)
    change(disk, part, 1, used // 100)
    if forget:
        shutil.rmtree(Path(os.environ["TMPDIR"], "state", "mountfs", "targets"))
    told = clone(disk, target, "--delta", "--json").facts
    assert used // 200 < told["written"] + told["zeroed"] <= used * 12 // 1000, told
    assert (told["compared"] < used * 3 // 4) is not forget, "only a sample of the target is read"
    assert guids(target) == ids, "the clone stays the same disk"
    check_table(target)
    run("e2fsck", "-fn", cut_out(target, part, tmp_path / "cloned"))
    cut_out(disk, part, tmp_path / "volume")
    with (
        loop_device(tmp_path / "cloned", read_only=True) as one,
        kernel_mount(one, "ext4") as here,
        loop_device(tmp_path / "volume", read_only=True) as other,
        kernel_mount(other, "ext4") as there,
    ):
        assert tree_digests(here) == tree_digests(there)
    # Somebody wrote to the clone: its time of change says so, and all of it is compared.
    with target.open("r+b") as file:
        file.seek(part.offset + 50 * MIB)
        file.write(b"x" * 4096)
    told = clone(disk, target, "--delta", "--json").facts
    assert told["compared"] > used // 2
    run("cmp", cut_out(target, part, tmp_path / "cloned"), cut_out(disk, part, tmp_path / "volume"))


def change(disk: Path, part: Placed, seed: int, amount: int) -> None:
    """Write inside of files until so many bytes are other ones, as the kernel does it."""
    chance = random.Random(seed)
    volume = cut_out(disk, part, disk.with_name("changing"))
    with loop_device(volume) as device, kernel_mount(device, "ext4", read_only=False) as top:
        for number in range(amount // 65536):
            with (top / f"file{number % 24}").open("r+b") as file:
                file.seek(chance.randrange(6 * MIB // 65536) * 65536)
                file.write(chance.randbytes(65536))
    run(
        "dd",
        f"if={volume}",
        f"of={disk}",
        "bs=1M",
        f"seek={part.offset // MIB}",
        "conv=notrunc",
        "status=none",
    )


def test_chosen_partitions_of_an_mbr_with_logical_ones(tmp_path: Path) -> None:
    disk = tmp_path / "mbr.img"
    disk.write_bytes(noise(5, MIB) * 12)
    run(
        "sfdisk", "-q", "--wipe", "always", disk,
        stdin=b"label: dos\nstart=2048,size=2048,type=83\nstart=4096,size=18432,type=5\n"
        b"start=6144,size=2048,type=83\nstart=10240,size=2048,type=7\nstart=16384,size=2048,type=83\n",
    )  # fmt: skip
    content = disk.read_bytes()
    for name, numbers in (("all", (1, 5, 6, 7)), ("some", (1, 6, 7)), ("last", (7,))):
        target = tmp_path / f"{name}.img"
        chosen = [] if name == "all" else ["--partitions", ",".join(map(str, numbers))]
        clone(disk, target, *chosen)
        listed = run("sfdisk", "-d", target)
        starts = {1: 2048, 5: 6144, 6: 10240, 7: 16384}
        for number in numbers:
            assert f"start={starts[number]:>12}" in listed, listed
            at = starts[number] * 512
            assert target.read_bytes()[at : at + MIB] == content[at : at + MIB]
        assert listed.count("size=") == len(numbers) + 1, "and the extended partition"
        run("sfdisk", "--verify", target)
        assert re.findall("label-id: (.*)", listed) != re.findall("label-id: (.*)", run("sfdisk", "-d", disk))
    refused(NotFoundError, disk, tmp_path / "none.img", "--partitions", "9")
    backing = tmp_path / "backing"
    backing.write_bytes(b"")
    os.truncate(backing, 20 * MIB)
    with loop_device(backing, 4096) as device:
        clone(disk, device, "--target-serial", device)
        listed = run("sfdisk", "-d", device)
        assert [int(start) for start in re.findall(r"start= *(\d+)", listed)] == [256, 512, 768, 1280, 2048]
        at = 2048 * 4096
        assert backing.read_bytes()[at : at + MIB] == content[16384 * 512 :][:MIB]


def test_partitions_are_never_cut_and_wrong_targets_are_refused(made: Made, tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xee" * (60 * MIB))
    with loop_device(backing) as device:
        line = refused(TargetTooSmallError, made.disk, device, "--target-serial", device)
        assert "partitions are never cut" in line
        assert set(backing.read_bytes()) == {0xEE}
        clone(made.disk, device, "--target-serial", device, "--partitions", "1,2")
        check_table(device)
        assert len(read_table_of(backing)) == 2
        refused(TargetHoldsImageError, device, device, "--target-serial", device)
        refused(TargetHoldsImageError, device, backing)
    refused(TargetHoldsImageError, made.disk, made.disk)


def read_table_of(path: Path) -> list[int]:
    device = open_source(str(path))
    try:
        return [entry.number for entry in read_table(device).partitions]
    finally:
        device.close()


def test_a_target_that_fails_in_the_middle_is_marked_and_finished_later(made: Made, tmp_path: Path) -> None:
    """The file under the loop device lies on a full file system."""
    with loop_device(make_ext4(tmp_path / "outer", 24 * MIB, options=("-m", "0"))) as outer:
        with kernel_mount(outer, "ext4", read_only=False) as folder:
            thin = folder / "thin"
            thin.write_bytes(b"")
            os.truncate(thin, 112 * MIB)
            room = os.statvfs(folder)
            (folder / "ballast").write_bytes(bytes(room.f_bavail * room.f_bsize - MIB))
            with loop_device(thin) as device:
                ended = mountfs("clone", made.disk, device, "--target-serial", device, code=None)
                assert ended.code in {40, DestinationFullError.exit_code}, ended
                assert device in ended.errors[0]
                with Path(device).open("rb") as file:
                    assert file.read(len(MARK)) == MARK
                refused(IncompleteImageError, device, tmp_path / "copy.img")
                (folder / "ballast").unlink()
                done = mountfs("clone", made.disk, device, "--target-serial", device)
                assert "was being written when it was interrupted" in done.err
                check_table(device)
        full = tmp_path / "full"
        full.mkdir()
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.nightly
def test_byte_for_byte(made: Made, tmp_path: Path) -> None:
    clone(made.disk, tmp_path / "raw.img", "--raw")
    run("cmp", made.disk, tmp_path / "raw.img")


@pytest.mark.nightly
def test_a_disk_that_nobody_wrote_to_is_not_read_again(tmp_path: Path) -> None:
    """The kernel counts what is written to a disk, from its attachment on."""
    disk, backing = tmp_path / "disk.img", tmp_path / "backing"
    content = tmp_path / "content"
    content.write_bytes(noise(1, 48 * MIB))
    (part,) = make_gpt_disk(disk, 52 * MIB, [Part(48 * MIB, content=content)])
    os.truncate(shutil.copyfile(os.devnull, backing), 60 * MIB)

    def compared(device: str) -> int:
        told = mountfs("clone", disk, device, "--delta", "--target-serial", device, "--json").facts
        assert backing.read_bytes()[: 50 * MIB][part.offset :] == disk.read_bytes()[: 50 * MIB][part.offset :]
        return int(told["compared"])

    with loop_device(backing) as device:
        assert compared(device) >= 48 * MIB
        assert compared(device) < 16 * MIB
        with Path(device).open("r+b") as opened:
            opened.seek(30 * MIB)
            opened.write(b"x" * 4096)
        assert compared(device) >= 48 * MIB
        assert compared(device) < 16 * MIB
    with loop_device(backing) as device:
        assert compared(device) >= 48 * MIB, "it was elsewhere meanwhile"
