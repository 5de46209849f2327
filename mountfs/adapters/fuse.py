"""Mount a tree with FUSE: mfusepy's structures over libfuse 3, with callbacks of our own.

mfusepy is used for what is hard, the layout of libfuse's structures in all its versions. Its callback
layer is not: it decodes every path, copies every read twice and turns unknown failures into EINVAL.

One thread serves the mount (``-s``): threads that fight for the interpreter lock cost more than they give
on hot reads. Nothing here depends on that, except that one slow read of the storage delays the others.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING

from imageformat.errors import FuseUnavailableError, MountError
from mountfs.adapters import MountAdapter, MountOptions
from mountfs.fusemounting import check_as_user, device_missing, helper_missing, option_words
from mountfs.fusesession import FuseSession, Untyped
from mountfs.mounts import check_mountpoint
from mountfs.names import safe_text
from mountfs.posixview import PosixView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mountfs.tree import FileTree

_LIBRARIES = ("libfuse3.so.4", "libfuse3.so.3")
_MOUNT_FAILED = 6
"""libfuse's `fuse_main` returns 1 to 6 when it could not mount, and more when its loop ended by a signal."""
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def unavailable() -> str | None:
    """See `MountAdapter.unavailable`."""
    if not sys.platform.startswith("linux"):
        return "FUSE mounts are made on Linux only"
    if find_spec("mfusepy") is None:
        return "the Python package mfusepy is not installed: pip install mfusepy"
    if _library() is None:
        return "libfuse 3 is not installed: sudo apt install fuse3 (or: dnf install fuse3, pacman -S fuse3)"
    helper = helper_missing()
    if helper is not None:
        return helper
    return device_missing()


def mount(tree: FileTree, options: MountOptions, ready: Callable[[], None]) -> None:
    """See `MountAdapter.mount`."""
    reason = unavailable()
    if reason is not None:
        raise FuseUnavailableError(reason)
    mountpoint = check_mountpoint(options.mountpoint)
    check_as_user(options, mountpoint)
    view = PosixView(tree, uid=options.uid, gid=options.gid, umask=options.umask)
    view.attributes(b"/")
    session = FuseSession(_load_binding(), view, mountpoint, ready)
    arguments = [b"mountfs", b"-f", b"-s", b"-o", os.fsencode(option_words(options)), os.fsencode(mountpoint)]
    with _default_signals():
        code = session.run(arguments)
    if 0 < code <= _MOUNT_FAILED:
        raise MountError(
            f"the mount at {safe_text(str(mountpoint))} was refused; libfuse or fusermount3 said why above"
        )


@functools.cache
def _library() -> str | None:
    for name in _LIBRARIES:
        with suppress(OSError):
            ctypes.CDLL(name)
            return name
    return None


@functools.cache
def _load_binding() -> Untyped:
    """Import mfusepy over libfuse 3; alone it would take libfuse 2 where both are installed."""
    chosen = os.environ.get("FUSE_LIBRARY_PATH")
    os.environ["FUSE_LIBRARY_PATH"] = chosen or _library() or ""
    try:
        import mfusepy  # noqa: PLC0415 - raises OSError when libfuse is missing
    except (OSError, AttributeError) as error:
        raise FuseUnavailableError(f"libfuse cannot be used: {error}") from error
    finally:
        if chosen is None:
            del os.environ["FUSE_LIBRARY_PATH"]
    if mfusepy.fuse_version_major != 3:
        raise FuseUnavailableError(f"libfuse 3 is needed, {chosen} is version {mfusepy.fuse_version_major}")
    return mfusepy


@contextmanager
def _default_signals() -> Iterator[None]:
    """Let libfuse handle the signals that end the mount; it only takes those at their default."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)


PLUGIN = MountAdapter(name="fuse", unavailable=unavailable, rank=1, mount=mount)
