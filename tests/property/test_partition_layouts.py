"""Random layouts, written by sfdisk; and tables with random damage, which must never raise or hang."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imageformat.device import MemoryDevice
from imageformat.partitions import PartitionTable, read_table

MIB = 1 << 20
DISK = 24 * MIB
GPT_TYPES = ["EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "0FC63DAF-8483-4772-8E79-3D69D8477DE4"]
NAMES = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x2FF, exclude_characters='"\\\x7f'), max_size=36
)

sizes = st.lists(st.integers(1, 2000), min_size=1, max_size=9)
gpt_layouts = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 2000), st.sampled_from(GPT_TYPES), NAMES), max_size=9
)


@pytest.fixture(autouse=True)
def tools() -> None:
    if shutil.which("sfdisk") is None:
        if os.environ.get("CI"):
            pytest.fail("missing: sfdisk")
        pytest.skip("missing: sfdisk")


def made_by_sfdisk(script: str) -> tuple[bytes, dict]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "disk"
        path.write_bytes(b"")
        os.truncate(path, DISK)
        command = ["sfdisk", "-q", path]
        subprocess.run(command, input=script.encode(), check=True, capture_output=True)
        listing = subprocess.run(["sfdisk", "--json", path], check=True, capture_output=True).stdout
        table = json.loads(listing)["partitiontable"]
        for entry in table.get("partitions", ()):
            entry["number"] = int(entry["node"].removeprefix(str(path)))
        return path.read_bytes(), table


def check(table: PartitionTable, size: int) -> None:
    """What holds for any table of any disk."""
    numbers = [entry.number for entry in table.partitions]
    assert numbers == sorted(set(numbers))
    for entry in table.partitions:
        assert entry.size > 0
        assert 0 <= entry.offset <= size - entry.size
        entry.name.encode()
    assert len(table.warnings) <= 40


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(gpt_layouts)
def test_gpt_layouts(layout: list[tuple[int, int, str, str]]) -> None:
    script, start, number = "label: gpt\n", 2048, 0
    for gap, size, kind, name in layout:
        number += gap + 1
        start += 1000 * gap
        script += f'd{number}: start={start}, size={size}, type={kind}, name="{name}"\n'
        start += size
    disk, expected = made_by_sfdisk(script)
    table = read_table(MemoryDevice(disk))
    assert (table.scheme, table.disk_id, table.warnings) == ("gpt", expected["id"].lower(), ())
    assert [(e.number, e.offset, e.size, e.type_id, e.uuid) for e in table.partitions] == [
        (e["number"], e["start"] * 512, e["size"] * 512, e["type"].lower(), e["uuid"].lower())
        for e in expected.get("partitions", ())
    ]
    assert [entry.name for entry in table.partitions] == [name for *_, name in layout]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, st.integers(1, 4), st.sampled_from(["5", "f", "85"]))
def test_mbr_layouts(sectors: list[int], slot: int, container: str) -> None:
    script, start, primaries = "label: dos\n", 2048, [n for n in (1, 2, 3, 4) if n != slot]
    for number in primaries[: len(sectors) // 2]:
        size = sectors.pop()
        script += f"d{number}: start={start}, size={size}, type=83\n"
        start += size
    script += f"d{slot}: start={start}, size={DISK // 512 - start}, type={container}\n"
    for number, size in enumerate(sectors, 5):
        script += f"d{number}: start={start + 64}, size={size}, type=7\n"
        start += 64 + size
    disk, expected = made_by_sfdisk(script)
    table = read_table(MemoryDevice(disk))
    assert (table.scheme, f"0x{table.disk_id}", table.warnings) == ("mbr", expected["id"], ())
    assert [(e.number, e.offset, e.size, int(e.type_id, 16)) for e in table.partitions] == [
        (e["number"], e["start"] * 512, e["size"] * 512, int(e["type"], 16))
        for e in expected["partitions"]
        if e["type"] != container
    ]


GPT = 'label: gpt\nsize=2M, name="one"\nsize=3M, name="two"\n'
MBR = "label: dos\nd1: size=2M, type=c\nd2: type=f\nd5: size=2M, type=83\nd6: size=2M, type=83\n"


def telling_bytes(disk: bytes) -> list[int]:
    """Offsets of all sectors that hold anything."""
    return [at for at in range(0, len(disk), 512) if disk[at : at + 512].strip(b"\0")]


@pytest.mark.parametrize("script", [GPT, MBR], ids=["gpt", "mbr"])
def test_every_flipped_byte(script: str) -> None:
    disk, _ = made_by_sfdisk(script)
    good = read_table(MemoryDevice(disk))
    device = Patched(disk)
    for sector in telling_bytes(disk):
        for offset in range(sector, sector + 512):
            device.patch(offset, bytes([disk[offset] ^ 0xFF]))
            table = read_table(device)
            check(table, len(disk))
            if good.scheme == "gpt" and offset >= 512:
                proven = [(e.number, e.offset, e.size, e.name) for e in table.partitions]
                assert proven == [(e.number, e.offset, e.size, e.name) for e in good.partitions]
                assert table.warnings or sector_slack(disk, offset)


def sector_slack(disk: bytes, offset: int) -> bool:
    """Whether the byte lies behind the header, in the part of its sector that nothing protects."""
    header = disk[offset - offset % 512 :][:8] == b"EFI PART"
    return header and offset % 512 >= 92


class Patched(MemoryDevice):
    """A disk with a few bytes changed, without copying it each time."""

    def __init__(self, content: bytes) -> None:
        super().__init__(b"")
        self._disk = bytearray(content)
        self._original: tuple[int, bytes] = (0, b"")
        self.size = len(content)

    def patch(self, offset: int, data: bytes) -> None:
        at, old = self._original
        self._disk[at : at + len(old)] = old
        data = data[: self.size - offset]
        self._original = (offset, bytes(self._disk[offset : offset + len(data)]))
        self._disk[offset : offset + len(data)] = data

    def pread(self, offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= self.size
        return bytes(self._disk[offset : offset + size])


@pytest.mark.parametrize("script", [GPT, MBR], ids=["gpt", "mbr"])
def test_random_damage(script: str) -> None:
    disk, _ = made_by_sfdisk(script)
    places = telling_bytes(disk)
    chance = random.Random(7)
    device = Patched(disk)
    for _ in range(3000):
        offset = chance.choice(places) + chance.randrange(512)
        device.patch(offset, chance.randbytes(chance.choice([1, 4, 8, 16, 64, 512])))
        check(read_table(device), len(disk))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(min_size=16, max_size=16), min_size=4, max_size=4), st.integers(512, 200_000))
def test_any_four_entries(entries: list[bytes], size: int) -> None:
    flags = [bytes([entry[0] & 0x80]) + entry[1:] for entry in entries]
    sector = bytes(446) + b"".join(flags) + b"\x55\xaa"
    check(read_table(MemoryDevice(sector + bytes(size - 512))), size)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.sampled_from([5, 0x83])), max_size=32))
def test_any_chain(links: list[tuple[int, int, int]]) -> None:
    disk = bytearray(64 * 512)
    struct.pack_into("<B3xB3xII", disk, 446, 0, 5, 1, 60)
    disk[510:512] = b"\x55\xaa"
    for sector, (data, following, kind) in enumerate(links, 1):
        struct.pack_into("<B3xB3xII", disk, 512 * sector + 446, 0, kind, data, 1)
        struct.pack_into("<B3xB3xII", disk, 512 * sector + 462, 0, 5, following, 1)
        disk[512 * sector + 510 : 512 * sector + 512] = b"\x55\xaa"
    check(read_table(MemoryDevice(bytes(disk))), len(disk))
