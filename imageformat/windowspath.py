r"""Paths of Windows that are longer than its old limit of 260 characters: ``\\?\C:\...``.

Source: "Maximum Path Length Limitation" and "Naming Files, Paths, and Namespaces" in the documentation of the
Windows API.
"""

from __future__ import annotations

import re

_ROOM = 150
"""Of the 248 characters that a folder may have, so many are left to what is appended to its path."""
_DRIVE = re.compile(r"[A-Za-z]:\\")
_PREFIX, _DEVICE = "\\\\?\\", "\\\\.\\"


def extended(absolute: str) -> str:
    r"""Return an absolute path in the form without a limit; what is no path of a drive or share stays.

    The path must be normal already: after this prefix ``..`` and ``/`` are names like all others.
    """
    if absolute.startswith((_PREFIX, _DEVICE)):
        return absolute
    if absolute.startswith("\\\\"):
        return f"{_PREFIX}UNC{absolute[1:]}"
    return _PREFIX + absolute if _DRIVE.match(absolute) else absolute


def extended_if_long(absolute: str) -> str:
    """Return the same for a path that, with the name of a file or two, may come near the limit."""
    return extended(absolute) if len(absolute) >= _ROOM else absolute
