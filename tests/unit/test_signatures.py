"""What `identify` says, against blkid: on volumes of real mkfs, on crafted superblocks, on others' images."""

from __future__ import annotations

import json
import lzma
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imageformat.device import MemoryDevice, Slice
from imageformat.errors import MountfsError, SourceReadError
from imageformat.extent import Extent, ExtentKind
from mountfs.signatures import identify

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SHARED = Path(os.environ.get("MOUNTFS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
IMAGES = SHARED / "fs-images"
HEAD = 20 * MIB
UUID = "12345678-9abc-4def-8123-456789abcdef"
RAW_UUID = bytes.fromhex(UUID.replace("-", ""))
OUR_TYPES = {
    "hfsplus": "hfs+",
    "LVM2_member": "lvm2",
    "BitLocker": "bitlocker",
    "linux_raid_member": "mdraid",
    "zfs_member": "zfs",
    "swsuspend": "swap",
    "ReFS": "refs",
    "VMFS": "vmfs",
    "VMFS_volume_member": "vmfs-member",
    "DM_verity_hash": "verity",
    "ubi": "ubi",
}


def give_up(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class FileDevice:
    """A file, read directly."""

    def __init__(self, path: Path, size: int | None = None) -> None:
        self._stream = path.open("rb")
        self._stored = path.stat().st_size
        self.size, self.block_size = size or self._stored, 512

    def pread(self, offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= self.size
        return os.pread(self._stream.fileno(), size, offset).ljust(size, b"\0")

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        yield Extent(offset, size, ExtentKind.DATA)

    def close(self) -> None:
        self._stream.close()


def normal(found: dict[str, str]) -> tuple[str, str, str] | None:
    """Say what blkid said, in our names."""
    if "TYPE" not in found:
        return None
    kind = OUR_TYPES.get(found["TYPE"], found["TYPE"])
    if kind == "vfat":
        kind = found["VERSION"].lower()
    if kind == "crypto_LUKS":
        kind = f"luks{found['VERSION']}"
    return kind, found.get("LABEL", ""), found.get("UUID", "")


def blkid(path: Path) -> tuple[str, str, str] | None:
    if shutil.which("blkid") is None:
        give_up("missing: blkid")
    found = {}
    for name in ("TYPE", "VERSION", "LABEL", "UUID"):
        command = ["blkid", "-p", "-o", "value", "-s", name, path]
        output = subprocess.run(command, capture_output=True, check=False).stdout
        if output:
            found[name] = output.decode("utf-8", "replace").removesuffix("\n")
    return normal(found)


def ours(path: Path) -> tuple[str, str, str] | None:
    device = FileDevice(path)
    try:
        info = identify(device)
    finally:
        device.close()
    return (info.type, info.label, info.uuid) if info is not None else None


def made(path: Path, command: list[str], size: int) -> Path:
    if shutil.which(command[0]) is None:
        give_up(f"missing: {command[0]}")
    path.write_bytes(b"")
    os.truncate(path, size)
    subprocess.run([*command, path], check=True, capture_output=True)
    return path


def crafted(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    content = bytearray(size)
    for offset, data in pieces:
        content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


E2 = ["-q", "-F", "-U", UUID]
REAL = {
    "ext2": (["mkfs.ext2", *E2, "-L", "two"], 4 * MIB),
    "ext2-old": (["mkfs.ext2", *E2, "-r", "0"], 4 * MIB),
    "ext3": (["mkfs.ext3", *E2, "-L", "trois é"], 8 * MIB),
    "ext4": (["mkfs.ext4", *E2, "-L", "sixteen-letters!"], 8 * MIB),
    "ext4-1k-nojournal": (["mkfs.ext4", *E2, "-O", "^has_journal", "-b", "1024"], 4 * MIB),
    "ext4-32bit": (["mkfs.ext4", *E2, "-O", "^64bit,^metadata_csum", "-b", "4096"], 8 * MIB),
    "ext3-extent": (["mkfs.ext3", *E2, "-O", "extent"], 8 * MIB),
    "jbd": (["mke2fs", "-q", "-F", "-O", "journal_dev", "-L", "log", "-U", UUID], 8 * MIB),
    "xfs": (["mkfs.xfs", "-q", "-L", "twelve-chars", "-m", f"uuid={UUID}"], 320 * MIB),
    "xfs-v4": (["mkfs.xfs", "-q", "-m", "crc=0", "-L", "v4"], 320 * MIB),
    "btrfs": (["mkfs.btrfs", "-q", "-L", "Büttér", "-U", UUID], 128 * MIB),
    "ntfs": (["mkntfs", "-q", "-F", "-L", "Dåta и more"], 8 * MIB),
    "ntfs-64k": (["mkntfs", "-q", "-F", "-c", "65536", "-L", "big"], 32 * MIB),
    "ntfs-4k-sectors": (["mkntfs", "-q", "-F", "-s", "4096", "-L", "4k"], 32 * MIB),
    "ntfs-unnamed": (["mkntfs", "-q", "-F"], 8 * MIB),
    "fat12": (["mkfs.fat", "-F", "12", "-n", "FLOPPY", "-i", "1234ABCD"], 1440 * 1024),
    "fat16": (["mkfs.fat", "-F", "16", "-n", "SIXTEEN", "-i", "00000001"], 16 * MIB),
    "fat32": (["mkfs.fat", "-F", "32", "-n", "A B", "-i", "FFFFFFFF"], 64 * MIB),
    "fat32-unnamed": (["mkfs.fat", "-F", "32"], 64 * MIB),
    "fat32-4k": (["mkfs.fat", "-F", "32", "-S", "4096", "-n", "FOURK"], 320 * MIB),
    "fat16-mbr": (["mkfs.fat", "-F", "16", "--mbr=y", "-n", "STICK"], 16 * MIB),
    "exfat": (["mkfs.exfat", "-L", "Ünï cøde"], 16 * MIB),
    "exfat-unnamed": (["mkfs.exfat"], 16 * MIB),
    "swap": (["mkswap", "-L", "swappy", "-U", UUID], 1 * MIB),
    "swap-64k": (["mkswap", "-p", "65536", "-U", UUID], 4 * MIB),
    "cramfs-none": (["true"], 1 * MIB),
    "minix-1": (["mkfs.minix", "-1"], 4 * MIB),
    "minix-1-short": (["mkfs.minix", "-1", "-n", "14"], 4 * MIB),
    "minix-2": (["mkfs.minix", "-2"], 4 * MIB),
    "minix-3": (["mkfs.minix", "-3"], 4 * MIB),
    "bfs": (["mkfs.bfs"], 4 * MIB),
    "f2fs": (["mkfs.f2fs", "-f", "-l", "flash é"], 64 * MIB),
    "jfs": (["mkfs.jfs", "-q", "-L", "journaled"], 32 * MIB),
    "nilfs2": (["mkfs.nilfs2", "-f", "-q", "-L", "snapshots"], 160 * MIB),
    "reiserfs": (["mkreiserfs", "-q", "-ff", "-l", "reiser"], 64 * MIB),
    "bcache": (["make-bcache", "-B"], 32 * MIB),
}


@pytest.mark.parametrize("name", REAL)
def test_a_volume_of_mkfs(name: str, tmp_path: Path) -> None:
    command, size = REAL[name]
    path = made(tmp_path / "volume", command, size)
    expected = blkid(path)
    assert ours(path) == expected
    if command != ["true"]:
        assert expected is not None


SUPERBLOCKS: dict[str, tuple[int, tuple[tuple[int, bytes], ...]]] = {
    "reiserfs": (
        256 * 1024,
        (
            (65536 + 44, struct.pack("<H", 4096)),
            (65536 + 52, b"ReIsEr2Fs"),
            (65536 + 84, RAW_UUID),
            (65536 + 100, b"reiser"),
            (65536, struct.pack("<I", 64)),
            (65536 + 12, struct.pack("<III", 18, 8192, 256)),
        ),
    ),
    "erofs": (
        MIB,
        ((1024, b"\xe2\xe1\xf5\xe0"), (1024 + 12, b"\x0c"), (1024 + 48, RAW_UUID), (1088, b"ero")),
    ),
    "f2fs": (
        4 * MIB,
        (
            (1024, struct.pack("<IHHIIIIII", 0xF2F52010, 1, 16, 9, 3, 12, 9, 1, 1)),
            (1024 + 108, RAW_UUID),
            (1024 + 124, "fläsh".encode("utf-16-le")),
        ),
    ),
    "squashfs": (65536, ((0, b"hsqs"), (28, struct.pack("<HH", 4, 0)))),
    "squashfs3": (65536, ((0, b"hsqs"), (28, struct.pack("<HH", 3, 1)))),
    "mdraid-1.2": (
        4 * MIB,
        (
            (4096, struct.pack("<II", 0xA92B4EFC, 1) + bytes(8) + RAW_UUID + b"host:array"),
            (4096 + 144, struct.pack("<Q", 8)),
        ),
    ),
    "mdraid-1.1": (4 * MIB, ((0, struct.pack("<II", 0xA92B4EFC, 1) + bytes(8) + RAW_UUID + b"first"),)),
    "mdraid-1.0": (
        4 * MIB,
        (
            (4 * MIB - 8192, struct.pack("<II", 0xA92B4EFC, 1) + bytes(8) + RAW_UUID + b"last"),
            (4 * MIB - 8192 + 144, struct.pack("<Q", (4 * MIB - 8192) // 512)),
        ),
    ),
    "mdraid-0.90": (
        4 * MIB,
        (
            (4 * MIB - 65536, struct.pack("<III", 0xA92B4EFC, 0, 90)),
            (4 * MIB - 65536 + 20, bytes(range(1, 5))),
            (4 * MIB - 65536 + 52, bytes(range(5, 17))),
        ),
    ),
    "bitlocker": (
        MIB,
        (
            (0, b"\xeb\x58\x90-FVE-FS-"),
            (160, bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")),
            (176, struct.pack("<Q", 65536)),
            (65536, b"-FVE-FS-" + struct.pack("<HH", 64, 2)),
        ),
    ),
    "swsuspend": (MIB, ((4096 - 10, b"S1SUSPEND"), (1024 + 12, RAW_UUID), (1024, struct.pack("<II", 1, 9)))),
    "luks1": (MIB, ((0, b"LUKS\xba\xbe\0\1"), (168, UUID.encode()))),
    "luks2": (MIB, ((0, b"LUKS\xba\xbe\0\2"), (24, b"secret"), (168, UUID.encode()))),
    "hfs": (
        MIB,
        (
            (1024, b"BD"),
            (1024 + 20, struct.pack(">I", 4096)),
            (1024 + 36, b"\x05Macvo"),
            (1024 + 116, bytes(range(8))),
        ),
    ),
    "hfs-empty-id": (MIB, ((1024, b"BD"), (1024 + 20, struct.pack(">I", 4096)), (1024 + 36, b"\x01X"))),
    "refs": (MIB, ((0, b"\0\0\0ReFS\0"),)),
    "ufs1": (
        MIB,
        (
            (8192 + 1372, struct.pack("<I", 0x0001_1954)),
            (8192 + 144, bytes.fromhex("44332211 88776655")),
            (8192 + 680, b"no label here"),
        ),
    ),
    "ufs1-big-endian": (MIB, ((8192 + 1372, struct.pack(">I", 0x0001_1954)), (8192 + 144, b"12345678"))),
    "ufs2": (
        MIB,
        (
            (65536 + 1372, struct.pack("<I", 0x1954_0119)),
            (65536 + 144, bytes.fromhex("44332211 88776655")),
            (65536 + 680, b"bsd"),
        ),
    ),
    "reiser4": (MIB, ((65536, b"ReIsEr4"), (65536 + 20, RAW_UUID), (65536 + 36, b"four"))),
    "romfs": (MIB, ((0, b"-rom1fs-"), (16, b"rom"))),
    "vmfs": (
        4 * MIB,
        ((2 * MIB, b"\x5e\xf1\xab\x2f"), (2 * MIB + 9, RAW_UUID), (2 * MIB + 29, b"datastore")),
    ),
    "vxfs": (MIB, ((1024, b"\xf5\xfc\x01\xa5"),)),
    "zfs": (64 * MIB, tuple(((128 << 10) + 1024 * n, struct.pack("<Q", 0x00BAB10C)) for n in range(8))),
    "zfs-big-endian": (
        64 * MIB,
        tuple(((128 << 10) + 1024 * n, struct.pack(">Q", 0x00BAB10C)) for n in range(8)),
    ),
    "btrfs-magic-only": (MIB, ((65536 + 64, b"_BHRfS_M"), (65536 + 32, RAW_UUID), (65536 + 0x12B, b"b"))),
}


def udf(path: Path, *, label: bytes, volume_set: bytes, sector: int = 2048, bridge: bool = False) -> Path:
    def dstring(text: bytes) -> bytes:
        return text.ljust(127, b"\0") + bytes([len(text)])

    def descriptor(tag: int, place: int, body: bytes) -> tuple[int, bytes]:
        return place * sector, struct.pack("<HHBBHHHI", tag, 2, 0, 0, 0, 0, 0, place) + body

    names = [b"CD001", b"BEA01", b"NSR02", b"TEA01"] if bridge else [b"BEA01", b"NSR02", b"TEA01"]
    recognition = [(32768 + max(sector, 2048) * n + 1, name) for n, name in enumerate(names)]
    primary = bytes(56) + dstring(volume_set)
    logical = bytes(68) + dstring(label) + struct.pack("<I", sector)
    return crafted(
        path,
        4 * MIB,
        *recognition,
        descriptor(2, 256, struct.pack("<II", 16 * sector, 300)),
        descriptor(1, 300, primary),
        descriptor(6, 301, logical),
        descriptor(8, 302, b""),
    )


@pytest.mark.parametrize("name", SUPERBLOCKS)
def test_a_crafted_superblock(name: str, tmp_path: Path) -> None:
    size, pieces = SUPERBLOCKS[name]
    path = crafted(tmp_path / "volume", size, *pieces)
    expected = blkid(path)
    assert expected is not None
    assert ours(path) == expected


UDF_IDS = {
    b"\x081234567890ABCDEFLinuxUDF": "1234567890abcdef",
    b"\x08DEADBEEFxyz!": "deadbeef78797a21",
    b"\x08hello world": "68656c6c6f20776f",
    b"\x08short": "",
    b"\x08": "",
}
"""Volume set ids, and what libblkid documents to make of them. The blkid at hand prints neither."""


@pytest.mark.parametrize("sector", [512, 2048, 4096])
@pytest.mark.parametrize("volume_set", UDF_IDS, ids=["16", "8", "text", "short", "none"])
def test_udf(volume_set: bytes, sector: int, tmp_path: Path) -> None:
    path = udf(tmp_path / "udf", label=b"\x08My Disc", volume_set=volume_set, sector=sector)
    expected = blkid(path)
    assert expected is not None
    assert expected[0] == "udf"
    assert ours(path) == ("udf", "My Disc", UDF_IDS[volume_set])


def test_udf_with_wide_letters(tmp_path: Path) -> None:
    label = b"\x10" + "Диск".encode("utf-16-be")
    path = udf(tmp_path / "udf", label=label, volume_set=b"\x0812345678wxyz")
    assert ours(path) == ("udf", "Диск", "12345678" + b"wxyz".hex())


OTHERS = {
    "corestorage": ((8, struct.pack("<HH", 1, 0x10)), (88, b"CS"), (304, RAW_UUID)),
    "bcachefs": (
        (4096 + 24, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")),
        (4096 + 56, RAW_UUID),
        (4096 + 72, b"label"),
    ),
    "ldm": ((512, b"TOCBLOCK"),),
    "storage-spaces": ((4096, b"SPACEDB "),),
    "verity": ((0, b"verity\0\0\1\0\0\0"), (16, RAW_UUID)),
    "befs": ((512, b"Haiku"), (512 + 32, b"1SFB")),
    "vdo": ((0, b"dmvdo001"),),
    "stratis": ((516, b"!Stra0tis\x86\xff\x02^\x41rh"),),
    "ocfs2": ((8192, b"OCFSV2"), (8192 + 272, b"cluster"), (8192 + 336, RAW_UUID)),
    "ubi": ((0, b"UBI#\1"),),
    "vmfs-member": ((MIB, b"\x0d\xd0\x01\xc0"), (MIB + 130, RAW_UUID)),
    "hpfs": ((8192, b"\x49\xe8\x95\xf9"),),
}
"""What the blkid at hand does not know, or asks more of."""


@pytest.mark.parametrize("name", OTHERS)
def test_what_blkid_does_not_know(name: str, tmp_path: Path) -> None:
    pieces = OTHERS[name]
    found = ours(crafted(tmp_path / "volume", 2 * MIB, *pieces))
    label = {"bcachefs": "label", "befs": "Haiku", "ocfs2": "cluster"}.get(name, "")
    uuid = UUID if any(data == RAW_UUID for _, data in pieces) else ""
    uuid = "78563412-ef4dbc9a-2381-456789abcdef" if name == "vmfs-member" else uuid
    assert found == (name, label, uuid)


def test_a_short_magic_number_alone_proves_nothing(tmp_path: Path) -> None:
    for at, magic in ((1040, b"\x7f\x13"), (1048, b"\x5a\x4d"), (1030, b"\x34\x34"), (88, b"CS")):
        assert ours(crafted(tmp_path / "volume", MIB, (at, magic))) is None


def test_three_uberblocks_are_no_zfs(tmp_path: Path) -> None:
    ring = [((384 << 10) + 1024 * index, struct.pack("<Q", 0x00BAB10C)) for index in range(4)]
    assert ours(crafted(tmp_path / "second-label", MIB, *ring)) == ("zfs", "", "")
    assert ours(crafted(tmp_path / "few", MIB, *ring[:3])) is None


def test_bcache(tmp_path: Path) -> None:
    magic = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
    path = crafted(tmp_path / "bcache", MIB, (4096 + 24, magic), (4096 + 40, RAW_UUID), (4096 + 72, b"fast"))
    assert ours(path) == ("bcache", "fast", UUID)


def unvis(text: str) -> str:
    """Undo the way in which the catalogue of the shared images writes bytes and blanks."""
    raw, at = bytearray(), 0
    while at < len(text):
        high = 0x80 if text.startswith("M-", at) else 0
        at += 2 if high else 0
        control = text[at] == "^" and bool(high)
        at += text[at] == "\\" or control
        raw.append(ord(text[at]) ^ (0x40 if control else 0) | high)
        at += 1
    return raw.decode()


def real_cases() -> list[dict]:
    catalogue = IMAGES / "expectations.json"
    if not catalogue.exists():
        return []
    return [case for case in json.loads(catalogue.read_text())["good"] if case["format"] == "raw"]


def test_the_real_images_are_there() -> None:
    if not real_cases():
        give_up("no shared fs-images")


@pytest.mark.parametrize("case", real_cases(), ids=lambda case: case["id"])
def test_volumes_that_others_made(case: dict, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with lzma.open(IMAGES / case["packed"]["disk.img"]) as stream:
        path.write_bytes(stream.read(HEAD))
    device = FileDevice(path, case["disk"]["size"])
    volumes = [(Slice(device, 0, device.size), case["whole"])]
    volumes += [
        (Slice(device, entry["start"], entry["length"]), entry["fs"]) for entry in case.get("partitions", ())
    ]
    for volume, expected in volumes:
        info = identify(volume)
        found = (info.type, info.label, info.uuid) if info is not None else None
        named = normal(expected)
        if named is not None:
            named = (named[0], unvis(named[1]), named[2])
        if case["id"] == "ntfs-ptrn" and found is not None and named is not None:
            found, named = (found[0], found[2]), (named[0], named[2])  # its MFT lies behind what we unpack
        assert found == named
    device.close()


def test_tiny_and_empty_volumes() -> None:
    for size in (0, 1, 3, 511, 512, 1024, 1080, 4095, 4096, 65536, 70000):
        assert identify(MemoryDevice(bytes(size))) is None
        assert identify(MemoryDevice(b"\xff" * size)) is None


def test_dirty_volumes_say_so(tmp_path: Path) -> None:
    path = made(tmp_path / "ext4", ["mkfs.ext4", *E2], 8 * MIB)
    assert note(path) == ""
    poke(path, 1024 + 96, 0x04)
    assert note(path) == "dirty: the journal was not replayed"
    poke(path, 1024 + 58, 0x02)
    assert note(path).endswith("; the file system was marked as having errors")
    path = made(tmp_path / "fat", ["mkfs.fat", "-F", "32"], 64 * MIB)
    assert note(path) == ""
    poke(path, 65, 0x01)
    assert note(path).startswith("dirty")
    path = made(tmp_path / "exfat", ["mkfs.exfat"], 16 * MIB)
    assert note(path) == ""
    poke(path, 106, 0x02)
    assert note(path).startswith("dirty")


def test_a_dirty_ntfs(tmp_path: Path) -> None:
    path = made(tmp_path / "ntfs", ["mkntfs", "-q", "-F", "-L", "x"], 8 * MIB)
    assert note(path) == ""
    volume_record = path.read_bytes().index(b"FILE", 4 * 4096 + 3 * 1024)
    content = path.read_bytes()[volume_record : volume_record + 1024]
    information = content.index(struct.pack("<II", 0x70, 0x28))
    poke(path, volume_record + information + 24 + 10, 0x01)
    assert note(path).startswith("dirty")


def note(path: Path) -> str:
    device = FileDevice(path)
    info = identify(device)
    device.close()
    assert info is not None
    return info.note


def poke(path: Path, offset: int, bits: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] |= bits
    path.write_bytes(content)


@pytest.mark.parametrize("length", [60, 90, 120])
def test_a_long_ntfs_label_is_put_together_across_sectors(length: int, tmp_path: Path) -> None:
    label = "".join(chr(0x400 + index) for index in range(length))
    path = made(tmp_path / "ntfs", ["mkntfs", "-q", "-F", "-L", label], 8 * MIB)
    found = ours(path)
    assert found is not None
    assert found[1] == label


def test_an_empty_file_is_no_fat_label(tmp_path: Path) -> None:
    path = made(tmp_path / "fat", ["mkfs.fat", "-F", "16"], 16 * MIB)
    content = bytearray(path.read_bytes())
    reserved, fats, length = struct.unpack_from("<HB5xH", content, 14)
    root = (reserved + fats * length) * 512
    content[root : root + 12] = b"EMPTY   TXT\x20"
    path.write_bytes(content)
    assert ours(path) == blkid(path)
    content[root + 32 : root + 44] = b"NO NAME    \x28"
    path.write_bytes(content)
    found = blkid(path)
    assert ours(path) == found
    assert found is not None
    assert found[1] == "NO NAME"


def test_a_hybrid_disc_is_udf_that_also_holds_iso9660(tmp_path: Path) -> None:
    path = udf(tmp_path / "bridge", label=b"\x08Both", volume_set=b"\x08", bridge=True)
    assert ours(path) == ("udf", "Both", "")
    assert note(path) == "also holds ISO 9660"


def test_a_luks_header_that_only_its_copy_survives(tmp_path: Path) -> None:
    copy = b"SKUL\xba\xbe\0\2".ljust(24, b"\0") + b"safe".ljust(144, b"\0") + UUID.encode()
    path = crafted(tmp_path / "luks", MIB, (0x4000, copy))
    assert ours(path) == ("luks2", "safe", UUID)
    assert note(path) == "the primary LUKS header is damaged"


class Unreadable(MemoryDevice):
    """Fails in one range."""

    def __init__(self, content: bytes, first: int, last: int) -> None:
        super().__init__(content)
        self._bad = range(first, last)

    def pread(self, offset: int, size: int) -> bytes:
        if offset < self._bad.stop and offset + size > self._bad.start:
            raise SourceReadError("bad sectors")
        return super().pread(offset, size)


def test_bad_sectors_elsewhere_do_not_hide_a_volume(tmp_path: Path) -> None:
    content = made(tmp_path / "ext4", ["mkfs.ext4", *E2, "-L", "here"], 8 * MIB).read_bytes()
    info = identify(Unreadable(content, 4096, 2 * MIB))
    assert info is not None
    assert (info.type, info.label) == ("ext4", "here")
    with pytest.raises(MountfsError):
        identify(Unreadable(content, 0, 4096))


class Counting(MemoryDevice):
    """Checks every read and counts the bytes."""

    read = 0

    def pread(self, offset: int, size: int) -> bytes:
        self.read += size
        assert size <= 1 << 18
        return super().pread(offset, size)


def seeds(folder: Path) -> list[bytes]:
    names = ["ext4", "ntfs", "fat12", "exfat", "swap"]
    volumes = [made(folder / name, *REAL[name]).read_bytes() for name in names]
    volumes += [crafted(folder / "c", *_flat(SUPERBLOCKS[name])).read_bytes() for name in SUPERBLOCKS]
    volumes.append(udf(folder / "udf", label=b"\x08x", volume_set=b"\x0812345678").read_bytes())
    for case in real_cases():
        if case["disk"]["size"] <= 5 * MIB:
            with lzma.open(IMAGES / case["packed"]["disk.img"]) as stream:
                volumes.append(stream.read())
    return volumes


def _flat(entry: tuple[int, tuple[tuple[int, bytes], ...]]) -> tuple[int, *tuple[tuple[int, bytes], ...]]:
    return entry[0], *entry[1]


def test_random_damage_never_raises_and_reads_little(tmp_path: Path) -> None:
    chance = random.Random(11)
    for content in seeds(tmp_path):
        starts = (
            *range(0, min(len(content), MIB), 512),
            *range(max(0, len(content) - 70000) & ~511, len(content), 512),
        )
        told = [at for at in starts if content[at : at + 512].strip(b"\0")] or [0]
        for _ in range(25):
            damaged = bytearray(content)
            for _ in range(chance.choice([1, 3, 30])):
                offset = min(chance.choice(told[:64] + told[-8:]) + chance.randrange(512), len(content) - 1)
                data = chance.choice([b"\xff" * 8, b"\0" * 4, chance.randbytes(4), b"\x7f"])
                damaged[offset : offset + len(data)] = data
            device = Counting(bytes(damaged[: chance.choice([len(content), len(content) // 3, 5000])]))
            info = identify(device)
            assert device.read < 64 * MIB
            if info is not None:
                (info.label + info.uuid + info.note).encode()
