"""Exports of qemu-nbd and nbdkit, over Unix sockets and TCP: their bytes, their holes, their errors."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.sources import open_any
from imageformat.errors import NotFoundError, SourceReadError
from imageformat.extent import ExtentKind
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage
from support.content import noise
from support.points import digest_of, digest_of_point
from support.product import mountfs
from support.requirements import find_tool, require_tool
from support.virtualmachine import PATIENCE, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 8 << 20


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Content, a hole, content, and an odd end."""
    path = tmp_path_factory.mktemp("nbd") / "disk.img"
    with path.open("wb") as file:
        file.write(noise(1, 3 << 20))
        file.seek(5 << 20)
        file.write(noise(2, 3 << 20))
    return path


@contextlib.contextmanager
def served(folder: Path, *command: str | Path) -> Iterator[Path]:
    """Run a server that listens on ``folder/sock``."""
    require_tool(str(command[0]))
    path = folder / "sock"
    arguments = [str(argument).replace("SOCKET", str(path)) for argument in command[1:]]
    process = subprocess.Popen([str(find_tool(str(command[0]))), *arguments])
    try:
        wait_for(path)
        yield path
    finally:
        process.terminate()
        process.wait(PATIENCE)
        path.unlink(missing_ok=True)


def servers(disk: Path) -> dict[str, tuple[str | Path, ...]]:
    plain = ("nbdkit", "--foreground", "--unix", "SOCKET", "file", disk)
    return {
        "qemu-nbd": (*("qemu-nbd", "-r", "-t", "-x", "d", "-f", "raw", "-e", "9", "-k", "SOCKET"), disk),
        "nbdkit": plain,
        "nbdkit in blocks of 4 KiB": (
            *plain,
            *("--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-maximum=65536"),
            "blocksize-error-policy=error",
        ),
        "nbdkit without status": (*plain, "--filter=noextents"),
    }


NAMES = list(servers(Path()))


@pytest.mark.parametrize("name", NAMES)
def test_many_threads_read_an_export(name: str, disk: Path, tmp_path: Path) -> None:
    expected = disk.read_bytes()
    with (
        served(tmp_path, *servers(disk)[name]) as path,
        closing(open_any(f"nbd+unix:///d?socket={path}")) as source,
        ThreadPoolExecutor(8) as pool,
    ):
        assert source.size == SIZE
        found = list(source.extents(0, SIZE))
        assert sum(extent.length for extent in found) == SIZE
        zeros = sum(extent.length for extent in found if extent.kind is ExtentKind.ZERO)
        assert zeros == (0 if "without" in name else 2 << 20)
        chance = random.Random(name)
        ranges = [(chance.randrange(SIZE), chance.choice([1, 513, 4096, 1 << 20])) for _ in range(200)]
        ranges = [(offset, min(size, SIZE - offset)) for offset, size in ranges]
        for (offset, size), data in zip(
            ranges, pool.map(lambda pair: source.pread(*pair), ranges), strict=True
        ):
            assert data == expected[offset : offset + size]
        assert source.pread(0, SIZE) == expected


def test_backup_over_tcp_restores(disk: Path, tmp_path: Path) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ("nbdkit", "--foreground", "--port", str(port), "--ipaddr", "127.0.0.1", "file", str(disk))
    require_tool("nbdkit")
    process = subprocess.Popen(command)
    try:
        _wait_for_port(port)
        ran = mountfs("backup", f"nbd://127.0.0.1:{port}/vda", tmp_path / "repo", "--json")
        assert ran.facts["set"] == "vda"
    finally:
        process.terminate()
        process.wait(PATIENCE)
    with closing(Repository(LocalStorage(tmp_path / "repo"))) as opened:
        assert digest_of_point(opened, opened.image_set("vda").points[-1]) == digest_of(disk)


def _wait_for_port(port: int) -> None:
    for _ in range(int(PATIENCE / 0.05)):
        with contextlib.suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 0.05)):
            return
    raise TimeoutError


def test_export_that_fails_or_is_not_there(disk: Path, tmp_path: Path) -> None:
    with (
        served(tmp_path, *servers(disk)["qemu-nbd"]) as path,
        pytest.raises(NotFoundError, match="no export"),
    ):
        open_any(f"nbd+unix:///other?socket={path}")
    failing = ("nbdkit", "--foreground", "--unix", "SOCKET", "file", disk)
    with served(tmp_path, *failing, "--filter=error", "error-pread-rate=100%") as path:
        url = f"nbd+unix:///d?socket={path}"
        with closing(open_any(url)) as source, pytest.raises(SourceReadError, match="input/output error"):
            source.pread(0, 512)
        ran = mountfs("backup", url, tmp_path / "repo", "--raw", code=30)
        assert "input/output error" in ran.err
    assert not list((tmp_path / "repo").glob("*/*.mfi"))
    mountfs("backup", url, tmp_path / "repo", code=60)  # the socket went with its server
