"""What is set of a file that was copied to NTFS on Windows: structures, and what goes through the seam."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from imageformat.windowspath import extended, extended_if_long
from mountfs.copyout.attributes import set_attributes
from mountfs.copyout.report import CopyOptions, LossKind
from mountfs.copyout.windowsattributes import WindowsPlace, basic_info
from mountfs.ntsecurity import EVERYONE, readable_by
from mountfs.tree import Node, NodeKind

UNIX_EPOCH = 116444736000000000


class Calls:
    """Notes what is asked; times reach the real file, so that reading back tells the truth."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.basic: list[tuple[int, ...]] = []
        self.security: list[tuple[int, bytes]] = []
        self.streams: dict[str, bytes] = {}

    def set_basic_info(self, path: str, structure: bytes) -> None:
        assert path == extended(str(self.path))
        assert len(structure) == 40, "FILE_BASIC_INFO: four times, the attributes, padding"
        fields = struct.unpack("<qqqqI4x", structure)
        self.basic.append(fields)
        if fields[1]:
            times = [(value - UNIX_EPOCH) * 100 for value in fields[1:3]]
            os.utime(self.path, ns=(times[0], times[1]))

    def set_security(self, path: str, parts: int, descriptor: bytes) -> None:
        assert path == extended(str(self.path))
        self.security.append((parts, descriptor))

    def write_stream(self, path: str, data: bytes) -> None:
        self.streams[path.removeprefix(extended(str(self.path)))] = data

    def clear_attributes(self, path: str) -> None:
        raise AssertionError(path)

    def hold_folder(self, path: str) -> int:
        raise AssertionError(path)

    def release(self, handle: int) -> None:
        raise AssertionError(handle)


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    (tmp_path / "x").write_bytes(b"content")
    return Calls(tmp_path / "x")


def test_everything_of_a_file_of_ntfs_arrives(calls: Calls) -> None:
    access = readable_by(EVERYONE)
    extended = {
        "user.Zone.Identifier": b"[ZoneTransfer]",
        "user.a:b": b"odd",
        "system.ntfs_attrib": struct.pack("<I", 0x2 | 0x20 | 0x800),
        "system.ntfs_crtime": struct.pack("<Q", UNIX_EPOCH + 5),
        "system.ntfs_acl": access,
        "security.selinux": b"label",
    }
    node = Node(
        b"x",
        NodeKind.FILE,
        1,
        mode=0o644,
        atime_ns=1_600_000_000_000_000_100,
        mtime_ns=1_500_000_000_123_456_700,
    )
    lost: list[tuple[LossKind, str]] = []
    place = WindowsPlace(calls.path, calls)
    set_attributes(
        place, node, extended, CopyOptions(keep_owner=False), lambda kind, what: lost.append((kind, what))
    )
    assert calls.streams == {":Zone.Identifier": b"[ZoneTransfer]", ":%escaped%a%3Ab": b"odd"}
    assert calls.security == [(7, access)], "owner, group and access list, not the audit list"
    assert (0, 0, 0, 0, 0x22) in calls.basic, "hidden, archive; compression is no attribute to be set"
    assert (UNIX_EPOCH + 5, 0, 0, 0, 0) in calls.basic
    assert calls.basic[-1] == (
        0,
        UNIX_EPOCH + 16_000_000_000_000_001,
        UNIX_EPOCH + 15_000_000_001_234_567,
        0,
        0,
    )
    assert [what.split(",")[0] for kind, what in lost if kind is LossKind.ATTRIBUTE] == ["security.selinux"]
    assert LossKind.TIMES not in [kind for kind, _ in lost]


@pytest.mark.parametrize("value", [b"", b"\1" * 20, readable_by(EVERYONE)[:-1]])
def test_a_damaged_access_list_is_not_set(calls: Calls, value: bytes) -> None:
    with pytest.raises(OSError, match="not supported"):
        WindowsPlace(calls.path, calls).set_attribute(b"system.ntfs_acl", value)
    assert calls.security == []


def test_zero_leaves_a_field_as_it_is() -> None:
    assert basic_info() == bytes(40)
    assert struct.unpack("<qqqqI4x", basic_info(created=1, accessed=2, written=3, attributes=4)) == (
        1,
        2,
        3,
        0,
        4,
    )


def test_without_the_privilege_the_access_list_is_set_and_the_owner_reported(calls: Calls) -> None:
    access = readable_by(EVERYONE)
    real = calls.set_security

    def set_security(path: str, parts: int, descriptor: bytes) -> None:
        if parts & 1:
            raise PermissionError(errno.EACCES, "SeRestorePrivilege is not held")
        real(path, parts, descriptor)

    calls.set_security = set_security  # type: ignore[method-assign]
    lost: list[tuple[LossKind, str]] = []
    node = Node(b"x", NodeKind.FILE, 1, uid=5, mode=0o4755)
    extended = {"system.ntfs_acl": access, "system.ntfs_attrib": bytes(4)}
    set_attributes(
        WindowsPlace(calls.path, calls), node, extended, CopyOptions(), lambda *what: lost.append(what)
    )
    assert calls.security == [(4, access)]
    assert (LossKind.ATTRIBUTE, "system.ntfs_acl: the owner is another: run this as administrator") in lost
    assert {kind for kind, _ in lost}.isdisjoint({LossKind.OWNER, LossKind.MODE}), "NTFS had neither"


def test_what_posix_had_is_reported_as_lost(calls: Calls) -> None:
    lost: list[tuple[LossKind, str]] = []
    node = Node(b"x", NodeKind.FILE, 1, uid=54321, gid=12345, mode=0o111, mtime_ns=5_000_000_199)
    set_attributes(WindowsPlace(calls.path, calls), node, {}, CopyOptions(), lambda *what: lost.append(what))
    assert {kind for kind, _ in lost} == {LossKind.OWNER, LossKind.MODE}, "99 ns are no loss"


@pytest.mark.parametrize(
    ("path", "long"),
    [
        ("C:\\a\\b", "\\\\?\\C:\\a\\b"),
        ("\\\\server\\share\\a", "\\\\?\\UNC\\server\\share\\a"),
        ("\\\\?\\C:\\a", "\\\\?\\C:\\a"),
        ("\\\\.\\PhysicalDrive0", "\\\\.\\PhysicalDrive0"),
        ("/tmp/a", "/tmp/a"),
        ("a\\b", "a\\b"),
    ],
)
def test_paths_have_no_limit(path: str, long: str) -> None:
    assert extended(path) == long
    assert extended_if_long(path) == path, "short ones stay readable"
    far = path + "\\x" * 100
    assert extended_if_long(far) == extended(far)
