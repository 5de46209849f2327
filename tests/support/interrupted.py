"""Backups that die in the middle, inside this process: fast enough for thousands of them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageformat.storage import localwriter
from imageformat.storage.localwriter import LocalResumableWriter


class Killed(BaseException):
    """What stands for a kill."""


@contextlib.contextmanager
def killed_at(number: int, *, flushed: int = 3000) -> Iterator[None]:
    """Die at an append: what was not flushed by then is lost."""
    append, count = LocalResumableWriter.append, [0]

    def counting(self: LocalResumableWriter, data: bytes) -> None:
        count[0] += 1
        if count[0] > number:
            raise Killed
        append(self, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(localwriter, "_BUFFER", flushed)
        patch.setattr(LocalResumableWriter, "append", counting)
        patch.setattr(LocalResumableWriter, "suspend", lambda self: self._close() or False)
        yield


def damage(path: Path, how: str, chance: random.Random) -> None:
    """What a power cut does to the end of a file that nobody synced, and a bad medium to any of it."""
    content = bytearray(path.read_bytes())
    at = chance.randrange(len(content) + 1)
    if how == "cut":
        del content[at:]
    elif how == "zeros":
        content[at:] = bytes(len(content) - at)
    elif how == "flipped":
        for _ in range(3):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif how == "longer":
        content += bytes(chance.randrange(9000))
    path.write_bytes(content)
