"""What every mount adapter must do, asked of each that is found: a new adapter is tested without an edit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import mountfs.adapters
from imageformat.errors import MountPointError
from imageformat.plugins import discover
from mountfs.adapters import MountAdapter, MountOptions
from mountfs.memorytree import Item, MemoryTree, folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADAPTERS: list[MountAdapter] = list(discover(mountfs.adapters).available)

_SERVE = """
import sys
from pathlib import Path
import mountfs.adapters
from imageformat.plugins import discover
from mountfs.adapters import MountOptions
from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.tree import NodeKind

class Tree(MemoryTree):
    closed = False
    def close(self):
        self.closed = True

tree = Tree(folder({
    b"file": Item(bytes(range(256)) * 1024),
    b"folder": folder({b"caf\\xc3\\xa9 in space": Item(b"coffee")}),
    b"link": Item(b"folder", kind=NodeKind.SYMLINK),
}))
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
    command = [sys.executable, "-c", _SERVE, adapter.name, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()
    subprocess.run(["umount", "-l", tmp_path], check=False, stderr=subprocess.DEVNULL)


def test_there_is_an_adapter() -> None:
    assert "fuse" in [adapter.name for adapter in ADAPTERS]
    assert all(isinstance(adapter, MountAdapter) for adapter in ADAPTERS)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_what_is_missing_is_said_in_one_line(adapter: MountAdapter) -> None:
    reason = adapter.unavailable()
    assert reason is None or (reason and "\n" not in reason)


@pytest.mark.fuse
def test_it_shows_the_tree_once_it_is_ready(server: subprocess.Popen[str], tmp_path: Path) -> None:
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]
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
