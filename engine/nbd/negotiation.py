"""Agreeing with a server on an export: its size, its limits, and what it tells of its content.

Fixed newstyle only, over a connection without TLS. Source: "The NBD protocol" (doc/proto.md of the nbd
project), sections "Fixed newstyle negotiation", "Option types" and "Metadata querying".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from engine.nbd import wire
from engine.nbd.uri import NO_TLS
from engine.nbd.wire import Option, OptionReply, Violation
from imageformat.errors import AccessDeniedError, NotFoundError, SourceReadError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.nbd.link import Link
    from engine.nbd.uri import NbdUri

MAX_SIZE = 1 << 60
"""Bytes; what our images can hold."""
MAX_CONTEXTS = 64
"""Bitmaps that are asked for; a disk has one for each point, at most."""
_MAX_REPLIES = 4 * MAX_CONTEXTS
_MAX_REQUEST = 32 << 20
"""Bytes that every server takes in one request ("Block size constraints")."""


@dataclass(frozen=True, slots=True)
class Export:
    """What was agreed."""

    size: int
    min_block: int = 1
    """Every offset and length of a request is a multiple of it."""
    max_block: int = _MAX_REQUEST
    structured: bool = False
    contexts: dict[str, int] = field(default_factory=dict)
    """What the server tells of its content, and the number of each: ``base:allocation``, bitmaps."""


class _Reply(NamedTuple):
    type: int
    data: bytes


def negotiate(link: Link, uri: NbdUri) -> Export:
    """Agree on the export that ``uri`` names; afterwards the link takes requests.

    Raises:
        NotFoundError: the server has no such export.
        AccessDeniedError, UsageError: it refuses this client, or wants TLS.
        SourceReadError: it refuses for another reason.
        Violation, OSError
    """
    _greet(link)
    structured = _agreed(_asked(link, Option.STRUCTURED_REPLY))
    contexts = _contexts(link, uri.export) if structured else {}
    size, limits = 0, (1, _MAX_REQUEST)
    wanted = struct.pack(">HH", 1, wire.INFO_BLOCK_SIZE)
    for reply in _asked(link, Option.GO, wire.strings(uri.export) + wanted):
        _check(reply, uri)
        if reply.type == OptionReply.INFO:
            kind = int.from_bytes(reply.data[:2])
            if kind == wire.INFO_EXPORT:
                size = _unpack(">2xQH", reply.data)[0]
            elif kind == wire.INFO_BLOCK_SIZE:
                limits = _limits(*_unpack(">2xIII", reply.data))
    size -= size % limits[0]  # what lies behind the last whole block cannot be asked for
    if not 0 < size <= MAX_SIZE:
        raise Violation(f"it offers a disk of {size} bytes")
    return Export(size, *limits, structured, contexts)


def _greet(link: Link) -> None:
    greeting = link.receive(len(wire.GREETING))
    if greeting != wire.GREETING:
        old = greeting.startswith(wire.GREETING[:8])
        raise Violation("it speaks an NBD of before 2012" if old else "it does not speak NBD")
    flags = int.from_bytes(link.receive(2))
    if not flags & wire.FIXED_NEWSTYLE:
        raise Violation("it speaks an NBD of before 2012")
    link.send(struct.pack(">I", wire.FIXED_NEWSTYLE | flags & wire.NO_ZEROES))


def _asked(link: Link, option: Option, data: bytes = b"") -> Iterator[_Reply]:
    """Send an option and yield what is answered; the last reply acknowledges or refuses."""
    link.send(wire.OPTION.pack(wire.OPTION_MAGIC, option, len(data)) + data)
    for _ in range(_MAX_REPLIES):
        magic, answered, kind, length = wire.OPTION_REPLY.unpack(link.receive(wire.OPTION_REPLY.size))
        if magic != wire.OPTION_REPLY_MAGIC or answered != option:
            raise Violation("it answers what was not asked")
        if length > wire.MAX_OPTION_DATA:
            raise Violation(f"it sent {length} bytes in answer to an option")
        yield _Reply(kind, link.receive(length))
        if kind == OptionReply.ACK or kind >> 31:
            return
    raise Violation("its answer does not end")


def _agreed(replies: Iterator[_Reply]) -> bool:
    return [reply.type for reply in replies][-1] == OptionReply.ACK


def _contexts(link: Link, export: str) -> dict[str, int]:
    """Select what the server can tell: a bitmap can be selected by its full name only."""
    name = wire.strings(export)
    listed = _asked(link, Option.LIST_META_CONTEXT, name + _queries(wire.DIRTY_BITMAPS))
    bitmaps = [found for found, _ in _named(listed) if found.startswith(wire.DIRTY_BITMAPS)]
    wanted = (wire.ALLOCATION, *dict.fromkeys(bitmaps[:MAX_CONTEXTS]))
    replies = _asked(link, Option.SET_META_CONTEXT, name + _queries(*wanted))
    found = {name: number for name, number in _named(replies) if name in wanted}
    if len(set(found.values())) != len(found):
        raise Violation("it gave two contexts one number")
    return found


def _queries(*texts: str) -> bytes:
    return struct.pack(">I", len(texts)) + wire.strings(*texts)


def _named(replies: Iterator[_Reply]) -> Iterator[tuple[str, int]]:
    for reply in replies:
        if reply.type == OptionReply.META_CONTEXT:
            if len(reply.data) < 5:
                raise Violation("it named a context without a name")
            yield reply.data[4:].decode(errors="replace"), int.from_bytes(reply.data[:4])


def _unpack(layout: str, data: bytes) -> tuple[int, ...]:
    if len(data) != struct.calcsize(layout):
        raise Violation("it described the export in another length than it should")
    return struct.unpack(layout, data)


def _limits(smallest: int, _preferred: int, largest: int) -> tuple[int, int]:
    """Check block sizes: what is asked for is a multiple of ``smallest``, and at most ``largest``."""
    if not smallest or smallest & (smallest - 1) or smallest > 64 << 10 or largest < smallest:
        raise Violation(f"it takes requests of {smallest} to {largest} bytes")
    largest = min(largest, _MAX_REQUEST)
    return smallest, largest - largest % smallest


def _check(reply: _Reply, uri: NbdUri) -> None:
    """Raise what a refusal of the export means."""
    said = reply.data.decode(errors="replace").strip()
    why = f": the server says: {said}" if said else ""
    if reply.type == OptionReply.UNKNOWN:
        raise NotFoundError(f"{uri}: the server has no export of that name{why}")
    if reply.type == OptionReply.TLS_REQUIRED:
        raise UsageError(f"{uri}: {NO_TLS}")
    if reply.type == OptionReply.POLICY:
        raise AccessDeniedError(f"{uri}: the server refuses this client{why}")
    if reply.type >> 31:
        raise SourceReadError(f"{uri}: the server refuses the export (error {reply.type & 0xFFFF}){why}")
