"""Whether WinFsp is installed, and where to get it. Its installer writes its folder into the registry."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.platform == "win32":
    import winreg

MENDING = (
    "WinFsp is not installed: winget install WinFsp.WinFsp (or the installer from https://winfsp.dev/rel)"
)

_KEY, _VALUE = "SOFTWARE\\WinFsp", "InstallDir"


def library_missing() -> str | None:
    """Say how to get WinFsp when it is not there; None when it is."""
    folder = install_folder()
    return None if folder is not None and (folder / "bin").is_dir() else MENDING


def install_folder() -> Path | None:
    """Return where WinFsp is, from ``WINFSP_LIBRARY_PATH`` or the registry; None when it is not there."""
    named = os.environ.get("WINFSP_LIBRARY_PATH")
    return Path(named) if named else _registered()


if sys.platform == "win32":

    def _registered() -> Path | None:
        access = winreg.KEY_READ | winreg.KEY_WOW64_32KEY
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _KEY, 0, access) as key:
                return Path(str(winreg.QueryValueEx(key, _VALUE)[0]))
        except OSError:
            return None

else:

    def _registered() -> Path | None:
        return None
