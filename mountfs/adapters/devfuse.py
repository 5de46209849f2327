"""Mount a tree on Linux by speaking with the kernel's FUSE directly: libfuse is not needed.

It serves with three threads where libfuse's adapter has one, copies nothing, and starts faster.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from imageformat.errors import FuseUnavailableError
from mountfs.adapters import MountAdapter, MountOptions
from mountfs.fuseloop import FuseLoop
from mountfs.fusemounting import (
    check_as_user,
    device_missing,
    helper_missing,
    open_mounted,
    raise_read_ahead,
)
from mountfs.mounts import check_mountpoint, end_now
from mountfs.posixview import PosixView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mountfs.tree import FileTree

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_PATIENCE_S = 5.0
"""How long requests that are being answered may take once the mount is to end."""


def unavailable() -> str | None:
    """See `MountAdapter.unavailable`."""
    if not sys.platform.startswith("linux"):
        return "FUSE mounts are made on Linux only"
    return helper_missing() or device_missing()


def mount(tree: FileTree, options: MountOptions, ready: Callable[[], None]) -> None:
    """See `MountAdapter.mount`."""
    reason = unavailable()
    if reason is not None:
        raise FuseUnavailableError(reason)
    mountpoint = check_mountpoint(options.mountpoint)
    check_as_user(options, mountpoint)
    view = PosixView(tree, uid=options.uid, gid=options.gid, umask=options.umask)
    view.attributes(b"/")
    ended: SimpleQueue[None] = SimpleQueue()
    with _signals_set(ended):
        loop = FuseLoop(open_mounted(options, mountpoint), view, lambda: ended.put(None))
        try:
            loop.start()
            announcer = threading.Thread(
                target=_announce, args=(mountpoint, ready), name="mountfs-ready", daemon=True
            )
            announcer.start()
            ended.get()
        finally:
            loop.stop()
            if not loop.is_gone:
                end_now(mountpoint)
            loop.close(_PATIENCE_S)


def _announce(mountpoint: Path, ready: Callable[[], None]) -> None:
    """Call ``ready`` when the kernel answers: it holds this call until the handshake is over."""
    with suppress(OSError):
        os.statvfs(mountpoint)
    raise_read_ahead(mountpoint)
    ready()


@contextmanager
def _signals_set(ended: SimpleQueue[None]) -> Iterator[None]:
    """End the mount at the signals that end programs; only the main thread can take them.

    A signal comes at any moment, also inside of the wait that it is to end. `SimpleQueue.put` is made for
    that; `threading.Event.set` would wait for a lock that the interrupted wait holds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # What is ignored stays so: nohup, and a shell that starts something in the background, mean it.
    taken = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: ended.put(None)) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


PLUGIN = MountAdapter(name="devfuse", unavailable=unavailable, rank=0, mount=mount)
