"""Reading the kernel's mount table, and the mount-point rules that need no mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from imageformat.errors import MountError, MountPointError
from mountfs import mounts

TABLE = (
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    "41 27 0:38 / /mnt/a\\040b\\012c\\134d\\011e ro,nosuid shared:7 master:1 - fuse.mountfs"
    " repo\\040one,two ro,user_id=0\n"
    "42 27 0:39 / /mnt/caf\udcff\u00e9 ro - fuse.mountfs x ro\n"
    "43 27 0:40 / /mnt/other ro - fuse.sshfs host: ro\n"
    "44 27 0:44 / /mnt/other ro - fuse.mountfs over ro\n"
    "odd line\n"
    "x y z\n"
    "45 27 0:zz / /mnt/bad ro - fuse.mountfs x ro\n"
)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(TABLE, "utf-8", "surrogateescape")
    monkeypatch.setattr(mounts, "_MOUNT_TABLE", path)
    return path


def test_ours_are_found_and_their_names_decoded(table: Path) -> None:
    found = {str(record.mountpoint): record for record in mounts.list_mounts()}
    assert list(found) == ["/mnt/a b\nc\\d\te", "/mnt/caf\udcff\u00e9", "/mnt/other"]
    first = found["/mnt/a b\nc\\d\te"]
    assert (first.source, first.mount_id, first.connection) == ("repo one,two", 41, 38)


def test_what_is_mounted_last_counts(table: Path) -> None:
    with pytest.raises(MountPointError, match="mounted already"):
        mounts.check_mountpoint(Path("/mnt/other"))
    table.write_text(TABLE.replace("fuse.mountfs over", "tmpfs over"), "utf-8", "surrogateescape")
    with pytest.raises(MountPointError, match="something else"):
        mounts.check_mountpoint(Path("/mnt/other"))
    with pytest.raises(MountPointError, match="not a mount of mountfs"):
        mounts.unmount(Path("/mnt/other"))


def test_a_mount_point_is_made_absolute(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    monkeypatch.chdir(tmp_path / "a")
    assert mounts.check_mountpoint(Path("b")) == tmp_path / "a" / "b"
    assert mounts.check_mountpoint(Path("../link")) == tmp_path / "a" / "b"


def answer_unmounts(monkeypatch: pytest.MonkeyPatch, code: int, message: str) -> None:
    def answer(_path: Path, *, lazy: bool) -> tuple[int, str]:
        assert not lazy
        return code, message

    monkeypatch.setattr(mounts, "_unmount_as_root", answer)
    monkeypatch.setattr(mounts, "_unmount_as_user", answer)


def test_refusals_of_the_system_become_errors(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_unmounts(monkeypatch, 5, "Input/output error")
    with pytest.raises(MountError, match="Input/output error"):
        mounts.unmount(Path("/mnt/other"))


def test_a_mount_that_stays_is_not_reported_as_gone(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_unmounts(monkeypatch, 0, "")
    monkeypatch.setattr(mounts, "GONE_S", 0.1)
    with pytest.raises(MountError, match="still mounted"):
        mounts.unmount(Path("/mnt/other"))
