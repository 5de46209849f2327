"""Drives and volumes of Windows as sources and targets, on a machine whose drives are files."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from engine.backup import BackupOptions, backup
from engine.devices import windowsdisks
from engine.devices.guards import check_target
from engine.devices.naming import choose, parse_name
from engine.devices.windows import device_path
from engine.devices.windowsdevice import WindowsSource, WindowsTarget
from engine.restore import restore
from imageformat.cache import BlockCache
from imageformat.errors import (
    BadSectorError,
    DestinationReadOnlyError,
    MountfsError,
    TargetHoldsImageError,
    TargetInUseError,
    UsageError,
)
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage
from imageformat.view import ImageView
from support.content import mixture, noise
from support.windowsmachine import Drive, Volume, WindowsMachine

MIB = 1 << 20
SYSTEM, DATA, STICK = (f"\\\\.\\PhysicalDrive{number}" for number in (0, 1, 3))


@pytest.fixture
def machine(tmp_path: Path) -> WindowsMachine:
    """The system's drive with C:, one of 4096-byte sectors with D: and a hidden volume, an empty one."""
    sizes = {0: 8 * MIB, 1: 4 * MIB, 3: 4 * MIB}
    drives = {}
    for number, size in sizes.items():
        (tmp_path / f"drive{number}").write_bytes(noise(number, size))
        sector = 4096 if number == 1 else 512
        drives[number] = Drive(str(tmp_path / f"drive{number}"), f"SN{number}", sector=sector)
    volumes = [
        Volume([(0, MIB, 6 * MIB)], ["C:\\"]),
        Volume([(1, MIB, MIB)], ["D:\\", "C:\\mnt\\d\\"]),
        Volume([(1, 2 * MIB, MIB)]),
    ]
    return WindowsMachine(drives, volumes)


def test_the_inventory_knows_drives_volumes_and_where_they_are_mounted(machine: WindowsMachine) -> None:
    first, second, third = windowsdisks.list_block_devices(machine)
    assert (first.path, first.size, first.model, first.serial) == (SYSTEM, 8 * MIB, "Disk", "SN0")
    assert (second.sector_size, second.rotational) == (4096, True)
    assert second.mounted_at == ("D:\\", "C:\\mnt\\d\\")
    assert [(part.offset, part.size, part.mounted_at) for part in second.partitions] == [
        (MIB, MIB, ("D:\\", "C:\\mnt\\d\\")),
        (2 * MIB, MIB, ()),
    ]
    assert third.partitions == ()
    name = parse_name("serial=sn3")
    assert name is not None
    assert choose(name, windowsdisks.list_block_devices(machine)).path == STICK
    assert machine.handles == {}, "all were closed"


def test_who_lies_on_what(machine: WindowsMachine) -> None:
    def holds(one: str, other: str) -> bool:
        return windowsdisks.holds(machine, one, other)

    assert holds(SYSTEM, "C:\\backups\\x.mfi")
    assert holds("\\\\.\\C:", SYSTEM)
    assert holds("\\\\.\\D:", DATA)
    assert not holds("\\\\.\\D:", SYSTEM)
    assert not holds(DATA, "C:\\backups\\x.mfi")
    assert not holds("\\\\.\\D:", machine.volumes()[2].rstrip("\\"))
    shadow = "\\\\?\\GLOBALROOT\\Device\\HarddiskVolumeShadowCopy1"
    assert not holds(shadow, "C:\\x")
    assert windowsdisks.mounted_on(machine, shadow) == ()
    assert windowsdisks.mounted_on(machine, DATA) == ("D:\\", "C:\\mnt\\d\\")


def test_wrong_targets_are_refused(machine: WindowsMachine) -> None:
    def refused(kind: type[MountfsError], path: str, *sources: str) -> None:
        images = ("C:\\backups\\x.mfi",) if kind is TargetHoldsImageError and not sources else ()
        with pytest.raises(kind):
            check_target(windowsdisks.target_facts(machine, path, images, sources), MIB)

    refused(TargetInUseError, SYSTEM)
    refused(TargetInUseError, "\\\\.\\C:")
    refused(TargetHoldsImageError, SYSTEM)
    refused(TargetHoldsImageError, DATA, "\\\\.\\D:")
    refused(TargetHoldsImageError, "\\\\.\\D:", DATA)
    machine.drives[3].protected = True
    refused(DestinationReadOnlyError, STICK)
    with pytest.raises(UsageError):
        windowsdisks.target_facts(machine, "\\\\?\\GLOBALROOT\\Device\\HarddiskVolumeShadowCopy1", (), ())
    facts = windowsdisks.target_facts(machine, "\\\\.\\D:", (), (STICK,))
    check_target(facts, MIB)
    assert (facts.kind, facts.serial, facts.size) == ("partition", "SN1", MIB)


def test_a_target_is_locked_and_dismounted_as_long_as_it_is_written(machine: WindowsMachine) -> None:
    facts = windowsdisks.target_facts(machine, DATA, (), ())
    machine.log.clear()
    target = WindowsTarget.open(machine, facts)
    changes = [line for line in machine.log if not line.startswith("open") or line.endswith("write")]
    assert changes == [
        *("open volume 1 to write", "lock volume 1", "dismount volume 1"),
        *("open volume 2 to write", "lock volume 2", "dismount volume 2"),
        "open drive 1 to write",
    ]
    target.zero(0, 4 * MIB)
    target.commit()
    assert machine.log[-2:] == ["unlock volume 2", "unlock volume 1"]
    assert (machine.handles, machine.locked) == ({}, set())
    assert Path(machine.drives[1].file).read_bytes() == bytes(4 * MIB)


def test_a_volume_in_use_refuses_and_lets_the_others_go(machine: WindowsMachine) -> None:
    facts = windowsdisks.target_facts(machine, DATA, (), ())
    machine.volumes_there[2].busy = True
    with pytest.raises(TargetInUseError, match="close the programs"):
        WindowsTarget.open(machine, facts)
    assert (machine.handles, machine.locked) == ({}, set())
    assert Path(machine.drives[1].file).read_bytes() == noise(1, 4 * MIB)


def test_another_disk_under_the_same_number_is_refused(machine: WindowsMachine) -> None:
    facts = windowsdisks.target_facts(machine, STICK, (), ())
    machine.drives[3] = replace(machine.drives[3], serial="OTHER")
    with pytest.raises(TargetInUseError, match="not the disk it was"):
        WindowsTarget.open(machine, facts)


@pytest.mark.parametrize("path", [DATA, STICK, "\\\\.\\D:"])
def test_any_range_is_read_and_written_by_whole_sectors(machine: WindowsMachine, path: str) -> None:
    """Random writes and reads against a bytearray; the machine refuses what is not whole sectors."""
    number, start = (1, MIB) if path.endswith(":") else (int(path[-1]), 0)
    file = Path(machine.drives[number].file)
    target = WindowsTarget.open(machine, windowsdisks.target_facts(machine, path, (), ()))
    model = bytearray(file.read_bytes()[start : start + target.size])
    rng = random.Random(path)
    for _ in range(60):
        offset = rng.randrange(target.size)
        data = rng.randbytes(rng.randrange(min(target.size - offset, 30_000) + 1))
        if rng.random() < 0.3:
            data = bytes(len(data))
            target.zero(offset, len(data))
        else:
            target.pwrite(offset, data)
        model[offset : offset + len(data)] = data
        position = rng.randrange(target.size - 5000)
        assert target.pread(position, 5000) == model[position : position + 5000]
    target.commit()
    source = WindowsSource.open(machine, path)
    assert source.pread(0, source.size) == model
    assert source.lend(1000, 70_001) == model[1000:71_001]
    assert next(source.extents(0, source.size)).length == source.size
    with pytest.raises(UsageError):
        source.pread(source.size, 1)
    source.close()
    source.close()
    assert machine.handles == {}


def test_a_sector_that_cannot_be_read_is_named(machine: WindowsMachine) -> None:
    machine.bad.add(3 * MIB + 7)
    source = WindowsSource.open(machine, STICK)
    assert source.pread(0, 3 * MIB) == noise(3, 4 * MIB)[: 3 * MIB]
    with pytest.raises(BadSectorError, match=rf"at byte {3 * MIB} \(sector {3 * MIB // 512}\)"):
        source.pread(3 * MIB, 512)
    source.close()


def test_a_drive_is_imaged_and_restored_to_another(machine: WindowsMachine, tmp_path: Path) -> None:
    Path(machine.drives[3].file).write_bytes(mixture(5, 4 * MIB))
    source = WindowsSource.open(machine, STICK)
    assert (source.identity.kind, source.identity.serial) == ("disk", "SN3")
    repository = Repository(LocalStorage(tmp_path / "repo"))
    backup(source, repository, "stick", BackupOptions(), origin={"source": source.identity.path})
    (point,) = repository.image_set("stick").points
    view = ImageView(repository.chain(point), BlockCache(8 * MIB))
    target = WindowsTarget.open(machine, windowsdisks.target_facts(machine, DATA, (), (STICK,)))
    assert restore(view, target, check=True).verified
    target.commit()
    assert Path(machine.drives[1].file).read_bytes() == mixture(5, 4 * MIB)
    for opened in (source, repository):
        opened.close()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("C:", "\\\\.\\C:"),
        ("d:\\", "\\\\.\\D:"),
        ("\\\\.\\physicaldrive12", "\\\\.\\PhysicalDrive12"),
        ("//./PhysicalDrive0", "\\\\.\\PhysicalDrive0"),
        ("\\\\?\\GLOBALROOT\\Device\\HarddiskVolumeShadowCopy7", None),
        ("C:\\disk.img", ""),
        ("disk.img", ""),
        ("\\\\.\\PhysicalDrive1234", ""),
        ("\\\\.\\PhysicalDrive0\\x", ""),
        ("\\\\?\\C:\\x", ""),
    ],
)
def test_what_is_a_drive_and_what_a_file(text: str, path: str | None) -> None:
    assert device_path(text) == (text if path is None else path or None)
