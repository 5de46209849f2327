"""What an NBD server says, written from the protocol document, as bytes that can be bent.

A client asks in an order that is known, so all answers can be given before the questions.
"""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engine.nbd.client import NbdClient, client_over
from engine.nbd.link import Link
from engine.nbd.uri import NbdUri

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SIZE = 64 << 10
URI = NbdUri("disk", socket="/nbd.sock")
GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
GO, STRUCTURED, LIST, SET = 7, 8, 9, 10
ACK, INFO, META = 1, 3, 4
ALLOCATION, BITMAP = 5, 9
"""Numbers of the contexts."""


def option(number: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, number, kind, len(data)) + data


def export(size: int = SIZE, blocks: tuple[int, int, int] = (1, 4096, 32 << 20)) -> bytes:
    """The answer to GO."""
    return (
        option(GO, INFO, struct.pack(">HQH", 0, size, 0b11))
        + option(GO, INFO, struct.pack(">HIII", 3, *blocks))
        + option(GO, ACK)
    )


CONTEXTS = (
    option(LIST, META, struct.pack(">I", 0) + b"qemu:dirty-bitmap:b0")
    + option(LIST, ACK)
    + option(SET, META, struct.pack(">I", ALLOCATION) + b"base:allocation")
    + option(SET, META, struct.pack(">I", BITMAP) + b"qemu:dirty-bitmap:b0")
    + option(SET, ACK)
)
OPENED = (GREETING, option(STRUCTURED, ACK), CONTEXTS, export())


def chunk(cookie: int, kind: int, payload: bytes = b"", *, last: bool = True, length: int = -1) -> bytes:
    claimed = len(payload) if length < 0 else length
    return struct.pack(">IHHQI", 0x668E33EF, last, kind, cookie, claimed) + payload


def data(cookie: int, offset: int, content: bytes, *, last: bool = True) -> bytes:
    return chunk(cookie, 1, struct.pack(">Q", offset) + content, last=last)


def hole(cookie: int, offset: int, size: int, *, last: bool = True) -> bytes:
    return chunk(cookie, 2, struct.pack(">QI", offset, size), last=last)


def status(cookie: int, context: int, *pairs: tuple[int, int], last: bool = True) -> bytes:
    flat = (number for pair in pairs for number in pair)
    return chunk(cookie, 5, struct.pack(f">I{2 * len(pairs)}I", context, *flat), last=last)


def failure(cookie: int, code: int, text: bytes = b"") -> bytes:
    return chunk(cookie, 1 << 15 | 1, struct.pack(">IH", code, len(text)) + text)


@contextmanager
def link_to(said: Iterable[bytes], *, hang_up: bool = True, timeout: float = 5.0) -> Iterator[Link]:
    """A link to a server that says all that and hangs up, or falls silent."""
    ours, theirs = socket.socketpair()
    with theirs:
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            theirs.setsockopt(socket.SOL_SOCKET, buffer, 1 << 20)
        theirs.setblocking(False)
        theirs.sendall(b"".join(said))
        if hang_up:
            theirs.shutdown(socket.SHUT_WR)
        link = Link(ours, timeout)
        try:
            yield link
        finally:
            link.close()


@contextmanager
def client_of(*said: bytes, hang_up: bool = True, timeout: float = 5.0) -> Iterator[NbdClient]:
    """A client of such a server."""
    with link_to(said, hang_up=hang_up, timeout=timeout) as link:
        client = client_over(link, URI)
        try:
            yield client
        finally:
            client.close()
