"""What the kernel shows of a mounted tree, asked with the calls that programs use."""
# The system calls are what is tested here.
# ruff: noqa: PTH101, PTH104, PTH115, PTH208, PTH211

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import stat
import subprocess
import tarfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mountfs.mounts import list_mounts
from mountfs.names import to_path_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.fuse

_spec = importlib.util.spec_from_file_location("demo_server", Path(__file__).with_name("demo_server.py"))
demo_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(demo_server)
Server, pattern = demo_server.Server, demo_server.pattern


@pytest.fixture(scope="module", autouse=True, params=["devfuse", "fuse"])
def _needs_fuse(request: pytest.FixtureRequest) -> None:
    """Every adapter shows and does the same."""
    os.environ["DEMO_ADAPTER"] = request.param
    reason = demo_server.adapter().unavailable()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory, _needs_fuse: None) -> Iterator[Path]:
    mountpoint = tmp_path_factory.mktemp("demo")
    with Server("demo", mountpoint, "--source", "a,b\\c d") as server:
        yield server.mountpoint


def refuses(number: int, call: Callable[..., object], *arguments: object, **named: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments, **named)
    assert caught.value.errno == number, f"{errno.errorcode[caught.value.errno]} by {call}"


def test_attributes_are_those_of_the_image(mounted: Path) -> None:
    found = (mounted / "hello.txt").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 4321, 0o640)
    assert found.st_mtime_ns == demo_server.MTIME_NS
    assert (found.st_size, found.st_blocks, found.st_nlink) == (6, 1, 1)
    assert (mounted / "big").stat().st_size == demo_server.BIG


def test_fstat_is_stat(mounted: Path) -> None:
    with (mounted / "hello.txt").open("rb") as file:
        assert os.fstat(file.fileno()) == (mounted / "hello.txt").stat()


def test_set_id_and_sticky_bits_are_gone(mounted: Path) -> None:
    assert stat.S_IMODE((mounted / "setuid").stat().st_mode) == 0o755
    assert stat.S_IMODE((mounted / "sticky").stat().st_mode) == 0o777


def test_mount_options(mounted: Path) -> None:
    record = next(record for record in list_mounts() if record.mountpoint == mounted)
    assert record.source == "a,b\\c d"
    row = next(row for row in Path("/proc/self/mountinfo").read_text().splitlines() if f" {mounted} " in row)
    assert {"ro", "nosuid", "nodev"} <= set(row.split(" ")[5].split(","))
    assert " - fuse.mountfs " in row


def test_every_name_is_listed_and_opens(mounted: Path) -> None:
    top = os.fsencode(mounted / "nasty")
    expected = {to_path_name(name): name for name in demo_server.NASTY}
    assert set(os.listdir(top)) == set(expected)
    for shown, raw in expected.items():
        assert Path(os.fsdecode(top + b"/" + shown)).read_bytes() == raw
    assert set(os.listdir(mounted / "nasty")) == {os.fsdecode(name) for name in expected}


def test_a_long_listing_is_complete_and_can_be_rewound(mounted: Path) -> None:
    assert sorted(os.listdir(mounted / "many")) == [f"file{number:05d}" for number in range(5000)]
    libc = ctypes.CDLL(None)
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.opendir(os.fsencode(mounted / "many")))
    passes = []
    for _ in range(2):
        seen = 0
        while libc.readdir(stream):
            seen += 1
        passes.append(seen)
        libc.rewinddir(stream)
    libc.closedir(stream)
    assert passes == [5002, 5002]


def test_listing_and_stat_agree_on_inode_and_type(mounted: Path) -> None:
    with os.scandir(mounted) as entries:
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            assert entry.inode() == found.st_ino
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(found.st_mode)
            assert entry.is_symlink() == stat.S_ISLNK(found.st_mode)


def test_hard_links_share_their_inode_and_tar_sees_them(mounted: Path, tmp_path: Path) -> None:
    first, second = (mounted / "hard1").stat(), (mounted / "hard2").stat()
    assert first.st_ino == second.st_ino == (1 << 62) + 7
    assert first.st_nlink == 2
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", "-C", mounted, "-cf", archive, "hard1", "hard2", "hello.txt"], check=True)
    with tarfile.open(archive) as tar:
        assert [member.islnk() for member in tar] == [False, True, False]


def test_links(mounted: Path) -> None:
    assert (mounted / "link").read_text() == "deep\n"
    assert os.readlink(os.fsencode(mounted / "dangling")) == b"/no/such/\xff"
    refuses(errno.EINVAL, os.readlink, mounted / "hello.txt")


@pytest.mark.parametrize("offset", [0, 1, 4095, (1 << 32) - 3, (4 << 30) + 12345, (5 << 30) - 100, 5 << 30])
def test_a_file_beyond_four_gigabytes(mounted: Path, offset: int) -> None:
    descriptor = os.open(mounted / "big", os.O_RDONLY)
    try:
        wanted = max(0, min(100_000, demo_server.BIG - offset))
        assert os.pread(descriptor, 100_000, offset) == pattern(offset, wanted)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("flags", [0, os.O_DIRECT])
def test_a_damaged_block_is_an_error_and_its_neighbours_are_right(mounted: Path, flags: int) -> None:
    size, page = demo_server.BAD_SIZE, 4096
    descriptor = os.open(mounted / "damaged", os.O_RDONLY | flags)
    buffer = memoryview(bytearray(page + 4096))
    start = -ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % 4096
    aligned = buffer[start : start + page]
    try:
        for offset in range(0, size, page):
            if demo_server.BAD_START <= offset < demo_server.BAD_END:
                refuses(errno.EIO, os.preadv, descriptor, [aligned], offset)
            else:
                assert os.preadv(descriptor, [aligned], offset) == page
                assert aligned == pattern(offset, page)
    finally:
        os.close(descriptor)


def test_a_bug_is_an_error_not_zeros(mounted: Path) -> None:
    refuses(errno.EIO, (mounted / "buggy").read_bytes)


def test_too_few_bytes_from_the_tree_are_an_error_not_the_end_of_the_file(mounted: Path) -> None:
    refuses(errno.EIO, (mounted / "short").read_bytes)


def test_holes(mounted: Path) -> None:
    with (mounted / "sparse").open("rb") as file:
        number = file.fileno()
        assert os.lseek(number, 0, os.SEEK_DATA) == 65536
        assert os.lseek(number, 0, os.SEEK_HOLE) == 0
        assert os.lseek(number, 65540, os.SEEK_HOLE) == 69632
        assert os.lseek(number, 69632, os.SEEK_DATA) == 131072
        assert os.lseek(number, 131100, os.SEEK_HOLE) == 131172
        refuses(errno.ENXIO, os.lseek, number, 131172, os.SEEK_DATA)
        assert os.lseek(number, -10, os.SEEK_END) == 131162
    with (mounted / "big").open("rb") as file:
        assert os.lseek(file.fileno(), 5000, os.SEEK_DATA) == 5000
        assert os.lseek(file.fileno(), 5000, os.SEEK_HOLE) == demo_server.BIG


@pytest.mark.parametrize(
    ("name", "kind"),
    [("fifo", b"fifo"), ("socket", b"socket"), ("char", b"character device"), ("block", b"block device")],
)
def test_special_files_are_empty_files_that_say_what_they_were(mounted: Path, name: str, kind: bytes) -> None:
    path = mounted / "special" / name
    assert stat.S_ISREG(path.stat().st_mode)
    assert path.read_bytes() == b""
    assert os.getxattr(path, "user.mountfs.type") == kind
    assert ("user.mountfs.device" in os.listxattr(path)) == ("device" in kind.decode())


def test_extended_attributes(mounted: Path) -> None:
    path = mounted / "attrs"
    assert sorted(os.listxattr(path)) == ["user.bin", "user.colour"]
    assert os.getxattr(path, "user.bin") == bytes(range(256))
    refuses(errno.ENODATA, os.getxattr, path, "user.other")
    assert os.listxattr(mounted / "hello.txt") == []


def test_streams(mounted: Path) -> None:
    assert (mounted / "streams.txt").read_text() == "main"
    assert (mounted / "streams.txt:Zone.Identifier").read_text() == "[ZoneTransfer]\n"
    assert (mounted / "streams.txt:%escaped%b%2Fc").read_text() == "slash"
    assert (mounted / "streams.txt:plain").read_text() == "a file with a colon"
    refuses(errno.ENOENT, (mounted / "streams.txt:none").stat)
    assert os.getxattr(mounted / "streams.txt", "user.mountfs.streams") == b"Zone.Identifier\n%escaped%b%2Fc"
    assert "streams.txt:Zone.Identifier" not in os.listdir(mounted)


def test_missing_names(mounted: Path) -> None:
    refuses(errno.ENOENT, (mounted / "nothing").stat)
    refuses(errno.ENOENT, (mounted / "deep/nothing/at/all").stat)
    refuses(errno.ENOTDIR, os.listdir, mounted / "hello.txt")
    refuses(errno.EISDIR, (mounted / "deep").read_bytes)


def _writes(top: Path) -> list[Callable[[], object]]:
    libc = ctypes.CDLL(None, use_errno=True)

    def rename_noreplace() -> None:
        if libc.renameat2(-100, os.fsencode(top / "empty"), -100, os.fsencode(top / "new"), 1):
            raise OSError(ctypes.get_errno(), "renameat2")

    return [
        lambda: os.open(top / "hello.txt", os.O_WRONLY),
        lambda: os.open(top / "hello.txt", os.O_RDWR),
        lambda: os.open(top / "hello.txt", os.O_RDWR | os.O_APPEND),
        lambda: os.open(top / "hello.txt", os.O_RDONLY | os.O_TRUNC),
        lambda: os.open(top / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
        lambda: os.open(top, os.O_TMPFILE | os.O_RDWR),
        lambda: os.truncate(top / "hello.txt", 0),
        (top / "new").mkdir,
        lambda: os.mknod(top / "new"),
        lambda: os.mkfifo(top / "new"),
        (top / "hello.txt").unlink,
        (top / "deep").rmdir,
        lambda: os.symlink("x", top / "new"),
        lambda: os.link(top / "hello.txt", top / "new"),
        lambda: os.rename(top / "hello.txt", top / "new"),
        rename_noreplace,
        lambda: os.chmod(top / "hello.txt", 0o777),
        lambda: os.chown(top / "hello.txt", 0, 0),
        lambda: os.utime(top / "hello.txt"),
        lambda: os.utime(top / "hello.txt", ns=(1, 2)),
        lambda: os.setxattr(top / "attrs", "user.colour", b"red"),
        lambda: os.setxattr(top / "attrs", "user.new", b""),
        lambda: os.removexattr(top / "attrs", "user.colour"),
    ]


def test_every_write_is_refused_as_read_only(mounted: Path) -> None:
    for write in _writes(mounted):
        refuses(errno.EROFS, write)
    with (mounted / "hello.txt").open("rb") as file:
        refuses(errno.EBADF, os.pwrite, file.fileno(), b"x", 0)
        refuses(errno.EBADF, os.posix_fallocate, file.fileno(), 0, 10)
    assert (mounted / "hello.txt").read_bytes() == b"hello\n"
    assert not (mounted / "new").exists()


def _written(path: Path, flags: int) -> None:
    opened = os.open(path, flags)
    try:
        os.write(opened, b"x")
    finally:
        os.close(opened)


@pytest.mark.root
def test_writes_are_refused_by_the_server_too_when_the_kernel_lets_them_through(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can remount")
    with Server("demo", tmp_path):
        subprocess.run(["mount", "-i", "-o", "remount,rw", tmp_path], check=True)
        # The first three only open a file, which a kernel that reads unopened files does not tell the server.
        for write in _writes(tmp_path)[3:5] + _writes(tmp_path)[6:]:
            refuses(errno.EROFS, write)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND):
            refuses(errno.EROFS, _written, tmp_path / "hello.txt", flags)
        assert (tmp_path / "hello.txt").read_bytes() == b"hello\n"


def test_overrides(tmp_path: Path) -> None:
    with Server("demo", tmp_path, "--uid", "77", "--umask", "027"):
        found = (tmp_path / "hello.txt").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (77, 4321, 0o640)
        assert stat.S_IMODE((tmp_path / "setuid").stat().st_mode) == 0o750


def test_four_readers_get_the_right_bytes(mounted: Path) -> None:
    failures = []

    def reader(seed: int) -> None:
        descriptor = os.open(mounted / "big", os.O_RDONLY)
        try:
            for step in range(60):
                offset = (seed * 1_234_567_891 + step * 77_777_777) % (demo_server.BIG - 70_000)
                if os.pread(descriptor, 70_000, offset) != pattern(offset, 70_000):
                    failures.append((seed, offset))
        finally:
            os.close(descriptor)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def eventually(condition: Callable[[], object], *, timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_points_come_go_and_change_under_a_mount(tmp_path: Path) -> None:
    mountpoint, source = tmp_path / "mnt", tmp_path / "points"
    mountpoint.mkdir()
    source.mkdir()
    (source / "p1").write_text("one")
    with Server("points", mountpoint, source):
        top = mountpoint / "set"
        assert sorted(os.listdir(top)) == ["latest", "p1"]
        assert not (top / "p2").exists()
        (source / "p2").write_text("two")
        assert (top / "p2" / "id.txt").read_text() == "two", "a look-up of a new name is never stale"
        eventually(lambda: sorted(os.listdir(top)) == ["latest", "p1", "p2"])
        eventually(lambda: (top / "latest" / "sub" / "id.txt").read_text() == "two")
        with (top / "p1" / "sub" / "id.txt").open() as file:
            assert file.read() == "one"
        (source / "p1").write_text("uno")
        eventually(lambda: (top / "p1" / "sub" / "id.txt").read_text() == "uno")
        assert (top / "p1" / "id.txt").read_text() == "uno"
        (source / "p1").unlink()
        eventually(lambda: not (top / "p1" / "sub" / "id.txt").exists())
        eventually(lambda: sorted(os.listdir(top)) == ["latest", "p2"])
        (source / "p3").write_text("broken")
        assert "footer" in (top / "p3" / "ERROR.txt").read_text()
        assert (top / "p2" / "id.txt").read_text() == "two"
