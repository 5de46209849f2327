"""The free space that we find is the one that the tools of each file system find, byte for byte."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from e2e.test_fs_images_product import CASES as STORED_CASES
from e2e.test_fs_images_product import unpack
from imageformat.device import MemoryDevice
from imageformat.plugins import discover
from mountfs import allocation
from mountfs.allocation.disk import read_allocation
from support.disks import MIB
from support.freespace import ORACLES, Ranges
from support.kernel import kernel_mount, loop_device
from support.requirements import require_root, require_tool, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mountfs.allocation import AllocationReader

READERS: dict[str, AllocationReader] = {reader.name: reader for reader in discover(allocation).available}
ODD = 3 * 512
"""What a volume has more than whole mebibytes: the last cluster is not whole."""

EXT = {
    "ext2": ("-t", "ext2"),
    "ext3 of 2 KiB": ("-t", "ext3", "-b", "2048"),
    "ext4": ("-t", "ext4"),
    "ext4 of 1 KiB": ("-t", "ext4", "-b", "1024"),
    "ext4 with bigalloc": ("-t", "ext4", "-O", "bigalloc", "-C", "16384"),
    "ext4 without flex_bg": ("-t", "ext4", "-O", "^flex_bg"),
    "ext4 with meta_bg": ("-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"),
    "ext4 without 64bit": ("-t", "ext4", "-b", "1024", "-O", "^64bit"),
    "ext4 with uninit_bg": ("-t", "ext4", "-O", "^metadata_csum,uninit_bg"),
    "ext4 without checksums": ("-t", "ext4", "-O", "^metadata_csum,^uninit_bg"),
    "ext4 with sparse_super2": ("-t", "ext4", "-O", "sparse_super2"),
    "ext4 with a checksum seed": ("-t", "ext4", "-O", "metadata_csum_seed"),
    "ext4 without sparse_super": ("-t", "ext4", "-b", "1024", "-O", "^sparse_super,^resize_inode"),
}
XFS = {
    "xfs": (),
    "xfs of 1 KiB": ("-b", "size=1024"),
    "xfs with rmapbt": ("-m", "reflink=1,rmapbt=1"),
    "xfs of 4 KiB sectors": ("-d", "sectsize=4096"),
}
CASES = [
    *(pytest.param("ext", ("mke2fs", "-q", "-F", *options), 300, id=name) for name, options in EXT.items()),
    *(pytest.param("xfs", ("mkfs.xfs", "-q", "-f", *options), 300, id=name) for name, options in XFS.items()),
    pytest.param("btrfs", ("mkfs.btrfs", "-q", "-f"), 300, id="btrfs"),
    pytest.param("btrfs", ("mkfs.btrfs", "-q", "-f", "-m", "single"), 300, id="btrfs without copies"),
    pytest.param("btrfs", ("mkfs.btrfs", "-q", "-f", "--mixed", "-n", "4096"), 100, id="mixed btrfs"),
    pytest.param("ntfs", ("mkfs.ntfs", "-q", "-F", "-f"), 100, id="ntfs"),
    pytest.param("ntfs", ("mkfs.ntfs", "-q", "-F", "-f", "-c", "512"), 30, id="ntfs of 512"),
    pytest.param("ntfs", ("mkfs.ntfs", "-q", "-F", "-f", "-c", "65536"), 100, id="ntfs of 64 KiB"),
    pytest.param("fat", ("mkfs.fat", "-F", "12"), 4, id="fat12"),
    pytest.param("fat", ("mkfs.fat", "-F", "16"), 60, id="fat16"),
    pytest.param("fat", ("mkfs.fat", "-F", "32"), 60, id="fat32"),
    pytest.param("fat", ("mkfs.fat", "-F", "32", "-f", "1", "-s", "8"), 300, id="fat32 with one table"),
    pytest.param("exfat", ("mkfs.exfat",), 60, id="exfat"),
    pytest.param("exfat", ("mkfs.exfat", "-c", "128K"), 60, id="exfat of 128 KiB"),
    pytest.param("swap", ("mkswap",), 20, id="swap"),
]
NAMES = {"ext2": "ext", "ext3": "ext", "ext4": "ext", **{f"fat{bits}": "fat" for bits in (12, 16, 32)}}
QEMU_NAMES = {"raw": "raw", "qcow2": "qcow2", "vhd": "vpc", "vhdx": "vhdx", "vmdk": "vmdk"}
STORED = {
    parameter.values[0]["id"]: parameter.values[0]
    for parameter in STORED_CASES
    if parameter.values[0]["id"] != "pt-utillinux-dos+bsd"  # of partitions without anything in them
    and not parameter.values[0]["id"].startswith(("bitlk", "luks"))
    and parameter.values[0]["format"] in QEMU_NAMES
    and {system["type"] for system in parameter.values[0].get("filesystems", [])}
    & {"ext2", "ext3", "ext4", "ntfs", "vfat", "fat12", "fat16", "fat32", "exfat", "xfs", "btrfs"}
}
LARGE = {"xfs5-discutils-vhdx", "btrfs-discutils-vhdx", "ntfs-ptrn"}
"""Of gigabytes, so that unpacking them takes long."""
MOUNTED = {"ext": "ext4", "xfs": "xfs", "btrfs": "btrfs", "ntfs": "ntfs-3g", "exfat": "exfat-fuse"}


def device_of(path: Path) -> MemoryDevice:
    with path.open("rb") as file:
        content: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return MemoryDevice(content)


def ours(path: Path, kind: str) -> Ranges:
    reader = READERS["fat" if kind == "exfat" else kind]
    return [(extent.offset, extent.length) for extent in reader.unused(device_of(path))]


def make(path: Path, command: Sequence[str], size: int) -> None:
    require_tool(command[0])
    with path.open("wb") as file:
        file.truncate(size * MIB + ODD)
    run(*command, path)


def fragment(path: Path, kind: str, folder: Path) -> None:
    """Write files and take every third away again."""
    chance = random.Random(7)
    sizes = [chance.randrange(20_000) for _ in range(90)]
    if kind == "swap":
        return
    if kind == "fat":
        require_tool("mcopy")
        files = [folder / f"file{number}" for number in range(len(sizes))]
        for file, size in zip(files, sizes, strict=True):
            file.write_bytes(chance.randbytes(size))
        run("mcopy", "-Q", "-i", path, *files, "::")
        run("mdel", "-i", path, *(f"::{file.name}" for file in files[::3]))
        return
    require_root()
    with loop_device(path) as device, kernel_mount(device, MOUNTED[kind], read_only=False) as top:
        for number, size in enumerate(sizes):
            (top / f"file{number}").write_bytes(chance.randbytes(size))
        run("sync", "-f", top)
        for number in range(0, len(sizes), 3):
            (top / f"file{number}").unlink()


@pytest.mark.parametrize(("kind", "command", "size"), CASES)
def test_the_map_is_that_of_the_tools(kind: str, command: tuple[str, ...], size: int, tmp_path: Path) -> None:
    path = tmp_path / "volume"
    make(path, command, size)
    fresh = ours(path, kind)
    assert fresh
    assert fresh == ORACLES[kind](path)
    fragment(path, kind, tmp_path)
    used = ours(path, kind)
    assert used == ORACLES[kind](path)
    assert kind == "swap" or len(used) > 10
    (volume,) = read_allocation(device_of(path)).volumes
    assert (volume.reason, volume.free) == ("", sum(length for _, length in used))


@pytest.mark.parametrize("options", ["", "-m crc=0"])
def test_the_map_of_an_xfs_of_either_version(options: str, tmp_path: Path) -> None:
    """This kernel does not mount version 4."""
    path = tmp_path / "volume"
    make(path, ("mkfs.xfs", "-q", "-f", *options.split()), 300)
    assert ours(path, "xfs") == ORACLES["xfs"](path)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.nightly] if name in LARGE else []) for name in STORED]
)
def test_the_map_of_a_stored_image(name: str, tmp_path: Path) -> None:
    disk = tmp_path / "raw"
    kind_of_file = QEMU_NAMES[STORED[name]["format"]]
    require_tool("qemu-img")
    run("qemu-img", "convert", "-f", kind_of_file, "-O", "raw", unpack(STORED[name], tmp_path), disk)
    volumes = [volume for volume in read_allocation(device_of(disk)).volumes if volume.type]
    assert volumes
    for volume in volumes:
        kind = NAMES.get(volume.type, volume.type)
        alone = tmp_path / "volume"
        run(
            *("dd", f"if={disk}", f"of={alone}", "bs=64K", "conv=sparse", "status=none"),
            *("iflag=skip_bytes,count_bytes", f"skip={volume.offset}", f"count={volume.size}"),
        )
        os.truncate(alone, volume.size)
        assert volume.reason == ""
        wanted = ORACLES[kind](alone)
        assert ours(alone, kind) == wanted
        assert volume.free == sum(length for _, length in wanted) > 0
