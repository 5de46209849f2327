"""From the address of a place to its storage: ``scheme://`` is the plug-in module of that name."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from imageformat.errors import UsageError
from imageformat.storage.local import LocalStorage

if TYPE_CHECKING:
    from imageformat.storage import Storage, StorageScheme

_URL = re.compile(r"(?P<base>(?P<scheme>[a-z][a-z0-9]*)://[^/]*)(?P<path>.*)", re.DOTALL)


def split_address(text: str) -> tuple[str, str]:
    """Split a remote address into what names the server and the path; a local one is ``("", text)``."""
    match = _URL.fullmatch(text)
    if match is None or match["scheme"] == "file":
        return "", text
    return match["base"], match["path"]


def is_remote(text: str) -> bool:
    """Tell whether an address leads to another machine."""
    return bool(split_address(text)[0])


def parent_of(address: str) -> tuple[str, str]:
    """Return the address above a remote one, and its own name there; the name is empty at the top."""
    base, path = split_address(address)
    folder, _, name = path.rstrip("/").rpartition("/")
    return f"{base}{folder}", name


def open_storage(address: str) -> Storage:
    """Open the storage of an address; only the library that this kind needs is loaded.

    Raises:
        UsageError: there is no such kind, or its library is not installed, or the address makes no sense.
        AccessDeniedError, StorageError
    """
    match = _URL.fullmatch(address)
    if match is None or match["scheme"] == "file":
        return LocalStorage(Path(address.removeprefix("file://")).absolute())
    scheme = match["scheme"]
    module_name = f"imageformat.storage.{scheme}"
    try:
        record: StorageScheme | None = getattr(importlib.import_module(module_name), "PLUGIN", None)
    except ImportError as error:
        if error.name != module_name:
            missing = UsageError(f"{scheme}:// needs {error.name}, which is not installed")
            missing.add_note(f"pip install 'mountfs[{scheme}]'")
            raise missing from error
        record = None
    if record is None or not record.matches(address):
        raise UsageError(f"{address}: images lie in a folder, or at an address such as s3:// or sftp://")
    return record.open(address)
