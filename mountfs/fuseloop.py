"""Serving one mount on ``/dev/fuse``: requests of the kernel, answered from a `PosixView`.

What the kernel may remember: content for ever (an image never changes); names and attributes for an hour;
names of volatile places, such as the points of a repository, for a second; absent names never.

A kernel that can reads files without opening them: two questions less for each file.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from mountfs import fuseprotocol as fuse
from mountfs.fusenodes import NodeTable
from mountfs.fuseprotocol import Opcode, Request
from mountfs.upcalls import FailureLog

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from mountfs.posixview import OpenFile, PosixView

    Handler: TypeAlias = Callable[[Request], bytes]

KEEP_S = 3600
KEEP_VOLATILE_S = 1
THREADS = 3
"""More of them fight for the interpreter lock; with one, every reader waits for one decompression."""

_FILES_REMEMBERED = 1024
_ABORTED = frozenset({errno.ENOENT, errno.EINTR, errno.EAGAIN})
_log = logging.getLogger(__name__)


class FuseLoop:
    """Answers what the kernel asks on one descriptor, which is its own from now on.

    ``ended`` is called by each thread that stops serving: the mount is gone, or cannot be served any more.
    """

    def __init__(self, fd: int, view: PosixView, ended: Callable[[], None]) -> None:
        self._fd = fd
        self._ended = ended
        self.is_gone = False
        """The kernel has ended the mount."""
        self._view = view
        self._nodes = NodeTable(view.attributes)
        self._failures = FailureLog()
        self._files: dict[int, OpenFile] = {}
        """By node: what was read last, for a kernel that opens nothing."""
        self._opens = True
        self._stopped = False
        self._threads: list[threading.Thread] = []
        self._handlers: dict[int, Handler] = {
            Opcode.INIT: self._init,
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.READLINK: self._readlink,
            Opcode.OPEN: self._open,
            Opcode.RELEASE: self._release,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.STATFS: self._statfs,
            Opcode.LSEEK: self._lseek,
        }

    def start(self) -> None:
        """Serve in threads of its own; they end when the mount is gone."""
        for number in range(THREADS):
            thread = threading.Thread(target=self.serve, name=f"fuse-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Answer nothing but EIO from now on: what is served is about to be closed."""
        self._stopped = True

    def serve(self) -> None:
        """Answer requests until the mount is gone."""
        try:
            self._serve()
        finally:
            self._ended()

    def close(self, patience_s: float) -> None:
        """Close the descriptor once nobody answers any more.

        A thread that is still reading after ``patience_s`` writes its answer some day: the descriptor then
        stays open, so that its number is not that of another file by then.
        """
        for thread in self._threads:
            thread.join(patience_s)
        if not any(thread.is_alive() for thread in self._threads):
            os.close(self._fd)

    def _serve(self) -> None:
        buffer = bytearray(fuse.REQUEST_SIZE)
        vector, fd = [buffer], self._fd
        while True:
            try:
                if os.readv(fd, vector) < fuse.HEADER_SIZE:
                    return
            except OSError as error:
                if error.errno in _ABORTED:
                    continue
                self.is_gone = error.errno == errno.ENODEV
                if not self.is_gone:
                    _log.error("the mount cannot be served any more: %s", error)
                return
            self._answer(buffer)

    def _answer(self, message: bytearray) -> None:
        """Answer one request; a failure is an answer too. Reads are by far the most, and take no detour."""
        opcode, unique, node, handle, offset, size = fuse.unpack_as_read(message)
        try:
            if opcode == fuse.READ and not self._stopped:
                if handle:
                    data = self._view.read(handle, offset, size)
                else:
                    data = self._view.read_file(self._files.get(node) or self._file(node), offset, size)
            elif opcode in fuse.UNANSWERED:
                self._forget(fuse.parse_request(message))
                return
            else:
                data = self._respond(fuse.parse_request(message))
            parts = [fuse.answer(unique, len(data)), data]
        except Exception as error:  # noqa: BLE001 - whatever it is, the kernel waits for an answer
            parts = [fuse.answer(unique, 0, self._failures.errno_of(error, f"request {opcode}"))]
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            # ENOENT: whoever asked was interrupted; ENODEV: the mount is gone, which the next read says.
            if error.errno not in _ABORTED and error.errno != errno.ENODEV:
                _log.error("the kernel did not take an answer: %s", error)

    def _respond(self, request: Request) -> bytes:
        if self._stopped:
            raise _failure(errno.EIO)
        handler = self._handlers.get(request.opcode)
        if handler is None:
            raise _failure(errno.EROFS if request.opcode in fuse.WRITING else errno.ENOSYS)
        return handler(request)

    def _init(self, request: Request) -> bytes:
        offer = fuse.parse_init(request.body)
        if offer.major != fuse.MAJOR or offer.minor < fuse.OLDEST_MINOR:
            raise _failure(errno.EPROTO)
        self._opens = not fuse.can_read_unopened(offer)
        return fuse.init_answer(offer)

    def _forget(self, request: Request) -> None:
        if request.opcode == Opcode.FORGET:
            self._nodes.forget(request.node, fuse.parse_u64(request.body))
        elif request.opcode == Opcode.BATCH_FORGET:
            for node, count in fuse.parse_batch_forget(request.body):
                self._nodes.forget(node, count)

    def _lookup(self, request: Request) -> bytes:
        name = fuse.parse_name(request.body)
        path = self._nodes.child_path(request.node, name)
        attributes = self._view.attributes(path)
        node = self._nodes.enter(request.node, name, path, attributes.volatile)
        return fuse.pack_entry(node, attributes, _keep(attributes.volatile))

    def _getattr(self, request: Request) -> bytes:
        handle = fuse.parse_getattr(request.body)
        if handle is None:
            attributes = self._view.attributes(self._nodes.path(request.node))
        elif handle:
            attributes = self._view.handle_attributes(handle)
        else:
            attributes = self._file(request.node).attributes
        return fuse.pack_attributes(attributes, _keep(attributes.volatile))

    def _readlink(self, request: Request) -> bytes:
        target = self._view.readlink(self._nodes.path(request.node))
        if b"\0" in target or len(target) >= _PATH_MAX:
            raise _failure(errno.ENAMETOOLONG)
        return target

    def _open(self, request: Request) -> bytes:
        if not self._opens:
            raise _failure(errno.ENOSYS)
        path = self._nodes.path(request.node)
        return fuse.pack_open(self._view.open(path, fuse.parse_u32(request.body)), fuse.KEEP_CACHE)

    def _file(self, node: int) -> OpenFile:
        """Return the file of a node, as it was when it was first read."""
        file = self._files.get(node)
        if file is None:
            file = self._files[node] = self._view.file(self._nodes.path(node))
            if len(self._files) > _FILES_REMEMBERED:
                with suppress(StopIteration, RuntimeError):  # another thread changes it at the same time
                    self._files.pop(next(iter(self._files)), None)
        return file

    def _release(self, request: Request) -> bytes:
        self._view.release(fuse.parse_u64(request.body))
        return b""

    def _opendir(self, request: Request) -> bytes:
        path = self._nodes.path(request.node)
        unchanging = self._view.attributes(path).volatile is None
        flags = fuse.KEEP_CACHE | fuse.CACHE_FOLDER if unchanging else 0
        return fuse.pack_open(self._view.open_folder(path), flags)

    def _releasedir(self, request: Request) -> bytes:
        self._view.release_folder(fuse.parse_u64(request.body))
        return b""

    def _readdir(self, request: Request) -> bytes:
        handle, start, size = fuse.parse_read(request.body)
        out = bytearray()
        for position, name, attributes in self._view.listing(handle, start):
            entry = fuse.pack_dirent(position, name, attributes)
            if len(out) + len(entry) > size:
                break
            out += entry
        return bytes(out)

    def _readdirplus(self, request: Request) -> bytes:
        handle, start, size = fuse.parse_read(request.body)
        parent = self._nodes.path(request.node)
        prefix = parent if parent.endswith(b"/") else parent + b"/"
        out = bytearray()
        for position, name, attributes in self._view.listing(handle, start):
            entry = fuse.pack_dirent(position, name, attributes)
            if len(out) + fuse.ENTRY_SIZE + len(entry) > size:
                break
            node, keep = 0, 0
            # A look-up of its own lets the kernel notice that a volatile name stands for something else.
            if attributes.volatile is None and name not in _DOTS:
                node, keep = self._nodes.enter(request.node, name, prefix + name, None), KEEP_S
            out += fuse.pack_entry(node, attributes, keep)
            out += entry
        return bytes(out)

    def _getxattr(self, request: Request) -> bytes:
        value = self._view.xattrs(self._nodes.path(request.node)).get(fuse.parse_name(request.body, 8))
        if value is None:
            raise _failure(errno.ENODATA)
        return _sized(value, fuse.parse_u32(request.body))

    def _listxattr(self, request: Request) -> bytes:
        names = self._view.xattr_names(self._nodes.path(request.node))
        return _sized(b"".join(name + b"\0" for name in names), fuse.parse_u32(request.body))

    @staticmethod
    def _statfs(_request: Request) -> bytes:
        return fuse.pack_statfs()

    def _lseek(self, request: Request) -> bytes:
        handle, offset, whence = fuse.parse_seek(request.body)
        if handle:
            return fuse.pack_offset(self._view.seek(handle, offset, whence))
        return fuse.pack_offset(self._view.seek_file(self._file(request.node), offset, whence))


_DOTS = frozenset({b".", b".."})
_PATH_MAX = 4096


def _keep(volatile: Hashable | None) -> int:
    return KEEP_S if volatile is None else KEEP_VOLATILE_S


def _sized(value: bytes, size: int) -> bytes:
    """Answer an extended-attribute call: the length when it only asks for that."""
    if size == 0:
        return fuse.pack_size(len(value))
    if len(value) > size:
        raise _failure(errno.ERANGE)
    return value


def _failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))
