"""A client of the Network Block Device protocol over a Unix socket: as little as reading needs.

Source: "The NBD protocol" (doc/proto.md of the nbd project), fixed newstyle negotiation and simple replies.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_OPTION = struct.Struct(">8sII")
_EXPORT_NAME = 1
_NO_ZEROES = 2
_FIXED_NEWSTYLE = 1
_REQUEST = struct.Struct(">IHHQQI")
_READ, _DISCONNECT = 0, 2
_REPLY = struct.Struct(">IIQ")
_REPLY_MAGIC = 0x67446698
_REQUEST_MAGIC = 0x25609513


_PATIENCE = 30.0


def _connected(path: Path) -> socket.socket:
    """Connect; the socket is there a moment before the server listens."""
    started = time.perf_counter()
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
            return connection
        except ConnectionRefusedError:
            connection.close()
            if time.perf_counter() - started > _PATIENCE:
                raise
            time.sleep(0.001)


class NbdReader:
    """One connection; one thread."""

    def __init__(self, path: Path) -> None:
        self._socket = _connected(path)
        if self._take(16) != b"NBDMAGICIHAVEOPT":
            raise OSError(f"{path} does not speak NBD")
        self._take(2)
        self._socket.sendall(struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES))
        self._socket.sendall(_OPTION.pack(b"IHAVEOPT", _EXPORT_NAME, 0))
        self.size, _ = struct.unpack(">QH", self._take(10))

    def _take(self, size: int) -> bytes:
        data = self._socket.recv(size, socket.MSG_WAITALL)
        if len(data) != size:
            raise OSError("the server hung up")
        return data

    def pread(self, offset: int, size: int) -> bytes:
        """Read a range."""
        self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _READ, 0, offset, size))
        answer = self._take(_REPLY.size + size)
        magic, error, _ = _REPLY.unpack_from(answer)
        if magic != _REPLY_MAGIC or error:
            raise OSError(f"reading {size} bytes at {offset} failed with {error}")
        return answer[_REPLY.size :]

    def close(self) -> None:
        """Say goodbye and hang up."""
        self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
        self._socket.close()
