"""Copying out on Windows: the folder that steps by paths, over real files and stand-ins for Windows' calls.

What Windows itself does with a held folder, a stream or an access list is taken from its documentation.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import DestinationError
from mountfs.copyout import CopyOptions, CopyResult, LossKind, Overwrite, copy_out, plan
from mountfs.copyout.windowsfolder import open_windows_folder
from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.ntsecurity import EVERYONE, readable_by
from mountfs.tree import NodeKind
from mountfs.windowsnames import from_windows_name

if TYPE_CHECKING:
    from collections.abc import Mapping

EPOCH = 116444736000000000
NTFS = {"system.ntfs_attrib": struct.pack("<I", 0x1 | 0x20), "system.ntfs_acl": readable_by(EVERYONE)}


class Calls:
    """What `WindowsCalls` promises, on Linux; folders that are held are open descriptors."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.attributes: dict[str, int] = {}
        self.descriptors: dict[str, bytes] = {}
        self.streams: dict[str, bytes] = {}
        self.cleared: list[str] = []

    def set_basic_info(self, path: str, structure: bytes) -> None:
        assert self.open_writers(path) == [], "closing the file later would change its times"
        _, accessed, written, _, attributes = struct.unpack("<qqqqI4x", structure)
        if accessed:
            times = ((accessed - EPOCH) * 100, (written - EPOCH) * 100)
            os.utime(path, ns=times, follow_symlinks=False)
        if attributes:
            self.attributes[path] = attributes

    def open_writers(self, path: str) -> list[str]:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.exists()]
        return [str(link) for link in links if not Path(path).is_dir() and str(link.readlink()) == path]

    def set_security(self, path: str, parts: int, descriptor: bytes) -> None:
        assert parts == 7
        self.descriptors[path] = descriptor

    def write_stream(self, path: str, data: bytes) -> None:
        self.streams[path.rpartition(":")[2]] = data

    def clear_attributes(self, path: str) -> None:
        self.cleared.append(path)

    def hold_folder(self, path: str) -> int:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        self.held.add(fd)
        return fd

    def release(self, handle: int) -> None:
        self.held.remove(handle)
        os.close(handle)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(plan, "_opened", lambda path: open_windows_folder(path, calls))
    return calls


def _copy(children: Mapping[bytes, Item], target: Path, **options: object) -> CopyResult:
    tree = MemoryTree(folder(children))
    return copy_out(tree, [(b"/", tree.root())], target, CopyOptions(**options), lambda _: None)  # type: ignore[arg-type]


def test_content_names_links_and_attributes_arrive(calls: Calls, tmp_path: Path) -> None:
    big = os.urandom((3 << 20) + 17)
    target = tmp_path / "out"
    result = _copy(
        {
            b"a:b": Item(b"colon"),
            b"README": Item(b"first"),
            b"readme": Item(b"second"),
            b"\xff": Item(b"bytes"),
            b"big": Item(big, xattrs=NTFS, mtime_ns=1_600_000_000_123_456_700),
            b"streams": Item(b"main", xattrs=NTFS, streams={b"Zone.Identifier": b"3"}),
            b"first": Item(b"linked", links=2, inode=9),
            b"inner": folder({b"second": Item(b"linked", links=2, inode=9), b"aux": Item(b"device")}),
            b"link": Item(b"inner/second", kind=NodeKind.SYMLINK),
            b"pipe": Item(kind=NodeKind.FIFO),
        },
        target,
    )
    assert result.failures == ()
    assert (result.files, result.folders, result.links) == (9, 2, 1)
    names = sorted(path.name for path in target.iterdir())
    assert not [name for name in names if name.endswith(".part")]
    assert "README" in names
    (other,) = [name for name in names if name.startswith("%escaped%%!")]
    assert from_windows_name(other) == b"readme"
    assert ((target / "README").read_bytes(), (target / other).read_bytes()) == (b"first", b"second")
    assert (target / "%escaped%a%3Ab").read_bytes() == b"colon"
    assert (target / "%escaped%%FF").read_bytes() == b"bytes"
    assert (target / "inner" / "%escaped%%61ux").read_bytes() == b"device"
    assert (target / "big").read_bytes() == big
    assert (target / "big").stat().st_mtime_ns == 1_600_000_000_123_456_700
    assert (target / "first").stat().st_ino == (target / "inner" / "second").stat().st_ino
    assert str((target / "link").readlink()) == "inner\\second"
    assert calls.streams == {"Zone.Identifier": b"3"}
    assert set(calls.attributes.values()) == {0x21}
    assert set(calls.descriptors.values()) == {NTFS["system.ntfs_acl"]}
    assert result.loss_counts[LossKind.SPECIAL_FILE] == 1
    assert calls.held == set(), "every folder was let go"


def test_nothing_goes_through_a_link_in_the_target(calls: Calls, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "inner").symlink_to(outside)
    (tmp_path / "out" / "file").symlink_to(outside / "planted")
    children = {b"inner": folder({b"x": Item(b"x")}), b"file": Item(b"y"), b"z": Item(b"z")}
    result = _copy(children, tmp_path / "out", overwrite=Overwrite.REPLACE)
    assert [failure.path for failure in result.failures] == [b"/inner"]
    assert list(outside.iterdir()) == []
    assert (tmp_path / "out" / "file").read_bytes() == b"y"
    assert not (tmp_path / "out" / "file").is_symlink(), "the link itself was replaced"
    assert (tmp_path / "out" / "z").read_bytes() == b"z"
    assert calls.held == set()


def test_what_is_there_is_replaced_only_when_asked(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    result = _copy({b"a": Item(b"new"), b"b": Item(b"b")}, tmp_path)
    assert [failure.path for failure in result.failures] == [b"/a"]
    assert (tmp_path / "a").read_bytes() == b"old"
    assert _copy({b"a": Item(b"new")}, tmp_path, overwrite=Overwrite.REPLACE).failures == ()
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_read_only_leftover_is_removed(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that became read-only before it could be published: Windows refuses to remove it as it is."""
    real = Path.unlink

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        if str(path) not in calls.cleared and path.exists():
            raise PermissionError(errno.EACCES, "read-only")
        real(path, missing_ok=missing_ok)

    def rename_new(source: Path, target: Path) -> None:
        raise FileExistsError(errno.EEXIST, "a rival was faster")

    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr("mountfs.copyout.windowsfolder.system.rename_new", rename_new)
    assert _copy({b"a": Item(b"new", xattrs=NTFS)}, tmp_path).failure_count == 1
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_file_is_replaced_when_that_is_asked_for(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def replace(source: Path, target: Path) -> None:
        if str(target) not in calls.cleared:
            raise PermissionError(errno.EACCES, "read-only")
        source.rename(target)

    monkeypatch.setattr("mountfs.copyout.windowsfolder.system.replace", replace)
    assert _copy({b"a": Item(b"new")}, tmp_path, overwrite=Overwrite.REPLACE).failures == ()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert calls.cleared == [str(tmp_path / "a")]


def test_a_missing_target_is_told_as_everywhere(calls: Calls, tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="cannot write"):
        _copy({b"a": Item(b"a")}, tmp_path / "no" / "where")
