"""A server that lies at random: what it says is bent message by message and byte by byte.

The client gives bytes or an error of ours, soon, and holds no more memory than it asked for.
"""

from __future__ import annotations

import contextlib
import os
import random
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.changes import ChangesUnknownError
from engine.changes.dirty_bitmap import DirtyBitmap
from engine.sources.nbd import NbdSource
from imageformat.errors import MountfsError
from support import nbdscript as say
from support.content import noise
from support.nbdscript import client_of

EXAMPLES = int(os.environ.get("MOUNTFS_FUZZ_EXAMPLES", "300"))
CONTENT = noise(1, say.SIZE)
SOUND = (
    *say.OPENED,
    say.status(1, say.BITMAP, (say.SIZE, 0), last=False),
    say.status(1, say.ALLOCATION, (4096, 3), (say.SIZE - 4096, 0)),
    say.status(2, say.BITMAP, (4096, 1), (say.SIZE - 4096, 0), last=False),
    say.status(2, say.ALLOCATION, (say.SIZE, 0)),
    say.data(3, 0, CONTENT[:4096], last=False),
    say.hole(3, 4096, 4096),
    say.failure(4, 5, b"medium"),
    say.data(5, 0, CONTENT[:512]),
)
WORDS = [
    0,
    1,
    2,
    3,
    5,
    7,
    512,
    0x7FFF,
    0x8001,
    0xFFFF,
    1 << 31,
    (1 << 32) - 1,
    1 << 60,
    1 << 63,
    (1 << 64) - 1,
]


def use(said: tuple[bytes, ...]) -> bytes:
    """Ask everything in the order that the script answers; what was read first."""
    first = b""
    with client_of(*said) as client:
        source = NbdSource(client)
        sum(1 for _ in islice(source.extents(0, source.size), 10_000))
        with contextlib.suppress(ChangesUnknownError):
            mark = {"bitmap": "b0", "export": "disk"}
            sum(1 for _ in islice(DirtyBitmap(source).unchanged(mark), 10_000))
        for offset, size in ((0, 8192), (8192, 512), (0, 512)):
            if offset + size <= source.size:
                with contextlib.suppress(MountfsError):
                    found = source.pread(offset, size)
                    assert len(found) == size
                    first = first or found
    return first


def test_script_is_sound() -> None:
    assert use(SOUND) == CONTENT[:4096] + bytes(4096)


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 1 << 32), changes=st.integers(1, 4))
def test_any_server_is_read_or_refused(seed: int, changes: int) -> None:
    chance = random.Random(seed)
    messages = [bytearray(message) for message in SOUND]
    for _ in range(changes):
        number = chance.randrange(len(messages))
        message = messages[number]
        match chance.randrange(6):
            case 0:
                del message[chance.randrange(len(message) + 1) :]
            case 1:
                messages.insert(number, bytearray(message))
            case 2:
                messages[number] = bytearray(chance.choice(SOUND))
            case _:
                width = chance.choice([1, 2, 4, 8])
                at = chance.randrange(min(len(message), 64) + 1)
                value = chance.choice([*WORDS, chance.getrandbits(64)])
                message[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "big")
    with contextlib.suppress(MountfsError):
        use(tuple(map(bytes, messages)))
