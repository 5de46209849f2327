"""Wrong targets are refused: the facts from machines that are not there, the judgement from facts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from engine.devices import guards
from engine.devices.guards import (
    TargetFacts,
    check_mark,
    check_target,
    describe,
    is_mark,
    marks,
    target_facts,
)
from imageformat.errors import (
    DestinationReadOnlyError,
    MountfsError,
    NotFoundError,
    TargetHoldsImageError,
    TargetInUseError,
    TargetMismatchError,
    TargetTooSmallError,
    UsageError,
)
from support.fakemachine import MIB, FakeMachine, write

GOOD = TargetFacts(path="/dev/sdb", kind="disk", size=100 * MIB, model="Stick", serial="S1")


def test_a_good_target_passes_and_is_described() -> None:
    check_target(GOOD, 100 * MIB)
    check_target(TargetFacts(path="/x", kind="new file", size=0), 100 * MIB)
    check_target(TargetFacts(path="/x", kind="file", size=5), 100 * MIB)
    assert describe(GOOD) == "/dev/sdb (Stick, serial S1)"
    assert describe(replace(GOOD, model="", serial="")) == "/dev/sdb"


@pytest.mark.parametrize(
    ("facts", "error", "said"),
    [
        (replace(GOOD, images=("/r/a.mfi",)), TargetHoldsImageError, "holds /r/a.mfi"),
        (replace(GOOD, sources=("/dev/sdb2",)), TargetHoldsImageError, "in common with, /dev/sdb2"),
        (replace(GOOD, system=True, mounted_at=("/",)), TargetInUseError, "running system"),
        (replace(GOOD, mounted_at=("/a", "/b")), TargetInUseError, "mounted at /a, /b"),
        (replace(GOOD, held_by=("/dev/dm-0",)), TargetInUseError, "held by /dev/dm-0"),
        (replace(GOOD, in_use=True), TargetInUseError, "in use by another program"),
        (replace(GOOD, read_only=True), DestinationReadOnlyError, "read-only"),
        (replace(GOOD, size=100 * MIB - 1), TargetTooSmallError, "104857599 bytes"),
        (replace(GOOD, kind="partition", size=0), TargetTooSmallError, "0 bytes"),
        (TargetFacts("/x", "file", 9, images=("/x",)), TargetHoldsImageError, "holds /x"),
        (TargetFacts("/x", "new file", 0, read_only=True), DestinationReadOnlyError, "read-only"),
    ],
)
def test_a_bad_target_is_refused(facts: TargetFacts, error: type[MountfsError], said: str) -> None:
    with pytest.raises(error, match=said):
        check_target(facts, 100 * MIB)


@pytest.mark.parametrize(
    ("facts", "right", "wrong"),
    [
        (GOOD, ("S1", " s1\n"), ("", "S", "/dev/sdb", "104857600", "yes", "y")),
        (replace(GOOD, serial="", wwn="naa.5000c5"), ("naa.5000c5", "0x5000C5"), ("", "/dev/sdb", "sdb")),
        (replace(GOOD, serial=""), ("104857600", "/dev/sdb", "sdb"), ("", "/dev/sdc", "100", "yes")),
        (TargetFacts("/x", "file", 9), (), ("", "/x", "x", "9")),
        (TargetFacts("/x", "new file", 0), (), ("", "/x", "0")),
    ],
)
def test_only_its_mark_names_a_disk(
    facts: TargetFacts, right: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    for typed in right:
        assert is_mark(facts, typed)
        check_mark(facts, typed)
    for typed in wrong:
        assert not is_mark(facts, typed)
        with pytest.raises(TargetMismatchError, match=r"demanded"):
            check_mark(facts, typed)
    assert marks(facts)[:1] == right[:1]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """A system disk, a data disk with a logical volume, and a stick; their device files are plain files."""
    machine = FakeMachine(tmp_path)
    machine.disk("sda", "8:0", attributes={"serial": "SYS", "diskseq": "1"})
    machine.partition("sda", 1, "8:1")
    machine.partition("sda", 2, "8:2")
    data = machine.disk("sdb", "8:16", 100 * MIB, {"serial": "DATA", "diskseq": "2", "device/model": "Big"})
    part = machine.partition("sdb", 1, "8:17", 50 * MIB)
    machine.stack(machine.disk("dm-0", "253:0"), part)
    machine.disk("sdc", "8:32", attributes={"ro": "1"})
    machine.mount("8:1", "/")
    machine.mount("8:17", str(tmp_path / "repository"))
    for name in ("sda", "sda1", "sda2", "sdb", "sdb1", "sdc", "dm-0"):
        write(machine.roots.dev / name, "")
    assert data.is_dir()
    numbers = {"sda": "8:0", "sda1": "8:1", "sda2": "8:2", "sdb": "8:16", "sdb1": "8:17", "sdc": "8:32"}
    numbers["dm-0"] = "253:0"

    def identify(path: str, _: object = None) -> object:
        return numbers.get(Path(path).name) or real(path)

    real = guards.identify
    monkeypatch.setattr("engine.devices.backing.identify", identify)
    monkeypatch.setattr(guards, "identify", identify)
    return machine


def _facts(machine: FakeMachine, name: str, *images: str) -> TargetFacts:
    return target_facts(str(machine.roots.dev / name), images, roots=machine.roots)


def test_the_system_disk_is_known_and_its_other_partition_is_not_the_system(machine: FakeMachine) -> None:
    disk, used, other = (_facts(machine, name) for name in ("sda", "sda1", "sda2"))
    assert (disk.system, disk.mounted_at, disk.kind) == (True, ("/",), "disk")
    assert (used.system, used.kind) == (True, "partition")
    assert (other.system, other.mounted_at, other.held_by) == (False, (), ())


def test_everything_known_of_a_disk_is_collected(machine: FakeMachine) -> None:
    image = str(machine.folder / "repository" / "a.mfi")
    write(Path(image), "image")
    elsewhere = str(machine.folder / "b.mfi")
    facts = _facts(machine, "sdb", elsewhere, image)
    assert (facts.size, facts.model, facts.serial, facts.read_only) == (100 * MIB, "Big", "DATA", False)
    assert facts.identity == ("8:16", str(100 * MIB), "DATA", "2")
    assert facts.mounted_at == (str(machine.folder / "repository"),)
    assert facts.held_by == (str(machine.roots.dev / "dm-0"),)
    assert facts.images == (image,)
    assert _facts(machine, "sdc").read_only
    assert _facts(machine, "sda2", image, elsewhere).images == ()


@pytest.mark.parametrize(
    ("source", "targets"),
    [
        ("sdb", {"sdb", "sdb1", "dm-0", "repository/new", "repository/old"}),
        ("sdb1", {"sdb", "sdb1", "dm-0", "repository/new", "repository/old"}),
        ("dm-0", {"sdb", "sdb1", "dm-0"}),
        ("repository/old", {"sdb", "sdb1", "repository/old"}),
        ("sda1", {"sda", "sda1"}),
        ("sdc", {"sdc"}),
    ],
)
def test_a_target_that_shares_bytes_with_the_source_is_known(
    machine: FakeMachine, source: str, targets: set[str]
) -> None:
    """Through partitions, stacked devices and files: whatever can be reached from one or the other."""
    write(machine.folder / "repository" / "old", "file")
    files = ("repository/new", "repository/old")
    for name in ("sda", "sda1", "sda2", "sdb", "sdb1", "sdc", "dm-0", *files):
        path = machine.folder / name if name in files else machine.roots.dev / name
        named = machine.folder / source if source in files else machine.roots.dev / source
        facts = target_facts(str(path), sources=[str(named)], roots=machine.roots)
        assert bool(facts.sources) is (name in targets), name
        if facts.sources:
            with pytest.raises(TargetHoldsImageError):
                check_target(replace(facts, system=False, mounted_at=()), 1)


def test_swap_holds_its_disk(machine: FakeMachine) -> None:
    machine.swap([str(machine.roots.dev / "sda2")])
    assert _facts(machine, "sda2").held_by == ("swap",)
    assert _facts(machine, "sda").held_by == ("swap",)
    assert _facts(machine, "sdc").held_by == ()


def test_a_device_that_is_not_there_is_not_made_as_a_file(machine: FakeMachine) -> None:
    machine.mount("0:6", str(machine.roots.dev), "devtmpfs")
    with pytest.raises(NotFoundError, match="there is no device"):
        _facts(machine, "sdz")
    with pytest.raises(NotFoundError, match=r"folder .* does not exist"):
        _facts(machine, "disk/by-id/gone")


def test_a_file_target_knows_whether_it_is_the_image(tmp_path: Path) -> None:
    image, link = tmp_path / "a.mfi", tmp_path / "link"
    image.write_bytes(b"image")
    os.link(image, tmp_path / "hard")
    link.symlink_to(image)
    for name in (image, link, tmp_path / "hard"):
        facts = target_facts(str(name), [str(image)])
        assert (facts.kind, facts.size, facts.images) == ("file", 5, (str(image),))
    other = tmp_path / "other"
    other.write_bytes(b"")
    assert target_facts(str(other), [str(image)]).images == ()
    assert target_facts(str(tmp_path / "new"), [str(image)]).kind == "new file"


def test_folders_pipes_and_missing_folders_are_no_targets(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UsageError, match="cannot be restored to"):
            target_facts(str(path))
    with pytest.raises(NotFoundError, match="make it first"):
        target_facts(str(tmp_path / "missing" / "out.img"))
