"""Images for Macrium: what is written, read back by a second reader that knows only the description."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import DestinationError, SourceReadError, UsageError
from imageformat.extent import Extent, ExtentKind
from imageformat.formats.mrimgx.layout import plan_disk
from imageformat.formats.mrimgx.writer import LeftOut, SourceDisk, WriteOptions, Written, write_mrimgx
from imageformat.storage.local import LocalStorage
from imageformat.storage.memory import MemoryStorage
from support.content import mixture, noise
from support.disks import BASIC_DATA, Part, make_fat, make_gpt_disk, make_ntfs
from support.macrium_reader import parse, restore
from support.requirements import require_tool

if TYPE_CHECKING:
    from collections.abc import Iterator

KIB, MIB = 1024, 1 << 20


def written(storage: MemoryStorage, result: Written) -> list[bytes]:
    found = []
    for key in result.keys:
        device = storage.open(key)
        found.append(device.pread(0, device.size))
    return found


def write(*disks: bytes, options: WriteOptions | None = None) -> tuple[Written, list[bytes]]:
    storage = MemoryStorage()
    sources = [SourceDisk(MemoryDevice(disk), number=number) for number, disk in enumerate(disks)]
    result = write_mrimgx(storage, "image.mrimgx", sources, options or WriteOptions(iterations=5))
    return result, written(storage, result)


def without(disk: bytes, lost: tuple[LeftOut, ...]) -> bytes:
    """The disk with zeros where the format has no place for what was there."""
    expected = bytearray(disk)
    for place in lost:
        expected[place.offset : place.offset + place.length] = bytes(place.length)
    return bytes(expected)


def gpt_disk(folder: Path, *contents: Path) -> bytes:
    size = 2 * MIB + sum(-(-path.stat().st_size // MIB) * MIB for path in contents)
    parts = [Part(path.stat().st_size, BASIC_DATA, path.stem, path) for path in contents]
    make_gpt_disk(folder / "disk", size, parts)
    return (folder / "disk").read_bytes()


@pytest.fixture(scope="module")
def real_disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GPT disk with FAT12, FAT16, FAT32 and NTFS as their tools make them."""
    require_tool("mkfs.vfat", "mkfs.ntfs", "mcopy")
    folder = tmp_path_factory.mktemp("macrium-writer")
    files = folder / "files"
    files.mkdir()
    (files / "a.txt").write_bytes(noise(1, 100_000))
    make_fat(folder / "fat12", 2 * MIB, "TWELVE", files, bits=12)
    make_fat(folder / "fat16", 9 * MIB, "SIXTEEN", files, bits=16)
    make_fat(folder / "fat32", 40 * MIB, "THIRTYTWO", files, bits=32)
    make_ntfs(folder / "ntfs", 5 * MIB, "NEW", files)
    return gpt_disk(folder, *(folder / name for name in ("fat12", "fat16", "fat32", "ntfs")))


OPTIONS = {
    "plain": WriteOptions(compression="none"),
    "medium": WriteOptions(),
    "high, encrypted": WriteOptions(compression="high", password=b"geheim", iterations=5),
    "split": WriteOptions(split_size=200_000),
    "split, encrypted": WriteOptions(
        compression="none", split_size=1 << 20, password=b"geheim", aes="aes-192", iterations=5
    ),
    "small blocks": WriteOptions(block_size=4096, password=b"geheim", aes="aes-128", iterations=5),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_real_file_systems(real_disk: bytes, name: str) -> None:
    options = OPTIONS[name]
    result, contents = write(real_disk, options=options)
    backup_table = len(real_disk) - 33 * 512
    assert all(place.offset >= backup_table for place in result.left_out), "only the backup GPT is left out"
    assert result.left_out
    (restored,) = restore(contents, options.password)
    assert restored == without(real_disk, result.left_out)
    assert (len(contents) > 1) is bool(options.split_size)


def test_what_is_said_of_file_systems(real_disk: bytes) -> None:
    _, contents = write(real_disk)
    (disk,) = parse(contents[0]).json["disks"]
    assert disk["_header"]["disk_format"] == "gpt"
    systems = [partition["_file_system"] for partition in disk["partitions"]]
    assert [system["type"] for system in systems] == ["FAT12", "FAT16", "FAT32", "NTFS"]
    for system in systems[:3]:
        assert system["lcn0_offset"] - system["start"] == system["reserved_sectors_byte_length"]
        cluster = system["sectors_per_cluster"] * 512
        data = system["end"] + 1 - system["lcn0_offset"]
        assert 0 <= data - system["total_clusters"] * cluster < cluster
    ntfs = systems[3]
    assert ntfs["lcn0_offset"] == ntfs["start"]
    assert real_disk[ntfs["mft_offset"] : ntfs["mft_offset"] + 4] == b"FILE"
    assert ntfs["mft_record_size"] == 1024


def test_the_form_of_real_files(real_disk: bytes) -> None:
    """What the checklist of the description asks, and the JSON as Reflect X prints it."""
    _, contents = write(real_disk, options=WriteOptions(host="PC", created_ns=1_720_608_136 * 10**9))
    file = parse(contents[0])
    printed = json.dumps(file.json, sort_keys=True, indent=4, ensure_ascii=False) + "\n"
    assert file.json_bytes == printed.encode()
    header = file.json["_header"]
    assert header["index_file_position"] % 4096 == 0
    assert (header["delta_index"], header["split_file"], header["file_number"]) == (False, False, 0)
    assert (header["backup_time"], header["netbios_name"]) == (1_720_608_136, "PC")
    assert len(bytes.fromhex(header["imageid"])) == 8
    for blocks in file.lists:
        if blocks[0].name == "$TRACK0":
            assert len(blocks[0].payload) == 63 * 512
            assert blocks[0].flags & 2
        else:
            assert [(block.name, block.flags & 4) for block in blocks] == [("$BITMAP", 0), ("$INDEX", 0)]
            assert blocks[0].payload == b""
            assert blocks[1].flags == 1, "an index is stored plain"
    assert [block.name for block in file.root] == ["$JSON"]
    for partition in file.json["disks"][0]["partitions"]:
        assert partition["_header"]["file_history"] == [{"file_name": "image.mrimgx", "file_number": 0}]


def test_every_image_is_a_set_of_its_own(real_disk: bytes) -> None:
    ids = {parse(write(real_disk)[1][0]).json["_header"]["imageid"] for _ in range(3)}
    assert len(ids) == 3


def boot_record(entries: list[tuple[int, int, int]]) -> bytes:
    table = b"".join(struct.pack("<B3xB3xII", 0, kind, start, size) for kind, start, size in entries)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def test_logical_partitions() -> None:
    disk = bytearray(mixture(3, 4 * MIB))
    disk[:512] = bytes(440) + b"\1\2\3\4\0\0" + boot_record([(0x83, 64, 1000), (0x05, 2048, 4096)])[446:]
    disk[2048 * 512 : 2049 * 512] = boot_record([(0x83, 16, 100), (0x05, 1000, 900)])
    disk[3048 * 512 : 3049 * 512] = boot_record([(0x07, 32, 300)])
    result, contents = write(bytes(disk))
    document = parse(contents[0]).json["disks"][0]
    assert document["_header"]["extended_partition_count"] == 2
    assert document["_header"]["extended_partition_sector_offset"] == 2048
    kinds = [part["_partition_table_entry"]["partition_type"] for part in document["partitions"]]
    assert kinds == ["primary", "logical", "logical"]
    (restored,) = restore(contents)
    assert restored == without(bytes(disk), result.left_out)
    assert result.left_out, "what lies between the partitions has no place"
    for at in (2048, 3048):
        assert restored[at * 512 : (at + 1) * 512] == disk[at * 512 : (at + 1) * 512]


@pytest.mark.parametrize("size", [512, 1000 * 512, 64 * KIB, MIB + 512])
def test_a_disk_without_a_table(size: int) -> None:
    disk = mixture(5, size)
    result, contents = write(disk)
    assert result.left_out == ()
    assert restore(contents) == [disk]


def test_several_disks_in_parts() -> None:
    disks = [noise(7, 300 * KIB), bytes(100 * KIB), mixture(8, 512 * KIB)]
    options = WriteOptions(split_size=100_000, password=b"x", iterations=3)
    result, contents = write(*disks, options=options)
    assert result.keys == tuple(f"image-00-{number:02}.mrimgx" for number in range(len(contents)))
    assert restore(contents, b"x") == disks
    for number, content in enumerate(contents):
        header = parse(content).json["_header"]
        assert (header["file_number"], header["split_file"]) == (number, number < len(contents) - 1)
        assert header["index_file_position"] <= 100_000 + 4096


def test_progress_counts_up_to_the_end(real_disk: bytes) -> None:
    seen: list[tuple[int, int]] = []
    disk = SourceDisk(MemoryDevice(real_disk))
    write_mrimgx(MemoryStorage(), "a", [disk], WriteOptions(), lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


class Sparse(MemoryDevice):
    """Data in one place only; reading elsewhere is an error."""

    def pread(self, offset: int, size: int) -> bytes:
        data = super().pread(offset, size)
        if offset >= 256 * KIB and not (offset >= 512 * KIB and offset + size <= 640 * KIB):
            raise SourceReadError("what is no data is not read")
        return data

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        for start, end, kind in (
            (0, 512 * KIB, ExtentKind.UNUSED),
            (512 * KIB, 600 * KIB, ExtentKind.DATA),
            (600 * KIB, self.size, ExtentKind.ZERO),
        ):
            low, high = max(start, offset), min(end, offset + size)
            if low < high:
                yield Extent(low, high - low, kind)


def test_only_data_is_read() -> None:
    content = bytes(512 * KIB) + noise(1, 88 * KIB) + bytes(MIB)
    storage = MemoryStorage()
    result = write_mrimgx(storage, "a.mrimgx", [SourceDisk(Sparse(content))], WriteOptions())
    assert restore(written(storage, result)) == [content]


class Broken(MemoryDevice):
    def pread(self, offset: int, size: int) -> bytes:
        if offset + size > 256 * KIB:
            raise SourceReadError("cannot be read")
        return super().pread(offset, size)


def test_nothing_is_there_after_a_failure(tmp_path: Path) -> None:
    disk = SourceDisk(Broken(noise(1, MIB)))
    with pytest.raises(SourceReadError):
        write_mrimgx(LocalStorage(tmp_path), "a.mrimgx", [disk], WriteOptions(split_size=50_000))
    assert list(tmp_path.iterdir()) == []


def test_parts_are_taken_back_when_a_later_one_cannot_be_published(tmp_path: Path) -> None:
    stands = tmp_path / "a-00-02.mrimgx"
    stands.write_bytes(b"something of the user's")
    disk = SourceDisk(MemoryDevice(noise(1, MIB)))
    with pytest.raises(DestinationError):
        write_mrimgx(LocalStorage(tmp_path), "a.mrimgx", [disk], WriteOptions(split_size=200_000))
    assert [path.name for path in tmp_path.iterdir()] == [stands.name]
    assert stands.read_bytes() == b"something of the user's"


@pytest.mark.parametrize(
    "wrong", [{"compression": "best"}, {"aes": "des"}, {"block_size": 1000}, {"split_size": -1}]
)
def test_options_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        WriteOptions(**wrong)  # type: ignore[arg-type]


def test_disks_that_make_no_image() -> None:
    disk = SourceDisk(MemoryDevice(bytes(512)))
    for disks in ([], [disk, disk], [SourceDisk(MemoryDevice(b""))]):
        with pytest.raises(UsageError):
            write_mrimgx(MemoryStorage(), "a", disks, WriteOptions())


class Huge(MemoryDevice):
    """A disk of which only the first megabyte is anything."""

    def __init__(self, content: bytes, size: int) -> None:
        super().__init__(content)
        self.size = size

    def pread(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size].ljust(size, b"\0")


@pytest.mark.parametrize(("size", "block"), [(1 << 40, 1 << 16), (1 << 43, 1 << 17), (1 << 48, 1 << 22)])
def test_blocks_grow_with_the_disk(size: int, block: int) -> None:
    """The length of an index is a number of 32 bits."""
    (partition,) = plan_disk(Huge(noise(1, MIB), size), 512, 1 << 16).partitions
    assert partition.block_size == block
    assert partition.block_count * 30 < 1 << 32


def test_a_disk_that_is_too_big() -> None:
    with pytest.raises(UsageError, match="too big"):
        plan_disk(Huge(noise(1, MIB), 1 << 52), 512, 1 << 16)
