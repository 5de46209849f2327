"""Makes disks and file systems with the tools of the trade; none of this needs root unless it says so."""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from support.content import noise
from support.kernel import kernel_mount, loop_device
from support.requirements import require_root, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
EFI_SYSTEM = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
BASIC_DATA = "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"

MIB = 1 << 20
_ENTRIES, _ENTRY_SIZE = 128, 128


@dataclass(frozen=True, slots=True)
class Part:
    """A partition to be made: the bytes of ``content`` (a file) lie at its start."""

    size: int
    type_id: str = LINUX
    name: str = ""
    content: Path | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a partition came to lie."""

    number: int
    offset: int
    size: int
    type_id: str
    uuid: str
    name: str


def make_gpt_disk(
    path: Path, size: int, partitions: Sequence[Part], sector_size: int = 512, *, seed: int = 1
) -> tuple[Placed, ...]:
    """Make a sparse disk with a GPT (UEFI 2.10, section 5) and partitions aligned to 1 MiB.

    The same arguments give the same bytes. The writer is ours because the tools of this machine write
    only 512-byte sectors into files; `tests/unit/test_support_disks.py` has them check it.
    """
    placed: list[Placed] = []
    position = MIB
    for number, part in enumerate(partitions, 1):
        identifier = str(uuid.UUID(bytes=noise(seed * 1000 + number, 16), version=4))
        placed.append(Placed(number, position, part.size, part.type_id, identifier, part.name))
        position += -(-part.size // MIB) * MIB
    table_sectors = _ENTRIES * _ENTRY_SIZE // sector_size
    last_usable = size // sector_size - table_sectors - 2
    if position > (last_usable + 1) * sector_size:
        raise ValueError(f"the partitions end at {position} and do not fit into {size} bytes")
    with path.open("wb") as disk:
        disk.truncate(size)
        for offset, data in _tables(size, sector_size, placed, last_usable, seed):
            disk.seek(offset)
            disk.write(data)
        for part, place in zip(partitions, placed, strict=True):
            if part.content is not None:
                _copy_sparse(part.content, disk, place)
    return tuple(placed)


def _tables(
    size: int, sector: int, placed: list[Placed], last_usable: int, seed: int
) -> list[tuple[int, bytes]]:
    last = size // sector - 1
    entries = b"".join(_entry(place, sector) for place in placed).ljust(_ENTRIES * _ENTRY_SIZE, b"\0")
    table_sectors = len(entries) // sector
    disk_id = uuid.UUID(bytes=noise(seed, 16), version=4).bytes_le

    def header(here: int, other: int, table: int) -> bytes:
        def pack(checksum: int) -> bytes:
            return struct.pack(
                "<8s4sIIIQQQQ16sQIII",
                *(b"EFI PART", b"\0\0\1\0", 92, checksum, 0, here, other, 2 + table_sectors, last_usable),
                *(disk_id, table, _ENTRIES, _ENTRY_SIZE, zlib.crc32(entries)),
            )

        return pack(zlib.crc32(pack(0)))

    protective = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(last, 0xFFFFFFFF))
    return [
        (446, protective),
        (510, b"\x55\xaa"),
        (sector, header(1, last, 2)),
        (2 * sector, entries),
        ((last - table_sectors) * sector, entries),
        (last * sector, header(last, 1, last - table_sectors)),
    ]


def _entry(place: Placed, sector: int) -> bytes:
    return struct.pack(
        "<16s16sQQQ72s",
        uuid.UUID(place.type_id).bytes_le,
        uuid.UUID(place.uuid).bytes_le,
        place.offset // sector,
        (place.offset + place.size) // sector - 1,
        0,
        place.name.encode("utf-16-le"),
    )


def _copy_sparse(content: Path, disk: BinaryIO, place: Placed) -> None:
    if content.stat().st_size > place.size:
        raise ValueError(f"{content} is larger than its partition")
    zeros = bytes(64 * 1024)
    with content.open("rb") as source:
        offset = place.offset
        while data := source.read(len(zeros)):
            if data != zeros[: len(data)]:
                disk.seek(offset)
                disk.write(data)
            offset += len(data)


def make_ext4(
    path: Path, size: int, label: str = "", populate_from: Path | None = None, *, options: Sequence[str] = ()
) -> Path:
    """Make an ext4 file system in a file; the same arguments give the same metadata but for times."""
    _blank(path, size)
    identifier = str(uuid.UUID(bytes=noise(size, 16), version=4))
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-U", identifier, "-E", f"hash_seed={identifier}"]
    command += ["-L", label] if label else []
    command += ["-d", str(populate_from)] if populate_from else []
    run(*command, *options, path)
    return path


def make_xfs(path: Path, size: int, label: str = "", populate_from: Path | None = None) -> Path:
    """Make an XFS; smaller than 300 MiB as the tools of test suites do. Filling it needs root."""
    _blank(path, size)
    small = ["--unsupported"] if size < 300 * MIB else []
    run("mkfs.xfs", "-q", "-f", *small, *(["-L", label] if label else []), path)
    return _fill_mounted(path, "xfs", populate_from)


def make_btrfs(path: Path, size: int, label: str = "", populate_from: Path | None = None) -> Path:
    """Make a btrfs of at least 114 MiB, or 16 MiB with mixed groups."""
    _blank(path, size)
    command = ["mkfs.btrfs", "-q", "-f", *(["--mixed"] if size < 128 * MIB else [])]
    command += ["-L", label] if label else []
    command += ["--rootdir", str(populate_from)] if populate_from else []
    run(*command, path)
    return path


def make_ntfs(path: Path, size: int, label: str = "", populate_from: Path | None = None) -> Path:
    """Make an NTFS; folders in ``populate_from`` need root, because only the mounted driver makes them."""
    _blank(path, size)
    run("mkfs.ntfs", "-q", "-F", "-Q", "-s", "512", "-p", "0", "-H", "16", "-S", "63", "-L", label, path)
    if populate_from is None:
        return path
    children = sorted(populate_from.iterdir())
    if any(child.is_dir() or child.is_symlink() for child in children):
        return _fill_mounted(path, "ntfs-3g", populate_from)
    for child in children:
        run("ntfscp", "-q", path, child, child.name)
    return path


def make_fat(
    path: Path, size: int, label: str = "", populate_from: Path | None = None, *, bits: int | None = None
) -> Path:
    """Make a FAT file system; links in ``populate_from`` are followed."""
    _blank(path, size)
    command = [
        "mkfs.vfat",
        "--invariant",
        *(["-F", str(bits)] if bits else []),
        *(["-n", label] if label else []),
    ]
    run(*command, path)
    children = sorted(populate_from.iterdir()) if populate_from else []
    if children:
        run("mcopy", "-s", "-Q", "-i", path, *children, "::")
    return path


def make_exfat(path: Path, size: int, label: str = "") -> Path:
    """Make an empty exFAT; no tool of this machine writes files into one."""
    _blank(path, size)
    run("mkfs.exfat", *(["-L", label] if label else []), path)
    return path


def _fill_mounted(path: Path, file_system: str, populate_from: Path | None) -> Path:
    if populate_from is None:
        return path
    require_root()
    with loop_device(path) as device, kernel_mount(device, file_system, read_only=False) as folder:
        copied = ["cp", "-a", "--no-preserve=ownership", f"{populate_from}/."]
        run(*copied, folder)
    return path


def _blank(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
