"""The LZO decoder against the library that defines the format (liblzo2, which btrfs-progs brings)."""

from __future__ import annotations

import ctypes
import ctypes.util
import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageformat.errors import VolumeError
from mountfs.drivers import _lzo
from support.content import mixture, noise, text
from support.requirements import unavailable

WORK_SIZE = 1 << 19
COMPRESSORS = ("lzo1x_1_compress", "lzo1x_1_15_compress", "lzo1x_999_compress")
"""The last uses every instruction; the kernel's compressor is the first."""


@cache
def library() -> ctypes.CDLL:
    name = ctypes.util.find_library("lzo2")
    if name is None:
        unavailable("needs liblzo2 (package liblzo2-2)")
    return ctypes.CDLL(name)


def compress(compressor: str, data: bytes) -> bytes:
    packed = ctypes.create_string_buffer(len(data) + len(data) // 16 + 67)
    size = ctypes.c_size_t(len(packed))
    work = ctypes.create_string_buffer(WORK_SIZE)
    code = library()[compressor](data, ctypes.c_size_t(len(data)), packed, ctypes.byref(size), work)
    assert code == 0
    return packed.raw[: size.value]


def repeating(seed: int, size: int) -> bytes:
    """Pieces of what was before, from near and far, between new bytes: matches of every kind."""
    chance = random.Random(seed)
    out = bytearray(chance.randbytes(50))
    while len(out) < size:
        out += chance.randbytes(chance.choice([0, 1, 2, 3, 4, 5, 18, 19, 300]))
        distance = min(
            len(out), chance.choice([1, 3, 40, 1000, 1500, 2048, 2049, 2900, 16_384, 20_000, 49_000])
        )
        length = chance.choice([2, 3, 4, 8, 9, 33, 34, 300, 1000])
        start = len(out) - distance
        out += (out[start:] * (length // distance + 1))[:length]
    return bytes(out[:size])


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("size", [0, 1, 3, 4, 20, 4096, 131_072])
def test_what_the_library_packs_is_unpacked(compressor: str, size: int) -> None:
    samples = [text(1, size), noise(1, size), mixture(1, size), bytes(size)]
    for data in [*samples, *(repeating(seed, size) for seed in range(5))]:
        packed = compress(compressor, data)
        assert _lzo.decompress(packed, size) == data
        if size:
            with pytest.raises(VolumeError):
                _lzo.decompress(packed, size - 1)
            with pytest.raises(VolumeError):
                _lzo.decompress(packed[:-1], size)


@settings(max_examples=150)
@given(
    st.sampled_from(COMPRESSORS), st.lists(st.sampled_from([b"a", b"bc", b"def", noise(1, 40)]), max_size=300)
)
def test_any_words_are_unpacked(compressor: str, words: list[bytes]) -> None:
    data = b"".join(words)
    assert _lzo.decompress(compress(compressor, data), len(data)) == data
