"""A connection whose every wait ends: whole messages or an error, never a short one.

A server that accepts and then says nothing, or one byte a minute, would keep a backup for ever.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

from imageformat.errors import AccessDeniedError, NotFoundError, SourceReadError, UsageError

if TYPE_CHECKING:
    from engine.nbd.uri import NbdUri

TIMEOUT = 60.0
"""Seconds that a message may take at most twice: a server that needs longer is gone, not slow."""
_STEP = 1 << 20
"""Bytes that have `TIMEOUT` to arrive."""


class Link:
    """An open stream socket. One thread may send while another one receives; owns the socket."""

    def __init__(self, stream: socket.socket, timeout: float = TIMEOUT) -> None:
        self._stream = stream
        self._timeout = timeout
        stream.settimeout(timeout)

    def send(self, data: bytes) -> None:
        """Send all of it.

        Raises:
            OSError: also `TimeoutError`.
        """
        self._stream.sendall(data)

    def receive(self, size: int) -> bytes:
        """Return exactly ``size`` bytes. The caller has checked how many are sane.

        Raises:
            OSError: also `TimeoutError`, and when the server hung up.
        """
        data = bytearray(size)
        self.receive_into(memoryview(data))
        return bytes(data)

    def receive_into(self, memory: memoryview) -> None:
        """Fill memory; see `receive`."""
        for start in range(0, len(memory), _STEP):
            self._fill(memory[start : start + _STEP])

    def _fill(self, memory: memoryview) -> None:
        # The timeout of the socket bounds one wait, also of a thread that sends; this one all of them.
        deadline = time.monotonic() + self._timeout
        done = 0
        while done < len(memory):
            if time.monotonic() > deadline:
                raise TimeoutError
            got = self._stream.recv_into(memory[done:])
            if not got:
                raise ConnectionResetError("it hung up")
            done += got

    def close(self) -> None:
        """Hang up; wakes whoever waits for this server."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()


def connect(uri: NbdUri, timeout: float = TIMEOUT) -> Link:
    """Connect to the server of an export; the caller closes the link.

    Raises:
        NotFoundError: there is no such socket or host.
        AccessDeniedError: this user may not use the socket.
        SourceReadError: nobody answers there.
        UsageError: this system has no Unix sockets.
    """
    try:
        return Link(_stream(uri, timeout), timeout)
    except (FileNotFoundError, socket.gaierror) as error:
        raise NotFoundError(f"{uri}: there is no such {'socket' if uri.socket else 'host'}") from error
    except PermissionError as error:
        raise AccessDeniedError(f"{uri}: this user may not use the socket; run this as root") from error
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "nobody answered in time"
        raise SourceReadError(f"{uri}: no NBD server answers there: {reason}; is it running?") from error


def _stream(uri: NbdUri, timeout: float) -> socket.socket:
    if not uri.socket:
        stream = socket.create_connection((uri.host, uri.port), timeout)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream
    family = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise UsageError(f"{uri}: this system has no Unix sockets; use nbd://HOST/EXPORT")
    stream = socket.socket(family)
    try:
        stream.settimeout(timeout)
        stream.connect(uri.socket)
    except BaseException:
        stream.close()
        raise
    return stream
