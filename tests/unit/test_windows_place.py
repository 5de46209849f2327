"""Where Windows can mount, which adapters it has, and what they say when WinFsp is missing."""

from __future__ import annotations

import io
from pathlib import Path, PureWindowsPath

import platformdirs.windows
import pytest

from imageformat.errors import MountPointError
from mountfs import windowsplace
from mountfs.adapters import adapters_here, winfsp, winfspfuse
from mountfs.cli.render import streams
from mountfs.windowsplace import check_windows_mountpoint, free_letter
from mountfs.winfsplibrary import install_folder, library_missing

A_C_AND_Z = 0b1 | 0b100 | 1 << 25


def test_each_system_has_its_own_ways_to_mount() -> None:
    assert [adapter.name for adapter in adapters_here("win32")] == ["winfsp", "winfspfuse"]
    assert [adapter.name for adapter in adapters_here("linux")] == ["devfuse", "fuse"]


def test_a_free_letter_is_taken_from_the_end() -> None:
    assert free_letter(None, A_C_AND_Z) == "Y:"
    assert free_letter("x", A_C_AND_Z) == "X:"
    with pytest.raises(MountPointError, match="C: is a drive already"):
        free_letter("c", A_C_AND_Z)
    with pytest.raises(MountPointError, match="no letter"):
        free_letter(None, (1 << 26) - 1 & ~0b111)


def test_mount_points_are_letters_or_folders_to_be_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(windowsplace, "_used_letters", lambda: A_C_AND_Z)
    assert check_windows_mountpoint(Path("*")) == Path("Y:")
    assert check_windows_mountpoint(Path("x:")) == Path("X:")
    assert check_windows_mountpoint(Path("x:\\")) == Path("X:")
    assert check_windows_mountpoint(tmp_path / "new") == tmp_path / "new"
    with pytest.raises(MountPointError, match="there already"):
        check_windows_mountpoint(tmp_path)
    with pytest.raises(MountPointError, match="folder above"):
        check_windows_mountpoint(tmp_path / "no" / "new")


def test_it_says_where_to_get_winfsp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(winfsp, "PLATFORMS", frozenset({"linux"}))
    monkeypatch.setattr(winfspfuse, "PLATFORMS", frozenset({"linux"}))
    monkeypatch.setattr(winfsp, "find_spec", lambda _name: object())
    monkeypatch.delenv("WINFSP_LIBRARY_PATH", raising=False)
    for adapter in (winfsp, winfspfuse):
        reason = adapter.unavailable()
        assert reason is not None
        assert "winget install WinFsp.WinFsp" in reason
        assert "https://winfsp.dev" in reason
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("WINFSP_LIBRARY_PATH", str(tmp_path))
    assert install_folder() == tmp_path
    assert library_missing() is None
    assert winfsp.unavailable() is None
    monkeypatch.setattr(winfsp, "find_spec", lambda _name: None)
    assert "mountfs[windows]" in str(winfsp.unavailable())


def test_what_is_remembered_lies_in_the_local_application_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call of `daemon` and of the journal of snapshots, by the rules of platformdirs for Windows."""
    monkeypatch.setattr(
        "platformdirs.windows.get_win_folder", lambda name: {"CSIDL_LOCAL_APPDATA": "C:/Local"}[name]
    )
    folder = platformdirs.windows.Windows("mountfs", appauthor=False).user_state_dir
    assert PureWindowsPath(folder) == PureWindowsPath("C:/Local/mountfs")


@pytest.mark.parametrize("errors", ["strict", "backslashreplace"])
def test_output_is_utf_8_whatever_the_code_page(monkeypatch: pytest.MonkeyPatch, errors: str) -> None:
    monkeypatch.setattr(streams, "_ENCODING", "utf-8")
    raw = io.BytesIO()
    with streams.harden(io.TextIOWrapper(raw, encoding="cp437", errors=errors)) as stream:
        stream.write("größe 日本 \ud800")
        stream.flush()
        assert raw.getvalue() == "größe 日本 \\ud800".encode()
