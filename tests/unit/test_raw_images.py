"""Raw disks, whole and in parts: what is opened when named, what is refused, and what never wins."""

from __future__ import annotations

import itertools
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from imageformat.cache import BlockCache
from imageformat.device import MemoryDevice
from imageformat.errors import (
    AccessDeniedError,
    IncompleteImageError,
    MountfsError,
    NotAnImageError,
    StorageError,
    UnsupportedFeatureError,
)
from imageformat.extent import Extent, ExtentKind
from imageformat.formats import format_of, image_formats, listed_suffixes
from imageformat.formats._sectors import sector_size_of
from imageformat.layer import Opening
from imageformat.secrets import NO_SECRETS
from imageformat.siblings import Siblings
from imageformat.storage.local import LocalStorage
from imageformat.storage.memory import MemoryStorage
from support.content import noise
from support.judge import hold_against, opened
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1 << 10
SIZE = 1000 * KIB + 300


@pytest.mark.parametrize("suffix", ["raw", "img", "dd", "bin", "iso", "dsk", "image", "IMG", "Iso"])
@pytest.mark.parametrize("size", [1, 511, 512, SIZE])
def test_whole(tmp_path: Path, suffix: str, size: int) -> None:
    path = tmp_path / f"disk.{suffix}"
    path.write_bytes(noise(1, size))
    with opened(path) as layer:
        assert layer.info.format == "raw"
        assert layer.info.created_ns == path.stat().st_mtime_ns
        hold_against(layer, noise(1, size))


def test_only_what_is_named(tmp_path: Path) -> None:
    assert not set(listed_suffixes()) & {".raw", ".img", ".001"}
    path = tmp_path / "notes"
    path.write_bytes(noise(1, SIZE))
    with pytest.raises(NotAnImageError), opened(path):
        pass


def test_nothing_is_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.touch()
    with pytest.raises(NotAnImageError, match="0 bytes"), opened(path):
        pass


MARKS = {
    "mbr": (510, b"\x55\xaa"),
    "gpt-4096": (4096, b"EFI PART"),
    "ext": (0x438, b"\x53\xef"),
    "xfs": (0, b"XFSB"),
    "btrfs": (0x10040, b"_BHRfS_M"),
    "iso": (0x8001, b"CD001"),
    "ntfs": (3, b"NTFS    "),
    "luks": (0, b"LUKS\xba\xbe"),
}


@pytest.mark.parametrize("mark", MARKS)
def test_a_disk_is_known_by_what_it_holds(tmp_path: Path, mark: str) -> None:
    offset, sign = MARKS[mark]
    path = tmp_path / "no suffix"
    content = bytes(offset) + sign + noise(1, SIZE)
    path.write_bytes(content)
    with opened(path) as layer:
        assert layer.info.format == "raw"
        hold_against(layer, content)


def test_it_is_never_taken_before_another_format() -> None:
    """A file that looks like a disk, but whose name or content is another format's."""
    looks = bytes(510) + b"\x55\xaa" + bytes(1 << 17)
    for record in image_formats():
        if record.vague:
            continue
        for suffix in record.suffixes:
            assert named(f"disk{suffix}", looks) == record.name
    assert named("disk", looks) == "raw"
    qcow2 = bytearray(looks)
    qcow2[:8] = b"QFI\xfb\0\0\0\3"
    assert named("disk.raw", bytes(qcow2)) == "qcow2"


def named(name: str, content: bytes) -> str:
    siblings = Siblings(MemoryStorage(), name)
    return format_of(Opening(MemoryDevice(content), name, BlockCache(0), siblings, NO_SECRETS)).name


def test_probing_takes_any_content() -> None:
    for record in image_formats():
        for size in (0, 1, 3, 4, 7, 8, 67, 68, 511, 512, 513, 4095, 70_000):
            for content in (bytes(size), noise(size, size), b"\xff" * size):
                record.probe(MemoryDevice(content))


def test_sectors_of_4096_are_told_by_the_gpt() -> None:
    plain, large = bytearray(1 << 16), bytearray(1 << 16)
    plain[512:520] = b"EFI PART"
    large[4096:4104] = b"EFI PART"
    assert sector_size_of(MemoryDevice(bytes(plain))) == 512
    assert sector_size_of(MemoryDevice(bytes(large))) == 4096
    for size in (0, 1, 512, 519, 4097):
        assert sector_size_of(MemoryDevice(bytes(large[:size]))) == 512


def cut(folder: Path, names: list[str], part: int = 300 * KIB) -> bytes:
    disk = noise(2, SIZE)
    for number, name in enumerate(names):
        (folder / name).write_bytes(disk[number * part : (number + 1) * part])
    return disk


@pytest.mark.parametrize(
    "names",
    [
        ["d.001", "d.002", "d.003", "d.004"],
        ["d.000", "d.001", "d.002", "d.003"],
        ["d.00", "d.01", "d.02", "d.03"],
        ["D.IMG.001", "D.IMG.002", "D.IMG.003", "D.IMG.004"],
        ["d.0001", "d.0002", "d.0003", "d.0004"],
        ["d.aa", "d.ab", "d.ac", "d.ad"],
        ["d.AAA", "d.AAB", "d.AAC", "d.AAD"],
    ],
    ids=lambda names: names[0],
)
def test_parts(tmp_path: Path, names: list[str]) -> None:
    disk = cut(tmp_path, names)
    for other in ("d.txt", "d.0", "d.1x", "e.002", "d", "d.01.001", "zz"):
        (tmp_path / other).write_bytes(b"not a part")
    with opened(tmp_path / names[0]) as layer:
        assert layer.info.details["parts"] == 4
        hold_against(layer, disk)
    for missing in names[:-1]:
        kept = (tmp_path / missing).read_bytes()
        (tmp_path / missing).unlink()
        first = names[0] if missing != names[0] else names[1]
        if missing != names[0] or first.endswith(".002"):
            with pytest.raises(IncompleteImageError, match=missing.lower()), opened(tmp_path / first):
                pass
        (tmp_path / missing).write_bytes(kept)
    (tmp_path / names[1]).write_bytes(b"short")
    with pytest.raises(IncompleteImageError, match=names[1]), opened(tmp_path / names[0]):
        pass


def test_any_part_of_three_digits_names_the_disk(tmp_path: Path) -> None:
    disk = cut(tmp_path, ["d.001", "d.002", "d.003", "d.004"])
    with opened(tmp_path / "d.003") as layer:
        hold_against(layer, disk)


def test_more_than_999_parts(tmp_path: Path) -> None:
    disk = noise(3, 1005 * 16)
    for number in range(1005):
        (tmp_path / f"d.{number + 1:03}").write_bytes(disk[number * 16 : (number + 1) * 16])
    with opened(tmp_path / "d.001") as layer:
        assert layer.info.details["parts"] == 1005
        hold_against(layer, disk, reads=10)


@pytest.mark.parametrize("digits", [True, False])
def test_what_split_writes(tmp_path: Path, digits: bool) -> None:
    require_tool("split")
    disk = noise(4, SIZE)
    (tmp_path / "disk").write_bytes(disk)
    run("split", "-b", "300K", *(["-d"] if digits else []), tmp_path / "disk", tmp_path / "disk.")
    with opened(tmp_path / ("disk.00" if digits else "disk.aa")) as layer:
        hold_against(layer, disk)


@pytest.mark.parametrize("digits", [True, False])
def test_split_that_ran_out_of_suffixes_is_refused(tmp_path: Path, digits: bool) -> None:
    require_tool("split")
    (tmp_path / "disk").write_bytes(noise(4, 700))
    run("split", "-b", "1", *(["-d"] if digits else []), tmp_path / "disk", tmp_path / "disk.")
    with pytest.raises(UnsupportedFeatureError), opened(tmp_path / ("disk.00" if digits else "disk.aa")):
        pass


def test_a_part_that_is_a_link_to_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(noise(1, KIB))
    (tmp_path / "in" / "d.001").write_bytes(noise(1, KIB))
    (tmp_path / "in" / "d.002").symlink_to(tmp_path / "secret")
    with pytest.raises(AccessDeniedError), opened(tmp_path / "in" / "d.001"):
        pass


def test_two_states_of_one_disk_are_not_mixed_in_a_cache(tmp_path: Path) -> None:
    content = bytearray(noise(1, SIZE))
    for name in ("monday.raw", "tuesday.raw"):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, ns=(5, 5))
        content[SIZE // 2] ^= 1
    with opened(tmp_path / "monday.raw") as one, opened(tmp_path / "tuesday.raw") as other:
        assert one.cache_key != other.cache_key


def sparse(path: Path, runs: list[tuple[int, int]], size: int) -> bytes:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in runs:
            file.seek(offset)
            file.write(noise(offset, length))
    return path.read_bytes()


def test_holes_of_a_file_are_zeros(tmp_path: Path) -> None:
    runs = [(1 << 20, 64 * KIB), (3 << 20, 4 * KIB)]
    disk = sparse(tmp_path / "disk.raw", runs, 8 << 20)
    with closing(LocalStorage(tmp_path).open("disk.raw")) as file:
        found = list(file.extents(0, 8 << 20))
    if found == [Extent(0, 8 << 20, ExtentKind.DATA)]:
        pytest.skip("this file system knows no holes")
    with opened(tmp_path / "disk.raw") as layer:
        hold_against(layer, disk)
        extents = list(layer.device(0).extents(0, 8 << 20))  # type: ignore[attr-defined]
    assert [(entry.offset, entry.length) for entry in extents if entry.kind is ExtentKind.DATA] == runs


def test_many_holes_from_many_threads(tmp_path: Path) -> None:
    runs = [(offset, 4096) for offset in range(0, 16 << 20, 16 * KIB)]
    disk = sparse(tmp_path / "disk.raw", runs, 16 << 20)
    storage = LocalStorage(tmp_path, max_open=1)
    files = [storage.open("disk.raw") for _ in range(2)]

    def ask(number: int) -> list[Extent]:
        return list(files[number % 2].extents(0, len(disk)))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(12)))
    for answer in answers:
        assert answer == answers[0]
        assert sum(entry.length for entry in answer) == len(disk)
        assert all(one.end == two.offset for one, two in itertools.pairwise(answer))
    for file in files:
        file.close()


def test_a_file_that_was_cut_while_open_has_no_holes_there(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(noise(1, 1 << 20))
    with closing(LocalStorage(tmp_path).open("disk.raw")) as file:
        os.truncate(path, 4096)
        with pytest.raises(StorageError, match="cut"):
            list(file.extents(0, 1 << 20))


def test_hostile_names_of_parts(tmp_path: Path) -> None:
    """Numbers as large as names can be, and digits that are none in ASCII."""
    (tmp_path / "d.001").write_bytes(noise(1, KIB))
    for suffix in ("9" * 200, "٠٠٢", "²²²", "\udcff02"):
        (tmp_path / f"d.{suffix}").write_bytes(b"x")
    with opened(tmp_path / "d.001") as layer:
        hold_against(layer, noise(1, KIB))
    (tmp_path / "d.99999").write_bytes(b"x")
    with pytest.raises(MountfsError, match=r"d\.002"), opened(tmp_path / "d.001"):
        pass


def test_a_partition_table_is_read_through(tmp_path: Path) -> None:
    table = bytearray(1 << 20)
    struct.pack_into("<B3sB3sII", table, 446, 0, b"\0\2\0", 0x83, b"\0\0\0", 128, 512)
    table[510:512] = b"\x55\xaa"
    path = tmp_path / "disk"
    path.write_bytes(table)
    with opened(path) as layer:
        hold_against(layer, bytes(table))
