"""Extended attributes of ext2, ext3 and ext4, of every name space and place, against the kernel."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from mountfs.drivers import ext
from mountfs.drivers._ext_attributes import block_attributes
from mountfs.tree import FileSystemInfo
from support.content import noise
from support.entries import Entries, differences, read_entries
from support.kernel import kernel_mount, loop_device
from support.requirements import require_root, require_tool, run
from support.treeentries import tree_entries

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

MIB = 1 << 20
MAKE = {
    "ext2": ("mkfs.ext2", "-b", "1024", "-I", "128"),
    "ext2 with room in its inodes": ("mkfs.ext2", "-b", "4096", "-I", "256"),
    "ext3": ("mkfs.ext3", "-b", "1024", "-I", "256"),
    "ext4": ("mkfs.ext4", "-b", "4096"),
    "ext4 with attributes in inodes of their own": ("mkfs.ext4", "-b", "1024", "-O", "ea_inode"),
    "ext4 with inline data": ("mkfs.ext4", "-b", "4096", "-I", "1024", "-O", "inline_data,ea_inode"),
}
USER, GROUP, OBJECT = 0x2, 0x8, 0xFFFF_FFFF
ACCESS = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [
        (0x01, 7, OBJECT),
        (USER, 6, 1000),
        (USER, 4, 70_000),
        (0x04, 5, OBJECT),
        (GROUP, 7, 0),
        (GROUP, 1, 4_000_000_000),
        (0x10, 7, OBJECT),
        (0x20, 0, OBJECT),
    ]
)
SHORT = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, OBJECT) for tag, permissions in [(1, 7), (4, 5), (0x20, 1)]
)
CAPABILITY = struct.pack("<IIIII", 0x0200_0001, 1 << 10, 0, 0, 0)
"""``cap_net_bind_service=ep``, version 2."""


def populate(top: Path, name: str) -> None:
    for number in range(4):
        (top / f"same {number}").write_bytes(b"the kernel shares one block between these")
        os.setxattr(top / f"same {number}", "user.shared", noise(1, 400))
    (top / "plain").write_bytes(noise(2, 10_000))
    os.setxattr(top / "plain", "security.capability", CAPABILITY)
    os.setxattr(top / "plain", "security.other", b"\0" * 9)
    os.setxattr(top / "plain", "trusted.overlay.opaque", b"y")
    os.setxattr(top / "plain", "user.ü", "ü".encode())
    os.setxattr(top / "plain", "user.empty", b"")
    os.setxattr(top / "plain", "system.posix_acl_access", ACCESS)
    (top / "folder").mkdir()
    os.setxattr(top / "folder", "system.posix_acl_access", ACCESS)
    os.setxattr(top / "folder", "system.posix_acl_default", ACCESS)
    os.setxattr(top / "folder", "trusted.x" * 28, b"a name of 252 bytes"[:8])
    (top / "folder" / "inherits").write_bytes(b"i")
    (top / "folder" / "below").mkdir()
    (top / "short").mkdir()
    os.setxattr(top / "short", "system.posix_acl_default", SHORT)
    for number in range(12):
        (top / "short" / f"a file that makes the folder larger {number}").touch()
    (top / "link").symlink_to("plain")
    os.setxattr(top / "link", "trusted.link", b"of a link", follow_symlinks=False)
    (top / "long link").symlink_to("l" * 300)
    os.setxattr(top / "long link", "security.link", b"of a long link", follow_symlinks=False)
    os.mkfifo(top / "fifo")
    os.setxattr(top / "fifo", "trusted.fifo", b"of a fifo")
    for size in (10, 70, 150, 400, 900):
        (top / f"inline {size}").write_bytes(noise(size, size))
        os.setxattr(top / f"inline {size}", "user.beside", noise(size, 40))
        os.setxattr(top / f"inline {size}", "trusted.more", noise(size, 300))
    for number in range(10):
        os.setxattr(top / "same 3", f"user.many {number}", noise(number, 5 + number))
    if "of their own" in name or "inline" in name:
        for size in (5000, 40_000, 65_536):
            os.setxattr(top / "plain", f"user.large {size}", noise(size, size))
        os.setxattr(top / "folder", "user.large", noise(7, 20_000))


@pytest.fixture(scope="module", params=MAKE)
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Entries]:
    """A volume that the kernel filled, and what the kernel finds in it afterwards."""
    require_root()
    require_tool(MAKE[request.param][0])
    image = tmp_path_factory.mktemp("ext") / "image"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    run(MAKE[request.param][0], "-q", "-F", *MAKE[request.param][1:], image)
    kind = request.param.split()[0]
    with loop_device(image) as device:
        with kernel_mount(device, kind, read_only=False) as top:
            populate(top, request.param)
        with kernel_mount(device, kind) as top:
            return image, read_entries(top)


def test_attributes_are_as_the_kernel_sees_them(volume: tuple[Path, Entries]) -> None:
    image, truth = volume
    spaces = {name.split(".")[0] for entry in truth.values() for name in entry["xattrs"]}
    assert spaces == {"user", "trusted", "security", "system"}
    assert truth[b"folder/below"]["xattrs"].keys() == {"system.posix_acl_access", "system.posix_acl_default"}
    with image.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tree = ext.PLUGIN.open(MemoryDevice(content), FileSystemInfo("ext4"))  # type: ignore[arg-type]
    assert differences(truth, tree_entries(tree)) == []


@pytest.mark.parametrize(("offset", "size"), [(1000, 25), (4, 2**31), (0xFFFF, 1), (1024, 1)])
def test_a_value_that_does_not_fit_is_an_error(offset: int, size: int) -> None:
    """It must not be shown cut."""
    entry = struct.pack("<BBHIII", 4, 1, offset, 0, size, 0) + b"name"
    block = (struct.pack("<I", 0xEA02_0000).ljust(32, b"\0") + entry).ljust(1024, b"\0")
    with pytest.raises(VolumeError, match="does not fit"):
        list(block_attributes(block))
