r"""Mount a tree on Windows as a drive or a folder, with winfspy over WinFsp.

Mount points: ``X:``, ``*`` for the last free letter, or the name of a folder that does not exist yet (WinFsp
makes it, and it goes with the mount).
"""

from __future__ import annotations

import importlib
import signal
import sys
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from imageformat.errors import FuseUnavailableError, MountError
from mountfs.adapters import MountAdapter, MountOptions
from mountfs.names import safe_text
from mountfs.windowsplace import check_windows_mountpoint
from mountfs.windowsview import WindowsView
from mountfs.winfsplibrary import library_missing
from mountfs.winfspsession import make_operations, volume_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mountfs.tree import FileTree

PLATFORMS = frozenset({"win32"})

_SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK")
_WAKE_S = 0.5
"""Windows interrupts no wait of Python's for Ctrl-C, so it is looked for that often."""


def unavailable() -> str | None:
    """See `MountAdapter.unavailable`."""
    if sys.platform not in PLATFORMS:
        return "WinFsp mounts are made on Windows only"
    if find_spec("winfspy") is None:
        return "the Python package winfspy is not installed: pip install mountfs[windows] (Python 3.11)"
    return library_missing()


def mount(tree: FileTree, options: MountOptions, ready: Callable[[], None]) -> None:
    """See `MountAdapter.mount`."""
    reason = unavailable()
    if reason is not None:
        raise FuseUnavailableError(reason)
    place = check_windows_mountpoint(options.mountpoint)
    view = WindowsView(tree, own_access_lists=options.acl)
    next(view.listing(view.find("\\"), None), None)
    binding = _load_binding()
    label = safe_text(Path(options.source).name or options.source)
    operations = make_operations(binding, view, label=label, size=options.size)
    ended: SimpleQueue[None] = SimpleQueue()
    try:
        with _signals_set(ended):
            file_system = binding.FileSystem(str(place), operations, **volume_parameters())
            file_system.start()
            try:
                ready()
                _wait(ended)
            finally:
                file_system.stop()
    except (binding.WinFSPyError, OSError) as error:
        raise MountError(
            f"the mount at {safe_text(str(place))} was refused: {safe_text(str(error))}"
        ) from error


def _load_binding() -> Any:  # noqa: ANN401 (winfspy has no types)
    """Import winfspy; it loads the library of WinFsp, and fails in many ways when that cannot be."""
    try:
        binding = importlib.import_module("winfspy")
        importlib.import_module("winfspy.plumbing")
    except (ImportError, OSError, RuntimeError) as error:
        raise FuseUnavailableError(f"WinFsp cannot be used: {safe_text(str(error))}") from error
    return binding


@contextmanager
def _signals_set(ended: SimpleQueue[None]) -> Iterator[None]:
    """End the mount at the signals that end programs; Ctrl-Break is one on Windows."""
    numbers = [number for name in _SIGNALS if (number := getattr(signal, name, None)) is not None]
    taken = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: ended.put(None)) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ended: SimpleQueue[None]) -> None:
    while True:
        with suppress(Empty):
            ended.get(timeout=_WAKE_S)
            return


PLUGIN = MountAdapter(
    name="winfsp",
    unavailable=unavailable,
    rank=0,
    mount=mount,
    platforms=PLATFORMS,
    place=check_windows_mountpoint,
)
