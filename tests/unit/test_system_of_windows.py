"""The Windows half of `imageformat.system`, run on Linux over stand-ins for ``msvcrt`` and ``kernel32``.

The files and descriptors are real; what Windows itself does with a call is taken from its documentation.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

import imageformat.system
from imageformat.storage import descriptors, local, localwriter

MOVEFILE_REPLACE_EXISTING, MOVEFILE_WRITE_THROUGH = 1, 8


class Kernel32:
    """MoveFileExW as documented: without MOVEFILE_REPLACE_EXISTING an existing name is an error."""

    def __init__(self) -> None:
        self.flags: list[int] = []

        def move(source: str, target: str, flags: int) -> int:
            self.flags.append(flags)
            if Path(target).exists() and not flags & MOVEFILE_REPLACE_EXISTING:
                return 0
            Path(source).rename(target)
            return 1

        self.MoveFileExW = move


@pytest.fixture
def kernel() -> Kernel32:
    return Kernel32()


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, kernel: Kernel32) -> Any:
    msvcrt = types.ModuleType("msvcrt")
    msvcrt.LK_NBLCK = 2  # type: ignore[attr-defined]
    msvcrt.held = set()  # type: ignore[attr-defined]

    def locking(fd: int, mode: int, length: int) -> None:
        """As documented: the range begins where the file stands; one that is taken answers EACCES."""
        key = (os.fstat(fd).st_ino, os.lseek(fd, 0, os.SEEK_CUR), length)
        if key in msvcrt.held:
            raise OSError(errno.EACCES, "denied")
        msvcrt.held.add(key)

    msvcrt.locking = locking  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "O_BINARY", 0, raising=False)
    monkeypatch.setattr(os, "O_NOINHERIT", 0, raising=False)
    monkeypatch.setattr(ctypes, "WinDLL", lambda _name, **_options: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: 183, raising=False)
    taken = FileExistsError(errno.EEXIST, "there already")
    monkeypatch.setattr(ctypes, "WinError", lambda _code: taken, raising=False)
    spec = importlib.util.spec_from_file_location("system_of_windows", imageformat.system.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_halves_have_the_same_names(system: Any) -> None:
    ours = {name for name in dir(imageformat.system) if not name.startswith("_")} - {"fcntl", "resource"}
    theirs = {name for name in dir(system) if not name.startswith("_")} - {"msvcrt"}
    assert ours == theirs


def test_reads_at_a_position_do_not_disturb_each_other(system: Any, tmp_path: Path) -> None:
    content = bytes(range(256)) * 64
    (tmp_path / "x").write_bytes(content)
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    wrong: list[int] = []

    def read(start: int) -> None:
        for offset in range(start, len(content), 37):
            if system.pread(fd, 16, offset) != content[offset : offset + 16]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memory = bytearray(8)
    assert system.preadv(fd, memoryview(memory), 100) == 8
    assert bytes(memory) == content[100:108]
    os.close(fd)
    assert wrong == []


def test_writes_go_to_their_position(system: Any, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    assert system.pwrite(fd, b"end", 5) == 3
    assert system.pwrite(fd, memoryview(b"begin"), 0) == 5
    system.sync_data(fd)
    system.drop_cache(fd, 0, 0)
    os.close(fd)
    system.sync_folder(tmp_path)
    assert (tmp_path / "x").read_bytes() == b"beginend"


def test_a_lock_that_somebody_has_is_told_as_on_linux(system: Any, tmp_path: Path) -> None:
    first = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    second = os.open(tmp_path / "lock", os.O_RDWR)
    os.write(second, b"moved on")
    system.lock(first)
    with pytest.raises(BlockingIOError):
        system.lock(second)
    os.close(first)
    os.close(second)


def test_a_rename_never_replaces_and_waits_for_the_disk(
    system: Any, kernel: Kernel32, tmp_path: Path
) -> None:
    (tmp_path / "part").write_bytes(b"new")
    system.rename_new(tmp_path / "part", tmp_path / "final")
    assert (tmp_path / "final").read_bytes() == b"new"
    (tmp_path / "part").write_bytes(b"other")
    with pytest.raises(FileExistsError):
        system.rename_new(tmp_path / "part", tmp_path / "final")
    assert (tmp_path / "final").read_bytes() == b"new"
    assert kernel.flags == [MOVEFILE_WRITE_THROUGH] * 2, "never MOVEFILE_REPLACE_EXISTING"


def test_only_what_may_be_replaced_is_replaced(system: Any, kernel: Kernel32, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"new")
    (tmp_path / "final").write_bytes(b"old")
    system.replace(tmp_path / "part", tmp_path / "final")
    assert (tmp_path / "final").read_bytes() == b"new"
    assert kernel.flags == [MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH]


def test_a_long_path_is_given_the_form_without_a_limit(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Linux a path of Windows is one odd name, so the question what is absolute is answered for it."""
    monkeypatch.setattr(os.path, "abspath", lambda path: f"C:\\{path}")
    assert system.long_path(Path("short")) == Path("short"), "as it was typed"
    name = "x" * 200
    assert str(system.long_path(Path(name))) == f"\\\\?\\C:\\{name}"


def test_an_image_is_published_although_open_files_cannot_be_renamed(
    system: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The writer lets go of its file first: Windows refuses to rename one that is open."""
    for module in (local, localwriter):
        monkeypatch.setattr(module, "system", system)
    monkeypatch.setattr(descriptors, "system", system)
    opened: list[str] = []

    def rename_new(source: Path, target: Path) -> None:
        opened.extend(str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists())
        assert str(source) not in opened
        Path(source).rename(target)

    monkeypatch.setattr(system, "rename_new", rename_new)
    storage = local.LocalStorage(tmp_path)
    with storage.exclusive("set/"):
        writer = storage.create("set/x.mfi")
        writer.append(b"content" * 1000)
        writer.commit(lambda device: None if device.pread(0, 7) == b"content" else pytest.fail("other bytes"))
    assert (tmp_path / "set" / "x.mfi").read_bytes() == b"content" * 1000
    assert opened
