"""CRC-32C against published values, and against the definition taken bit by bit."""

from __future__ import annotations

import random

import pytest

from imageformat.crc32c import crc32c

PUBLISHED = [
    (b"", 0),
    (b"123456789", 0xE306_9283),
    (bytes(32), 0x8A91_36AA),
    (b"\xff" * 32, 0x62A8_AB43),
    (bytes(range(32)), 0x46DD_794E),
    (bytes(reversed(range(32))), 0x113F_DB5C),
]
"""RFC 3720, appendix B.4, and the check value of the catalogue of CRC algorithms."""


def bit_by_bit(data: bytes) -> int:
    register = 0xFFFF_FFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F6_3B78 if register & 1 else 0)
    return register ^ 0xFFFF_FFFF


@pytest.mark.parametrize(("data", "value"), PUBLISHED)
def test_published_values(data: bytes, value: int) -> None:
    assert crc32c(data) == value


@pytest.mark.parametrize("length", [*range(70), 4095, 4096, 4097, 8192, 16352])
def test_every_length_is_what_the_definition_says(length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert crc32c(data) == crc32c(memoryview(data)) == bit_by_bit(data)


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 4096, 5000, 9999])
def test_a_checksum_can_be_continued(cut: int) -> None:
    data = random.Random(cut).randbytes(9999)
    assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)
