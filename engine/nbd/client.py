"""Reading an export: any number of threads over one connection, each request an answer or an error.

One connection, because some servers take no second one. No thread of its own: of those that wait for an
answer one receives, for all of them. A connection that failed once stays failed: behind a new one could be
another disk.

Source: "The NBD protocol" (doc/proto.md of the nbd project), section "Transmission".
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from engine.nbd import wire
from engine.nbd.link import TIMEOUT, connect
from engine.nbd.negotiation import negotiate
from engine.nbd.wire import ChunkType, Command, Status, Violation
from imageformat.errors import SourceReadError

if TYPE_CHECKING:
    from engine.nbd.link import Link
    from engine.nbd.negotiation import Export
    from engine.nbd.uri import NbdUri

MAX_STATUS_LENGTH = 1 << 30
"""Bytes that are described in answer to one question."""
_MAX_READ = 4 << 20
_MAX_STATUSES = 1 << 20
_MAX_ERRORS = 16
"""Errors in one answer; a server needs one."""


class _Pending:
    """A request that is being answered; used by the one thread that receives."""

    def __init__(self, offset: int, size: int, command: Command, contexts: frozenset[int]) -> None:
        self.offset = offset
        self.size = size
        self.command = command
        self.data = bytearray(size if command is Command.READ else 0)
        self.covered: list[tuple[int, int]] = []
        self.statuses: dict[int, tuple[Status, ...]] = {}
        self.errors: list[str] = []
        self.done = False
        self._contexts = contexts
        self._received = 0

    def take_simple(self, error: int, link: Link, *, structured: bool) -> None:
        """Take a reply in one piece; with structured replies only an error may come that way."""
        if error:
            self.errors.append(wire.ERRORS.get(error, f"error {error}"))
        elif self.command is not Command.READ or structured:
            raise Violation("it answers in the wrong form")
        else:
            link.receive_into(memoryview(self.data))
            self.covered.append((0, self.size))

    def take_chunk(self, kind: int, length: int, link: Link, *, last: bool) -> None:
        """Take one chunk of a structured reply."""
        if kind & wire.ERROR_FLAG:
            if length > wire.MAX_OPTION_DATA or len(self.errors) >= _MAX_ERRORS:
                raise Violation(f"it sent {length} bytes of errors")
            self.errors.append(wire.error_text(link.receive(length)))
        elif kind == ChunkType.NONE:
            if length or not last:
                raise Violation("it sent an empty piece in the middle of an answer")
        elif self.command is Command.READ and kind in {ChunkType.DATA, ChunkType.HOLE}:
            self._take_content(kind, length, link)
        elif self.command is Command.BLOCK_STATUS and kind == ChunkType.BLOCK_STATUS:
            self._take_status(length, link)
        else:
            raise Violation(f"it sent a piece of kind {kind} that was not asked for")

    def _take_content(self, kind: int, length: int, link: Link) -> None:
        if length != 12 if kind == ChunkType.HOLE else length <= 8:
            raise Violation(f"it sent a piece of {length} bytes")
        start = int.from_bytes(link.receive(8)) - self.offset
        count = int.from_bytes(link.receive(4)) if kind == ChunkType.HOLE else length - 8
        if start < 0 or not 0 < count <= self.size - start:
            raise Violation("it sent bytes that were not asked for")
        self._received += count
        if self._received > self.size:
            raise Violation("it sent the same bytes twice")
        self.covered.append((start, start + count))
        if kind == ChunkType.DATA:
            link.receive_into(memoryview(self.data)[start : start + count])

    def _take_status(self, length: int, link: Link) -> None:
        if length > 4 + 8 * _MAX_STATUSES:
            raise Violation(f"it sent a block status of {length} bytes")
        context, found = wire.statuses(link.receive(length), _MAX_STATUSES)
        if context not in self._contexts or context in self.statuses:
            raise Violation("it described what was not asked for")
        self.statuses[context] = found


class NbdClient:
    """An open export. Thread-safe; owns the link."""

    def __init__(self, link: Link, export: Export, uri: NbdUri) -> None:
        self.export = export
        self.uri = uri
        self._link = link
        self._contexts = frozenset(export.contexts.values())
        self._sending = threading.Lock()
        self._turn = threading.Condition()
        self._pending: dict[int, _Pending] = {}
        self._receiving = False
        self._cookie = 0
        self._failure = ""

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the export, which must have them; any offset and size.

        Raises:
            SourceReadError: with the first byte that could not be read.
        """
        if not size:
            return b""
        unit = self.export.min_block
        start = offset - offset % unit
        end = min(-(-(offset + size) // unit) * unit, self.export.size)
        step = min(self.export.max_block, _MAX_READ)
        pieces = [self._read(at, min(step, end - at)) for at in range(start, end, step)]
        whole = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        return bytes(whole[offset - start : offset - start + size])

    def _read(self, offset: int, size: int) -> bytearray:
        answer = self._ask(Command.READ, offset, size)
        try:
            missing = next(wire.gaps(answer.covered, size), None)
            if missing is not None:
                raise Violation(f"it left out {missing[1] - missing[0]} bytes of an answer")
        except Violation as error:
            raise self._failed(error) from error
        return answer.data

    def status(self, offset: int, size: int) -> dict[int, tuple[Status, ...]]:
        """Return what the server tells of its content from ``offset`` on, by number of the context.

        ``offset`` and ``size`` are whole blocks (`Export.min_block`). Each tuple describes at least one byte,
        and perhaps less or more than the range.

        Raises:
            SourceReadError: it does not tell.
        """
        return self._ask(Command.BLOCK_STATUS, offset, size).statuses

    def _ask(self, command: Command, offset: int, size: int) -> _Pending:
        request = _Pending(offset, size, command, self._contexts)
        with self._turn:
            self._raise_failure()
            self._cookie += 1
            cookie = self._cookie
            self._pending[cookie] = request
        try:
            with self._sending:
                self._link.send(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, cookie, offset, size))
        except OSError as error:
            raise self._failed(error) from error
        self._wait_for(request)
        if request.errors:
            raise SourceReadError(f"cannot read {self.uri} at byte {offset}: {request.errors[0]}")
        return request

    def _wait_for(self, request: _Pending) -> None:
        with self._turn:
            while self._receiving and not request.done and not self._failure:
                self._turn.wait()
            if request.done:
                return
            self._raise_failure()
            self._receiving = True
        try:
            while not request.done:
                self._receive_one()
        except (OSError, Violation) as error:
            raise self._failed(error) from error
        finally:
            with self._turn:
                self._receiving = False
                self._turn.notify_all()

    def _receive_one(self) -> None:
        """Take one reply, or one chunk of one, whose ever it is."""
        last = True
        magic = int.from_bytes(self._link.receive(4))
        if magic == wire.SIMPLE_REPLY_MAGIC:
            error, cookie = wire.SIMPLE_REPLY.unpack(self._link.receive(wire.SIMPLE_REPLY.size))
            request = self._pending_of(cookie)
            request.take_simple(error, self._link, structured=self.export.structured)
        elif magic == wire.CHUNK_MAGIC and self.export.structured:
            flags, kind, cookie, length = wire.CHUNK.unpack(self._link.receive(wire.CHUNK.size))
            request = self._pending_of(cookie)
            last = bool(flags & wire.CHUNK_DONE)
            request.take_chunk(kind, length, self._link, last=last)
        else:
            raise Violation("it sent what is no reply")
        if last:
            with self._turn:  # only now, when all of it is there, may its thread see it
                request.done = True
                del self._pending[cookie]
                self._turn.notify_all()

    def _pending_of(self, cookie: int) -> _Pending:
        with self._turn:
            request = self._pending.get(cookie)
        if request is None:
            raise Violation("it answers what was not asked")
        return request

    def _raise_failure(self) -> None:
        if self._failure:
            raise SourceReadError(self._failure)

    def _failed(self, error: OSError | Violation) -> SourceReadError:
        """Give the connection up; whoever waits for it gets the same error."""
        with self._turn:
            if not self._failure:
                self._failure = failure_text(self.uri, error)
            self._turn.notify_all()
        self._link.close()
        return SourceReadError(self._failure)

    def close(self) -> None:
        """Say goodbye and hang up; idempotent."""
        with self._turn:
            was_open = not self._failure
            self._failure = self._failure or f"{self.uri}: the connection was closed"
        if was_open:
            with contextlib.suppress(OSError):  # it hung up first
                self._link.send(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.DISCONNECT, 0, 0, 0))
            self._link.close()


def failure_text(uri: NbdUri, error: OSError | Violation) -> str:
    """Say what became of a connection."""
    if isinstance(error, Violation):
        return f"{uri}: the server cannot be trusted any more: {error}; see its log, and start again"
    late = isinstance(error, TimeoutError)
    reason = "it did not answer in time" if late else error.strerror or str(error)
    return f"{uri}: the connection to the server is lost: {reason}; start again"


def open_client(uri: NbdUri, timeout: float = TIMEOUT) -> NbdClient:
    """Connect and agree on the export; the caller closes it.

    Raises:
        NotFoundError, AccessDeniedError, UsageError, SourceReadError
    """
    return client_over(connect(uri, timeout), uri)


def client_over(link: Link, uri: NbdUri) -> NbdClient:
    """Agree on the export over a link, which the client then owns; see `open_client`."""
    try:
        return NbdClient(link, negotiate(link, uri), uri)
    except (OSError, Violation) as error:
        link.close()
        raise SourceReadError(failure_text(uri, error)) from error
    except BaseException:
        link.close()
        raise
