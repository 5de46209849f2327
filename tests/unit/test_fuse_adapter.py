"""What the FUSE adapter says and refuses before anything is mounted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imageformat.errors import FuseUnavailableError, MountError, MountPointError
from mountfs import fusemounting
from mountfs.adapters import MountOptions
from mountfs.adapters import fuse as adapter
from mountfs.memorytree import MemoryTree, folder


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which nothing is missing, whatever this one is like."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(adapter, "_library", lambda: "libfuse3.so.3")
    monkeypatch.setattr(adapter, "find_spec", lambda name: name)
    monkeypatch.setattr(fusemounting, "_DEVICE", Path(os.devnull))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return monkeypatch


def test_nothing_is_missing(complete: pytest.MonkeyPatch) -> None:
    assert adapter.unavailable() is None


def test_each_missing_part_is_named_with_the_command_that_mends_it(
    complete: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cases = [
        (sys, "platform", "darwin", "Linux only"),
        (adapter, "find_spec", lambda _name: None, "pip install mfusepy"),
        (adapter, "_library", lambda: None, "apt install fuse3"),
        (fusemounting, "_DEVICE", tmp_path / "fuse", "modprobe fuse"),
    ]
    for owner, name, value, expected in cases:
        with complete.context() as missing:
            missing.setattr(owner, name, value)
            reason = adapter.unavailable()
            assert reason is not None
            assert expected in reason
            assert "\n" not in reason


def test_a_user_needs_the_helper_and_the_device(complete: pytest.MonkeyPatch) -> None:
    complete.setattr(os, "geteuid", lambda: 1000)
    assert adapter.unavailable() is None
    with complete.context() as missing:
        missing.setattr(shutil, "which", lambda _name: None)
        assert "apt install fuse3" in str(adapter.unavailable())
    complete.setattr(os, "access", lambda _path, _mode: False)
    assert "chmod 666" in str(adapter.unavailable())


def test_mounting_without_fuse_says_why(complete: pytest.MonkeyPatch, tmp_path: Path) -> None:
    complete.setattr(adapter, "_library", lambda: None)
    with pytest.raises(FuseUnavailableError, match="apt install fuse3"):
        adapter.mount(MemoryTree(folder({})), MountOptions(tmp_path, "x"), lambda: None)


def test_letting_others_in_needs_a_line_in_the_configuration(
    complete: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configuration = tmp_path / "fuse.conf"
    complete.setattr(os, "geteuid", lambda: 1000)
    complete.setattr(fusemounting, "_CONFIGURATION", configuration)
    options = MountOptions(tmp_path / "mnt", "x", allow_other=True)
    options.mountpoint.mkdir()
    for text in (None, "", "# user_allow_other\n", "mount_max = 3\nuser_allow_others\n"):
        if text is not None:
            configuration.write_text(text)
        with pytest.raises(MountError, match="user_allow_other"):
            adapter.mount(MemoryTree(folder({})), options, lambda: None)
    configuration.write_text("mount_max = 3\n  user_allow_other  \n")
    assert fusemounting._allows_others(configuration)


def test_a_folder_of_somebody_else_is_refused(complete: pytest.MonkeyPatch, tmp_path: Path) -> None:
    complete.setattr(os, "geteuid", lambda: 1000)
    complete.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    with pytest.raises(MountPointError, match="not yours to write"):
        adapter.mount(MemoryTree(folder({})), MountOptions(tmp_path, "x"), lambda: None)


@pytest.mark.parametrize(
    ("source", "expected"),
    [("plain", b"plain"), ("a,b", b"a\\,b"), ("c\\d", b"c\\\\d"), ("n\nl", b"n\\\\x0al"), ("", b"mountfs")],
)
def test_the_source_cannot_smuggle_options(source: str, expected: bytes) -> None:
    words = fusemounting.option_words(MountOptions(Path("/"), source)).encode()
    assert b",fsname=" + expected + b"," in words + b","


def test_the_kernel_checks_permissions_only_where_others_can_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(*, uid: int, others: bool) -> set[bytes]:
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        return set(
            fusemounting.option_words(MountOptions(Path("/"), "x", allow_other=others)).encode().split(b",")
        )

    always = {b"ro", b"nosuid", b"nodev", b"subtype=mountfs", b"fsname=x"}
    assert words(uid=1000, others=False) == always
    assert words(uid=0, others=False) == always | {b"default_permissions"}
    assert words(uid=1000, others=True) == always | {b"default_permissions", b"allow_other"}


def test_the_package_can_be_imported_without_libfuse() -> None:
    code = (
        "import ctypes, sys\n"
        "real = ctypes.CDLL\n"
        "def cdll(name, *a, **k):\n"
        "    if name and 'fuse' in str(name): raise OSError('not found')\n"
        "    return real(name, *a, **k)\n"
        "ctypes.CDLL = cdll\n"
        "import mountfs.adapters.fuse as f\n"
        "assert 'mfusepy' not in sys.modules\n"
        "print(f.unavailable())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "apt install fuse3" in done.stdout
