"""Where passwords and keys come from: files, standard input, and the person at the terminal."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from imageformat import system
from imageformat.errors import LockedError, UsageError
from imageformat.secrets import MAX_KEY_SIZE, Secrets
from imageformat.storage.failures import read_error
from mountfs.names import safe_text

if TYPE_CHECKING:
    from collections.abc import Sequence

ATTEMPTS = 3
_STANDARD_INPUT = "-"


def read_secrets(password_files: Sequence[str], key_files: Sequence[str]) -> Secrets:
    """Read what ``--password-file`` and ``--key-file`` name.

    A password is the content of its file without the line break at its end; a key is all of it. At a terminal
    ``-`` asks for the password.

    Raises:
        UsageError: standard input is named twice, or a file is too long.
        MountfsError: a file cannot be read.
    """
    if [*password_files, *key_files].count(_STANDARD_INPUT) > 1:
        raise UsageError("standard input can give one password or key only")
    return Secrets(
        tuple(_password(name) for name in password_files), tuple(_content(name) for name in key_files)
    )


def can_ask() -> bool:
    """Whether somebody sits at the terminal who can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def ask(what: str) -> bytes:
    """Ask for a password without showing it.

    Raises:
        LockedError: nothing was typed, or there is nobody.
    """
    try:
        typed = getpass.getpass(f"Password of {safe_text(what)}: ")
    except (EOFError, OSError) as error:
        raise LockedError(f"no password was given for {safe_text(what)}") from error
    if not typed:
        raise LockedError(f"no password was given for {safe_text(what)}")
    return typed.encode("utf-8", "surrogateescape")


def _password(name: str) -> bytes:
    if name == _STANDARD_INPUT and can_ask():
        return ask("what is encrypted")
    content = _content(name)
    for end in (b"\r\n", b"\n"):
        if content.endswith(end):
            return content.removesuffix(end)
    return content


def _content(name: str) -> bytes:
    try:
        if name == _STANDARD_INPUT:
            content = sys.stdin.buffer.read(MAX_KEY_SIZE + 1)
        else:
            with system.long_path(Path(name)).open("rb") as file:
                content = file.read(MAX_KEY_SIZE + 1)
    except OSError as error:
        raise read_error(error, Path(name)) from error
    if len(content) > MAX_KEY_SIZE:
        raise UsageError(f"{name} is longer than a password or key can be ({MAX_KEY_SIZE >> 20} MiB)")
    return content
