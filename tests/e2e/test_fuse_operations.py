"""The operations for WinFsp's FUSE layer, mounted by mfusepy's own class over libfuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mountfs.adapters import MountOptions, winfspfuse

_SERVE = r"""
import os, sys
from mountfs.adapters.fuse import _library
os.environ["FUSE_LIBRARY_PATH"] = _library()
import mfusepy
from imageformat.errors import CorruptImageError
from mountfs.fuseoperations import PosixOperations
from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.posixview import PosixView
from mountfs.tree import NodeKind

def fail(offset, size):
    raise CorruptImageError("block 7 does not match its checksum")

tree = MemoryTree(folder({
    b"file": Item(bytes(range(256)) * 1024, mode=0o644, mtime_ns=1_500_000_000_123_456_789),
    b"folder": folder({b"caf\xc3\xa9": Item(b"coffee"), b"\xff\xfe": Item(b"bytes")}),
    b"link": Item(b"folder", kind=NodeKind.SYMLINK),
    b"many": folder({b"entry %d" % n: Item(b"%d" % n) for n in range(5000)}),
    b"broken": Item(size=100, read=fail),
}))
view = PosixView(tree)
operations = PosixOperations(view, lambda: print("ready", flush=True), total=1 << 30)
mfusepy.FUSE(operations, sys.argv[1], foreground=True, nothreads=True, fsname="x", subtype="mountfs")
"""


@pytest.mark.fuse
def test_mfusepy_shows_the_tree(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert (tmp_path / "file").read_bytes() == bytes(range(256)) * 1024
            assert (tmp_path / "file").stat().st_mtime_ns == 1_500_000_000_123_456_789
            assert (tmp_path / "link" / "café").read_text() == "coffee"
            assert (tmp_path / "folder" / os.fsdecode(b"\xff\xfe")).read_text() == "bytes"
            assert sorted(os.listdir(tmp_path / "many")) == sorted(f"entry {n}" for n in range(5000))  # noqa: PTH208
            with pytest.raises(OSError, match="Input/output error"):
                (tmp_path / "broken").read_bytes()
            for attempt in ((tmp_path / "new").mkdir, (tmp_path / "file").unlink):
                with pytest.raises(OSError, match=r"Read-only|not implemented"):
                    attempt()
            with pytest.raises(OSError, match="Read-only"):
                (tmp_path / "file").write_bytes(b"x")
            assert (tmp_path / "file").stat().st_size == 256 * 1024
            assert os.statvfs(tmp_path).f_blocks == 1 << 18
        finally:
            subprocess.run(["umount", "-l", tmp_path], check=False, stderr=subprocess.DEVNULL)
            process.kill()


def test_it_is_only_for_windows() -> None:
    assert winfspfuse.unavailable() == "WinFsp mounts are made on Windows only"


def test_the_words_of_winfsp_are_used() -> None:
    words = winfspfuse.fuse_options(MountOptions(Path("X:"), "/images/a,b.mfi"))
    assert words["volname"] == "a b.mfi", "a comma would begin another option"
    assert (words["uid"], words["gid"]) == (-1, -1)
