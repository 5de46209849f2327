"""What every mount adapter must do, asked of each that is found: a new adapter is tested without an edit."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import MountError, MountPointError
from mountfs.adapters import MountAdapter, MountOptions, adapters_here
from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.mounts import clear_stale, unmount
from support.product import mountfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADAPTERS: list[MountAdapter] = sorted(adapters_here(), key=lambda adapter: adapter.name)

MANY = 20_000
LENGTH = 64 << 20

_SERVE = f"""
import struct
import sys
from pathlib import Path
import mountfs.adapters
from imageformat.plugins import discover
from imageformat.extent import Extent, ExtentKind
from mountfs.adapters import MountOptions
from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.tree import NodeKind

def numbered(offset, size):
    first, last = offset // 8, (offset + size + 7) // 8
    return struct.pack(f"<{{last - first}}Q", *range(first * 8, last * 8, 8))[offset % 8:][:size]

class Tree(MemoryTree):
    closed = False
    def close(self):
        self.closed = True

holes = (
    Extent(0, 8192, ExtentKind.ZERO),
    Extent(8192, 4096, ExtentKind.DATA),
    Extent(12288, 4096, ExtentKind.ZERO),
)
tree = Tree(folder({{
    b"file": Item(bytes(range(256)) * 1024),
    b"folder": folder({{b"caf\\xc3\\xa9 in space": Item(b"coffee")}}),
    b"link": Item(b"folder", kind=NodeKind.SYMLINK),
    b"many": folder({{b"entry %d" % n: Item(b"%d" % n, inode=n + 1000) for n in range({MANY})}}),
    b"numbered": Item(size={LENGTH}, read=numbered),
    b"sparse": Item(size=16384, read=lambda offset, size: bytes(size), holes=holes),
    b"attributes": Item(b"", mode=0o640, uid=7, gid=8, mtime_ns=1_500_000_000_123_456_789,
                        xattrs={{"user.colour": b"blue", "user.bytes": bytes(range(256))}}),
    b"special": Item(kind=NodeKind.BLOCK_DEVICE, device=(8, 1)),
    b"streams": Item(b"main", streams={{b"more": b"beside"}}),
}}))
calls = []
def ready():
    calls.append(1)
    print("ready", flush=True)
adapter = next(a for a in discover(mountfs.adapters).available if a.name == sys.argv[1])
adapter.mount(tree, MountOptions(Path(sys.argv[2]), "the source"), ready)
print(len(calls), tree.closed, flush=True)
"""


@pytest.fixture(params=ADAPTERS, ids=lambda adapter: adapter.name)
def adapter(request: pytest.FixtureRequest) -> MountAdapter:
    found: MountAdapter = request.param
    reason = found.unavailable()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return found


@pytest.fixture
def server(adapter: MountAdapter, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with _served(adapter, tmp_path) as process:
        yield process


@contextmanager
def _served(adapter: MountAdapter, mountpoint: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _SERVE, adapter.name, str(mountpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()
    subprocess.run(["umount", "-l", mountpoint], check=False, stderr=subprocess.DEVNULL)


def test_there_is_an_adapter() -> None:
    assert "fuse" in [adapter.name for adapter in ADAPTERS]
    assert all(isinstance(adapter, MountAdapter) for adapter in ADAPTERS)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_what_is_missing_is_said_in_one_line(adapter: MountAdapter) -> None:
    reason = adapter.unavailable()
    assert reason is None or (reason and "\n" not in reason)


@pytest.mark.fuse
def test_it_shows_the_tree_once_it_is_ready(server: subprocess.Popen[str], tmp_path: Path) -> None:
    assert {"file", "folder", "link"} < {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "file").read_bytes() == bytes(range(256)) * 1024
    assert (tmp_path / "folder" / "café in space").read_text() == "coffee"
    assert (tmp_path / "link" / "café in space").read_text() == "coffee"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.fuse
def test_it_is_read_only(server: subprocess.Popen[str], tmp_path: Path) -> None:
    for attempt in ((tmp_path / "new").mkdir, (tmp_path / "file").unlink, (tmp_path / "file").touch):
        with pytest.raises(OSError, match="Read-only"):
            attempt()


@pytest.mark.fuse
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_the_tree_stays_with_its_owner(
    server: subprocess.Popen[str], tmp_path: Path, number: int
) -> None:
    server.send_signal(number)
    out, _ = server.communicate(timeout=20)
    assert (server.returncode, out) == (0, "1 False\n"), "ready once, the tree not closed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fuse
def test_it_does_not_hide_files_under_a_mount(adapter: MountAdapter, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(MountPointError):
        adapter.mount(MemoryTree(folder({b"x": Item(b"")})), MountOptions(tmp_path, "x"), lambda: None)
    assert (tmp_path / "mine").read_text() == "precious"


_READ = """
import os, struct, sys
descriptor, seed, length = os.open(sys.argv[1], os.O_RDONLY), int(sys.argv[2]), int(sys.argv[3])
for step in range(100):
    offset = (seed * 12_345_679 + step * 7_777_777) % (length - 200_000)
    size = 1 + (seed + step * 7919) % 200_000
    data = os.pread(descriptor, size, offset)
    first, last = offset // 8, (offset + size + 7) // 8
    if data != struct.pack(f"<{last - first}Q", *range(first * 8, last * 8, 8))[offset % 8:][:size]:
        sys.exit(f"wrong bytes at {offset}+{size}")
"""


@pytest.mark.fuse
def test_four_processes_at_once_get_the_right_bytes(server: subprocess.Popen[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", _READ, str(tmp_path / "numbered")]
    readers = [
        subprocess.Popen([*command, str(seed), str(LENGTH)], stderr=subprocess.PIPE, text=True)
        for seed in range(4)
    ]
    assert [(reader.communicate(timeout=60)[1], reader.returncode) for reader in readers] == [("", 0)] * 4


@pytest.mark.fuse
def test_a_folder_of_many_entries_is_listed_whole_each_time(
    server: subprocess.Popen[str], tmp_path: Path
) -> None:
    expected = {f"entry {number}": number + 1000 for number in range(MANY)}
    for _ in range(2):
        with os.scandir(tmp_path / "many") as entries:
            listed = [(entry.name, entry.inode()) for entry in entries]
        assert len(listed) == MANY, "each once"
        assert dict(listed) == expected
    with os.scandir(tmp_path / "many") as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    assert sizes == {name: len(str(number - 1000)) for name, number in expected.items()}
    assert (tmp_path / "many" / f"entry {MANY - 1}").read_text() == str(MANY - 1)


@pytest.mark.fuse
def test_holes_are_shown(server: subprocess.Popen[str], tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 8192
        assert os.lseek(file.fileno(), 8192, os.SEEK_HOLE) == 12288
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
            os.lseek(file.fileno(), 12288, os.SEEK_DATA)


@pytest.mark.fuse
def test_extended_attributes_are_shown(server: subprocess.Popen[str], tmp_path: Path) -> None:
    path = tmp_path / "attributes"
    assert sorted(os.listxattr(path)) == ["user.bytes", "user.colour"]
    assert os.getxattr(path, "user.bytes") == bytes(range(256))
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.getxattr(path, "user.absent")
    assert os.getxattr(tmp_path / "special", "user.mountfs.device") == b"8:1"


@pytest.mark.fuse
def test_a_mount_in_use_stays_until_it_is_detached(server: subprocess.Popen[str], tmp_path: Path) -> None:
    with (tmp_path / "numbered").open("rb", buffering=0) as file:
        with pytest.raises(MountError, match="in use"):
            unmount(tmp_path)
        assert file.read(8) == bytes(8)
        unmount(tmp_path, lazy=True)
        assert not tmp_path.is_mount()
        assert os.pread(file.fileno(), 8, LENGTH - 8) == (LENGTH - 8).to_bytes(8, "little")
    out, _ = server.communicate(timeout=20)
    assert (server.returncode, out) == (0, "1 False\n")


@pytest.mark.fuse
@pytest.mark.xdist_group("mounts")
def test_a_killed_server_leaves_a_mount_that_is_known_to_be_dead(
    server: subprocess.Popen[str], tmp_path: Path
) -> None:
    server.kill()
    server.wait()
    told = {fact["mountpoint"]: fact["state"] for fact in mountfs("mounts", "--json").facts["mounts"]}
    assert told[str(tmp_path)] == "stale"
    doctor = mountfs("doctor", code=1).out.decode().splitlines()
    assert any(line.split()[:3] == ["mount", str(tmp_path), "stale"] for line in doctor)
    assert tmp_path in [record.mountpoint for record in clear_stale(tmp_path)]


def _shown(top: Path) -> dict[str, object]:
    """Everything that the calls of the operating system tell of a tree."""
    found: dict[str, object] = {}
    for path in [top, *top.rglob("*")]:
        status = path.lstat()
        facts: list[object] = [getattr(status, name) for name in _FACTS]
        if path.is_symlink():
            facts.append(path.readlink())
        else:
            facts.append({name: os.getxattr(path, name) for name in sorted(os.listxattr(path))})
            facts.append(list(os.listdir(path)) if path.is_dir() else path.read_bytes()[:100])  # noqa: PTH208
        found[str(path.relative_to(top))] = facts
    found["stream"] = (top / "streams:more").read_bytes()
    system = os.statvfs(top)
    return found | {"system": (system.f_bsize, system.f_blocks, system.f_namemax, system.f_flag)}


_FACTS = (
    "st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_blksize",
    "st_atime_ns", "st_mtime_ns", "st_ctime_ns",
)  # fmt: skip


@pytest.mark.fuse
def test_all_adapters_show_the_same(tmp_path: Path) -> None:
    shown = {}
    for adapter in ADAPTERS:
        if adapter.unavailable() is None:
            mountpoint = tmp_path / adapter.name
            mountpoint.mkdir()
            with _served(adapter, mountpoint):
                shown[adapter.name] = _shown(mountpoint)
    first = next(iter(shown.values()), None)
    for name, other in shown.items():
        assert other == first, name
