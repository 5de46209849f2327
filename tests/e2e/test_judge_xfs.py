"""XFS of every kind, filled by a kernel, against that kernel's own mount of it: entry by entry, no exception.

The running kernel judges version 5. Version 4 and case-insensitive names are filled and judged by
User-mode Linux, since kernels are built without them today.
"""

from __future__ import annotations

import mmap
import os
import pickle
import shlex
import struct
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from mountfs.drivers import xfs
from mountfs.drivers._tree import VolumeTree
from mountfs.drivers._xfs_layout import read_superblock
from mountfs.drivers._xfs_replay import open_log
from mountfs.drivers.xfs import XfsVolume
from mountfs.signatures import identify
from mountfs.tree import FileSystemInfo
from support.churn import churn
from support.content import damage
from support.disks import MIB
from support.entries import differences
from support.kernel import kernel_mount, loop_device
from support.requirements import require_root, require_tool, run
from support.umlkernel import run_in_uml
from support.xfstree import ACCESS_ACL, kernel_entries, populate, tree_entries
from support.xfsvolume import repair

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.drivers._xfs_log import Record
    from mountfs.tree import FileTree
    from support.entries import Entries

pytestmark = [pytest.mark.root]

SUPPORT = Path(__file__).resolve().parents[1]
SIZE = 320 * MIB
VERSION_5 = {
    "usual": (),
    "many extents": ("-i", "nrext64=1"),
    "old times, nothing shared": ("-m", "bigtime=0,reflink=0", "-i", "sparse=0"),
    "64 KiB folder blocks": ("-n", "size=64k"),
    "1 KiB blocks, 16 KiB folder blocks": ("-b", "size=1k", "-n", "size=16k"),
    "64 KiB blocks": ("-b", "size=64k"),
    "sectors of 4096": ("-s", "size=4096"),
    "inodes of 2048": ("-i", "size=2048"),
    "64 groups": ("-d", "agcount=64", "-l", "size=8m", "--unsupported"),
}
VERSION_4 = {
    "usual": (),
    "512-byte blocks": ("-b", "size=512"),
    "no types in folders": ("-n", "ftype=0"),
    "names without case": ("-n", "version=ci"),
    "oldest": ("-i", "size=256,attr=1,projid32bit=0", "-l", "version=1,lazy-count=0"),
    "1 KiB blocks, 64 KiB folder blocks": ("-b", "size=1k", "-n", "size=64k"),
}
MANY = 20_000
"""How many names a large folder holds."""


def make(path: Path, options: tuple[str, ...], *, used: bool = False) -> Path:
    """Make a volume; on a disk that was ``used`` before, what nobody wrote is not zeros."""
    path.touch()
    if used:
        with path.open("wb") as file:
            for _ in range(SIZE // MIB):
                file.write(b"\xa5" * MIB)
    os.truncate(path, 4 * SIZE if "agcount=64" in options else SIZE)
    run("mkfs.xfs", "-q", "-K", "-L", "judged", *options, path)
    return path


@contextmanager
def opened(path: Path) -> Iterator[FileTree]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        tree = xfs.PLUGIN.open(MemoryDevice(content), FileSystemInfo("xfs"))
        yield tree
        tree.close()


def shown(path: Path) -> Entries:
    with opened(path) as tree:
        return tree_entries(tree)


def filled(path: Path, options: tuple[str, ...], names: int) -> Entries:
    """Make and fill a volume; what the kernel shows of it."""
    with loop_device(make(path, options, used=not options)) as device:
        with kernel_mount(device, "xfs", read_only=False, options=("noatime",)) as top:
            populate(top, names)
        with kernel_mount(device, "xfs") as top:
            return kernel_entries(top)


@pytest.fixture(scope="module", autouse=True)
def _needed() -> None:
    require_root()
    require_tool("mkfs.xfs")


@pytest.mark.parametrize("kind", VERSION_5)
def test_version_5_is_what_the_kernel_shows(kind: str, tmp_path: Path) -> None:
    truth = filled(tmp_path / "volume", VERSION_5[kind], MANY if kind == "usual" else 1200)
    assert len({entry["kind"] for entry in truth.values()}) == 7
    assert truth[b"attributes/acl"]["xattrs"]["system.posix_acl_access"] == ACCESS_ACL
    assert differences(truth, shown(tmp_path / "volume")) == []


def inside(module: str, *arguments: str) -> str:
    """A command that runs a module of these tests in another kernel."""
    program = ["env", f"PYTHONPATH={SUPPORT}", sys.executable, str(SUPPORT / "support" / module)]
    return shlex.join([*program, *arguments])


@pytest.fixture(scope="module")
def version_4(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Entries]]:
    """Each kind of volume and what User-mode Linux shows of it, in one run."""
    folder = tmp_path_factory.mktemp("version-4")
    volumes = {
        kind: make(folder / f"{number}", ("-m", "crc=0", *options), used=not options)
        for number, (kind, options) in enumerate(VERSION_4.items())
    }
    commands: list[str] = []
    for number, (kind, path) in enumerate(volumes.items()):
        device = f"/dev/ubd{'abcdefgh'[number]}"
        commands += [
            f"mount -t xfs -o noatime {device} /mnt/top",
            inside("xfstree.py", "populate", "/mnt/top", "2000" if kind == "512-byte blocks" else "1200"),
            "umount /mnt/top",
            f"mount -t xfs -o ro {device} /mnt/top",
            inside("xfstree.py", "read", "/mnt/top", f"{path}.truth"),
            "umount /mnt/top",
        ]
    run_in_uml(commands, list(volumes.values()))
    return {kind: (path, pickle.loads(Path(f"{path}.truth").read_bytes())) for kind, path in volumes.items()}


@pytest.mark.xdist_group("user-mode-linux")
@pytest.mark.parametrize("kind", VERSION_4)
def test_version_4_is_what_user_mode_linux_shows(
    kind: str, version_4: dict[str, tuple[Path, Entries]]
) -> None:
    path, truth = version_4[kind]
    assert len({entry["kind"] for entry in truth.values()}) == 7
    assert differences(truth, shown(path)) == []
    assert note(path) == ""


DIRTY = {
    "usual": ((), (), "-f"),
    "what is not yet in the journal is lost": ((), (), ""),
    "small blocks, large records": (("-b", "size=1k"), ("logbsize=256k",), "-f"),
    "64 KiB folder blocks": (("-n", "size=64k"), (), "-f"),
    "old times, many extents": (("-i", "nrext64=1", "-m", "bigtime=0"), (), "-f"),
    "journal in stripes": (("-l", "su=256k,size=64m"), (), "-f"),
    "sectors of 4096": (("-s", "size=4096"), (), ""),
}
"""How a volume is made and mounted, and how the machine stops."""


def note(path: Path) -> str:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        info = identify(MemoryDevice(content))
        return info.note if info else "nothing"


def recovered(path: Path) -> Entries:
    """What the kernel shows when it has replayed the journal of a copy."""
    copy = path.with_suffix(".copy")
    run("cp", "--sparse=always", path, copy)
    with loop_device(copy) as device:
        with kernel_mount(device, "xfs", read_only=False, options=("noatime",)):
            pass
        with kernel_mount(device, "xfs") as top:
            return kernel_entries(top)


@pytest.mark.parametrize("kind", DIRTY)
def test_the_journal_is_replayed_as_the_kernel_does(kind: str, tmp_path: Path) -> None:
    require_tool("xfs_io")
    made_with, options, how = DIRTY[kind]
    path = make(tmp_path / "volume", made_with)
    for seed in (1, 2):
        with (
            loop_device(path) as device,
            kernel_mount(device, "xfs", read_only=False, options=("noatime", *options)) as top,
        ):
            churn(top, seed, 1200)
            run("xfs_io", "-x", "-c", f"shutdown {how}".strip(), top)
        assert "dirty" in note(path)
        assert differences(recovered(path), shown(path)) == []
        with loop_device(path) as device, kernel_mount(device, "xfs", read_only=False):
            pass
        assert note(path) == ""


def go_around(top: Path) -> None:
    """Write more metadata than the journal holds: each change of a folder block is journalled anew."""
    (top / "full").mkdir()
    for number in range(900):
        (top / "full" / f"{'n' * 200} {number}").touch()
        os.sync()


def test_the_journal_is_replayed_around_its_end(tmp_path: Path) -> None:
    path = make(tmp_path / "volume", ("-l", "size=6m", "--unsupported"))
    with loop_device(path) as device, kernel_mount(device, "xfs", read_only=False) as top:
        go_around(top)
        churn(top, 3, 600)
        run("xfs_io", "-x", "-c", "shutdown -f", top)
    records = needed(path)
    assert records[-1].cycle > 1
    assert differences(recovered(path), shown(path)) == []


def test_what_was_given_up_is_not_brought_back(tmp_path: Path) -> None:
    """Blocks of folders, attributes and inodes become content of a file, all in one journal."""
    path = make(tmp_path / "volume", ())
    with loop_device(path) as device, kernel_mount(device, "xfs", read_only=False) as top:
        for number in range(3000):
            (top / f"{'n' * 100} {number}").touch()
        os.setxattr(top, "user.large", bytes(range(250)) * 200)
        os.sync()
        for number in range(3000):
            (top / f"{'n' * 100} {number}").unlink()
        os.removexattr(top, "user.large")
        os.sync()
        with (top / "all of it").open("wb") as file, suppress(OSError):
            while True:
                file.write(b"content, nothing else. " * 40_000)
        os.sync()
        run("xfs_io", "-x", "-c", "shutdown -f", top)
    truth = recovered(path)
    assert truth[b"all of it"]["size"] > 200 * MIB
    assert differences(truth, shown(path)) == []


def later(path: Path, file: str, change: int) -> bytearray:
    """The inode of a file, with the place in the journal of its last change and ``change`` more."""
    with path.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
        device = MemoryDevice(content)
        layout = read_superblock(device)
        log = open_log(device, layout)
        tree = VolumeTree(XfsVolume(device))
        found = tree.child(tree.root(), file.encode())
        assert found is not None
        offset = layout.inode_offset(found.inode)
        inode = bytearray(content[offset : offset + layout.inode_size])
        wanted = struct.pack("<Q", found.inode)
        (place,) = (
            transaction.place
            for transaction in log.transactions(log.needed())
            for item in transaction.items
            if item[0][:2] == b"\x3b\x12" and item[0][16:24] == wanted
        )
    struct.pack_into(">Q", inode, 112, place + change)
    struct.pack_into(">I", inode, 8, 4242)
    repair(inode)
    with path.open("r+b") as target:
        target.seek(offset)
        target.write(inode)
    return inode


@pytest.mark.parametrize(("change", "uid"), [(-1, 1111), (0, 1111), (1, 4242)])
def test_an_inode_that_is_newer_than_the_journal_is_left(tmp_path: Path, change: int, uid: int) -> None:
    path = make(tmp_path / "volume", ())
    with loop_device(path) as device, kernel_mount(device, "xfs", read_only=False) as top:
        (top / "file").write_bytes(b"content")
    with loop_device(path) as device, kernel_mount(device, "xfs", read_only=False) as top:
        os.chown(top / "file", 1111, 1111)
        run("xfs_io", "-x", "-c", "shutdown -f", top)
    later(path, "file", change)
    truth = recovered(path)
    assert truth[b"file"]["uid"] == uid
    assert differences(truth, shown(path)) == []


def needed(path: Path) -> list[Record]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        device = MemoryDevice(content)
        return open_log(device, read_superblock(device)).needed()


def test_the_journal_is_replayed_when_the_image_is_of_a_mounted_volume(tmp_path: Path) -> None:
    path, copy = make(tmp_path / "volume", ()), tmp_path / "live"
    with loop_device(path) as device, kernel_mount(device, "xfs", read_only=False) as top:
        churn(top, 5, 1500)
        run("fsfreeze", "--freeze", top)
        run("cp", "--sparse=always", path, copy)
        run("fsfreeze", "--unfreeze", top)
    assert differences(recovered(copy), shown(copy)) == []


def test_a_damaged_journal_is_told_beside_what_can_be_read(tmp_path: Path) -> None:
    path = make(tmp_path / "volume", ())
    with loop_device(path) as device, kernel_mount(device, "xfs", read_only=False) as top:
        (top / "old").write_bytes(b"content")
    with loop_device(path) as device, kernel_mount(device, "xfs", read_only=False) as top:
        churn(top, 6, 4000)
        run("xfs_io", "-x", "-c", "shutdown -f", top)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        layout = read_superblock(MemoryDevice(content))
    start = layout.block_offset(layout.log_start, 1, "the journal")
    first = needed(path)[0]
    damage(path, start + (first.block + 1) * 512 + 100)
    with opened(path) as tree:
        children = tree.children(tree.root())
        assert next(children).name
        with pytest.raises(VolumeError, match=r"written last may be missing.*journal is damaged"):
            list(children)
        found = tree.child(tree.root(), b"old")
        assert found is not None
        assert tree.read(found, 0, 100) == b"content"


@pytest.fixture(scope="module")
def dirty_4(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Entries]]:
    """Volumes of version 4 as User-mode Linux left them, and what it shows when it mounts them again."""
    folder = tmp_path_factory.mktemp("dirty-4")
    kinds = ("usual", "512-byte blocks", "oldest")
    volumes = {
        kind: make(folder / f"{number}", ("-m", "crc=0", *VERSION_4[kind]))
        for number, kind in enumerate(kinds)
    }
    commands = ["modprobe xfs 2>/dev/null || true"]
    for number, path in enumerate(volumes.values()):
        device = f"/dev/ubd{'abc'[number]}"
        commands += [
            f"mount -t xfs -o noatime {device} /mnt/top",
            inside("churn.py", "/mnt/top", "7", "700"),
            "xfs_io -x -c 'shutdown -f' /mnt/top",
            "umount /mnt/top",
            f"cp --sparse=always {path} {path}.dirty",
            f"mount -t xfs -o noatime {device} /mnt/top",
            "umount /mnt/top",
            f"mount -t xfs -o ro {device} /mnt/top",
            inside("xfstree.py", "read", "/mnt/top", f"{path}.truth"),
            "umount /mnt/top",
        ]
    run_in_uml(commands, list(volumes.values()))
    return {
        kind: (Path(f"{path}.dirty"), pickle.loads(Path(f"{path}.truth").read_bytes()))
        for kind, path in volumes.items()
    }


@pytest.mark.xdist_group("user-mode-linux")
@pytest.mark.parametrize("kind", ["usual", "512-byte blocks", "oldest"])
def test_the_journal_of_version_4_is_replayed(kind: str, dirty_4: dict[str, tuple[Path, Entries]]) -> None:
    path, truth = dirty_4[kind]
    assert len(truth) > 50
    assert "dirty" in note(path)
    assert differences(truth, shown(path)) == []
