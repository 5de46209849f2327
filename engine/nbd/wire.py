"""The numbers of the NBD protocol, and pure readers of what a server may send.

Everything is big-endian. Source: "The NBD protocol" (doc/proto.md of the nbd project), sections
"Negotiation", "Transmission" and "Values".
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

GREETING: Final = b"NBDMAGICIHAVEOPT"
FIXED_NEWSTYLE: Final = 1 << 0
NO_ZEROES: Final = 1 << 1
OPTION: Final = struct.Struct(">8sII")
"""Magic, option, length of its data."""
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION_REPLY: Final = struct.Struct(">QIII")
"""Magic, option, type, length of its data."""
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
MAX_OPTION_DATA: Final = 16 << 10
"""Bytes of a reply to an option that we take: names have at most 4 KiB."""

REQUEST: Final = struct.Struct(">IHHQQI")
"""Magic, flags, command, cookie, offset, length."""
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
SIMPLE_REPLY: Final = struct.Struct(">IQ")
"""Error and cookie, after the magic."""
CHUNK_MAGIC: Final = 0x668E33EF
CHUNK: Final = struct.Struct(">HHQI")
"""Flags, type, cookie and length of the payload, after the magic."""
CHUNK_DONE: Final = 1 << 0

ALLOCATION: Final = "base:allocation"
STATE_HOLE: Final = 1 << 0
STATE_ZERO: Final = 1 << 1
DIRTY_BITMAPS: Final = "qemu:dirty-bitmap:"
"""What the contexts of qemu's dirty bitmaps begin with ("NBD metadata namespace" of its manual)."""


class Option(enum.IntEnum):
    """What a client asks for while it negotiates."""

    ABORT = 2
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(enum.IntEnum):
    """What a server answers then."""

    ACK = 1
    INFO = 3
    META_CONTEXT = 4
    UNSUPPORTED = 1 << 31 | 1
    POLICY = 1 << 31 | 2
    INVALID = 1 << 31 | 3
    TLS_REQUIRED = 1 << 31 | 5
    UNKNOWN = 1 << 31 | 6
    SHUTDOWN = 1 << 31 | 7


INFO_EXPORT: Final = 0
INFO_BLOCK_SIZE: Final = 3


class Command(enum.IntEnum):
    """What a client asks for later."""

    READ = 0
    DISCONNECT = 2
    BLOCK_STATUS = 7


class ChunkType(enum.IntEnum):
    """What a piece of a structured reply holds."""

    NONE = 0
    DATA = 1
    HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 1 << 15 | 1
    ERROR_OFFSET = 1 << 15 | 2


ERROR_FLAG: Final = 1 << 15
"""Of the type of a chunk: every such one, known or not, is an error."""

ERRORS: Final = {
    1: "operation not permitted",
    5: "input/output error",
    12: "out of memory",
    22: "invalid argument",
    28: "no space left",
    75: "value too large",
    95: "operation not supported",
    108: "the server is shutting down",
}


class Violation(Exception):  # noqa: N818 - never leaves this package
    """The server broke the protocol; the text says how."""


class Status(NamedTuple):
    """``length`` bytes of one state in one context."""

    length: int
    flags: int


def statuses(payload: bytes, count_limit: int) -> tuple[int, tuple[Status, ...]]:
    """Read a chunk of block status: the id of its context, and what follows from the offset on.

    Raises:
        Violation
    """
    count, rest = divmod(len(payload) - 4, 8)
    if rest or not 1 <= count <= count_limit:
        raise Violation(f"it sent a block status of {len(payload)} bytes")
    (context,) = struct.unpack_from(">I", payload)
    found = tuple(Status(*pair) for pair in struct.iter_unpack(">II", payload[4:]))
    if any(not status.length for status in found):
        raise Violation("it described a range without a length")
    return context, found


def error_text(payload: bytes) -> str:
    """Read a chunk of error.

    Raises:
        Violation
    """
    if len(payload) < 6:
        raise Violation("it sent an error that was cut short")
    code, length = struct.unpack_from(">IH", payload)
    if length > len(payload) - 6 or not code:
        raise Violation("it sent an error that makes no sense")
    said = payload[6 : 6 + length].decode(errors="replace").strip()
    known = ERRORS.get(code, f"error {code}")
    return f"{known} ({said})" if said else known


def strings(*texts: str) -> bytes:
    """Encode each text behind its length."""
    return b"".join(_sized(text.encode()) for text in texts)


def _sized(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def gaps(covered: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Yield what ranges ``(offset, end)`` leave of ``[0, size)``; two that overlap are a `Violation`."""
    position = 0
    for offset, end in sorted(covered):
        if offset < position:
            raise Violation("it sent the same bytes twice")
        if offset > position:
            yield position, offset
        position = end
    if position < size:
        yield position, size
