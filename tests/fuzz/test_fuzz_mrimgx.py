"""Macrium files that lie: right checksums over wrong numbers, and bytes changed anywhere.

Only errors of ours, never more than a little memory, and no wrong byte where a checksum stands.
"""

from __future__ import annotations

import json
import os
import struct
from contextlib import closing
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from imageformat.errors import MountfsError
from imageformat.extent import ExtentKind
from support.content import mixture, noise
from support.macrium_sets import KIB, opened
from support.mrimgx import Disk, MacriumSet, Part

ROUNDS = int(os.environ.get("MOUNTFS_FUZZ_ROUNDS", "150"))
MOST = 8 << 20
"""So much of a disk that claims to be huge is read."""
NUMBERS = st.one_of(
    st.sampled_from(
        [0, 1, 2, 511, 512, 4096, 16384, 65536, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 60]
    ),
    st.integers(-(1 << 65), 1 << 65),
)
VALUES = st.one_of(
    NUMBERS,
    st.booleans(),
    st.none(),
    st.floats(allow_nan=True),
    st.sampled_from(["", "none", "mbr", "gpt", "aes-128", "medium", "0011223344556677", [], {}, [0], [{}]]),
)


class Lying(MacriumSet):
    """Changes JSON, indexes and boot records before their checksums are made."""

    changes: tuple[tuple[int, Any], ...] = ()
    writes: tuple[tuple[float, bytes], ...] = ()
    armed = False

    def block(self, name: bytes, payload: bytes, **options: Any) -> bytes:
        if self.armed and name == b"$JSON":
            document = json.loads(payload)
            for number, value in self.changes:
                places = list(leaves(document))
                owner, key = places[number % len(places)]
                owner[key] = value
            payload = json.dumps(document).encode()
        elif self.armed and name in {b"$INDEX", b"$EPT", b"$TRACK0"}:
            changed = bytearray(payload)
            for place, data in self.writes:
                start = int(place * len(changed))
                changed[start : start + len(data)] = data[: len(changed) - start]
            payload = bytes(changed)
        return super().block(name, payload, **options)


def leaves(value: Any) -> Any:
    """Every place of a document that holds something."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, dict | list):
            yield from leaves(inner)


def disks() -> tuple[Disk, ...]:
    parts = Part(32 * KIB, 100 * KIB, 0, 4 * KIB, reserved=1024), Part(140 * KIB, 40 * KIB, 1, 12 * KIB)
    return (Disk(bytearray(mixture(1, 200 * KIB)), parts, 1, "mbr", (190 * KIB,)),)


def grown(made: MacriumSet, count: int, arm: int) -> MacriumSet:
    """A full and ``count`` increments; the file of point ``arm`` lies."""
    for step in range(count + 1):
        made.armed = step == arm  # type: ignore[attr-defined]
        if step:
            made.disks[0].content[step * 20 * KIB : step * 20 * KIB + 9 * KIB] = noise(step, 9 * KIB)
            made.incremental()
        else:
            made.full()
    return made


def read_all(files: dict[str, bytes], name: str) -> list[bytes | None]:
    """Read every 4 KiB of what a file says it holds, up to a limit; None where that is an error."""
    found: list[bytes | None] = []
    with closing(opened(files, name)) as layer:
        for number, disk in enumerate(layer.info.disks):
            device = layer.device(number)  # type: ignore[attr-defined]
            size = min(disk.size, MOST)
            position = 0
            for extent in device.extents(0, size):
                assert extent.offset == position
                assert extent.length > 0
                position = extent.end
                if extent.kind is not ExtentKind.DATA and extent.length < MOST // 8:
                    assert not any(device.pread(extent.offset, extent.length))
            assert position == size
            step = max(4 * KIB, size // 64)
            for offset in range(0, size, step):
                try:
                    found.append(device.pread(offset, min(step, size - offset)))
                except MountfsError:
                    found.append(None)
            if disk.size > MOST:
                list(device.extents(disk.size - MOST, MOST))
        list(layer.prove())
    return found


@settings(max_examples=ROUNDS, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 400), VALUES), max_size=3),
    writes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), max_size=4
    ),
    compression=st.sampled_from(["none", "medium"]),
    arm=st.integers(0, 2),
)
def test_right_checksums_over_wrong_numbers(
    changes: list[tuple[int, Any]], writes: list[tuple[float, bytes]], compression: str, arm: int
) -> None:
    made = Lying(disks(), compression=compression)
    made.changes, made.writes = tuple(changes), tuple(writes)
    grown(made, 2, arm)
    for point in made.points:
        try:
            read_all(made.files, point.name)
        except MountfsError:
            continue


@cache
def sound() -> tuple[dict[str, bytes], list[tuple[str, bytes]]]:
    """A set that is right."""
    made = MacriumSet(disks(), aes="aes-128")
    made.armed = False  # type: ignore[attr-defined]
    grown(made, 2, -1)
    return made.files, [(point.name, point.truth[0]) for point in made.points]


@settings(max_examples=ROUNDS, deadline=None)
@given(
    victim=st.integers(0, 2),
    kind=st.sampled_from(["flip", "flip", "write", "cut", "insert", "swap"]),
    place=st.floats(0, 1, exclude_max=True),
    data=st.binary(min_size=1, max_size=40),
)
def test_bytes_changed_anywhere(victim: int, kind: str, place: float, data: bytes) -> None:
    """In data, in payloads, in the trailer: an error, or the truth. Headers may hide what they head."""
    files, points = sound()
    name = points[victim][0]
    content = bytearray(files[name])
    start = int(place * len(content))
    match kind:
        case "flip":
            content[start] ^= data[0] or 1
        case "write":
            content[start : start + len(data)] = data[: len(content) - start]
        case "cut":
            del content[start:]
        case "insert":
            content[start:start] = data
        case _:
            content[start:], content[:start] = (
                content[: len(content) - start],
                content[len(content) - start :],
            )
    is_header = any(start < end and begin < start + len(data) for begin, end in headers(files[name]))
    for other, truth in points:
        try:
            blocks = read_all({**files, name: bytes(content)}, other)
        except MountfsError:
            continue
        step = max(4 * KIB, len(truth) // 64)
        right = [truth[offset : offset + step] for offset in range(0, len(truth), step)]
        if not is_header and kind != "swap":
            assert len(blocks) == len(right)
            assert all(block in {None, whole} for block, whole in zip(blocks, right, strict=True))


def headers(content: bytes) -> list[tuple[int, int]]:
    """Where the parts without a checksum are."""
    position, end = content.index(b"$TRACK0 "), len(content) - 20
    found = [(end, len(content))]
    while position < end:
        found.append((position, position + 32))
        position += 32 + struct.unpack_from("<I", content, position + 8)[0]
    return found
