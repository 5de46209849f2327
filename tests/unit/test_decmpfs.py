"""Compressed files of HFS+ and APFS: streams of Apple's own encoder, every kind, and damaged ones.

The streams in ``golden/lzfse`` were made by the reference implementation that Apple published.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageformat.errors import VolumeError
from mountfs.drivers._content import BytesContent
from mountfs.drivers._decmpfs import open_compressed, parse_header
from mountfs.drivers._lzfse import lzfse_decode
from mountfs.drivers._lzvn import lzvn_decode
from support.content import noise

if TYPE_CHECKING:
    from mountfs.drivers._content import Content

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "lzfse"
WORDS = (b"alpha ", b"beta ", b"gamma ", b"delta\n", b"\0\0\0\0", b"z")
BLOCK = 65_536


def words(seed: int, size: int) -> bytes:
    return b"".join(WORDS[byte % 6] for byte in noise(seed, size))[:size]


def uneven(seed: int, size: int) -> bytes:
    raw = noise(seed, 2 * size)
    return bytes(min(one, other) // 8 for one, other in zip(raw[::2], raw[1::2], strict=True))


PLAIN = {
    "short-words": words(1, 900),
    "words": words(2, 5000),
    "uneven": uneven(3, 4200),
    "zeros": bytes(70_000),
    "noise": noise(4, 300),
}


def packed(name: str) -> bytes:
    return (GOLDEN / f"{name}.lzfse").read_bytes()


def lzvn_of(stream: bytes) -> bytes:
    """The LZVN stream inside a block of an LZFSE stream."""
    magic, _, size = struct.unpack_from("<4sII", stream, 0)
    assert magic == b"bvxn"
    return stream[12 : 12 + size]


def test_streams_of_every_kind_of_block_are_there() -> None:
    assert {packed(name)[:4] for name in PLAIN} == {b"bvxn", b"bvx2", b"bvx-"}


@pytest.mark.parametrize("name", PLAIN)
def test_what_apple_packed(name: str) -> None:
    assert lzfse_decode(packed(name), len(PLAIN[name])) == PLAIN[name]


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("more", [-1, 1])
def test_another_size_is_an_error(name: str, more: int) -> None:
    with pytest.raises(VolumeError):
        lzfse_decode(packed(name), len(PLAIN[name]) + more)


@pytest.mark.parametrize("name", PLAIN)
def test_streams_that_end_too_early(name: str) -> None:
    stream = packed(name)
    for end in range(0, len(stream) - 4, 7):
        with pytest.raises(VolumeError):
            lzfse_decode(stream[:end], len(PLAIN[name]))


@given(
    name=st.sampled_from(["short-words", "words", "zeros"]),
    changes=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_streams(name: str, changes: list[tuple[int, int]]) -> None:
    stream = bytearray(packed(name))
    for at, value in changes:
        stream[at % len(stream)] = value
    with contextlib.suppress(VolumeError):
        assert len(lzfse_decode(bytes(stream), len(PLAIN[name]))) == len(PLAIN[name])


@given(st.binary(max_size=60), st.integers(0, 5000))
def test_anything_as_lzvn(stream: bytes, size: int) -> None:
    out = bytearray(b"before")
    with contextlib.suppress(VolumeError):
        lzvn_decode(stream, out, size)
        assert len(out) == 6 + size


LZVN = lzvn_of(packed("short-words"))
OPCODES = {
    "literals": (b"\xe3abc", b"abc"),
    "many literals": (b"\xe0\x04" + b"x" * 20, b"x" * 20),
    "small distance": (b"\xe3abc\x00\x03", b"abcabc"),
    "literals and a match": (b"\x88\x02ab", b"ab" + b"abab"),
    "medium distance": (b"\xe3abc\xa0\x0c\x00", b"abcabc"),
    "medium with length": (b"\xe3abc\xa1\x0d\x00", b"abc" + b"abcabcab"),
    "large distance": (b"\xe3abc\x07\x03\x00", b"abcabc"),
    "previous distance": (b"\xe3abc\x00\x03\x46d", b"abcabc" + b"d" + b"bcd"),
    "only a match": (b"\xe3abc\x00\x03\xf4", b"abcabcabca"),
    "a long match": (b"\xe1a\x00\x01\xf0\x00", b"a" * 20),
    "nothing": (b"\x0e\x16\xe1a", b"a"),
    "overlap": (b"\xe1a\x38\x01", b"a" * 11),
}


@pytest.mark.parametrize("name", OPCODES)
def test_opcodes_of_lzvn(name: str) -> None:
    stream, plain = OPCODES[name]
    out = bytearray()
    lzvn_decode(stream + b"\x06" + bytes(7), out, len(plain))
    assert bytes(out) == plain


@pytest.mark.parametrize("first", [0x1E, 0x26, 0x70, 0x7F, 0xD0, 0xDF])
def test_what_is_no_opcode(first: int) -> None:
    with pytest.raises(VolumeError, match="no opcode"):
        lzvn_decode(b"\xe1a" + bytes([first]) + bytes(20), bytearray(), 100)


def header(kind: int, size: int, inline: bytes = b"") -> bytes:
    return b"fpmc" + struct.pack("<IQ", kind, size) + inline


def opened(raw: bytes, fork: bytes | None = None) -> Content:
    def open_fork() -> Content:
        assert fork is not None
        return BytesContent(fork)

    return open_compressed(parse_header(raw), open_fork)


def whole(content: Content) -> bytes:
    return content.read(0, content.size)


SHORT = PLAIN["short-words"]
INLINE = {
    "type 1": (1, SHORT),
    "type 3": (3, zlib.compress(SHORT)),
    "type 3, stored": (3, b"\xff" + SHORT),
    "type 7": (7, LZVN),
    "type 7, stored": (7, b"\x06" + SHORT),
    "type 9": (9, b"\xcc" + SHORT),
    "type 11": (11, packed("short-words")),
}


@pytest.mark.parametrize("name", INLINE)
def test_content_in_the_attribute(name: str) -> None:
    kind, data = INLINE[name]
    assert whole(opened(header(kind, len(SHORT), data))) == SHORT
    with pytest.raises(VolumeError):
        opened(header(kind, len(SHORT) + 1, data))


def zlib_fork(blocks: list[bytes]) -> bytes:
    places, at = b"", 4 + 8 * len(blocks)
    for block in blocks:
        places += struct.pack("<II", at, len(block))
        at += len(block)
    resource = struct.pack("<I", len(blocks)) + places + b"".join(blocks)
    return struct.pack(">IIII", 256, 260 + len(resource), len(resource), 50).ljust(256, b"\0") + (
        struct.pack(">I", len(resource)) + resource + bytes(50)
    )


def plain_fork(blocks: list[bytes]) -> bytes:
    starts = [4 * (len(blocks) + 1)]
    for block in blocks:
        starts.append(starts[-1] + len(block))
    return struct.pack(f"<{len(starts)}I", *starts) + b"".join(blocks)


THREE = words(5, 2 * BLOCK) + SHORT
PIECES = [THREE[:BLOCK], THREE[BLOCK : 2 * BLOCK], THREE[2 * BLOCK :]]
FORKS = {
    "type 4": (4, zlib_fork([zlib.compress(PIECES[0]), b"\xff" + PIECES[1], zlib.compress(PIECES[2])])),
    "type 8": (8, plain_fork([b"\x06" + PIECES[0], b"\x06" + PIECES[1], LZVN])),
    "type 10": (10, plain_fork([b"\xcc" + piece for piece in PIECES])),
    "type 12": (12, plain_fork([b"\xff" + PIECES[0], b"\xff" + PIECES[1], packed("short-words")])),
}


@pytest.mark.parametrize("name", FORKS)
def test_content_in_the_resource_fork(name: str) -> None:
    kind, fork = FORKS[name]
    content = opened(header(kind, len(THREE)), fork)
    assert whole(content) == THREE
    for start, size in ((0, 1), (BLOCK - 1, 2), (BLOCK, BLOCK), (len(THREE) - 1, 1), (BLOCK + 5, 0)):
        assert content.read(start, size) == THREE[start : start + size]
    assert [(extent.offset, extent.length) for extent in content.extents()] == [(0, len(THREE))]


@pytest.mark.parametrize("name", FORKS)
@pytest.mark.parametrize("size", [len(THREE) + BLOCK, BLOCK, len(THREE) - 1])
def test_a_fork_of_another_file(name: str, size: int) -> None:
    kind, fork = FORKS[name]
    with pytest.raises(VolumeError):
        whole(opened(header(kind, size), fork))


@given(name=st.sampled_from(sorted(FORKS)), at=st.integers(0, 300), word=st.integers(0, 2**32 - 1))
def test_damaged_forks(name: str, at: int, word: int) -> None:
    kind, fork = FORKS[name]
    damaged = bytearray(fork)
    struct.pack_into("<I", damaged, at, word)
    with contextlib.suppress(VolumeError):
        assert len(whole(opened(header(kind, len(THREE)), bytes(damaged)))) == len(THREE)


@pytest.mark.parametrize("kind", [0, 2, 5, 6, 13, 14, 99])
def test_other_kinds_are_refused_with_a_reason(kind: int) -> None:
    with pytest.raises(VolumeError, match="not supported"):
        opened(header(kind, 100), b"")


def test_hostile_sizes() -> None:
    for kind in (1, 3, 4, 7, 8, 9, 10, 11, 12):
        for size in (2**40, 2**62, 2**63 - 1):
            with pytest.raises(VolumeError):
                opened(header(kind, size), bytes(1000))
    with pytest.raises(VolumeError):
        parse_header(header(3, 2**63))
    with pytest.raises(VolumeError):
        parse_header(b"fpmc")
