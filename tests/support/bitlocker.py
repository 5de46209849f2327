"""Writes BitLocker volumes, sector by sector and word by word, from the published descriptions.

No tool of this machine makes them. What is written here was read by libbde, and gave the same bytes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from uuid import UUID

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM

from support.content import noise

KIB = 1 << 10
SECTOR = 512
GUID = UUID("4967d63b-2e29-4ad8-8399-f6a339e3d001").bytes_le
KEY_ID = bytes(range(16))
MASTER, EXTERNAL, VOLUME_KEY = noise(1, 32), noise(2, 32), noise(3, 64)
METHODS = {
    "aes-cbc-128-elephant": (0x8000, 16),
    "aes-cbc-256-elephant": (0x8001, 32),
    "aes-cbc-128": (0x8002, 16),
    "aes-cbc-256": (0x8003, 32),
    "aes-xts-128": (0x8004, 32),
    "aes-xts-256": (0x8005, 64),
}
KEY_SIZES = {0x8002: 16, 0x8003: 32, 0x8004: 32}
"""Of the keys that are not stored with 64 bytes."""
SIZE = 512 * KIB
BLOCKS = (128 * KIB, 256 * KIB, 384 * KIB)
HEADER_STORE, HEADER_SIZE = 200 * KIB, 8 * KIB


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume that was made: its bytes, and what they are when it is open."""

    stored: bytes
    plain: bytes


def make_volume(
    method: str = "aes-xts-128",
    *,
    clear: bool = True,
    vista: bool = False,
    to_go: bool = False,
    encrypted: int = 0,
) -> Volume:
    """Make a volume that a clear key opens, or else the startup key; ``encrypted``: up to where."""
    number, size = METHODS[method]
    area = 16 * KIB if vista else 64 * KIB
    plain = bytearray(noise(9, SIZE))
    plain[:SECTOR] = boot_sector(b"\xeb\x52\x90NTFS    ", vista=True, mirror=77)
    for start in BLOCKS:
        plain[start : start + area] = bytes(area)
    if not vista:
        plain[HEADER_STORE : HEADER_STORE + HEADER_SIZE] = bytes(HEADER_SIZE)
    stored = bytearray(plain)
    for at in range(0, encrypted or SIZE, SECTOR):
        stored[at : at + SECTOR] = encrypt_sector(method, size, bytes(plain[at : at + SECTOR]), at)
    if vista:
        stored[: 16 * SECTOR] = plain[: 16 * SECTOR]
        stored[:SECTOR] = boot_sector(b"\xeb\x52\x90-FVE-FS-", vista=True, mirror=BLOCKS[0] // 4096)
    else:
        for at in range(0, HEADER_SIZE, SECTOR):
            there = HEADER_STORE + at
            stored[there : there + SECTOR] = encrypt_sector(
                method, size, bytes(plain[at : at + SECTOR]), there
            )
        start = b"\xeb\x58\x90MSWIN4.1" if to_go else b"\xeb\x58\x90-FVE-FS-"
        stored[:SECTOR] = boot_sector(start, to_go=to_go)
    block = metadata(number, clear=clear, vista=vista, encrypted=encrypted or SIZE)
    for at in BLOCKS:
        stored[at : at + area] = block.ljust(area, b"\0")
    return Volume(bytes(stored), bytes(plain))


def boot_sector(start: bytes, *, vista: bool = False, to_go: bool = False, mirror: int = 0) -> bytes:
    sector = bytearray(SECTOR)
    sector[: len(start)] = start
    struct.pack_into("<HB", sector, 11, SECTOR, 8)
    if vista:
        sector[84:] = noise(4, SECTOR - 84)
        struct.pack_into("<QQQBxxxB", sector, 40, SIZE // SECTOR - 1, 4, mirror, 0xF6, 1)
    else:
        at = 424 if to_go else 160
        sector[at : at + 40] = GUID + struct.pack("<3Q", *BLOCKS)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def metadata(method: int, *, clear: bool, vista: bool, encrypted: int) -> bytes:
    """One of the three blocks, with its checksum behind it."""
    key = EXTERNAL
    properties = entry(0, 5, wrap(key, MASTER, 0x2003))
    if clear:
        properties = entry(0, 1, struct.pack("<I", 0x2002) + key) + properties
    protector = KEY_ID + bytes(10) + struct.pack("<H", 0 if clear else 0x0200) + properties
    volume_key = wrap(MASTER, VOLUME_KEY[: KEY_SIZES.get(method, 64)], method)
    entries = entry(2, 8, protector) + entry(3, 5, volume_key)
    if not vista:
        entries += entry(15, 15, struct.pack("<QQ", HEADER_STORE, HEADER_SIZE))
    size = 48 + len(entries)
    head = struct.pack("<IIII16sII8x", size, 1, 48, size, KEY_ID, 9, method)
    length = 64 + size
    length += -length % 16
    block = struct.pack(
        "<8sHHHHQII3QQ",
        *(
            b"-FVE-FS-",
            length if vista else length // 16,
            1 if vista else 2,
            4,
            4,
            0 if vista else encrypted,
            0,
        ),
        *(0 if vista else HEADER_SIZE // SECTOR, *BLOCKS, 77 if vista else HEADER_STORE),
    )
    whole = (block + head + entries).ljust(length, b"\0")
    return whole + struct.pack("<HHI", 8, 1, zlib.crc32(whole))


def startup_key() -> bytes:
    """A .BEK file for the volume."""
    external = KEY_ID + bytes(8) + entry(0, 1, struct.pack("<I", 0x2002) + EXTERNAL)
    body = entry(6, 9, external)
    size = 48 + len(body)
    return struct.pack("<IIII16sII8x", size, 1, 48, size, KEY_ID, 1, 0) + body


def entry(kind: int, value: int, data: bytes) -> bytes:
    return struct.pack("<HHHH", 8 + len(data), kind, value, 1) + data


def wrap(key: bytes, secret: bytes, method: int) -> bytes:
    nonce = noise(method, 12)
    container = struct.pack("<IHHI", 12 + len(secret), 1, 0, method) + secret
    sealed = AESCCM(key).encrypt(nonce, container, None)
    return nonce + sealed[-16:] + sealed[:-16]


def encrypt_sector(method: str, size: int, plain: bytes, offset: int) -> bytes:
    if "xts" in method:
        tweak = struct.pack("<QQ", offset // SECTOR, 0)
        return Cipher(algorithms.AES(VOLUME_KEY[:size]), modes.XTS(tweak)).encryptor().update(plain)
    key = algorithms.AES(VOLUME_KEY[:size])
    vector = Cipher(key, modes.ECB()).encryptor().update(struct.pack("<QQ", offset, 0))
    if "elephant" in method:
        plain = elephant(plain, VOLUME_KEY[32 : 32 + size], offset)
    return Cipher(key, modes.CBC(vector)).encryptor().update(plain)


def elephant(plain: bytes, tweak: bytes, offset: int) -> bytes:
    """The sector key and both diffusers, in the direction of encryption: Ferguson 2006, run backwards."""
    box = Cipher(algorithms.AES(tweak), modes.ECB())
    first, second = bytearray(struct.pack("<QQ", offset, 0)), bytearray(struct.pack("<QQ", offset, 0))
    second[15] = 0x80
    sector_key = box.encryptor().update(bytes(first)) + box.encryptor().update(bytes(second))
    words = list(struct.unpack("<128I", bytes(a ^ b for a, b in zip(plain, sector_key * 16, strict=True))))
    diffuse(words, (9, 0, 13, 0), 5, -2, -5)
    diffuse(words, (0, 10, 0, 25), 3, 2, 5)
    return struct.pack("<128I", *words)


def diffuse(words: list[int], rotations: tuple[int, ...], cycles: int, near: int, far: int) -> None:
    count = len(words)
    for _ in range(cycles):
        for index in reversed(range(count)):
            word, turns = words[(index + far) % count], rotations[index % 4]
            turned = (word << turns | word >> (32 - turns)) & 0xFFFFFFFF
            words[index] = (words[index] - (words[(index + near) % count] ^ turned)) & 0xFFFFFFFF
