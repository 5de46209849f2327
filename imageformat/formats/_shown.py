"""Names of files as they may be kept and shown: text that has an encoding."""

from __future__ import annotations


def shown_name(name: str) -> str:
    """Return a name as text that can be written as UTF-8: bytes of it that are none become question marks.

    `imageformat.siblings` opens a file by the name itself.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
