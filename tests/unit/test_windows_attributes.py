"""What is set of a file that was copied to NTFS on Windows: structures, and what goes through the seam."""

from __future__ import annotations

import os
import struct
from pathlib import Path, PureWindowsPath
from typing import Any, cast

import pytest

from mountfs.copyout.attributes import set_attributes
from mountfs.copyout.report import CopyOptions, LossKind
from mountfs.copyout.windowsattributes import WindowsPlace, basic_info, long_path
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
        assert path == long_path(self.path)
        assert len(structure) == 40, "FILE_BASIC_INFO: four times, the attributes, padding"
        fields = struct.unpack("<qqqqI4x", structure)
        self.basic.append(fields)
        if fields[1]:
            times = [(value - UNIX_EPOCH) * 100 for value in fields[1:3]]
            os.utime(self.path, ns=(times[0], times[1]))

    def set_security(self, path: str, parts: int, descriptor: bytes) -> None:
        assert path == long_path(self.path)
        self.security.append((parts, descriptor))

    def write_stream(self, path: str, data: bytes) -> None:
        self.streams[path.removeprefix(long_path(self.path))] = data


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


@pytest.mark.parametrize(
    ("path", "long"),
    [
        ("C:\\a\\b", "\\\\?\\C:\\a\\b"),
        ("\\\\server\\share\\a", "\\\\?\\UNC\\server\\share\\a"),
        ("\\\\?\\C:\\a", "\\\\?\\C:\\a"),
    ],
)
def test_paths_have_no_limit(path: str, long: str) -> None:
    assert long_path(cast("Any", PureWindowsPath(path))) == long
