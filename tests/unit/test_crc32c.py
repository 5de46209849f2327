"""CRC-32C against the vectors of RFC 3720 and the definition, one bit at a time."""

from __future__ import annotations

import random

import pytest

from mountfs.drivers._crc32c import crc32c


def by_definition(data: bytes, start: int = 0) -> int:
    register = start ^ 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_vectors(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def test_every_length_of_a_structure() -> None:
    data = random.Random(1).randbytes(70_000)
    lengths = [
        *range(200),
        255,
        256,
        512,
        1000,
        1024,
        2048,
        4096,
        8192,
        16_384,
        32_768,
        65_535,
        65_536,
        70_000,
    ]
    for length in lengths:
        assert crc32c(data[:length]) == by_definition(data[:length]), length


def test_a_checksum_goes_on_where_another_ended() -> None:
    data = random.Random(2).randbytes(5000)
    for cut in (0, 1, 3, 4, 17, 4096, 5000):
        assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)
