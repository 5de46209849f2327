"""A disk named by serial number, world-wide name or size is the one that is meant, or none is chosen."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.devices.guards import target_facts
from engine.devices.inventory import BlockDeviceInfo
from engine.devices.naming import choose, is_meant, named_path, parse_name
from engine.devices.source import open_source
from imageformat.errors import AmbiguousNameError, MountfsError, NotFoundError, UsageError
from support.fakemachine import MIB, FakeMachine, write

UNITS = {"": 1, "B": 1, **{f"{c}B": 1000**n for n, c in enumerate("KMGTP", 1)}}
UNITS |= {f"{c}{end}": 1024**n for n, c in enumerate("KMGTP", 1) for end in ("", "iB")}
SERIALS = ["", "S3X", "s3x", " S3X ", "S3X1", "0", "S3 X"]
WWNS = ["", "naa.5000c500a1b2c3d4", "0x5000C500A1B2C3D4", "eui.0025385b71b0a2f4", "t10.ATA     X", "naa."]


def _disk(path: str, size: int, serial: str = "", wwn: str = "") -> BlockDeviceInfo:
    return BlockDeviceInfo(
        path=path,
        number="8:0",
        size=size,
        sector_size=512,
        model="",
        serial=serial,
        wwn=wwn,
        removable=False,
        rotational=False,
        read_only=False,
        partitions=(),
        mounted_at=(),
    )


def _plain(wwn: str) -> str:
    text = " ".join(wwn.lower().split())
    for prefix in ("wwn-", "0x", "naa.", "eui."):
        text = text.removeprefix(prefix)
    return text


def _meant(key: str, value: str, disk: BlockDeviceInfo) -> bool:
    """The rule of the documentation in other words and other arithmetic."""
    if key == "serial":
        return " ".join(value.lower().split()) == " ".join(disk.serial.lower().split())
    if key == "wwn":
        return _plain(value) == _plain(disk.wwn)
    number = value.rstrip("BbiIKkMmGgTtPp ")
    unit = Decimal(UNITS[value[len(number) :].strip()])
    said = Decimal(number)
    shown = (Decimal(disk.size) / unit).quantize(said, rounding=ROUND_HALF_UP)
    return shown == said and abs(disk.size - said * unit) <= said * unit / 100


SIZES = st.one_of(
    st.sampled_from([500_107_862_016, 500_107_862_017, 480_103_981_056, 1_000_204_886_016, 31_457_280_000]),
    st.integers(1, 1 << 45),
)
DISKS = st.lists(
    st.builds(
        _disk,
        st.uuids().map(lambda name: f"/dev/{name.hex[:8]}"),
        SIZES,
        st.sampled_from(SERIALS),
        st.sampled_from(WWNS),
    ),
    max_size=6,
)


@st.composite
def _names(draw: st.DrawFn) -> tuple[str, str, tuple[BlockDeviceInfo, ...]]:
    disks = tuple(draw(DISKS))
    key = draw(st.sampled_from(["serial", "wwn", "size"]))
    if key == "serial":
        return key, draw(st.sampled_from(SERIALS)), disks
    if key == "wwn":
        return key, draw(st.sampled_from([*WWNS, "wwn-0x5000c500a1b2c3d4", "5000c500a1b2c3d4"])), disks
    unit = draw(st.sampled_from(sorted(UNITS)))
    size = draw(st.sampled_from(disks)).size if disks and draw(st.booleans()) else draw(SIZES)
    digits = draw(st.integers(0, 3)) if UNITS[unit] > 1 else 0
    return key, f"{Decimal(size) / UNITS[unit]:.{digits}f}{unit}", disks


@given(_names())
def test_the_disk_that_is_chosen_is_the_only_one_that_is_meant(
    case: tuple[str, str, tuple[BlockDeviceInfo, ...]],
) -> None:
    key, value, disks = case
    try:
        name = parse_name(f"{key}={value}")
    except UsageError:
        empty = not value.strip() or not _plain(value) if key == "wwn" else not value.strip()
        assert empty or (key == "size" and not Decimal(value.rstrip("BbiIKkMmGgTtPp ")))
        return
    assert name is not None
    meant = [disk for disk in disks if _meant(key, value, disk)]
    assert [disk for disk in disks if is_meant(name, disk)] == meant
    if len(meant) == 1:
        assert choose(name, disks) == meant[0]
        return
    with pytest.raises(AmbiguousNameError if meant else NotFoundError) as caught:
        choose(name, disks)
    assert caught.type is (AmbiguousNameError if meant else NotFoundError)
    listed = [note.partition(":")[0] for note in getattr(caught.value, "__notes__", ())]
    assert listed == [disk.path for disk in meant or disks], "what there is is listed"


@given(st.text(max_size=40))
def test_any_text_is_a_name_a_path_or_refused(text: str) -> None:
    for given_text in (text, f"serial={text}", f"wwn={text}", f"size={text}"):
        try:
            name = parse_name(given_text)
        except UsageError:
            continue
        assert name is None or str(name) == given_text


@pytest.mark.parametrize(
    ("text", "size", "meant"),
    [
        ("size=500GB", 500_107_862_016, True),
        ("size=465.8GiB", 500_107_862_016, True),
        ("size=466G", 500_107_862_016, True),
        ("size=1TB", 960_197_124_096, False),
        ("size=1TB", 1_000_204_886_016, True),
        ("size=500107862016", 500_107_862_016, True),
        ("size=500107862015", 500_107_862_016, False),
        ("size=500 GB", 480_103_981_056, False),
    ],
)
def test_sizes_as_they_stand_on_disks(text: str, size: int, meant: bool) -> None:
    name = parse_name(text)
    assert name is not None
    assert is_meant(name, _disk("/dev/sda", size)) is meant


@pytest.mark.parametrize(
    "text", ["serial=", "serial=  ", "wwn=0x", "size=", "size=0", "size=1.5", "size=big"]
)
def test_names_of_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_name(text)


def test_sources_and_targets_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine(tmp_path)
    machine.disk("sda", "8:0", 50 * MIB, {"serial": "SAME"})
    machine.disk("sdb", "8:16", 60 * MIB, {"serial": "SAME"})
    machine.disk("sdc", "8:32", 70 * MIB, {"serial": "S9", "wwid": "naa.5000c500a1b2c3d4"})
    machine.udev("8:16", {"ID_WWN": "0x5000c500ffffffff"})
    for name in ("sda", "sdb", "sdc"):
        write(machine.roots.dev / name, "content")
    dev = machine.roots.dev
    assert named_path("serial=s9", machine.roots) == f"{dev}/sdc"
    assert named_path("wwn=wwn-0x5000c500ffffffff", machine.roots) == f"{dev}/sdb"
    assert named_path("size=60MiB", machine.roots) == f"{dev}/sdb"
    assert named_path("serial.img", machine.roots) == "serial.img"
    with pytest.raises(AmbiguousNameError, match=r"sda, .*sdb"):
        named_path("serial=SAME", machine.roots)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "serial=S9", "a file")
    source = open_source("./serial=S9", roots=machine.roots)
    assert source.pread(0, 6) == b"a file"
    source.close()
    assert open_source("serial=S9", roots=machine.roots).identity.path == f"{dev}/sdc"
    assert target_facts("size=50MiB", roots=machine.roots).path == f"{dev}/sda"
    for ask in (open_source, target_facts):
        with pytest.raises(MountfsError) as caught:
            ask("serial=gone", roots=machine.roots)  # type: ignore[operator]
        assert isinstance(caught.value, NotFoundError)
        assert len(caught.value.__notes__) == 3
