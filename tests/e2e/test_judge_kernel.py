"""A disk with ext4, XFS and btrfs that the kernel wrote, and what the kernel says of every point of it.

The disk is changed and imaged three times: twice from a loop device, at last while its file systems are
mounted and their journals not yet replayed. A copy of the disk is kept of each point. The judge is the
kernel, which mounts the partitions of the copy and those of the mounted image; qemu-img compares the disks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.content import damage, make_tree, noise
from support.disks import MIB, Part, make_gpt_disk
from support.entries import Entries, as_mounted, differences, read_entries
from support.kernel import kernel_mount, loop_device
from support.product import mounted, mountfs
from support.requirements import require_fuse, require_root, require_tool, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.fuse]

SYSTEMS = ("ext4", "xfs", "btrfs")
SIZES = {"ext4": 48 * MIB, "xfs": 32 * MIB, "btrfs": 64 * MIB}
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-L", "Linux", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-L", "Data", "--unsupported"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-L", "Archive", "--mixed"),
}
UNTOUCHED = {"ext4": ("noload",), "xfs": ("norecovery", "nouuid"), "btrfs": ("rescue=nologreplay",)}
"""How the kernel mounts what was in use, without writing."""
POINTS = (1, 2, 3)
LIVE = 3
ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000400ffffffff 20000400ffffffff"
)


@dataclass(frozen=True)
class History:
    """What is judged, and what it is judged by."""

    repository: Path
    copies: dict[int, Path]
    """The source as it was at each point."""
    shown: Path
    """The repository, mounted."""

    def folder(self, point: int) -> Path:
        (found,) = (self.shown / "disk").glob(f"{point:04}-*")
        return found

    def volume(self, point: int, system: str) -> Path:
        (found,) = self.folder(point).glob(f"{SYSTEMS.index(system) + 1}-{system}-*")
        return found


@pytest.fixture(scope="module")
def history() -> Iterator[History]:
    require_root()
    require_fuse()
    require_tool("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "losetup", "partx", "qemu-img")
    folder = Path(tempfile.mkdtemp(prefix="judge-"))
    disk, repository = folder / "disk.img", folder / "repository"
    make_gpt_disk(disk, 160 * MIB, [Part(SIZES[name], name=f"{name} part") for name in SYSTEMS])
    copies = {point: folder / f"copy-{point}.img" for point in POINTS}
    with loop_device(disk, partscan=True) as device:
        for number, name in enumerate(SYSTEMS, 1):
            run(*MAKE[name], f"{device}p{number}")
        for point, change in ((1, populate), (2, alter)):
            with all_mounted(device) as tops:
                for name, top in tops.items():
                    change(top, name)
            mountfs("backup", device, repository, "--set", "disk", "--raw")
            copy_disk(disk, copies[point])
        with all_mounted(device) as tops:
            for top in tops.values():
                use(top)
            copy_disk(disk, copies[LIVE])
    mountfs("backup", copies[LIVE], repository, "--set", "disk", "--type", "diff", "--raw")
    with mounted(repository) as shown:
        yield History(repository, copies, shown)
    shutil.rmtree(folder)


@contextmanager
def all_mounted(device: str) -> Iterator[dict[str, Path]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                kernel_mount(f"{device}p{number}", name, read_only=False, options=("noatime",))
            )
            for number, name in enumerate(SYSTEMS, 1)
        }


def copy_disk(disk: Path, target: Path) -> None:
    run("cp", "--sparse=always", "--reflink=never", disk, target)


def populate(top: Path, system: str) -> None:
    make_tree(top)
    (top / "long link").symlink_to("l" * 1000)
    (top / "dangling").symlink_to("../../nowhere")
    os.link(top / "photo.jpg", top / "deep" / "the same photo")
    with (top / "sparse").open("wb") as file:
        for at in (0, 100_000, 9_000_000, 30_000_000):
            file.seek(at)
            file.write(noise(at, 5000))
        file.truncate(40_000_123)
    for name in (b"new\nline", b"not utf-8 \xff\xfe", b"back\\slash", b"n" * 255, b" ", b"...", b"%2F"):
        Path(os.fsdecode(os.fsencode(top) + b"/" + name)).write_bytes(name)
    (top / "crowd").mkdir()
    for number in range(400):
        (top / "crowd" / f"entry number {number}").touch()
    for number in range(0, 400, 7):
        (top / "crowd" / f"entry number {number}").unlink()
    special_files(top)
    attributes(top, system)


def special_files(top: Path) -> None:
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "block", stat.S_IFBLK | 0o660, os.makedev(8, 17))
    os.mknod(top / "character", stat.S_IFCHR | 0o600, os.makedev(300, 70_000))
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(top):
        server.bind("socket")


def attributes(top: Path, system: str) -> None:
    (top / "set-id").write_bytes(b"#!")
    os.chown(top / "set-id", 70_000, 4_000_000_000)
    (top / "set-id").chmod(0o6755)
    (top / "many").chmod(0o1777)
    os.chown(top / "link", 1234, 5678, follow_symlinks=False)
    os.setxattr(top / "hello.txt", "user.comment", b"value")
    os.setxattr(top / "hello.txt", "user.empty", b"")
    os.setxattr(top / "photo.jpg", "user.larger", b"v" * (700 if system == "ext4" else 3000))
    os.setxattr(top / "many", "trusted.folder", b"\0\1\2")
    os.setxattr(top / "etc" / "motd", "system.posix_acl_access", ACL)
    os.utime(top / "hello.txt", ns=(1_234_567_890_123_456_789, 987_654_321_000_000_001))
    os.utime(top / "empty", ns=(-5_000_000_001, -(2**30) * 10**9))


def alter(top: Path, system: str) -> None:
    """What people do to their files between two backups."""
    with (top / "photo.jpg").open("r+b") as file:
        file.seek(123_456)
        file.write(noise(99, 10_000))
    os.truncate(top / "sparse", 20_000_000)
    (top / "notes with blanks.txt").unlink()
    (top / "résumé.txt").rename(top / "deep" / "résumé.old")
    shutil.rmtree(top / "deep" / "er")
    with (top / "many" / "file-001").open("ab") as file:
        file.write(b"more\n" * 3000)
    (top / "etc" / "motd").chmod(0o600)
    os.removexattr(top / "hello.txt", "user.comment")
    os.utime(top / "hello.txt", ns=(1, 2))
    (top / "new" / "folder").mkdir(parents=True)
    (top / "new" / "folder" / system).write_bytes(noise(len(system), 200_000))


def use(top: Path) -> None:
    """Write without end in sight: what is on the disk when the power fails."""
    (top / "new" / "live").write_bytes(noise(7, 50_000))
    (top / "hello.txt").write_bytes(b"changed while in use\n")
    os.sync()


def judged(path: Path, system: str, *, number: int | None, live: bool) -> Entries:
    """What the kernel finds on partition ``number`` of a disk, or in the image of a partition."""
    with loop_device(path, partscan=number is not None, read_only=True) as device:
        part = device if number is None else f"{device}p{number}"
        options = UNTOUCHED[system] if live else ()
        with kernel_mount(part, system, options=options) as top:
            return without_raw_acls(read_entries(top))


def without_raw_acls(entries: Entries) -> Entries:
    """Leave out what the kernel's XFS shows a second time, as it lies on the disk."""
    for entry in entries.values():
        for name in ("trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT"):
            entry["xattrs"].pop(name, None)
    return entries


@pytest.fixture(scope="module")
def truth(history: History) -> dict[tuple[int, str], Entries]:
    """What the kernel finds in the copies of the source."""
    return {
        (point, system): judged(history.copies[point], system, number=number, live=point == LIVE)
        for point in POINTS
        for number, system in enumerate(SYSTEMS, 1)
    }


Truth = dict[tuple[int, str], Entries]


@pytest.fixture(scope="module")
def replayed(history: History, truth: Truth) -> Truth:
    """What the kernel finds once it has replayed the journals, for which it needs to write."""
    disk = history.copies[LIVE].with_name("replayed.img")
    copy_disk(history.copies[LIVE], disk)
    with loop_device(disk, partscan=True) as device, all_mounted(device) as tops:
        found = {(LIVE, system): without_raw_acls(read_entries(top)) for system, top in tops.items()}
    return truth | found


def test_the_truth_holds_what_the_test_is_about(truth: Truth) -> None:
    for system in SYSTEMS:
        first, second = truth[1, system], truth[2, system]
        kinds = {entry["kind"] for entry in first.values()}
        assert len(kinds) == 7
        assert b"notes with blanks.txt" in first.keys() - second.keys()
        assert b"new/folder/" + system.encode() in second
        assert first[b"photo.jpg"]["sha256"] != second[b"photo.jpg"]["sha256"]
        assert first[b"photo.jpg"]["twin"] == b"deep/the same photo"
        assert first[b"hello.txt"]["mtime_ns"] == 987_654_321_000_000_001


def qemu_compare(one: Path, other: Path, code: int) -> str:
    """Let qemu-img compare two raw disks; it ends with 0 when they are equal and with 1 when not."""
    command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(one), str(other)]
    return run("sh", "-c", '"$@"; test $? = ' + str(code), "sh", *command)


@pytest.mark.parametrize("point", POINTS)
def test_qemu_finds_the_disk_of_every_point_identical(history: History, point: int) -> None:
    assert "identical" in qemu_compare(history.copies[point], history.folder(point) / "disk.img", 0)


def test_qemu_finds_one_wrong_bit(history: History, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.img"
    copy_disk(history.copies[2], wrong)
    damage(wrong, 70 * MIB + 12_345)
    assert "mismatch" in qemu_compare(wrong, history.folder(2) / "disk.img", 1)
    qemu_compare(history.copies[1], history.folder(2) / "disk.img", 1)


@pytest.mark.parametrize("point", POINTS)
def test_the_kernel_mounts_every_partition_of_the_mounted_disk(
    history: History, truth: Truth, point: int
) -> None:
    for number, system in enumerate(SYSTEMS, 1):
        found = judged(history.folder(point) / "disk.img", system, number=number, live=point == LIVE)
        assert differences(truth[point, system], found) == [], system


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("point", POINTS)
def test_the_tree_in_the_mount_is_what_the_kernel_sees(
    history: History, replayed: Truth, point: int, system: str
) -> None:
    found = read_entries(history.volume(point, system))
    assert differences(as_mounted(replayed[point, system]), found) == []


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("point", POINTS)
def test_the_copy_of_the_tree_is_what_the_kernel_sees(
    history: History, replayed: Truth, point: int, system: str, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    done = mountfs(
        *("cp", "--json", "--special-bits", "--special-files"),
        f"{history.repository}/disk@{point}:{SYSTEMS.index(system) + 1}",
        target,
    )
    assert (done.facts["losses"], done.facts["failures"]) == ([], [])
    # The change time cannot be set, and looking into a folder sets its access time.
    # A folder of btrfs has one link, whatever is in it.
    ignored = ["ctime_ns", "atime_ns", *(["links"] if system == "btrfs" else [])]
    assert differences(replayed[point, system], read_entries(target), ignoring=ignored) == []
    holes = (target / "sparse").stat()
    assert holes.st_blocks * 512 < 200_000 < holes.st_size


def test_an_image_of_a_mounted_file_system_says_so(history: History) -> None:
    notes = {}
    for point in POINTS:
        facts = mountfs("info", "--json", f"{history.repository}/disk@{point}").facts
        notes[point] = [volume["file_system"]["note"] for volume in facts["volumes"]]
    assert notes[LIVE][0] == "dirty: the journal is replayed in memory"
    assert [notes[point][number] for point in (1, 2) for number in (0, 2)] == [""] * 4


def test_the_chain_stores_only_what_changed(history: History) -> None:
    (found,) = mountfs("list", "--json", history.repository).facts["sets"]
    assert [point["kind"] for point in found["points"]] == ["full", "inc", "diff"]
    assert found["points"][1]["stored_size"] < found["points"][0]["stored_size"]
    assert found["points"][0]["details"]["kind"] == "disk"


def test_a_point_restored_to_a_disk_is_the_source(history: History, tmp_path: Path) -> None:
    target = tmp_path / "target.img"
    target.write_bytes(b"")
    os.truncate(target, 168 * MIB)
    with loop_device(target) as device:
        mark = ("--target-serial", str(168 * MIB))
        mountfs("restore", *mark, "--verify", f"{history.repository}/disk@2", device)
    run("cmp", "--bytes", str(160 * MIB), target, history.copies[2])


@pytest.mark.parametrize("whole", [True, False], ids=["disk", "partition"])
def test_a_disk_in_use_is_read_afresh_for_every_image(tmp_path: Path, whole: bool) -> None:
    """The kernel keeps what was read of a disk apart from what is written to its partitions."""
    disk, repository = tmp_path / "disk.img", tmp_path / "repository"
    make_gpt_disk(disk, 32 * MIB, [Part(24 * MIB)])
    with loop_device(disk, partscan=True) as device:
        run(*MAKE["ext4"], f"{device}p1")
        source = device if whole else f"{device}p1"
        with kernel_mount(f"{device}p1", "ext4", read_only=False) as top:
            for number in (1, 2, 3):
                (top / "file").write_bytes(noise(number, 300_000))
                os.sync()
                run("cp", disk, tmp_path / f"copy-{number}")
                mountfs("backup", source, repository, "--set", "s")
    for number in (1, 2, 3):
        start = MIB if whole else 0
        mountfs("restore", f"{repository}/s@{number}", tmp_path / f"restored-{number}")
        restored = (tmp_path / f"restored-{number}").read_bytes()
        copied = (tmp_path / f"copy-{number}").read_bytes()[MIB : 25 * MIB]
        assert found_file(restored[start : start + 24 * MIB], number) == found_file(copied, number) != -1


def found_file(volume: bytes, number: int) -> int:
    """Where the content of the file lies; it may not have moved between two images."""
    return volume.find(noise(number, 300_000)[:4096])
