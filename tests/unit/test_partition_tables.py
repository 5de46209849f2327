"""Partition tables against sfdisk, sgdisk, fdisk, and disks that other people made."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError, SourceReadError
from imageformat.extent import Extent, ExtentKind
from imageformat.partitions import read_table

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SHARED = Path(os.environ.get("MOUNTFS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
IMAGES = SHARED / "fs-images"
RAW_HEAD = 8 * MIB


def need(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        give_up(f"missing: {', '.join(missing)}")


def give_up(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str | Path, stdin: str = "") -> str:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout


class Padded:
    """A device whose first bytes are known and whose rest is zeros."""

    def __init__(self, head: bytes, size: int) -> None:
        self._head, self.size, self.block_size = head, size, 512

    def pread(self, offset: int, size: int) -> bytes:
        assert offset >= 0
        assert offset + size <= self.size
        return self._head[offset : offset + size].ljust(size, b"\0")

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        yield Extent(offset, size, ExtentKind.DATA)

    def close(self) -> None:
        pass


class Failing(MemoryDevice):
    """Cannot read one sector."""

    def __init__(self, content: bytes, bad: int) -> None:
        super().__init__(content)
        self._bad = bad

    def pread(self, offset: int, size: int) -> bytes:
        if offset <= self._bad < offset + size:
            raise SourceReadError("bad sector")
        return super().pread(offset, size)


def real_cases() -> list[dict]:
    catalogue = IMAGES / "expectations.json"
    if not catalogue.exists():
        return []
    return [case for case in json.loads(catalogue.read_text())["good"] if case["format"] == "raw"]


def head_of(case: dict) -> Padded:
    with lzma.open(IMAGES / case["packed"]["disk.img"]) as stream:
        return Padded(stream.read(RAW_HEAD), case["disk"]["size"])


def test_the_real_images_are_there() -> None:
    if not real_cases():
        give_up("no shared fs-images")


@pytest.mark.parametrize("case", real_cases(), ids=lambda case: case["id"])
def test_a_disk_that_others_made(case: dict) -> None:
    table = read_table(head_of(case))
    schemes = {"dos": "mbr", "gpt": "gpt", "freebsd": "mbr"}
    expected = [
        (entry["number"], entry["start"], entry["length"], entry["name"], entry["uuid"])
        for entry in case.get("partitions", ())
        if entry["scheme"] in schemes and int(entry["type"].replace("-", ""), 16) not in {5, 15}
    ]
    found = [
        (entry.number, entry.offset, entry.size, "" if entry.within else entry.name, entry.uuid)
        for entry in table.partitions
    ]
    assert found == expected
    if expected:
        assert table.scheme == schemes[case["partitions"][0]["scheme"]]
        assert table.disk_id == case["whole"].get("PTUUID", "00000000")
    else:
        assert table.scheme == "none"
    known = {"pt-utillinux-dos+bsd": ["partitions 5 and 6 overlap"]}
    warnings = [warning for warning in table.warnings if "backup" not in warning]
    assert warnings == known.get(case["id"], [])


def gpt_disk(path: Path, *, size: int = 32 * MIB) -> bytes:
    need("sfdisk")
    path.write_bytes(b"")
    os.truncate(path, size)
    script = """label: gpt
label-id: 11111111-2222-3333-4444-555555555555
size=4M, type=U, name="EFI sÿstem", uuid=AAAAAAAA-BBBB-CCCC-DDDD-EEEEEEEEEEEE
size=8M, type=S, attrs=LegacyBIOSBootable
start=50000, size=100, type=DEADBEEF-0000-1111-2222-333333333333, name="odd €"
"""
    run("sfdisk", "-q", path, stdin=script)
    return path.read_bytes()


@pytest.fixture
def gpt(tmp_path: Path) -> bytes:
    return gpt_disk(tmp_path / "gpt.img")


def rewrite_header(disk: bytearray, sector: int, **fields: int) -> None:
    """Change fields of a GPT header and make its checksum right again."""
    places = {"alternate": (32, "<Q"), "own": (24, "<Q"), "array": (72, "<Q"), "count": (80, "<I")}
    places |= {"entry_size": (84, "<I"), "array_crc": (88, "<I"), "length": (12, "<I")}
    for name, value in fields.items():
        offset, layout = places[name]
        struct.pack_into(layout, disk, sector * 512 + offset, value)
    length = min(struct.unpack_from("<I", disk, sector * 512 + 12)[0], 512)
    struct.pack_into("<I", disk, sector * 512 + 16, 0)
    crc = zlib.crc32(disk[sector * 512 : sector * 512 + length])
    struct.pack_into("<I", disk, sector * 512 + 16, crc)


def rewrite_array(disk: bytearray) -> None:
    """Make the primary's and the backup's arrays the same, with good checksums."""
    array = bytes(disk[1024 : 1024 + 128 * 128])
    last = len(disk) // 512 - 1
    disk[(last - 32) * 512 : last * 512] = array
    for sector in (1, last):
        rewrite_header(disk, sector, array_crc=zlib.crc32(array))


def test_gpt_as_sfdisk_wrote_it(gpt: bytes) -> None:
    table = read_table(MemoryDevice(gpt))
    assert (table.scheme, table.sector_size, table.warnings) == ("gpt", 512, ())
    assert table.disk_id == "11111111-2222-3333-4444-555555555555"
    efi, swap, odd = table.partitions
    assert (efi.name, efi.uuid) == ("EFI sÿstem", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee")
    assert (efi.offset, efi.size, efi.type_name, efi.bootable) == (MIB, 4 * MIB, "EFI System", False)
    assert (swap.type_name, swap.bootable) == ("Linux swap", True)
    assert (odd.offset, odd.size, odd.name) == (50000 * 512, 100 * 512, "odd €")
    assert odd.type_name == odd.type_id == "deadbeef-0000-1111-2222-333333333333"


@pytest.mark.parametrize("where", [512, 600, 1024, 1030])
def test_a_damaged_primary_gives_way_to_the_backup(gpt: bytes, where: int) -> None:
    good = read_table(MemoryDevice(gpt))
    disk = bytearray(gpt)
    disk[where] ^= 0xFF
    if where == 600:
        disk[512:1024] = bytes(512)
    table = read_table(MemoryDevice(bytes(disk)))
    assert table.partitions == good.partitions
    assert table.warnings == ("the primary GPT is damaged, the backup was used",)


def test_an_unreadable_primary_gives_way_to_the_backup(gpt: bytes) -> None:
    good = read_table(MemoryDevice(gpt))
    for bad in (512, 1024, 0):
        table = read_table(Failing(gpt, bad))
        assert table.partitions == good.partitions
        assert table.warnings


def test_a_wiped_start_gives_way_to_the_backup(gpt: bytes) -> None:
    good = read_table(MemoryDevice(gpt))
    table = read_table(MemoryDevice(bytes(MIB) + gpt[MIB:]))
    assert table.partitions == good.partitions
    assert "the disk has no protective MBR" in table.warnings


def test_a_file_system_made_over_a_gpt_is_no_gpt(tmp_path: Path) -> None:
    need("mkfs.fat", "mke2fs")
    for command in (["mkfs.fat"], ["mke2fs", "-q", "-F"]):
        path = tmp_path / "disk.img"
        gpt_disk(path)
        run(*command, path)
        assert read_table(MemoryDevice(path.read_bytes())).scheme == "none"


def test_a_backup_left_behind_a_bare_file_system_is_no_gpt(gpt: bytes, tmp_path: Path) -> None:
    need("mke2fs")
    path = tmp_path / "ext2.img"
    path.write_bytes(bytes(len(gpt)))
    run("mke2fs", "-q", "-F", path)
    assert read_table(MemoryDevice(path.read_bytes()[: -33 * 512] + gpt[-33 * 512 :])).scheme == "none"


def test_a_header_that_belongs_elsewhere_is_no_backup(gpt: bytes) -> None:
    table = read_table(MemoryDevice(gpt[:-512] + gpt[512:1024]))
    assert (len(table.partitions), table.warnings) == (3, ("the backup GPT is damaged or missing",))


def test_a_disk_partitioned_anew_is_no_gpt(gpt: bytes, tmp_path: Path) -> None:
    mbr = tmp_path / "mbr.img"
    mbr.write_bytes(bytes(32 * MIB))
    run("sfdisk", "-q", mbr, stdin="label: dos\nsize=4M, type=83\n")
    table = read_table(MemoryDevice(mbr.read_bytes()[:512] + gpt[512:]))
    assert (table.scheme, len(table.partitions)) == ("mbr", 1)


def test_a_damaged_backup_is_a_warning(gpt: bytes) -> None:
    for where in (-512, -500, -512 * 33):
        disk = bytearray(gpt)
        disk[where] ^= 0xFF
        table = read_table(MemoryDevice(bytes(disk)))
        assert len(table.partitions) == 3
        assert table.warnings == ("the backup GPT is damaged or missing",)


def test_a_grown_disk(gpt: bytes) -> None:
    table = read_table(MemoryDevice(gpt + bytes(MIB)))
    assert len(table.partitions) == 3
    assert "bigger" in table.warnings[0]
    damaged = gpt[:512] + gpt[512:520] + b"\xff" + gpt[521:] + bytes(MIB)
    table = read_table(MemoryDevice(damaged))
    assert len(table.partitions) == 3
    assert "the backup was used" in table.warnings[0]


def test_a_cut_disk(gpt: bytes) -> None:
    table = read_table(MemoryDevice(gpt[: 10 * MIB]))
    assert [entry.number for entry in table.partitions] == [1, 2]
    assert table.partitions[1].offset + table.partitions[1].size == 10 * MIB
    assert any("smaller" in warning for warning in table.warnings)
    assert any("partition 2 reaches" in warning for warning in table.warnings)
    assert any("partition 3 lies behind" in warning for warning in table.warnings)


def test_both_headers_lost(gpt: bytes) -> None:
    disk = bytearray(gpt)
    disk[512] ^= 1
    disk[-512] ^= 1
    table = read_table(MemoryDevice(bytes(disk)))
    assert (table.scheme, table.partitions, len(table.warnings)) == ("gpt", (), 1)


def test_both_lists_damaged_are_shown_with_a_warning(gpt: bytes) -> None:
    disk = bytearray(gpt)
    disk[1024 + 130] ^= 1
    disk[-512 * 33 + 130] ^= 1
    table = read_table(MemoryDevice(bytes(disk)))
    assert len(table.partitions) == 3
    assert any("does not match its checksum" in warning for warning in table.warnings)


def test_a_foreign_backup_is_not_used(gpt: bytes, tmp_path: Path) -> None:
    disk = bytearray(gpt)
    disk[-512 + 56] ^= 1
    rewrite_header(disk, len(disk) // 512 - 1)
    assert "the backup GPT differs from the primary" in read_table(MemoryDevice(bytes(disk))).warnings
    disk[1024 + 130] ^= 1
    table = read_table(MemoryDevice(bytes(disk)))
    assert any("does not match its checksum" in warning for warning in table.warnings)


def test_hostile_counts(gpt: bytes) -> None:
    for fields in ({"count": 0xFFFFFFFF}, {"count": 1025}, {"array": 2**63}, {"array": 65534}):
        disk = bytearray(gpt)
        last = len(disk) // 512 - 1
        rewrite_header(disk, 1, **fields)
        rewrite_header(disk, last, **fields)
        table = read_table(MemoryDevice(bytes(disk)))
        assert table.scheme == "gpt"
        assert table.warnings
        assert len(table.partitions) <= 1024
    for entry_size in (0, 127, 192, 8192, 2**31):
        disk = bytearray(gpt)
        rewrite_header(disk, 1, entry_size=entry_size)
        table = read_table(MemoryDevice(bytes(disk)))
        assert table.warnings[0] == "the primary GPT is damaged, the backup was used"


def test_hostile_entries(gpt: bytes) -> None:
    disk = bytearray(gpt)
    first = 1024
    struct.pack_into("<QQ", disk, first + 32, 3000, 2999)  # ends before it starts
    struct.pack_into("<QQ", disk, first + 128 + 32, 4096, 2**64 - 1)
    disk[first + 128 + 56 : first + 256] = b"\x00\xd8" * 36  # unpaired surrogates
    struct.pack_into("<QQ", disk, first + 256 + 32, 5000, 6000)
    rewrite_array(disk)
    table = read_table(MemoryDevice(bytes(disk)))
    assert [entry.number for entry in table.partitions] == [2, 3]
    assert table.partitions[0].size == len(gpt) - 4096 * 512
    table.partitions[0].name.encode()
    text = " ".join(table.warnings)
    assert "partition 1 ends before" in text
    assert "partition 2 reaches" in text
    assert "partitions 2 and 3 overlap" in text


def test_warnings_are_bounded(gpt: bytes) -> None:
    disk = bytearray(gpt)
    for index in range(128):
        struct.pack_into("<16s16sQQ", disk, 1024 + 128 * index, b"x" * 16, b"y" * 16, 2**40, 2**41)
    rewrite_array(disk)
    table = read_table(MemoryDevice(bytes(disk)))
    assert len(table.warnings) == 33
    assert table.warnings[-1] == "and 96 more problems with the partition table"


@pytest.mark.parametrize("count", [1, 4, 56, 200])
def test_sgdisk_makes_tables_of_other_sizes(tmp_path: Path, count: int) -> None:
    need("sgdisk")
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(32 * MIB))
    new = [option for number in range(1, count + 1) for option in ("-n", f"{number}:0:+64K")]
    run("sgdisk", "-S", str(max(count, 4)), "-a", "1", *new, path)
    table = read_table(MemoryDevice(path.read_bytes()))
    listed = [line.split() for line in run("sgdisk", "-p", path).splitlines() if line[:4].strip().isdigit()]
    assert [(int(n), int(s) * 512, (int(e) - int(s) + 1) * 512) for n, s, e, *_ in listed] == [
        (entry.number, entry.offset, entry.size) for entry in table.partitions
    ]
    assert (len(table.partitions), table.warnings) == (count, ())


def test_a_hybrid_mbr(tmp_path: Path) -> None:
    need("sgdisk")
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(16 * MIB))
    run("sgdisk", "-n", "1:0:+4M", "-n", "2:0:+4M", "-h", "2", path)
    disk = path.read_bytes()
    table = read_table(MemoryDevice(disk))
    assert (table.scheme, len(table.partitions)) == ("gpt", 2)
    assert any("hybrid" in warning for warning in table.warnings)
    broken = read_table(MemoryDevice(disk[:512] + bytes(33 * 512) + disk[34 * 512 : -512] + bytes(512)))
    assert (broken.scheme, len(broken.partitions)) == ("mbr", 1)
    assert any("GPT that cannot be read" in warning for warning in broken.warnings)


def mbr_disk(path: Path, script: str, size: int = 32 * MIB) -> bytes:
    need("sfdisk")
    path.write_bytes(b"")
    os.truncate(path, size)
    run("sfdisk", "-q", path, stdin="label: dos\nlabel-id: 0x1234abcd\n" + script)
    return path.read_bytes()


LOGICAL = """d1: size=4M, type=c, bootable
d2: size=20M, type=f
d5: size=2M, type=83
d6: size=3M, type=82
d7: size=1M, type=7
"""


def test_mbr_with_logical_partitions(tmp_path: Path) -> None:
    table = read_table(MemoryDevice(mbr_disk(tmp_path / "mbr.img", LOGICAL)))
    assert (table.scheme, table.disk_id, table.warnings) == ("mbr", "1234abcd", ())
    assert [(entry.number, entry.type_id, entry.uuid, entry.bootable) for entry in table.partitions] == [
        (1, "0c", "1234abcd-01", True),
        (5, "83", "1234abcd-05", False),
        (6, "82", "1234abcd-06", False),
        (7, "07", "1234abcd-07", False),
    ]


def test_a_chain_that_runs_in_a_circle(tmp_path: Path) -> None:
    disk = bytearray(mbr_disk(tmp_path / "mbr.img", LOGICAL))
    container = struct.unpack_from("<I", disk, 446 + 16 + 8)[0]
    second = container + struct.unpack_from("<I", disk, container * 512 + 446 + 16 + 8)[0]
    struct.pack_into("<I", disk, second * 512 + 446 + 16 + 8, 0)
    table = read_table(MemoryDevice(bytes(disk)))
    assert [entry.number for entry in table.partitions] == [1, 5, 6]
    assert table.warnings == ("the chain of logical partitions runs in a circle",)


def test_odd_entries_of_a_chain_count_only_inside_their_container(tmp_path: Path) -> None:
    disk = bytearray(mbr_disk(tmp_path / "mbr.img", LOGICAL))
    record = struct.unpack_from("<I", disk, 446 + 16 + 8)[0] * 512
    for start, expected in ((100, [1, 5, 6, 7, 8]), (50_000, [1, 5, 6, 7])):
        struct.pack_into("<B3xB3xII", disk, record + 446 + 32, 0, 0x83, start, 10)
        table = read_table(MemoryDevice(bytes(disk)))
        assert [entry.number for entry in table.partitions] == expected


def test_a_chain_that_is_too_long() -> None:
    disk = bytearray(1024 * 512)
    struct.pack_into("<B3xB3xII", disk, 446, 0, 5, 1, 1000)
    disk[510:512] = b"\x55\xaa"
    for sector in range(1, 1000):
        struct.pack_into("<B3xB3xII", disk, sector * 512 + 446, 0, 0x83, 1, 1)
        struct.pack_into("<B3xB3xII", disk, sector * 512 + 462, 0, 5, sector, 1)
        disk[sector * 512 + 510 : sector * 512 + 512] = b"\x55\xaa"
    table = read_table(MemoryDevice(bytes(disk)))
    assert len(table.partitions) == 256
    assert any("longer than 256" in warning for warning in table.warnings)


def test_a_chain_that_cannot_be_followed(tmp_path: Path) -> None:
    disk = mbr_disk(tmp_path / "mbr.img", LOGICAL)
    container = struct.unpack_from("<I", disk, 446 + 16 + 8)[0] * 512
    for broken in (
        Failing(disk, container),
        MemoryDevice(disk[: container + 510] + b"\0\0" + disk[container + 512 :]),
        MemoryDevice(disk[:container]),
    ):
        table = read_table(broken)
        assert [entry.number for entry in table.partitions] == [1]
        assert len(table.warnings) == 1


def test_an_unreadable_first_sector_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MountfsError):
        read_table(Failing(mbr_disk(tmp_path / "mbr.img", LOGICAL), 0))


@pytest.mark.parametrize(
    "command",
    [
        ["mkfs.fat", "-F", "12", "-C"],
        ["mkfs.fat", "-F", "16", "-C"],
        ["mkfs.fat", "-F", "32", "-C"],
        ["mkfs.fat", "--mbr=y", "-F", "32", "-C"],
        ["mkntfs", "-q", "-F"],
        ["mkfs.exfat"],
        ["mkfs.xfs", "-q"],
    ],
    ids="-".join,
)
def test_a_bare_file_system_has_no_table(tmp_path: Path, command: list[str]) -> None:
    need(command[0])
    path = tmp_path / "fs.img"
    sizes = {"12": 4096, "16": 16384, "32": 40960}
    if "-C" in command:
        run(*command, path, str(sizes[command[command.index("-F") + 1]]))
    else:
        path.write_bytes(b"")
        os.truncate(path, 320 * MIB if "xfs" in command[0] else 16 * MIB)
        run(*command, path)
    with path.open("rb") as stream:
        head = Padded(stream.read(RAW_HEAD), path.stat().st_size)
    assert read_table(head).scheme == "none"


def test_tiny_and_empty_disks() -> None:
    for size in (0, 1, 511, 512, 1023, 1024, 4096, 100_000):
        assert read_table(MemoryDevice(bytes(size))).scheme == "none"


def fdisk_4096(path: Path, answers: str) -> list[tuple[int, int, int]]:
    """Partition with 4096-byte sectors; return number, offset and size as fdisk lists them."""
    need("fdisk")
    path.write_bytes(b"")
    os.truncate(path, 256 * MIB)
    run("fdisk", "-w", "always", "-b", "4096", path, stdin=answers)
    listing = run("fdisk", "-b", "4096", "-l", "-o", "Device,Start,Sectors,Type", path)
    rows = [line.split(None, 3) for line in listing.splitlines() if line.startswith(str(path))]
    return [
        (int(device.removeprefix(str(path))), int(start) * 4096, int(sectors) * 4096)
        for device, start, sectors, kind in rows
        if kind != "Extended"
    ]


@pytest.mark.parametrize("known", [None, 4096])
def test_4096_byte_sectors(tmp_path: Path, known: int | None) -> None:
    path = tmp_path / "4k.img"
    gpt = fdisk_4096(path, "g\nn\n1\n\n+20M\nn\n7\n\n+30M\nw\n")
    table = read_table(MemoryDevice(path.read_bytes()), known)
    assert (table.scheme, table.sector_size, table.warnings) == ("gpt", 4096, ())
    assert [(entry.number, entry.offset, entry.size) for entry in table.partitions] == gpt

    mbr = fdisk_4096(path, "o\nn\np\n1\n\n+20M\nn\ne\n2\n\n\nn\n\n+20M\nn\n\n+8M\nw\n")
    table = read_table(MemoryDevice(path.read_bytes()), known)
    assert (table.scheme, table.sector_size, table.warnings) == ("mbr", 4096, ())
    assert [(entry.number, entry.offset, entry.size) for entry in table.partitions] == mbr
