"""An NTFS that ntfs-3g wrote, imaged three times, against ntfs-3g's own mount of the source at each point."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import DestinationError
from support.content import noise, text
from support.disks import BASIC_DATA, MIB, Part, make_gpt_disk, make_ntfs
from support.entries import Entries, as_mounted, differences, read_entries
from support.kernel import kernel_mount, loop_device
from support.product import mounted, mountfs
from support.requirements import require_fuse, require_root, require_tool, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.fuse]

KINDS = {1: "full", 2: "inc", 3: "diff"}
AS_ATTRIBUTES, AS_PATHS = ("streams_interface=xattr",), ("streams_interface=windows",)
TOO_LONG = ("ü" * 255, "文" * 200)
"""Names of up to 255 characters that have more than 255 bytes."""


@dataclass(frozen=True)
class History:
    """What is judged, and what it is judged by."""

    repository: Path
    copies: dict[int, Path]
    shown: Path
    """The repository, mounted."""
    truth: dict[int, Entries]
    """What ntfs-3g finds in the copies."""

    def volume(self, point: int) -> Path:
        (found,) = (self.shown / "disk").glob(f"{point:04}-*/1-ntfs*")
        return found


def windows_link(target: str) -> bytes:
    """A symbolic link as Windows makes them: the reparse point with a relative target."""
    name = target.encode("utf-16-le")
    data = struct.pack("<HHHHI", 0, len(name), len(name), len(name), 1) + name + name
    return struct.pack("<IHH", 0xA000_000C, len(data), 0) + data


def populate(top: Path) -> None:
    (top / "resident").write_bytes(b"so small that it lies in its record")
    (top / "photo.jpg").write_bytes(noise(1, 500_001))
    (top / "folder" / "deep" / "er").mkdir(parents=True)
    (top / "folder" / "deep" / "er" / "notes.txt").write_bytes(text(2, 30_000))
    for number in range(40):  # more names than one record holds
        os.link(top / "photo.jpg", top / "folder" / f"the same photo under a rather long name {number}")
    sparse_and_torn(top)
    compressed(top)
    links_and_streams(top)
    for name in (
        "Case",
        "case",
        "CASE",
        " leading",
        "trailing.",
        "new\nline",
        'quo"te:d?',
        "😀" * 60,
        *TOO_LONG,
    ):
        (top / name).write_bytes(name.encode())
    (top / "many").mkdir()
    for number in range(1500):
        (top / "many" / f"entry number {number}").touch()
    os.chown(top / "resident", 1234, 5678)
    (top / "resident").chmod(0o640)
    os.utime(top / "photo.jpg", ns=(1_234_567_890_123_456_700, 987_654_321_000_000_100))
    os.utime(top / "folder", ns=(-5_000_000_000, -2_000_000_000 * 10**9))


def sparse_and_torn(top: Path) -> None:
    with (top / "sparse").open("wb") as file:
        for at in (0, 3_000_000, 20_000_000):
            file.seek(at)
            file.write(noise(at, 5000))
        file.truncate(30_000_123)
    with (top / "torn").open("wb") as torn, (top / "between").open("wb") as other:
        for number in range(150):
            for file in (torn, other):
                file.write(noise(number, 4096))
                file.flush()
                os.fsync(file.fileno())


def compressed(top: Path) -> None:
    folder = top / "compressed"
    folder.mkdir()
    os.setxattr(folder, "system.ntfs_attrib_be", bytes.fromhex("00000800"))
    (folder / "text").write_bytes(text(3, 700_000))
    (folder / "noise then blanks").write_bytes(noise(4, 200_000) + b" " * 200_000)
    with (folder / "holes").open("wb") as file:
        file.write(b"start")
        file.seek(900_000)
        file.write(b"end")


def links_and_streams(top: Path) -> None:
    (top / "link").symlink_to("folder/deep")
    (top / "dangling").symlink_to("../" * 30 + "nowhere")
    (top / "windows link").touch()
    os.setxattr(top / "windows link", "system.ntfs_reparse_data", windows_link("many\\entry number 1"))
    os.mkfifo(top / "fifo")
    os.mknod(top / "device", stat.S_IFBLK | 0o600, os.makedev(8, 17))
    streams = {"Zone.Identifier": b"[ZoneTransfer]\r\nZoneId=3\r\n", "longer ü": noise(5, 1000), "empty": b""}
    for name, value in streams.items():
        os.setxattr(top / "resident", f"user.{name}", value)
    os.setxattr(top / "folder", "user.of a folder", b"stream of a folder")


def alter(top: Path) -> None:
    with (top / "photo.jpg").open("r+b") as file:
        file.seek(123_456)
        file.write(noise(6, 10_000))
    os.truncate(top / "sparse", 10_000_000)
    (top / "between").unlink()
    with (top / "torn").open("ab") as file:
        file.write(noise(7, 300_000))
    (top / "compressed" / "text").write_bytes(text(8, 300_000))
    (top / "folder" / "deep" / "er" / "notes.txt").rename(top / "moved ü.txt")
    os.removexattr(top / "resident", "user.empty")
    os.setxattr(top / "resident", "user.Zone.Identifier", noise(9, 500))
    for number in range(0, 1500, 2):
        (top / "many" / f"entry number {number}").unlink()


def alter_again(top: Path) -> None:
    shutil.rmtree(top / "folder" / "deep")
    (top / "resident").write_bytes(noise(10, 90_000))
    (top / "Case").rename(top / "cASE")
    (top / "new").mkdir()
    (top / "new" / "file").write_bytes(noise(11, 200_000))


def judged(copy: Path) -> Entries:
    """What ntfs-3g finds; of the extended attributes those that are streams."""
    with (
        loop_device(copy, partscan=True, read_only=True) as device,
        kernel_mount(f"{device}p1", "ntfs-3g", options=AS_ATTRIBUTES) as top,
    ):
        return read_entries(top)


@pytest.fixture(scope="module")
def history() -> Iterator[History]:
    require_root()
    require_fuse()
    require_tool("ntfs-3g", "mkfs.ntfs", "losetup", "partx")
    folder = Path(tempfile.mkdtemp(prefix="ntfs-"))
    disk, repository, copies = folder / "disk.img", folder / "repository", {}
    volume = make_ntfs(folder / "volume", 48 * MIB, "Data")
    make_gpt_disk(disk, 52 * MIB, [Part(48 * MIB, BASIC_DATA, "Basic data", volume)])
    for point, change in zip(KINDS, (populate, alter, alter_again), strict=True):
        with (
            loop_device(disk, partscan=True) as device,
            kernel_mount(f"{device}p1", "ntfs-3g", read_only=False, options=AS_ATTRIBUTES) as top,
        ):
            change(top)
        mountfs("backup", disk, repository, "--type", KINDS[point])
        copies[point] = folder / f"copy-{point}.img"
        run("cp", "--sparse=always", "--reflink=never", disk, copies[point])
    truth = {point: judged(copy) for point, copy in copies.items()}
    with mounted(repository) as shown:
        yield History(repository, copies, shown, truth)
    shutil.rmtree(folder)


def test_the_truth_holds_what_the_test_is_about(history: History) -> None:
    first, second, third = history.truth.values()
    assert {entry["kind"] for entry in first.values()} == {
        "file", "directory", "symlink", "fifo", "block device",
    }  # fmt: skip
    assert first[b"photo.jpg"]["links"] == 41
    assert len(first[b"resident"]["xattrs"]) == 3
    assert first[b"folder"]["xattrs"] == {"user.of a folder": b"stream of a folder"}
    assert first[b"windows link"]["target"] == b"many/entry number 1"
    assert first[b"photo.jpg"]["mtime_ns"] == 987_654_321_000_000_100
    assert {b"Case", b"case", b"CASE"} < first.keys()
    assert first[b"photo.jpg"]["sha256"] != second[b"photo.jpg"]["sha256"]
    assert b"new/file" in third.keys() - second.keys()


def with_streams(top: Path) -> Entries:
    """What a mount shows, with the streams as ntfs-3g gives them: attributes; here they are paths."""
    found = read_entries(top)
    for path, entry in found.items():
        for name in entry["xattrs"].pop("user.mountfs.streams", b"").split(b"\n"):
            if name:
                stream = Path(os.fsdecode(os.fsencode(top) + b"/" + path + b":" + name))
                entry["xattrs"][f"user.{os.fsdecode(name)}"] = stream.read_bytes()
    return found


@pytest.mark.parametrize("point", KINDS)
def test_the_mount_shows_what_ntfs3g_sees(history: History, point: int) -> None:
    found = with_streams(history.volume(point))
    assert differences(as_mounted(history.truth[point]), found) == []


def as_linux_counts(entries: Entries) -> Entries:
    """Without the links of folders and the sizes of devices, which NTFS counts in its own way."""
    other = {"directory": {"links"}, "fifo": {"size"}, "block device": {"size"}}
    return {
        path: {name: value for name, value in entry.items() if name not in other.get(entry["kind"], ())}
        for path, entry in entries.items()
    }


@pytest.mark.parametrize("point", KINDS)
def test_cp_copies_what_ntfs3g_sees(history: History, point: int, tmp_path: Path) -> None:
    done = mountfs(
        *("cp", "--json", "--special-bits", "--special-files"),
        *(f"{history.repository}/disk@{point}:1", tmp_path / "copy"),
        code=DestinationError.exit_code,
    )
    impossible = {name.encode() for name in TOO_LONG}
    assert done.facts["failure_count"] == len(impossible)
    assert done.facts["losses"] == []
    possible = {path: entry for path, entry in history.truth[point].items() if path not in impossible}
    found = read_entries(tmp_path / "copy")
    ignored = ["ctime_ns", "atime_ns"]
    assert differences(as_linux_counts(possible), as_linux_counts(found), ignoring=ignored) == []
    holes = (tmp_path / "copy" / "sparse").stat()
    assert holes.st_blocks * 512 < 300_000 < holes.st_size


@pytest.mark.parametrize("point", KINDS)
def test_ntfs3g_mounts_the_disk_in_the_mount(history: History, point: int) -> None:
    (disk,) = (history.shown / "disk").glob(f"{point:04}-*/disk.img")
    assert differences(history.truth[point], judged(disk)) == []


def test_a_restored_point_is_what_ntfs3g_saw(history: History, tmp_path: Path) -> None:
    mountfs("restore", "--verify", f"{history.repository}/disk@2", tmp_path / "restored.img")
    assert differences(history.truth[2], judged(tmp_path / "restored.img")) == []


def test_a_stream_too_long_for_an_attribute(tmp_path: Path) -> None:
    """It can be read by its path as Windows does, and ``cp`` tells that it cannot keep it."""
    require_tool("ntfs-3g", "mkfs.ntfs")
    volume, long = make_ntfs(tmp_path / "volume.img", 8 * MIB), noise(12, 700_000)
    with (
        loop_device(volume) as device,
        kernel_mount(device, "ntfs-3g", read_only=False, options=AS_PATHS) as top,
    ):
        (top / "file").write_bytes(b"main")
        (top / "file:long").write_bytes(long)
        (top / "file:short").write_bytes(b"short")
    mountfs("backup", volume, tmp_path / "repository")
    place = f"{tmp_path}/repository/volume:0/file"
    with mounted(tmp_path / "repository") as shown:
        (found,) = (shown / "volume" / "latest").glob("*/file")
        with (
            loop_device(volume, read_only=True) as device,
            kernel_mount(device, "ntfs-3g", options=AS_PATHS) as top,
        ):
            assert Path(f"{found}:long").read_bytes() == (top / "file:long").read_bytes() == long
            assert found.read_bytes() == (top / "file").read_bytes()
        assert set(os.getxattr(found, "user.mountfs.streams").split()) == {b"long", b"short"}
    assert mountfs("cat", f"{place}:long").out == long
    done = mountfs("cp", "--json", place, tmp_path / "copy")
    assert [loss["detail"] for loss in done.facts["losses"]] == ["long, 700000 bytes: too long"]
    assert (tmp_path / "copy").read_bytes() == b"main"
    assert os.getxattr(tmp_path / "copy", "user.short") == b"short"
