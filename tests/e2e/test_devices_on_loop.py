"""Sources, targets and guards on real block devices."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from engine.devices.backing import holds
from engine.devices.guards import check_target, target_facts
from engine.devices.inventory import list_block_devices
from engine.devices.source import open_source
from engine.devices.target import Target, open_target
from imageformat.errors import (
    DestinationError,
    DestinationFullError,
    DestinationReadOnlyError,
    SourceReadError,
    TargetHoldsImageError,
    TargetInUseError,
    TargetTooSmallError,
    UsageError,
)
from imageformat.extent import Extent, ExtentKind
from support.content import mixture, noise
from support.disks import MIB, Part, make_ext4, make_gpt_disk
from support.kernel import kernel_mount, loop_device
from support.requirements import run

pytestmark = pytest.mark.root

SECTORS = pytest.mark.parametrize("sector", [512, 4096])


def _blank(path: Path, size: int) -> Path:
    path.write_bytes(b"")
    os.truncate(path, size)
    return path


def _fill(target: Target) -> None:
    for position in range(0, target.size, MIB):
        target.pwrite(position, noise(position, MIB))
    target.flush()


@SECTORS
def test_a_device_reads_as_its_file(tmp_path: Path, sector: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(mixture(3, 4 * MIB))
    with loop_device(path, sector) as device:
        (tmp_path / "by-id").symlink_to(device)
        source = open_source(str(tmp_path / "by-id"))
        assert (source.size, source.sector_size) == (4 * MIB, sector)
        assert (source.identity.path, source.identity.kind) == (device, "disk")
        model = path.read_bytes()
        for offset, size in ((0, 4 * MIB), (511, 4099), (4 * MIB - 1, 1)):
            assert source.pread(offset, size) == model[offset : offset + size]
        assert list(source.extents(5, 100)) == [Extent(5, 100, ExtentKind.DATA)]
        with pytest.raises(UsageError):
            source.pread(4 * MIB, 1)
        source.close()


def test_a_device_that_fails_in_the_middle_names_the_first_lost_byte(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(noise(5, 4 * MIB))
    with loop_device(path) as device:
        os.truncate(path, 2 * MIB)
        run("blockdev", "--flushbufs", device)
        source = open_source(device)
        assert source.pread(0, 2 * MIB) == noise(5, 4 * MIB)[: 2 * MIB]
        with pytest.raises(SourceReadError, match=rf"cannot read {device} at byte {2 * MIB} \(sector 4096\)"):
            source.pread(MIB, 2 * MIB)
        with pytest.raises(SourceReadError):
            source.pread(3 * MIB, 512)
        source.close()


def test_a_partition_is_a_source_of_its_own(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.write_bytes(mixture(8, MIB))
    make_gpt_disk(tmp_path / "disk", 16 * MIB, [Part(2 * MIB), Part(MIB, content=inside)])
    with loop_device(tmp_path / "disk", partscan=True) as device:
        source = open_source(f"{device}p2")
        assert (source.size, source.identity.kind) == (MIB, "partition")
        assert source.pread(0, MIB) == inside.read_bytes()
        source.close()


def test_a_device_without_medium_is_refused() -> None:
    free = next(
        path
        for path in sorted(Path("/sys/block").glob("loop*"), reverse=True)
        if not (path / "loop").exists()
    )
    with pytest.raises(SourceReadError, match="no medium"):
        open_source(f"/dev/{free.name}")


@SECTORS
def test_a_device_target_holds_what_was_written(tmp_path: Path, sector: int) -> None:
    """Random writes and zeros against a bytearray; the backing file is the oracle."""
    size = 2 * MIB
    path = tmp_path / "disk"
    path.write_bytes(noise(6, size))
    model = bytearray(noise(6, size))
    source = random.Random(sector)
    with loop_device(path, sector) as device:
        target = open_target(device, size)
        assert (target.size, target.sector_size) == (size, sector)
        for _ in range(60):
            offset = source.randrange(size)
            length = source.randrange(min(size - offset, 200_000) + 1)
            if source.random() < 0.5:
                data = source.randbytes(length)
                target.pwrite(offset, data)
            else:
                data = bytes(length)
                target.zero(offset, length)
            model[offset : offset + length] = data
            position = source.randrange(size - 5000)
            assert target.pread(position, 5000) == model[position : position + 5000]
        target.evict()
        assert target.pread(0, size) == model
        target.commit()
        assert path.read_bytes() == model


def test_zeroing_reads_as_zeros_without_any_help_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(noise(6, MIB))
    for missing in (("punch_hole",), ("punch_hole", "zero_out")):
        for name in missing:
            monkeypatch.setattr(f"engine.devices.ioctl.{name}", lambda *_: False)
        with loop_device(path) as device:
            target = open_target(device, MIB)
            target.pwrite(0, noise(6, MIB))
            target.zero(1000, MIB - 2001)
            target.commit()
        assert path.read_bytes() == noise(6, MIB)[:1000] + bytes(MIB - 2001) + noise(6, MIB)[-1001:]


def test_nobody_mounts_or_opens_a_target_while_it_is_written(tmp_path: Path) -> None:
    with loop_device(make_ext4(tmp_path / "disk", 4 * MIB)) as device:
        target = open_target(device, 4 * MIB)
        with pytest.raises(RuntimeError), kernel_mount(device, "ext4"):
            pass
        facts = target_facts(device)
        assert facts.in_use
        with pytest.raises(TargetInUseError):
            check_target(facts, MIB)
        with pytest.raises(TargetInUseError, match="mounted or held"):
            open_target(device, MIB)
        target.abort()
        check_target(target_facts(device), 4 * MIB)


def test_a_mounted_device_is_refused_and_holds_the_image_on_it(tmp_path: Path) -> None:
    with loop_device(make_ext4(tmp_path / "disk", 8 * MIB)) as device:
        with kernel_mount(device, "ext4", read_only=False) as folder:
            image = folder / "image.mfi"
            image.write_bytes(b"image")
            facts = target_facts(device, [str(image)])
            assert (facts.kind, facts.mounted_at, facts.in_use) == ("disk", (str(folder),), True)
            assert facts.images == (str(image),)
            with pytest.raises(TargetHoldsImageError):
                check_target(facts, MIB)
            with pytest.raises(TargetInUseError, match=f"mounted at {folder}"):
                check_target(target_facts(device), MIB)
            with pytest.raises(TargetInUseError):
                open_target(device, MIB)
            assert holds(device, str(folder / "repository" / "new"))
            assert not holds(device, str(tmp_path))
            # The file under the loop device is in use just as well.
            stored = target_facts(str(tmp_path / "disk"))
            assert (stored.mounted_at, stored.held_by) == ((str(folder),), (device,))
        facts = target_facts(device, [str(tmp_path / "disk")])
        assert (facts.mounted_at, facts.in_use) == ((), False)
        assert facts.images == (str(tmp_path / "disk"),), "the image file is what the loop device writes to"


def test_one_mounted_partition_holds_the_disk_but_not_its_neighbour(tmp_path: Path) -> None:
    volume = make_ext4(tmp_path / "volume", 6 * MIB)
    make_gpt_disk(tmp_path / "disk", 24 * MIB, [Part(6 * MIB, content=volume), Part(6 * MIB)])
    with (
        loop_device(tmp_path / "disk", partscan=True) as device,
        kernel_mount(f"{device}p1", "ext4") as folder,
    ):
        for path in (device, f"{device}p1"):
            facts = target_facts(path)
            assert (facts.mounted_at, facts.in_use) == ((str(folder),), True)
            with pytest.raises(TargetInUseError):
                open_target(path, MIB)
        neighbour = target_facts(f"{device}p2")
        assert (neighbour.kind, neighbour.size, neighbour.mounted_at) == ("partition", 6 * MIB, ())
        check_target(neighbour, 6 * MIB)
        open_target(f"{device}p2", 6 * MIB).abort()
        (info,) = [info for info in list_block_devices() if info.path == device]
        assert [part.mounted_at for part in info.partitions] == [(str(folder),), ()]


def test_a_loop_inside_a_loop_lies_on_the_outer_device(tmp_path: Path) -> None:
    with (
        loop_device(make_ext4(tmp_path / "outer", 16 * MIB)) as outer,
        kernel_mount(outer, "ext4", read_only=False) as folder,
        loop_device(make_ext4(folder / "inner", 4 * MIB)) as inner,
        kernel_mount(inner, "ext4") as deep,
    ):
        assert holds(outer, str(deep / "x"))
        assert holds(inner, str(deep / "x"))
        assert not holds(inner, str(folder / "x"))
        assert target_facts(outer).mounted_at == (str(folder), str(deep))
        assert target_facts(outer).held_by == (inner,)


def test_too_small_and_read_only_devices_are_refused(tmp_path: Path) -> None:
    path = _blank(tmp_path / "disk", MIB)
    with loop_device(path) as device:
        for refuse in (
            lambda: check_target(target_facts(device), MIB + 1),
            lambda: open_target(device, MIB + 1),
        ):
            with pytest.raises(TargetTooSmallError):
                refuse()
        open_target(device, MIB).abort()
    with loop_device(path, read_only=True) as device:
        with pytest.raises(DestinationReadOnlyError):
            check_target(target_facts(device), MIB)
        with pytest.raises(DestinationReadOnlyError):
            open_target(device, MIB)


def test_a_name_that_moved_to_another_disk_is_refused(tmp_path: Path) -> None:
    """The user agreed to one disk; the name then points to another, of the same size."""
    first, second = (_blank(tmp_path / name, MIB) for name in ("a", "b"))
    link = tmp_path / "by-path"
    with loop_device(first) as one, loop_device(second) as two:
        link.symlink_to(one)
        agreed = target_facts(one)
        open_target(one, MIB, expected=agreed).abort()
        run("losetup", "--detach", one)
        run("losetup", one, second)
        with pytest.raises(TargetInUseError, match="not the disk it was"):
            open_target(one, MIB, expected=agreed)
        assert target_facts(two).identity != agreed.identity


def test_the_kernel_reads_the_new_partition_table_at_commit(tmp_path: Path) -> None:
    """Whether it finds the new partitions is the kernel's matter; the old ones must be gone."""
    make_gpt_disk(tmp_path / "disk", 16 * MIB, [Part(MIB), Part(MIB)])
    with loop_device(tmp_path / "disk", partscan=True) as device:
        assert Path(f"{device}p2").exists()
        target = open_target(device, 16 * MIB)
        target.zero(0, 16 * MIB)
        target.commit()
        assert not Path(f"{device}p2").exists()


def test_a_full_and_a_read_only_file_system_are_told_apart(tmp_path: Path) -> None:
    with loop_device(make_ext4(tmp_path / "disk", 4 * MIB)) as device:
        with kernel_mount(device, "ext4", read_only=False) as folder:
            target = open_target(str(folder / "out.img"), 64 * MIB)
            with pytest.raises(DestinationFullError, match=r"out\.img at byte \d+: no space"):
                _fill(target)
            target.abort()
            assert [path.name for path in folder.iterdir()] == ["lost+found"]
        with kernel_mount(device, "ext4") as folder:
            with pytest.raises(DestinationReadOnlyError):
                check_target(target_facts(str(folder / "out.img")), MIB)
            with pytest.raises(DestinationReadOnlyError):
                open_target(str(folder / "out.img"), MIB)


def test_a_device_that_loses_writes_is_found_at_flush(tmp_path: Path) -> None:
    """The file system under the loop device is full: the kernel takes the bytes, and fails to store them."""
    with (
        loop_device(make_ext4(tmp_path / "disk", 4 * MIB)) as outer,
        kernel_mount(outer, "ext4", read_only=False) as folder,
    ):
        _blank(folder / "thin", 32 * MIB)
        with loop_device(folder / "thin") as device:
            target = open_target(device, 32 * MIB)
            with pytest.raises(DestinationError):
                _fill(target)
            target.abort()
