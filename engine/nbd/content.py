"""What an export says of its own content: a walk over block status that always ends.

A server may describe a disk in pieces of one byte. What it has not described after a sane number of
answers stays undescribed, and the caller takes it for the worst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from engine.nbd.client import MAX_STATUS_LENGTH, NbdClient

if TYPE_CHECKING:
    from collections.abc import Iterator

_FREE_QUESTIONS = 1000
_BYTES_PER_QUESTION = 64 << 10


class Described(NamedTuple):
    """A range, and its flags in one context; None: not described."""

    offset: int
    length: int
    flags: int | None


def described(client: NbdClient, context: str, offset: int, size: int) -> Iterator[Described]:
    """Describe a range in ascending pieces that cover it; all of it is None when there is no such context.

    Raises:
        SourceReadError
    """
    number = client.export.contexts.get(context)
    unit = client.export.min_block
    end, position = offset + size, offset
    questions = _FREE_QUESTIONS + size // _BYTES_PER_QUESTION
    while number is not None and position < end and questions:
        questions -= 1
        asked = position - position % unit
        length = min(-(-(end - asked) // unit) * unit, MAX_STATUS_LENGTH)
        at = asked
        for status in client.status(asked, length).get(number, ()):
            start, at = max(at, position), min(at + status.length, end)
            if start < at:
                yield Described(start, at - start, status.flags)
        if at <= position:
            break  # it told nothing of this context
        position = at
    if position < end:
        yield Described(position, end - position, None)
