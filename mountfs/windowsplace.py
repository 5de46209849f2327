"""Where Windows can mount: a letter of a drive, the next one that is free, or a folder that WinFsp makes."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

from imageformat.errors import MountPointError
from mountfs.names import safe_text

_LETTER = re.compile(r"([A-Za-z]):[\\/]?\Z")
_ANY = "*"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def check_windows_mountpoint(path: Path) -> Path:
    """Return ``X:`` with a free letter, or the absolute path of a folder that is still to be made.

    Raises:
        MountPointError: the letter is taken, none is free, the folder is there or the one above it is not.
    """
    text = str(path)
    letter = _LETTER.match(text)
    if text == _ANY or letter:
        return Path(free_letter(letter[1] if letter else None, _used_letters()))
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps ".."
    shown = safe_text(str(absolute))
    if os.path.lexists(absolute):
        raise MountPointError(f"{shown} is there already: name a folder that does not exist, WinFsp makes it")
    if not absolute.parent.is_dir():
        raise MountPointError(
            f"the folder above the mount point is missing: mkdir {safe_text(str(absolute.parent))}"
        )
    return absolute


def free_letter(wanted: str | None, used: int) -> str:
    """Return a free drive as ``X:``: the wanted one, else the last in the alphabet.

    Args:
        wanted: a letter; None for any from Z down to D.
        used: the drives that are there, the lowest bit is A, as GetLogicalDrives tells.

    Raises:
        MountPointError: it is taken, or all are.
    """
    if wanted is not None:
        upper = wanted.upper()
        if used >> _LETTERS.index(upper) & 1:
            raise MountPointError(f"{upper}: is a drive already: choose another letter, or *")
        return f"{upper}:"
    free = [char for index, char in enumerate(_LETTERS) if index >= 3 and not used >> index & 1]
    if not free:
        raise MountPointError("no letter of a drive is free: name a folder that does not exist")
    return f"{free[-1]}:"


if sys.platform == "win32":

    def _used_letters() -> int:
        return int(ctypes.WinDLL("kernel32").GetLogicalDrives())

else:

    def _used_letters() -> int:
        return 0
