"""Mount a tree on Windows with mfusepy over the FUSE layer of WinFsp, where winfspy has no wheel.

What it lacks beside `winfsp`: named streams cannot be reached, names differ by case, and access lists are
made of owner and mode. WinFsp itself replaces what names may not hold.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageformat.errors import FuseUnavailableError, MountError
from mountfs.adapters import MountAdapter, MountOptions
from mountfs.fuseoperations import PosixOperations
from mountfs.names import safe_text
from mountfs.posixview import PosixView
from mountfs.windowsplace import check_windows_mountpoint
from mountfs.winfsplibrary import library_missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from mountfs.tree import FileTree

PLATFORMS = frozenset({"win32"})

_CURRENT_USER = -1
_LABEL_LENGTH = 32


def unavailable() -> str | None:
    """See `MountAdapter.unavailable`."""
    if sys.platform not in PLATFORMS:
        return "WinFsp mounts are made on Windows only"
    if find_spec("mfusepy") is None:
        return "the Python package mfusepy is not installed: pip install mfusepy"
    return library_missing()


def mount(tree: FileTree, options: MountOptions, ready: Callable[[], None]) -> None:
    """See `MountAdapter.mount`."""
    reason = unavailable()
    if reason is not None:
        raise FuseUnavailableError(reason)
    place = check_windows_mountpoint(options.mountpoint)
    view = PosixView(tree, uid=options.uid, gid=options.gid, umask=options.umask)
    view.attributes(b"/")
    binding = _load_binding()
    operations = PosixOperations(view, ready, total=options.size)
    try:
        binding.FUSE(operations, str(place), foreground=True, nothreads=True, **fuse_options(options))
    except (RuntimeError, OSError) as error:
        raise MountError(
            f"the mount at {safe_text(str(place))} was refused: {safe_text(str(error))}"
        ) from error


def fuse_options(options: MountOptions) -> dict[str, object]:
    """Return the mount options in the words of WinFsp's FUSE layer: -1 is the user who mounts."""
    label = safe_text(Path(options.source).name or options.source).replace(",", " ")[:_LABEL_LENGTH]
    return {
        "fsname": "mountfs",
        "FileSystemName": "NTFS",
        "volname": label,
        "uid": _CURRENT_USER if options.uid is None else options.uid,
        "gid": _CURRENT_USER if options.gid is None else options.gid,
    }


def _load_binding() -> Any:  # noqa: ANN401 (mfusepy has no types)
    try:
        return importlib.import_module("mfusepy")
    except (ImportError, OSError, AttributeError) as error:
        raise FuseUnavailableError(f"WinFsp cannot be used: {safe_text(str(error))}") from error


PLUGIN = MountAdapter(
    name="winfspfuse",
    unavailable=unavailable,
    rank=1,
    mount=mount,
    platforms=PLATFORMS,
    place=check_windows_mountpoint,
)
